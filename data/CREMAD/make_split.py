"""CREMA-D: split the clips that have audio and frames into train.csv and test.csv, rows `<id>,<emotion>`.

The split is stratified by emotion, or with --by_actor no actor is in both lists. The authors' lists of 6,698 and 744
clips have the same names: use them instead if you have them.
"""

import random
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.extraction import add_folder, dataset_parser, outputs_of
from dataset.audio_visual import check_folder
from dataset.cremad import CREMAD
from utils.config import at_least, ratio
from utils.errors import InputError, run_script
from utils.files import write_files


def parse_id(clip_id):
    """Return (actor, emotion) of the id '<actor>_<sentence>_<emotion>_<level>'; raise InputError for another form."""
    parts = clip_id.split("_")
    if len(parts) != 4 or parts[2] not in CREMAD.classes:
        raise InputError(
            f"{clip_id}: not a CREMA-D clip, '<actor>_<sentence>_<emotion>_<level>' with emotion one of "
            f"{', '.join(CREMAD.classes)}; move it out of the folder"
        )
    return parts[0], parts[2]


def group_by(clips, part):
    """Return {actor or emotion: sorted ids} of {id: (actor, emotion)}; `part`: 0 or 1."""
    groups = defaultdict(list)
    for clip_id in sorted(clips):
        groups[clips[clip_id][part]].append(clip_id)
    return groups


def split_by_emotion(clips, test_ratio, rng):
    """Draw the ids of the test set: the share `test_ratio` of every emotion, at least one clip and not all.

    Args:
        clips: {id: (actor, emotion)}.

    Raises:
        InputError: an emotion with a single clip.
    """
    groups, test = group_by(clips, 1), set()
    for emotion, ids in sorted(groups.items()):
        if len(ids) < 2:
            raise InputError(f"{ids[0]}: the only clip of {emotion}; two are needed for a split, add more")
        count = min(max(round(test_ratio * len(ids)), 1), len(ids) - 1)
        test.update(rng.sample(ids, count))
    return test


def split_by_actor(clips, test_ratio, rng):
    """Draw the ids of the test set: all clips of as many actors as needed, but not of all actors.

    Raises:
        InputError: fewer than two actors.
    """
    groups, test = group_by(clips, 0), set()
    if len(groups) < 2:
        raise InputError("--by_actor needs clips of two actors at least; leave the flag out or add clips")
    for actor in rng.sample(sorted(groups), len(groups) - 1):
        if len(test) >= test_ratio * len(clips):
            break
        test.update(groups[actor])
    return test


def main():
    parser = dataset_parser("Write CREMA-D's train.csv and test.csv from the clips present.", CREMAD.root)
    add_folder(parser, "split_path", CREMAD.split_path)
    words = "folder of the frames, if video_preprocessing.py was run with --target (default: --root)"
    parser.add_argument("--target", type=Path, metavar="DIR", help=words)
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="seed of the split (default: 0)")
    parser.add_argument("--test_ratio", type=ratio, default=0.1, metavar="R", help="share of test clips (default: 0.1)")
    parser.add_argument(
        "--by_actor",
        action="store_true",
        help="put all clips of an actor into one list, instead of stratifying by emotion",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing lists")
    args = parser.parse_args()

    audio = Path(CREMAD.audio_path.format(root=args.root))
    frames = Path(CREMAD.visual_path.format(root=outputs_of(args)), CREMAD().frames("", "", fps=1))
    check_folder(audio, "--root", "get it as described in data/CREMAD/README.md")
    check_folder(frames, "--target" if args.target else "--root", "run video_preprocessing.py first")
    wavs = {path.stem for path in audio.glob("*.wav") if not path.name.startswith(".")}
    folders = {path.name for path in frames.iterdir() if not path.name.startswith(".")}
    clips = {clip_id: parse_id(clip_id) for clip_id in wavs & folders}
    if not clips:
        raise InputError(f"{args.root}: no clip with both audio and frames; run video_preprocessing.py first")

    rng = random.Random(args.seed)
    split = split_by_actor if args.by_actor else split_by_emotion
    test = split(clips, args.test_ratio, rng)
    lists = {args.split_path / "train.csv": clips.keys() - test, args.split_path / "test.csv": test}
    texts = {path: "".join(f"{each},{clips[each][1]}\n" for each in sorted(ids)) for path, ids in lists.items()}
    write_files({path: text.encode() for path, text in texts.items()}, args.overwrite)
    for path, ids in lists.items():
        print(f"{path}: {len(ids)} clips")
    if len(wavs ^ folders):
        print(f"{len(wavs ^ folders)} clips left out because audio or frames are missing")


if __name__ == "__main__":
    run_script(main)

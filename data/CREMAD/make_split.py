"""CREMA-D: split the clips that are present into train.csv and test.csv, rows `<id>,<emotion>` without a header.

    python data/CREMAD/make_split.py [--root train_test_data/CREMA-D] [--target DIR] [--split_path data/CREMAD]
           [--seed 0] [--test_ratio 0.1] [--by_actor] [--overwrite]

Stratified by emotion, or with --by_actor no actor on both sides. The authors' own lists of 6,698 and 744 clips go
under the same names instead; lists that are there are kept, unless with --overwrite.
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
from utils.errors import InputError, run
from utils.files import holding_others, write_text


def parse_id(clip_id):
    """'<actor>_<sentence>_<emotion>_<level>' -> (actor, emotion).

    Raises:
        InputError: another form, or an unknown emotion.
    """
    parts = clip_id.split("_")
    if len(parts) != 4 or parts[2] not in CREMAD.classes:
        raise InputError(
            f"{clip_id}: not a CREMA-D clip, '<actor>_<sentence>_<emotion>_<level>' with emotion one of "
            f"{', '.join(CREMAD.classes)}; move it out of the folder"
        )
    return parts[0], parts[2]


def split_by_emotion(clips, test_ratio, rng):
    """The ids of the test set: of every emotion the share `test_ratio`, at least one clip and not all.

    Args:
        clips: {id: (actor, emotion)}.

    Raises:
        InputError: an emotion with a single clip.
    """
    groups = defaultdict(list)
    for clip_id, (_, emotion) in sorted(clips.items()):
        groups[emotion].append(clip_id)
    test = set()
    for emotion, ids in sorted(groups.items()):
        if len(ids) < 2:
            raise InputError(f"{ids[0]}: the only clip of {emotion}; two are needed for a split, add more")
        count = min(max(round(test_ratio * len(ids)), 1), len(ids) - 1)
        test.update(rng.sample(ids, count))
    return test


def split_by_actor(clips, test_ratio, rng):
    """The ids of the test set: all clips of actors drawn until the share `test_ratio` is reached, one actor kept out.

    Raises:
        InputError: fewer than two actors.
    """
    groups = defaultdict(list)
    for clip_id, (actor, _) in sorted(clips.items()):
        groups[actor].append(clip_id)
    if len(groups) < 2:
        raise InputError("--by_actor needs clips of two actors at least; leave the flag out or add clips")
    actors = rng.sample(sorted(groups), len(groups) - 1)
    test = set()
    for actor in actors:
        if len(test) >= test_ratio * len(clips):
            break
        test.update(groups[actor])
    return test


def main():
    parser = dataset_parser("Write CREMA-D's train.csv and test.csv from the clips present.", CREMAD.root)
    add_folder(parser, "split_path", CREMAD.split_path)
    add_folder(parser, "target")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="(default: 0)")
    parser.add_argument("--test_ratio", type=ratio, default=0.1, metavar="R", help="share of test clips (default: 0.1)")
    parser.add_argument("--by_actor", action="store_true", help="no actor on both sides, instead of stratified")
    parser.add_argument("--overwrite", action="store_true", help="replace other lists that are there")
    args = parser.parse_args()

    audio = Path(CREMAD.audio_path.format(root=args.root))
    frames = Path(CREMAD.visual_path.format(root=outputs_of(args)), CREMAD().frames("", "", fps=1))
    check_folder(audio, "--root", "get it as data/CREMAD/README.md says")
    check_folder(frames, "--root", "run video_preprocessing.py first")
    wavs = {path.stem for path in audio.glob("*.wav") if not path.name.startswith(".")}
    folders = {path.name for path in frames.iterdir() if not path.name.startswith(".")}
    clips = {clip_id: parse_id(clip_id) for clip_id in wavs & folders}
    if not clips:
        raise InputError(f"{args.root}: no clip with both audio and frames; run video_preprocessing.py first")

    rng = random.Random(args.seed)
    split = split_by_actor if args.by_actor else split_by_emotion
    test = split(clips, args.test_ratio, rng)
    try:
        args.split_path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{args.split_path}: {error.strerror}; choose another --split_path") from None
    lists = {args.split_path / "train.csv": clips.keys() - test, args.split_path / "test.csv": test}
    texts = {path: "".join(f"{each},{clips[each][1]}\n" for each in sorted(ids)) for path, ids in lists.items()}
    others = holding_others({path: text.encode() for path, text in texts.items()})
    if others and not args.overwrite:
        raise InputError(f"{others[0]}: another list is there; move it away, or replace it with --overwrite")
    for path, text in texts.items():
        write_text(path, text)
        print(f"{path}: {len(lists[path])} clips")
    if len(wavs ^ folders):
        print(f"{len(wavs ^ folders)} clips left out because audio or frames are missing")


if __name__ == "__main__":
    run(main)

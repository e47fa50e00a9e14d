"""VGGSound: video/<id>.mp4 -> audio/{train,test}-audios/{train,test}-set/<id>.wav, 16 kHz.

    python data/VGGSound/mp4_to_wav.py [--root train_test_data/vggsound] [--split_path data/VGGSound]
           [--target DIR] [--workers N]

<id> = <youtube id>_<start, 6 digits>, from the rows of vggsound.csv; those without a video are counted as missing. Runs
in parallel and continues where it stopped.
Clips that fail, also truncated and damaged ones, are listed in failed_sound.csv; --keep_damaged takes what
there is of those.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.extraction import extract_all_sound, find_videos, outputs_of
from data.flags import add_split_path, add_target, extraction_parser
from data.lists import read_vggsound, vggsound_aliases
from utils.errors import run


def main():
    parser = extraction_parser("Extract the sound of VGGSound.", "train_test_data/vggsound")
    add_split_path(parser, "data/VGGSound")
    add_target(parser)
    args = parser.parse_args()
    splits = {clip_id: split for clip_id, _, split in read_vggsound(args.split_path / "vggsound.csv")}
    videos, missing = find_videos(args.root / "video", splits, vggsound_aliases)
    jobs, target = {}, outputs_of(args) / "audio"
    for clip_id, video in videos:
        split = splits[clip_id]
        jobs[video.name] = (video, target / f"{split}-audios" / f"{split}-set" / f"{clip_id}.wav")
    extract_all_sound(jobs, target, args, missing)


if __name__ == "__main__":
    run(main)

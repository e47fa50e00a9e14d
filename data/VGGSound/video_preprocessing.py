"""VGGSound: video/<id>.mp4 -> video/{train,test}-set-img/Image-01-FPS/<id>.mp4/<frame index>.jpg, one frame a second.

    python data/VGGSound/video_preprocessing.py [--root train_test_data/vggsound] [--split_path data/VGGSound]
           [--target DIR] [--fps 1] [--min_frames 3] [--workers N]

<id> = <youtube id>_<start, 6 digits>, from the rows of vggsound.csv; those without a video are counted as missing. Runs
in parallel and continues where it stopped.
Clips that fail, also truncated and damaged ones, are listed in failed_frames.csv; --keep_damaged takes what
there is of those.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.extraction import extract_all_frames, find_videos, outputs_of
from data.flags import add_split_path, add_target, extraction_parser
from data.lists import read_vggsound, vggsound_aliases
from utils.errors import run


def main():
    parser = extraction_parser("Extract frames of VGGSound.", "train_test_data/vggsound", min_frames=3)
    add_split_path(parser, "data/VGGSound")
    add_target(parser)
    args = parser.parse_args()
    splits = {clip_id: split for clip_id, _, split in read_vggsound(args.split_path / "vggsound.csv")}
    jobs, target = {}, outputs_of(args) / "video"
    videos, missing = find_videos(args.root / "video", splits, vggsound_aliases)
    for clip_id, video in videos:
        folder = target / f"{splits[clip_id]}-set-img" / f"Image-{args.fps:02d}-FPS" / f"{clip_id}.mp4"
        jobs[video.name] = (video, folder)
    extract_all_frames(jobs, target, args, missing)


if __name__ == "__main__":
    run(main)

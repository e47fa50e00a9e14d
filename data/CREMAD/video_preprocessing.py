"""CREMA-D: VideoFlash/<id>.flv -> Image-01-FPS/<id>/<frame index>.jpg, one frame a second.

    python data/CREMAD/video_preprocessing.py [--root train_test_data/CREMA-D] [--target DIR]
           [--fps 1] [--min_frames 1] [--workers N]

Runs in parallel and continues where it stopped.
Clips that fail, also truncated and damaged ones, are listed in failed_frames.csv; --keep_damaged takes what
there is of those.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.extraction import extract_all_frames, list_videos, outputs_of
from data.flags import add_target, extraction_parser
from utils.errors import run


def main():
    parser = extraction_parser("Extract frames of CREMA-D.", "train_test_data/CREMA-D", min_frames=1)
    add_target(parser)
    args = parser.parse_args()
    source, target = args.root / "VideoFlash", outputs_of(args) / f"Image-{args.fps:02d}-FPS"
    jobs = {video.name: (video, target / video.stem) for video in list_videos(source, "--root")}
    extract_all_frames(jobs, target, args)


if __name__ == "__main__":
    run(main)

"""Kinetics-400: {train,val}/<class>/<video>.mp4 -> one JPEG a second in a folder per video.

    python data/kinect400/video_preprocessing.py [--source train_test_data/kinect400/raw]
           [--root train_test_data/kinect400] [--fps 1] [--min_frames 3] [--workers N]

Into visual/{train_img,val_img}/Image-01-FPS/<class>/<video>/<frame index>.jpg. Spaces in the names of class folders
become underscores. Runs in parallel and continues where it stopped.
Clips that fail, also truncated and damaged ones, are listed in <root>/failed_frames.csv; --keep_damaged takes what
there is of those.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.extraction import extract_all_frames, find_class_videos
from data.flags import add_kinetics_source, extraction_parser
from utils.errors import run

FOLDERS = {"train": "train_img", "test": "val_img"}


def main():
    parser = extraction_parser("Extract frames of Kinetics-400.", "train_test_data/kinect400", min_frames=3)
    add_kinetics_source(parser)
    args = parser.parse_args()
    jobs, target = {}, args.root / "visual"
    for split, name, video in find_class_videos(args.source):
        folder = target / FOLDERS[split] / f"Image-{args.fps:02d}-FPS" / name / video.stem
        jobs[f"{split}/{name}/{video.name}"] = (video, folder)
    extract_all_frames(jobs, target, args)


if __name__ == "__main__":
    run(main)

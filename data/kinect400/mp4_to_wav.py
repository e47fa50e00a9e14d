"""Kinetics-400: {train,val}/<class>/<video>.mp4 -> audio/{train,test}/<class>/<video>.wav, 16 kHz.

    python data/kinect400/mp4_to_wav.py [--source train_test_data/kinect400/raw]
           [--root train_test_data/kinect400] [--workers N]

Spaces in the names of class folders become underscores. Runs in parallel and continues where it stopped.
Clips that fail, also truncated and damaged ones, are listed in <root>/failed_sound.csv; --keep_damaged takes what
there is of those.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.extraction import extract_all_sound, find_class_videos
from data.flags import add_kinetics_source, extraction_parser
from utils.errors import run


def main():
    parser = extraction_parser("Extract the sound of Kinetics-400.", "train_test_data/kinect400")
    add_kinetics_source(parser)
    args = parser.parse_args()
    jobs, target = {}, args.root / "audio"
    for split, name, video in find_class_videos(args.source):
        jobs[f"{split}/{name}/{video.name}"] = (video, target / split / name / f"{video.stem}.wav")
    extract_all_sound(jobs, target, args)


if __name__ == "__main__":
    run(main)

"""Kinetics-Sounds: {train,val}/<class>/<video>.mp4 -> audio/{train,test}/<class>/<video>.wav, 16 kHz.

    python data/KineticSound/mp4_to_wav.py [--source train_test_data/kinect400/raw]
           [--root train_test_data/kinect_sound] [--workers N]

Keeps the classes of class.txt; spaces in the names of class folders become underscores. Runs in parallel and continues
where it stopped.
Clips that fail, also truncated and damaged ones, are listed in <root>/failed_sound.csv; --keep_damaged takes what
there is of those.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.extraction import extract_all_sound, find_class_videos
from data.flags import add_kinetics_source, extraction_parser
from data.lists import read_classes
from utils.errors import run


def main():
    parser = extraction_parser(
        "Extract the sound of Kinetics-Sounds out of Kinetics-400.", "train_test_data/kinect_sound"
    )
    add_kinetics_source(parser)
    args = parser.parse_args()
    jobs, target = {}, args.root / "audio"
    classes = read_classes(Path(__file__).with_name("class.txt"))
    for split, name, video in find_class_videos(args.source, classes):
        jobs[f"{split}/{name}/{video.name}"] = (video, target / split / name / f"{video.stem}.wav")
    extract_all_sound(jobs, target, args)


if __name__ == "__main__":
    run(main)

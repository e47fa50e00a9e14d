"""Kinetics-400: {train,val}/<class>/<video>.mp4 -> one JPEG a second in a folder per video.

    python data/kinect400/video_preprocessing.py [--source train_test_data/kinect400/raw]
           [--root train_test_data/kinect400] [--fps 1] [--min_frames 3] [--workers N]

Into visual/{train_img,val_img}/Image-01-FPS/<class>/<video>/<frame index>.jpg. Spaces in the names of class folders
become underscores.
Runs in parallel; the same command again continues. Clips that fail, also truncated and damaged ones, are listed in
failed_frames.csv; --keep_damaged keeps their decodable part.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.extraction import extract_dataset
from utils.errors import run

if __name__ == "__main__":
    run(lambda: extract_dataset("kinect400", ["frames"]))

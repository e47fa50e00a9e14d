"""Kinetics-400: {train,val}/<class>/<video>.mp4 -> audio/{train,test}/<class>/<video>.wav, 16 kHz.

    python data/kinect400/mp4_to_wav.py [--source train_test_data/kinect400/raw]
           [--root train_test_data/kinect400] [--workers N]

Spaces in the names of class folders become underscores.
Runs in parallel; the same command again continues. Clips that fail, also truncated and damaged ones, are listed in
failed_audio.csv; --keep_damaged keeps their decodable part.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.extraction import extract_dataset
from utils.errors import run

if __name__ == "__main__":
    run(lambda: extract_dataset("kinect400", ["audio"]))

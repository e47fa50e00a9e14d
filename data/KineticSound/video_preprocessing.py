"""Kinetics-Sounds: {train,val}/<class>/<video>.mp4 -> visual/{train_img,val_img}/Image-01-FPS/<class>/<video>/*.jpg."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.extraction import extract_dataset
from utils.errors import run_script

if __name__ == "__main__":
    run_script(lambda: extract_dataset("KineticSound", ["frames"]))

"""VGGSound: video/<id>.mp4 -> audio/{train,test}-audios/{train,test}-set/<id>.wav, 16 kHz."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.extraction import extract_dataset
from utils.errors import run_script

if __name__ == "__main__":
    run_script(lambda: extract_dataset("VGGSound", ["audio"]))

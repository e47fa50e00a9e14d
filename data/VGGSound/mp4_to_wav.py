"""VGGSound: video/<id>.mp4 -> audio/{train,test}-audios/{train,test}-set/<id>.wav, 16 kHz.

    python data/VGGSound/mp4_to_wav.py [--root train_test_data/vggsound] [--split_path data/VGGSound]
           [--target DIR] [--workers N]

<id> = <youtube id>_<start, 6 digits>, from the rows of vggsound.csv; ids without a video are counted as missing.
Runs in parallel; the same command again continues. Clips that fail, also truncated and damaged ones, are listed in
failed_audio.csv; --keep_damaged keeps their decodable part.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.extraction import extract_dataset
from utils.errors import run

if __name__ == "__main__":
    run(lambda: extract_dataset("VGGSound", ["audio"]))

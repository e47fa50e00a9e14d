"""VGGSound: video/<id>.mp4 -> video/{train,test}-set-img/Image-01-FPS/<id>.mp4/<frame index>.jpg, one frame a second.

    python data/VGGSound/video_preprocessing.py [--root train_test_data/vggsound] [--split_path data/VGGSound]
           [--target DIR] [--fps 1] [--min_frames 3] [--workers N]

<id> = <youtube id>_<start, 6 digits>, from the rows of vggsound.csv; ids without a video are counted as missing.
Runs in parallel; the same command again continues. Clips that fail, also truncated and damaged ones, are listed in
failed_frames.csv; --keep_damaged keeps their decodable part.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.extraction import extract_dataset
from utils.errors import run

if __name__ == "__main__":
    run(lambda: extract_dataset("VGGSound", ["frames"]))

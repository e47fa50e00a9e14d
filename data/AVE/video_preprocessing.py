"""AVE: AVE/<id>.mp4 -> Image-01-FPS-SE/<id>/<frame index>.jpg, one frame a second.

    python data/AVE/video_preprocessing.py [--root train_test_data/AVE_Dataset] [--target DIR]
           [--fps 1] [--min_frames 1] [--workers N]

<id> from trainSet.txt, valSet.txt and testSet.txt in <root>; ids without a video are counted as missing.
Runs in parallel; the same command again continues. Clips that fail, also truncated and damaged ones, are listed in
failed_frames.csv; --keep_damaged keeps their decodable part.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.extraction import extract_dataset
from utils.errors import run

if __name__ == "__main__":
    run(lambda: extract_dataset("AVE", ["frames"]))

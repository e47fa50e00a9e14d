"""Your own videos: audio and frames of <root>/{train,test}/<class>/<video>, or of <root>/<class>/<video>.

    python data/Folder/extract.py [--root train_test_data/my_videos] [--target DIR] [--fps 1] [--min_frames 1]
           [--workers N]

Into <root>/.extracted: audio/<path of the video>.wav, 16 kHz, and Image-01-FPS/<path of the video>/<frame index>.jpg,
one frame a second. Runs in parallel; the same command again continues. Videos that fail, such as those without audio
and truncated or damaged ones, are listed in failed_audio.csv and failed_frames.csv; --keep_damaged keeps their
decodable part.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.extraction import extract_dataset
from utils.errors import run

if __name__ == "__main__":
    run(lambda: extract_dataset("Folder", ["audio", "frames"]))

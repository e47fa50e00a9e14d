"""Run video_preprocessing.py, under the name that the authors' README has."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("video_preprocessing.py")), run_name="__main__")

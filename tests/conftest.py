"""What the tests share: the project's folder, a way to run its scripts, and a small corpus made by the demo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import run

ROOT = Path(__file__).resolve().parents[1]


def run_script(script, *arguments, check=True):
    """Run a script of the project as a user would, from its folder. Returns the finished process."""
    command = [sys.executable, script, *map(str, arguments)]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def run_here(script, *arguments):
    """Run a script's main in this process, which spares the imports; a refusal raises SystemExit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        run(script.main)


def data_flags(root):
    return ["--audio_path", root / "AudioWAV", "--visual_path", root, "--split_path", root]


SMALL = ["--image_size", 32, "--batch_size", 8, "--num_workers", 1]


@pytest.fixture(scope="session")
def raw_corpus(tmp_path_factory):
    """24 clips in CREMA-D's raw form: VideoFlash and AudioWAV."""
    root = tmp_path_factory.mktemp("corpus") / "CREMA-D"
    run_script("data/demo/make_clips.py", "--root", root, "--clips_per_class", 4)
    return root


@pytest.fixture(scope="session")
def corpus(raw_corpus):
    """The same with frames extracted and split, 18 clips to train and 6 to test; not to be changed by a test."""
    run_script("data/CREMAD/video_preprocessing.py", "--root", raw_corpus)
    run_script("data/CREMAD/make_split.py", "--root", raw_corpus, "--split_path", raw_corpus, "--test_ratio", 0.25)
    return raw_corpus


@pytest.fixture(scope="session")
def trained(corpus, tmp_path_factory):
    """A run of two epochs on the corpus: (its checkpoint folder, the training process)."""
    folder = tmp_path_factory.mktemp("ckpt")
    flags = ["--epochs", 2, "--lr_decay_step", "[1]", "--learning_rate", 0.01, "--ckpt_path", folder]
    return folder, run_script("main_dgl.py", "--train", *data_flags(corpus), *SMALL, *flags)

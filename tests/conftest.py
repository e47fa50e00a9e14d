"""What the tests share: the project's folder, a way to run its scripts, and a small corpus made by the demo."""

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from torch import nn

from methods import build_method, resolve
from models import basic_model
from utils.errors import run
from utils.results.settings import training_parser

ROOT = Path(__file__).resolve().parents[1]


def run_script(script, *arguments, check=True, folder=ROOT):
    """Run a script of the project as a user would, from the project's folder. Returns the finished process."""
    command = [sys.executable, script, *map(str, arguments)]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def run_here(script, *arguments):
    """Run a script's main in this process, which spares the imports; a refusal raises SystemExit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        run(script.main)


def run_shell(script, *arguments):
    """Run a shell script of the project, with the Python that runs the tests. Returns the finished process."""
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    command = ["bash", ROOT / script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done


def settings_of(*flags):
    """The settings that flags of main_dgl.py make."""
    return Namespace(**resolve(vars(training_parser().parse_args([*map(str, flags)]))))


def method_of(model, *flags):
    """The training rule that flags of main_dgl.py choose, for a model that is as it begins."""
    return build_method(settings_of(*flags), model)


def ffmpeg(*arguments, data=None):
    """Run the packaged FFmpeg, `data` on its input. Returns its output."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def write_video(path, greys, rate=10, codec="libx264", tone=None):
    """A video of plain pictures, 64 x 48, of the grey values `greys`, with AAC sound of `tone` Hz if one is given."""
    pictures = np.repeat(np.asarray(greys, np.uint8), 64 * 48 * 3)
    flags = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-r", rate, "-i", "-"]
    if tone:
        sine = f"sine=frequency={tone}:sample_rate=44100:duration={len(greys) / rate}"
        flags += ["-f", "lavfi", "-i", sine, "-c:a", "aac", "-ac", 2]
    flags += ["-c:v", codec, "-q:v", 2, "-pix_fmt", "yuv420p", f"file:{path}"]
    path.parent.mkdir(parents=True, exist_ok=True)
    ffmpeg(*flags, data=pictures.tobytes())


def data_flags(root):
    paths = ["--audio_path", root / "AudioWAV", "--visual_path", root, "--split_path", root]
    return [*paths, "--cache_path", root / ".cache"]


SMALL = ["--image_size", 32, "--batch_size", 8, "--num_workers", 1]


class SmallEncoder(nn.Sequential):
    """In ResNet-18's place where its weights are of no matter: (B, in_channels, H, W) -> (B, 512, h, w)."""

    def __init__(self, in_channels):
        first = nn.Conv2d(in_channels, 8, 5, stride=4, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        super().__init__(*first, nn.Conv2d(8, 512, 3, stride=2, bias=False), nn.BatchNorm2d(512), nn.ReLU())


def make_small(patch):
    """Small encoders, and no pictures, which would take longer than a run."""
    patch.setattr(basic_model, "ResNet18", SmallEncoder)
    for name in ("confusion_figures", "curves_figure", "save_figure"):
        patch.setattr(f"utils.results.figures.{name}", lambda *_: None)


@pytest.fixture
def small(monkeypatch):
    """`make_small` for a test's runs in this process."""
    make_small(monkeypatch)


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

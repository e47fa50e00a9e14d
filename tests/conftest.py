"""What the tests share: ways to run the project's scripts, and a small corpus that the demo creates."""

import json
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import imageio_ffmpeg
import librosa
import numpy as np
import pytest
from filelock import FileLock
from matplotlib.figure import Figure
from torch import nn

import main_dgl
from engine.settings import complete, training_parser
from methods import build_method
from models.backbone import BACKBONES
from tests import launcher
from utils.errors import run_script

ROOT = Path(__file__).resolve().parents[1]

# ignored in the background, where tests may run: the runs that they start would ignore them too
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def run_fork(script, *arguments, check=True, folder=ROOT, environment=None):
    """Run a script as a user would, but in a fork that is spared the imports of packages (tests/launcher.py)."""
    command = [script, *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        status = launcher.start(command, folder, environment or os.environ, output, errors).wait()
        for file in (output, errors):
            file.seek(0)
        done = subprocess.CompletedProcess(command, status, output.read(), errors.read())
    assert not check or done.returncode == 0, done.stderr
    return done


def run_here(script, *arguments):
    """Run a script, a module with `main` or a path, in this process; an error of the input raises SystemExit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(getattr(script, "__name__", script)), *map(str, arguments)])
        if isinstance(script, str):
            runpy.run_path(str(ROOT / script), run_name="__main__")
        else:
            run_script(script.main)


def run_shell(script, /, *arguments, project=ROOT, check=True, folder=None, **changes):
    """Run a shell script with the Python that runs the tests on its PATH. Returns the finished process.

    Args:
        changes: of the environment.
    """
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"} | changes
    command, pipes = ["bash", project / script, *map(str, arguments)], {"capture_output": True, "text": True}
    done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, **pipes)
    assert not check or done.returncode == 0, done.stderr
    return done


def wait_for(condition, process=None, pause=0.05):
    """Wait until a condition holds, for two minutes at most, and as long as the process runs."""
    deadline = time.monotonic() + 120
    while not condition() and (process is None or process.poll() is None) and time.monotonic() < deadline:
        time.sleep(pause)
    assert condition(), "it did not come to that"


def processes_of(folder):
    """Return the numbers of the processes that work in a folder, or whose command line names it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if os.readlink(path / "cwd") == str(folder) or os.fsencode(folder) in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def contents(folder):
    """Return {path in a folder: content} of all files below it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def settings_of(*flags):
    """Return the settings that flags of main_dgl.py stand for."""
    return complete(vars(training_parser().parse_args([*map(str, flags)])))


def method_of(model, *flags):
    """Return the method that flags of main_dgl.py choose, for an untrained model."""
    return build_method(settings_of(*flags), model)


def ffmpeg(*arguments, data=None):
    """Run the packaged FFmpeg, `data` on its input. Returns its output."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def write_video(path, greys, rate=10, codec="libx264", tone=None):
    """Write a video of plain frames, 64 x 48, of the grey values `greys`, with AAC audio of `tone` Hz if given."""
    frames = np.repeat(np.asarray(greys, np.uint8), 64 * 48 * 3)
    flags = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-r", rate, "-i", "-"]
    if tone:
        sine = f"sine=frequency={tone}:sample_rate=44100:duration={len(greys) / rate}"
        flags += ["-f", "lavfi", "-i", sine, "-c:a", "aac", "-ac", 2]
    path.parent.mkdir(parents=True, exist_ok=True)
    ffmpeg(*flags, "-c:v", codec, "-q:v", 2, "-pix_fmt", "yuv420p", f"file:{path}", data=frames.tobytes())


def data_flags(root):
    paths = ["--audio_path", root / "AudioWAV", "--visual_path", root, "--split_path", root]
    return [*paths, "--cache_path", root / ".cache"]


SMALL = ["--image_size", 32, "--batch_size", 8, "--num_workers", 1]
TWO_EPOCHS = ["--epochs", 2, "--lr_decay_step", "[1]", "--learning_rate", 0.01]


def train(root, folder, *flags):
    """Train into a folder, in this process, on a corpus: small images and batches."""
    run_here(main_dgl, "--train", *data_flags(root), *SMALL, "--ckpt_path", folder, *flags)


class SmallEncoder(nn.Sequential):
    """A replacement of ResNet-18 where its weights do not matter: (B, in_channels, H, W) -> (B, 512, h, w)."""

    dim = 512

    def __init__(self, in_channels):
        first = nn.Conv2d(in_channels, 8, 5, stride=4, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        super().__init__(*first, nn.Conv2d(8, self.dim, 3, stride=2, bias=False), nn.BatchNorm2d(self.dim), nn.ReLU())


class NarrowEncoder(SmallEncoder):
    """For bilinear fusion, which takes a gigabyte in float64 of features as wide as ResNet-18's."""

    dim = 64


@pytest.fixture
def small_encoders(monkeypatch):
    monkeypatch.setitem(BACKBONES, "resnet18", SmallEncoder)


def make_small(patch):
    """Use small encoders, and draw no figures of a run, which would take longer than the run."""
    patch.setitem(BACKBONES, "resnet18", SmallEncoder)
    patch.setattr("engine.log.confusion_figure", lambda *_: Figure(figsize=(1, 1)))  # for TensorBoard
    for name in ("curves_figure", "save_figure"):
        patch.setattr(f"engine.log.{name}", lambda *_: None)


@pytest.fixture
def small(monkeypatch):
    """Apply `make_small` to a test's runs in this process."""
    make_small(monkeypatch)


@pytest.fixture(scope="session")
def forking(tmp_path_factory):
    """Return the project with a .venv whose interpreter runs every script in a fork: for its shell scripts."""
    folder = tmp_path_factory.mktemp("project")
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv"):
            (folder / path.name).symlink_to(path)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    real = f'[ "$1" != -c ] || exec {shlex.quote(sys.executable)} "$@"'
    export = f"export {launcher.PYTHON}={shlex.quote(str(python))}"
    python.write_text(f'#!/bin/sh\n{real}\n{export}\nexec {shlex.join(launcher.interpreter())} "$@"\n')
    python.chmod(0o755)
    (folder / ".venv" / "requirements.txt").symlink_to(ROOT / "requirements.txt")
    return folder


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Return `make(name, write)`: a folder that all processes of the tests share, written by the first that asks."""
    folder = tmp_path_factory.getbasetemp()
    common = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    def shared(name, make):
        with FileLock(common / f"{name}.lock"):
            if not (common / f"{name}.made").exists():
                (common / name).mkdir()
                make(common / name)
                (common / f"{name}.made").touch()
        return common / name

    return shared


@pytest.fixture(scope="session")
def raw_corpus(once):
    """Return 24 clips in CREMA-D's raw form: VideoFlash and AudioWAV."""
    librosa.resample(np.ones(8, np.float32), orig_sr=1, target_sr=2)  # imported here, not by each process that decodes
    make = ["data/demo/make_clips.py", "--clips_per_class", 4, "--root"]
    return once("raw", lambda folder: run_fork(*make, folder / "CREMA-D")) / "CREMA-D"


@pytest.fixture(scope="session")
def corpus(raw_corpus, once):
    """Return the same with frames extracted and split, 18 clips to train and 6 to test; not to be changed by a test."""

    def make(folder):
        shutil.copytree(raw_corpus, folder / "CREMA-D")
        flags = ["--root", folder / "CREMA-D"]
        run_fork("data/CREMAD/video_preprocessing.py", *flags)
        run_fork("data/CREMAD/make_split.py", *flags, "--split_path", folder / "CREMA-D", "--test_ratio", 0.25)

    return once("corpus", make) / "CREMA-D"


@pytest.fixture
def moved(corpus, tmp_path):
    """Return a copy of the corpus, to be changed, without a cache."""
    return shutil.copytree(corpus, tmp_path / "moved", ignore=shutil.ignore_patterns(".cache"))


@pytest.fixture(scope="session")
def few(corpus, tmp_path_factory):
    """Return a third of the corpus: a clip of every class to train on and two to test; not to be changed by a test."""
    root = tmp_path_factory.mktemp("few")
    for name in ("train", "test"):
        rows = (corpus / f"{name}.csv").read_text().splitlines(keepends=True)
        (root / f"{name}.csv").write_text("".join(rows[::3]))
    for name in ("AudioWAV", "Image-01-FPS"):
        (root / name).symlink_to(corpus / name)
    return root


@pytest.fixture(scope="session")
def trained(corpus, once):
    """Return the folder of a run of two epochs on the corpus, not to be changed by a test, and what it printed."""

    def make(folder):
        flags = [*data_flags(corpus), *SMALL, *TWO_EPOCHS, "--ckpt_path", folder / "run"]
        (folder / "output").write_text(run_fork("main_dgl.py", "--train", *flags).stdout)

    folder = once("trained", make)
    return folder / "run", (folder / "output").read_text()


@pytest.fixture(scope="session")
def whole(corpus, tmp_path_factory):
    """Return the folder of the same run with small encoders, not to be changed by a test."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        train(corpus, folder, *TWO_EPOCHS)
    return folder


@pytest.fixture
def output_of(capsys):
    """Run a script in this process and return what it printed to stdout."""

    def call(script, *arguments):
        capsys.readouterr()
        run_here(script, *arguments)
        return capsys.readouterr().out

    return call


@pytest.fixture
def rejected(capsys):
    """Run a script in this process, which must end with status 2 and one line on stderr, and return that line."""

    def call(script, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_here(script, *arguments)
        error = capsys.readouterr().err
        assert end.value.code == 2 and len(error.splitlines()) == 1 and "Traceback" not in error, error
        return error

    return call


def rows_of(run):
    """Return the rows of a run's log.jsonl, one per epoch."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]

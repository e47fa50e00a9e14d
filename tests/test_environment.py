"""Check what machines, launchers, shells and users do to the scripts: one test for each kind of trouble."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch

import main_dgl
from analysis import comparison
from data.CREMAD import make_split
from data.media import extract_frames
from dataset.base import list_frames
from dataset.lists import read_ave, read_split
from engine import provenance
from models.weights import load_checkpoint
from tests.conftest import ROOT, SMALL, data_flags, run_here, run_shell, write_video
from utils import files
from utils.errors import InputError, OneLineParser, known_reason, warn_once


def started(code, **changes):
    """Run Python code in an interpreter of its own, in the project's folder. Returns its output."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")} | changes
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_figures_are_the_same_whatever_the_settings_of_matplotlib():
    """Set a backend as in a notebook, and a file of settings that is not text."""
    code = "import engine.figures, matplotlib as m; print(m.get_backend(), m.rcParams['figure.dpi'])"
    changes = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": "/proc/self/exe"}
    assert started(code, **changes) == "agg 100.0"


@pytest.mark.parametrize("given", [{"RANK": "1"}, {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}])
def test_half_of_a_launchers_variables_is_one_process(given):
    code = "import os, utils; print(sum(name in os.environ for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')))"
    assert started(code, **given) == "0"
    others = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert started(code, **given | others) == str(len({*given, "WORLD_SIZE"}))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_without_a_home_packages_get_a_folder_of_this_user():
    """Run as in a container that is started as another user: /root is no home for the user 12345."""
    code = "import os, utils; print(os.environ.get('NUMBA_CACHE_DIR'))"
    become = "import os; os.setgid(12345); os.setuid(12345); "
    with tempfile.TemporaryDirectory() as temporary:  # pytest's own folders are closed to other users
        os.chmod(temporary, 0o777)
        act = f"import utils; {become}utils.give_packages_a_folder(); {code}"
        assert started(act, HOME="/", TMPDIR=temporary) == f"{temporary}/dgl-12345/numba_cache_dir"
        assert os.stat(f"{temporary}/dgl-12345").st_mode & 0o777 == 0o700
        assert started(code, HOME=temporary) == "None"
        assert started(act, HOME="", TMPDIR=temporary) == f"{temporary}/dgl-12345/numba_cache_dir"


def test_a_file_name_that_is_not_utf8_does_not_end_a_run(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, "config", "core.quotepath", "false"], check=True)
    (tmp_path / "engine").mkdir()
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w"):
        pass
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "engine" / "provenance.py"))
    assert provenance.changes() == ["caf�.txt"]


def test_rows_that_repeat_are_left_out_or_rejected_where_they_differ(tmp_path, capsys):
    """Check that several events of a video of AVE are kept."""
    warn_once.cache_clear()
    path, of_ave = tmp_path / "train.csv", tmp_path / "trainSet.txt"
    path.write_text("a,ANG\nb,SAD\na,ANG\na,ANG\n")
    assert read_split(path, ("ANG", "SAD")) == [("a", 0), ("b", 1)]
    assert capsys.readouterr().err == f"warning: {path}: 2 repeated row(s) are left out\n"
    path.write_text("a,ANG\nb,SAD\na,SAD\n")
    with pytest.raises(InputError, match=f"{path}, line 1 and line 3: a has two classes or splits"):
        read_split(path, ("ANG", "SAD"))
    of_ave.write_text("Church bell&a&good&0&5\nBanjo&b&good&0&9\nBanjo&a&good&5&9\n")
    assert read_ave(of_ave) == [("a", "Church bell"), ("b", "Banjo"), ("a", "Banjo")]
    assert capsys.readouterr().err.startswith(f"warning: {of_ave}: 1 row(s) name a video that another row names too")


def test_other_lists_are_kept(moved, rejected):
    flags = ["--root", moved, "--split_path", moved]
    run_here(make_split, *flags, "--test_ratio", 0.25)  # its own, as they are
    (moved / "test.csv").write_text("1001_DFA_ANG_XX,ANG\n")
    before = (moved / "train.csv").read_text()
    assert "--overwrite" in rejected(make_split, *flags, "--seed", 3)
    assert (moved / "test.csv").read_text() == "1001_DFA_ANG_XX,ANG\n" and (moved / "train.csv").read_text() == before
    run_here(make_split, *flags, "--seed", 3, "--overwrite")
    assert (moved / "train.csv").read_text() != before


def test_a_home_folder_is_expanded_in_every_form(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parser = OneLineParser()
    parser.add_argument("--root")
    parser.add_argument("--split_path")
    args = parser.parse_args(["--root=~/a=b", "--split_path", "~/lists"])
    assert (args.root, args.split_path) == ("/home/me/a=b", "/home/me/lists")


def test_an_output_folder_on_another_disk(tmp_path, monkeypatch):
    """Check that, though renaming fails across disks, the file is whole or not there, and nothing else is left."""
    real = files.Path.rename

    def rename(path, target):
        if path.parent != target.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return real(path, target)

    monkeypatch.setattr(files.Path, "rename", rename)
    (tmp_path / "unfinished").mkdir()
    for _ in range(2):
        with files.move_when_complete(tmp_path / "disk" / "clip", tmp_path / "unfinished") as path:
            path.mkdir()
            (path / "00000.jpg").write_text("frame")
        assert (tmp_path / "disk" / "clip" / "00000.jpg").read_text() == "frame"
        assert [*os.listdir(tmp_path / "disk"), *os.listdir(tmp_path / "unfinished")] == ["clip"]
        shutil.rmtree(tmp_path / "disk" / "clip")


@pytest.mark.parametrize("kind", ["numpy 2", "numpy 1", "state dict"])
def test_checkpoints_as_others_write_them(tmp_path, kind):
    weights, path = {"audio_net.conv1.weight": torch.rand(2, 3)}, tmp_path / "other.pth"
    whole = {"model": weights, "settings": {"alpha": 4.0}, "epoch": 2}
    changed, epoch = {
        "numpy 2": (whole | {"epoch": np.int64(3), "accuracy": np.float32(0.5)}, 3),
        "numpy 1": (whole | {"epoch": np.int64(3)}, 3),
        "state dict": ({f"module.{key}": value for key, value in weights.items()}, None),
    }[kind]
    torch.save(changed, path, _use_new_zipfile_serialization=kind != "numpy 1")
    if kind == "numpy 1":  # which has its scalars in a module of another name
        content = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        assert b"numpy.core.multiarray" in content
        path.write_bytes(content)
    read = load_checkpoint(path)
    assert read["epoch"] == epoch and read["model"].keys() == weights.keys()
    assert all(torch.equal(read["model"][key], value) for key, value in weights.items())


def test_the_reason_is_the_operating_systems(tmp_path, monkeypatch):
    """Check that permissions are reported as such. The error is simulated, because root may read everything."""
    (tmp_path / "best.pth").write_bytes(b"")
    (tmp_path / "train.csv").write_text("a,ANG\n")
    real = open

    def denied(path, *rest, **more):
        if str(path).startswith(str(tmp_path)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr("builtins.open", denied)
    for act in (lambda: load_checkpoint(tmp_path / "best.pth"), lambda: read_split(tmp_path / "train.csv", ("ANG",))):
        with pytest.raises(InputError, match=r": Permission denied; make it readable"):
            act()


def test_folders_whose_names_are_not_utf8(few, tmp_path, small, capsys, output_of):
    root = tmp_path / "caf\udce9"
    shutil.copytree(few, root, symlinks=True)
    flags = ["--train", *data_flags(root), *SMALL, "--epochs", 1, "--ckpt_path", root / "run"]
    run_here(main_dgl, *flags)
    capsys.readouterr()
    run_here(main_dgl, *flags)
    assert "this run is finished" in capsys.readouterr().out
    assert "| DGL | 4 | 1 | best |" in output_of(comparison, root / "run")
    video = tmp_path / "a.mp4"
    write_video(video, [90] * 30)
    assert extract_frames(video, root / "frames", root) == "done" and len(list_frames(root / "frames")) == 3


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "log.jsonl"), "log.jsonl: no space"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "smaller --batch_size"),
        (MemoryError(), "smaller --batch_size"),
    ],
)
def test_full_disks_and_memory_have_a_known_reason(fault, words):
    assert words in known_reason(fault)


def test_a_number_of_processes_that_is_none(forking):
    done = run_shell("mosi_dgl.sh", project=forking, check=False, processes="x")
    assert done.returncode == 2 and done.stderr == "error: processes=x: not a whole number of at least 1; change it\n"

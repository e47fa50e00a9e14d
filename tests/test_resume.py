"""Runs that are interrupted, killed or broken: resumed to the very bits, saved whole or not at all, one to a folder."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import main_dgl
from engine import checkpoint
from methods import joint
from models.weights import load_checkpoint
from tests import torture
from tests.conftest import ROOT, SMALL, data_flags, make_small, run_here, start_quietly
from tests.torture import assert_same_run
from utils import files
from utils.errors import InputError

TRAINED = ["--epochs", 2, "--lr_decay_step", "[1]", "--learning_rate", 0.01]


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The folder of a run of two epochs with small encoders, which nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        run_here(main_dgl, "--train", *data_flags(corpus), *SMALL, *TRAINED, "--ckpt_path", folder)
    return folder


def interrupt_at(monkeypatch, name, call, action):
    """Replace a function of main_dgl by one that does `action` before its `call`-th call, counted from 0."""
    function, calls = getattr(main_dgl, name), []

    def replacement(*arguments, **keywords):
        calls.append(None)
        if len(calls) == call + 1:
            action()
        return function(*arguments, **keywords)

    monkeypatch.setattr(main_dgl, name, replacement)


@pytest.mark.parametrize(
    ("name", "call", "number", "epochs"),
    [
        ("dgl_step", 1, signal.SIGTERM, 0),
        ("dgl_step", 3, signal.SIGINT, 1),
        ("evaluate_epoch", 1, signal.SIGHUP, 1),
        ("save_epoch", 1, signal.SIGUSR1, 1),
    ],
)
def test_an_interrupted_run_resumes_at_the_epoch_to_the_very_bits(
    whole, corpus, tmp_path, small, capsys, monkeypatch, name, call, number, epochs
):
    command = ["--train", *data_flags(corpus), *SMALL, *TRAINED, "--num_workers", 0, "--ckpt_path", tmp_path / "run"]
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        interrupt_at(patch, name, call, lambda: os.kill(os.getpid(), number))
        run_here(main_dgl, *command)
    assert end.value.code == 128 + number
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and number.name in error and "same command to resume" in error
    assert signal.getsignal(signal.SIGINT) is handler  # handed back
    if epochs:
        assert len(load_checkpoint(tmp_path / "run" / "last.pth")["log"]) == epochs
    else:
        assert not (tmp_path / "run" / "last.pth").exists()
    run_here(main_dgl, *command)
    assert_same_run(whole, tmp_path / "run")


def test_a_signal_to_the_whole_group_stops_readers_too(few, tmp_path):
    """As a terminal or a cluster sends it: workers leave it to the main process, and end with it."""
    command = [
        sys.executable,
        "main_dgl.py",
        "--train",
        *data_flags(few),
        *SMALL,
        "--batch_size",
        6,
        "--num_workers",
        2,
    ]
    command += ["--epochs", 1000, "--ckpt_path", tmp_path]
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not (tmp_path / "last.pth").exists():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=120)  # would wait for ever
    assert process.returncode == 128 + signal.SIGTERM and len(error.splitlines()) == 1 and "to resume" in error


BUSY = """
import time, main_dgl
from dataset import loader
from utils.errors import run
ignore, begin = loader.ignore_signals, loader.Loader.__iter__
def late(number):
    time.sleep(3)
    ignore(number)
def busy(self):
    iterator = begin(self)
    open(r"{}", "w").close()
    sum(range(10**8))  # seconds in which Python calls no signal handler
    return iterator
loader.ignore_signals, loader.Loader.__iter__ = late, busy
run(main_dgl.main)
"""


def test_a_signal_that_meets_workers_before_they_ignore_it(few, tmp_path):
    """They would end by it, and a main process that is busy would report them instead of the signal."""
    command = [sys.executable, "-c", BUSY.format(tmp_path / "begun"), "--train", *data_flags(few), *SMALL]
    command += ["--batch_size", 6, "--num_workers", 2, "--ckpt_path", tmp_path / "run"]
    files = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, start_new_session=True, **files)
    while process.poll() is None and not (tmp_path / "begun").exists():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM and len(error.splitlines()) == 1, error


def test_a_fault_ends_the_run_readers_and_all(few, tmp_path):
    code = "import main_dgl\nfrom utils.errors import run\ndef fault(*_, **__): raise RuntimeError('of ours')\n"
    code += "main_dgl.dgl_step = fault\nrun(main_dgl.main)\n"
    flags = ["--train", *data_flags(few), *SMALL, "--num_workers", 2, "--ckpt_path", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, flags)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and done.stderr.rstrip().endswith("RuntimeError: of ours")


def test_a_resumed_run_may_be_longer_and_elsewhere_but_not_another(whole, corpus, tmp_path, small, capsys):
    copy = tmp_path / "run"
    shutil.copytree(whole, copy)
    moved = tmp_path / "moved"
    shutil.copytree(corpus, moved)
    command = ["--train", *data_flags(moved), *SMALL, *TRAINED, "--ckpt_path", copy]
    before = (copy / "last.pth").read_bytes()
    for flags, words in (
        (["--alpha", 5], ["--alpha 5.0", "4.0", "--overwrite"]),
        (["--resume", "--alpha", 5], ["--alpha 5.0", "4.0"]),
        (["--resume", "--optimizer", "Adam"], ["--optimizer Adam", "sgd"]),
        (["--resume", "--fusion_method", "gated"], ["--fusion_method gated", "concat"]),
        (["--resume", "--lr_decay_step", "[2]"], ["--lr_decay_step"]),
    ):
        with pytest.raises(SystemExit) as end:
            run_here(main_dgl, *command, *flags)
        error = capsys.readouterr().err
        assert end.value.code == 2 and len(error.splitlines()) == 1 and all(word in error for word in words), error
    assert (copy / "last.pth").read_bytes() == before
    run_here(main_dgl, *command, "--resume", "--epochs", 3, "--num_workers", 0)
    rows = [json.loads(line) for line in (copy / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    first = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert rows[:2] == first


def test_killed_runs_resume_to_the_very_bits(few, tmp_path, capsys, monkeypatch):
    """The torture script, short: a kill, with the rule that draws noise, on a few of the clips."""
    flags = ["--method", "ogm_ge", "--batch_size", "6"]
    monkeypatch.setattr(torture, "start", start_quietly)
    run_here(torture, few, tmp_path, "--kills", "1", *flags)
    output = capsys.readouterr().out
    assert "1 kills" in output and "the same run" in output and " 0 of them" not in output


def test_one_run_to_a_folder(whole, corpus, capsys, monkeypatch):
    monkeypatch.setattr(files, "LOCK_SECONDS", 0)
    with files.exclusive(whole, "--ckpt_path"), pytest.raises(SystemExit) as end:
        run_here(main_dgl, "--train", "--resume", *data_flags(corpus), *SMALL, *TRAINED, "--ckpt_path", whole)
    assert end.value.code == 2 and "another run" in capsys.readouterr().err
    with files.exclusive(whole, "--ckpt_path"):
        pass  # free again


def spoilt(step, number, spoil):
    """Return a training step whose call `number`, counted from 0, is spoilt by `spoil(model, outputs) -> outputs`."""
    calls = []

    def replacement(model, *arguments, **keywords):
        calls.append(None)
        outputs = step(model, *arguments, **keywords)
        return spoil(model, outputs) if len(calls) == number + 1 else outputs

    return replacement


def infinite_gradient(model, outputs):
    model.fusion_module.fc_out.weight.grad[0, 0] = float("inf")
    return outputs


def spoilt_loss(branch, factor):
    """Return a function that multiplies the loss of a branch."""

    def spoil(model, outputs):
        return outputs | {branch: outputs[branch]._replace(loss=outputs[branch].loss * factor)}

    return spoil


@pytest.mark.parametrize(
    ("method", "module", "number", "spoil", "where"),
    [
        ("dgl", main_dgl, 3, spoilt_loss("fused", float("nan")), "epoch 1, step 1:"),
        ("dgl", main_dgl, 3, infinite_gradient, "epoch 1, step 1:"),
        ("joint", joint, 2, spoilt_loss("visual", float("inf")), "epoch 1, step 0:"),
    ],
    ids=["loss", "gradient of an epoch's last step", "visual loss"],
)
def test_what_is_not_finite_stops_the_run(
    corpus, tmp_path, small, capsys, monkeypatch, method, module, number, spoil, where
):
    name = f"{method}_step"
    monkeypatch.setattr(module, name, spoilt(getattr(module, name), number, spoil))
    command = ["--train", "--method", method, *data_flags(corpus), *SMALL, *TRAINED, "--ckpt_path", tmp_path / "run"]
    with pytest.raises(SystemExit) as end:
        run_here(main_dgl, *command, "--num_workers", 0)
    error = capsys.readouterr().err
    assert end.value.code == 2 and len(error.splitlines()) == 1
    assert where in error and error.count("_XX") == 8  # the clips of the step
    saved = load_checkpoint(tmp_path / "run" / "last.pth")
    assert len(saved["log"]) == 1  # of the epoch before
    assert all(value.isfinite().all() for value in saved["model"].values())


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    """The file may not grow beyond a megabyte, as on a full disk."""
    path = tmp_path / "last.pth"
    checkpoint.save(path, torch.nn.Linear(2, 2), {"alpha": 4.0})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(InputError, match=r"last\.pth: cannot be written \(File too large\)"):
            checkpoint.save(path, torch.nn.Linear(2000, 2000), {"alpha": 4.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["last.pth"]
    assert load_checkpoint(path)["settings"] == {"alpha": 4.0}

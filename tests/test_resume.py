"""Runs that are interrupted, killed or broken: resumed to the very bits, saved whole or not at all, one to a folder."""

import io
import json
import os
import resource
import shutil
import signal
import threading
from contextlib import closing, contextmanager
from functools import partial

import pytest
import torch

import main_dgl
from engine import checkpoint
from methods import joint
from models.weights import load_checkpoint
from tests import launcher, torture
from tests.conftest import SMALL, TWO_EPOCHS, data_flags, rows_of, run_here
from tests.torture import assert_same_run
from utils import files
from utils.errors import InputError, Interrupted


def command(corpus, folder, *flags):
    return ["--train", *data_flags(corpus), *SMALL, *TWO_EPOCHS, "--ckpt_path", folder, *flags]


def interrupt_at(monkeypatch, name, call, action):
    """Replace a function of main_dgl by one that does `action` before its `call`-th call, counted from 0."""
    function, calls = getattr(main_dgl, name), []

    def replacement(*arguments, **keywords):
        calls.append(None)
        if len(calls) == call + 1:
            action()
        return function(*arguments, **keywords)

    monkeypatch.setattr(main_dgl, name, replacement)


@contextmanager
def interrupted(name, call, number=signal.SIGTERM, epoch=0):
    """Expect a run that a signal ends, before the `call`-th call of a function of main_dgl since an epoch began.

    Calls and epochs are counted from 0.
    """
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        signalled = partial(interrupt_at, patch, name, call, lambda: os.kill(os.getpid(), number))
        interrupt_at(patch, "train_epoch", epoch, signalled)
        yield
    assert end.value.code == 128 + number


INTERRUPTIONS = [("dgl_step", 1, signal.SIGTERM, 0), ("dgl_step", 3, signal.SIGINT, 1)]
INTERRUPTIONS += [("evaluate_epoch", 1, signal.SIGHUP, 1), ("save_epoch", 1, signal.SIGUSR1, 1)]


@pytest.mark.parametrize(("name", "call", "number", "epochs"), INTERRUPTIONS)
def test_an_interrupted_run_resumes_to_the_very_bits(
    whole, corpus, tmp_path, small, capsys, name, call, number, epochs
):
    """Resume without the worker that the uninterrupted run had, and with a flag typed in another form."""
    flags = command(corpus, tmp_path / "run", "--num_workers", 0, "--lr_decay_step", "1")
    handler = signal.getsignal(signal.SIGINT)
    with interrupted(name, call, number):
        run_here(main_dgl, *flags)
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and number.name in error and "same command to resume" in error
    assert signal.getsignal(signal.SIGINT) is handler  # handed back
    last = tmp_path / "run" / "last.pth"
    assert (len(load_checkpoint(last)["log"]) if last.exists() else 0) == epochs
    run_here(main_dgl, *flags)
    assert_same_run(whole, tmp_path / "run")


def test_a_resumed_run_may_be_longer_and_elsewhere_but_not_another(whole, moved, tmp_path, small, rejected):
    copy = shutil.copytree(whole, tmp_path / "run")
    before = (copy / "last.pth").read_bytes()
    for flags, words in (
        ("--alpha 5", ["--alpha 5.0", "4.0", "--overwrite"]),
        ("--resume --alpha 5", ["--alpha 5.0", "4.0"]),
        ("--resume --optimizer Adam", ["--optimizer Adam", "sgd"]),
        ("--resume --fusion_method gated", ["--fusion_method gated", "concat"]),
        ("--resume --lr_decay_step [2]", ["--lr_decay_step"]),
    ):
        error = rejected(main_dgl, *command(moved, copy, *flags.split()))
        assert all(word in error for word in words), error
    assert (copy / "last.pth").read_bytes() == before
    run_here(main_dgl, *command(moved, copy, "--resume", "--epochs", 3, "--num_workers", 0))
    rows = rows_of(copy)
    assert [row["epoch"] for row in rows] == [0, 1, 2] and rows[:2] == rows_of(whole)


SLOW_DISK = """
import os, sys, time
sys.path[0] = {!r}
os.fsync = lambda _: time.sleep(0.2)
import main_dgl
from utils.errors import run_script
run_script(main_dgl.main)
"""


def test_killed_runs_resume_to_the_very_bits(few, tmp_path, output_of, monkeypatch):
    """Run the torture script with one kill, which strikes while a checkpoint is written, and noise in the method."""
    (tmp_path / "slow.py").write_text(SLOW_DISK.format(str(torture.ROOT)))
    monkeypatch.setattr(torture, "start", lambda command: launcher.start([tmp_path / "slow.py", *command[1:]]))
    monkeypatch.setenv(launcher.SMALL, "1")
    output = output_of(torture, few, tmp_path / "out", "--kills", 1, "--batch_size", 6, "--method", "ogm_ge")
    assert "1 kills, 1 of them" in output and "the same run" in output


def test_one_run_to_a_folder(whole, corpus, rejected, monkeypatch):
    monkeypatch.setattr(files, "LOCK_SECONDS", 0)
    with files.lock_folder(whole, "--ckpt_path"):
        assert "another run" in rejected(main_dgl, *command(corpus, whole, "--resume"))
    with files.lock_folder(whole, "--ckpt_path"):
        pass  # free again


def infinite_gradient(model, outputs):
    model.fusion_module.fc_out.weight.grad[0, 0] = float("inf")
    return outputs


def loss_times(branch, factor):
    """Return a function that multiplies the loss of a branch."""
    return lambda _, outputs: outputs | {branch: outputs[branch]._replace(loss=outputs[branch].loss * factor)}


@pytest.mark.parametrize(
    ("method", "module", "number", "change", "where"),
    [
        ("dgl", main_dgl, 3, loss_times("fused", float("nan")), "epoch 1, step 1:"),
        ("dgl", main_dgl, 3, infinite_gradient, "epoch 1, step 1:"),
        ("joint", joint, 2, loss_times("visual", float("inf")), "epoch 1, step 0:"),
    ],
    ids=["loss", "gradient of an epoch's last step", "visual loss"],
)
def test_what_is_not_finite_stops_the_run(
    corpus, tmp_path, small, rejected, monkeypatch, method, module, number, change, where
):
    step, calls = getattr(module, f"{method}_step"), []

    def changed_step(model, *arguments, **keywords):
        calls.append(None)
        outputs = step(model, *arguments, **keywords)
        return change(model, outputs) if len(calls) == number + 1 else outputs

    monkeypatch.setattr(module, f"{method}_step", changed_step)
    error = rejected(main_dgl, *command(corpus, tmp_path / "run", "--method", method, "--num_workers", 0))
    assert where in error and error.count("_XX") == 8  # the clips of the step
    saved = load_checkpoint(tmp_path / "run" / "last.pth")
    assert len(saved["log"]) == 1  # of the epoch before
    assert all(value.isfinite().all() for value in saved["model"].values())


def test_a_run_that_diverges_in_its_only_step_is_not_saved(corpus, tmp_path, small, rejected):
    flags = ["--epochs", 1, "--batch_size", 18, "--learning_rate", 1e18, "--num_workers", 0]
    error = rejected(main_dgl, *command(corpus, tmp_path, *flags))
    assert "not finite" in error and not (tmp_path / "best.pth").exists()


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    """Limit the file to a megabyte, as on a full disk."""
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


class FileOfASignal(io.BytesIO):
    """A file that a signal interrupts as it is written."""

    def write(self, content):
        if self.tell() > 1000:
            raise Interrupted(signal.SIGTERM)
        return super().write(content)


def test_a_signal_while_a_checkpoint_is_written_stays_a_signal(tmp_path, monkeypatch):
    """Check that the error of PyTorch's writer is not reported as a fault of the disk."""
    monkeypatch.setattr(checkpoint, "replace_file", lambda path: closing(FileOfASignal()))
    with pytest.raises(Interrupted) as interruption:
        checkpoint.save(tmp_path / "last.pth", torch.nn.Linear(200, 200), {})
    assert interruption.value.number == signal.SIGTERM


def test_after_an_interruption_the_advice_leaves_out_overwrite(corpus, tmp_path, small, capsys):
    flags = command(corpus, tmp_path / "run", "--overwrite")
    with interrupted("dgl_step", 0, epoch=1):
        run_here(main_dgl, *flags)
    assert "run the same command without --overwrite to resume" in capsys.readouterr().err
    run_here(main_dgl, *[flag for flag in flags if flag != "--overwrite"])
    assert "resuming in epoch 1" in capsys.readouterr().out


def test_best_is_written_after_last_and_again_when_the_run_resumes(corpus, tmp_path, small, rejected, monkeypatch):
    """Fail between the two files of the first epoch, as on a full disk."""
    flags, save = command(corpus, tmp_path / "run"), checkpoint.save

    def failing(path, *arguments, **state):
        if str(path).endswith("best.pth"):
            raise checkpoint.InputError("no room")
        save(path, *arguments, **state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", failing)
        assert "no room" in rejected(main_dgl, *flags)
    assert (tmp_path / "run" / "last.pth").exists()
    run_here(main_dgl, *flags)
    best = max(rows_of(tmp_path / "run"), key=lambda row: row["fused"])["epoch"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["best"]["epoch"] == best
    assert load_checkpoint(tmp_path / "run" / "best.pth")["epoch"] == best


def test_a_run_is_not_resumed_with_other_test_clips(few, tmp_path, small, rejected):
    lists = shutil.copytree(few, tmp_path / "lists", symlinks=True)
    flags = ["--train", *data_flags(few), *SMALL, "--batch_size", 6]
    flags += ["--split_path", lists, "--ckpt_path", tmp_path / "run"]
    run_here(main_dgl, *flags, "--epochs", 1)
    rows = (lists / "test.csv").read_text().splitlines(keepends=True)
    (lists / "test.csv").write_text(rows[0])
    run_here(main_dgl, *flags, "--epochs", 1)  # it is finished
    assert "evaluated on other clips, 2 were listed then, 1 now" in rejected(main_dgl, *flags, "--epochs", 2)


def test_resume_without_a_run_is_a_warning(few, tmp_path, small, capsys):
    run_here(main_dgl, "--train", *data_flags(few), *SMALL, "--epochs", 1, "--resume", "--ckpt_path", tmp_path / "run")
    assert f"warning: --resume: no run in {tmp_path / 'run'}" in capsys.readouterr().err


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    files.write_json(tmp_path / "pipe", {"fused": 0.5})
    reader.join(timeout=20)
    assert json.loads(read[0]) == {"fused": 0.5} and (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_locked_folder_may_be_removed(tmp_path):
    with files.lock_folder(tmp_path / "run", "--ckpt_path"):
        shutil.rmtree(tmp_path / "run")
    assert not (tmp_path / "run").exists()

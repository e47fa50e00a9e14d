"""Several processes: the parameters of one process on the same batches, and every test clip once."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from subprocess import PIPE, Popen

import pytest

import valid
from dataset import DATASETS
from models.weights import load_checkpoint
from tests import launcher
from tests.conftest import ROOT, SMALL, data_flags, rows_of, run_fork, run_here, wait_for
from tests.distributed_runs import RUNS, train_all
from tests.rules import write_teachers

LAUNCH, ENVIRONMENT = ["-m", "engine.launch"], os.environ | {"OMP_NUM_THREADS": "1"}
TWO = [*LAUNCH, "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """Train RUNS in both ways, on 18 clips, tested on 5 that two processes cannot share evenly.

    The two are started on a machine whose name does not resolve, as in some containers, where that can be done.
    """
    folder = tmp_path_factory.mktemp("distributed")
    shutil.copytree(corpus, folder / "corpus", ignore=shutil.ignore_patterns(".cache"))
    listed = (corpus / "test.csv").read_text().splitlines()
    (folder / "corpus" / "test.csv").write_text("\n".join(listed[:5]) + "\n")
    write_teachers(folder / "corpus", classes=DATASETS["CREMAD"].classes, n_classes=6)
    command = [sys.executable, *TWO, "tests/distributed_runs.py", folder / "corpus", folder / "two"]
    if shutil.which("unshare") and not subprocess.run(["unshare", "-u", "true"], capture_output=True).returncode:
        command = ["unshare", "-u", "sh", "-c", 'hostname no-such-host.invalid; exec "$@"', "sh", *command]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith("training on ")]) == len(RUNS), done.stdout
    train_all(folder / "corpus", folder / "one")
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_reach_the_parameters_of_one(runs, name):
    one, two = (load_checkpoint(runs / folder / name / "last.pth")["model"] for folder in ("one", "two"))
    for key, value in one.items():
        if value.is_floating_point():
            error = (two[key] - value).norm() / value.norm().clamp(min=1e-12)
            assert error < 1e-5, f"{key}: {error:.2e}"
    for alone, shared in zip(rows_of(runs / "one" / name), rows_of(runs / "two" / name), strict=True):
        assert "--agm_clip" not in name or alone["gradient_norm"] == pytest.approx(1)  # all steps are clipped
        suppression = {key for key in alone if key.startswith("suppression_")}
        assert len(suppression) == 6 * ("--log_suppression" in name)
        sums = {"val_loss", "relearn_audio", "relearn_visual", *suppression} & alone.keys()
        for key in {"loss", "loss_audio", "loss_visual", "gradient_norm"} | sums:
            assert shared[key] == pytest.approx(alone[key], rel=1e-6), key
        for key in ("train_fused", "train_audio", "train_visual", "fused", "audio", "visual"):
            assert shared[key] == pytest.approx(alone[key], abs=1e-6), key
        right = {"test": 5, "val": 6}[shared["split"]] * shared["fused"]
        assert right == pytest.approx(round(right), abs=1e-6)  # of five clips, or six held out, none twice


@pytest.mark.parametrize(
    ("flags", "folder", "message"),
    [
        (["--batch_size", 6], f"two/{RUNS[0]}", "the run in"),
        (["--batch_size", 7], "none", "cannot be divided by 2 processes; use 6"),
        (["--batch_size", 2], "none", "one clip leaves BatchNorm a single value"),
        (["--split_path", "nowhere"], "none", "no such list"),
    ],
)
def test_what_the_first_process_rejects_is_reported_once(runs, forking, flags, folder, message):
    """Check that both processes find it, one reports it, and neither waits for the other."""
    command = ["main_dgl.py", "--train", "--device", "cpu", *data_flags(runs / "corpus"), *SMALL, *flags]
    environment = ENVIRONMENT | {launcher.PYTHON: str(forking / ".venv" / "bin" / "python")}
    done = run_fork(*TWO, *command, "--ckpt_path", runs / folder, check=False, environment=environment)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def two_machines(python, epochs, corpus, out):
    """Start a run of two machines with one process each, on this machine -> its two launchers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [*data_flags(corpus), "--batch_size", 6, "--image_size", 33, "--num_workers", 0, "--modality", "audio"]
    flags = ["main_dgl.py", "--train", "--device", "cpu", *flags, "--epochs", epochs, "--ckpt_path", out]
    launch = [python, *LAUNCH, "--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1"]
    start = partial(Popen, cwd=ROOT, env=ENVIRONMENT, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True)
    ports = [f"--master_port={port}", "--node_rank"]
    return [start([*map(str, [*launch, *ports, node, *flags])]) for node in range(2)]


def test_two_machines_report_what_valid_reports_of_their_best_epoch(
    few, forking, tmp_path, small_encoders, monkeypatch
):
    """Check that the others wait for best.pth, which process 0 writes, if each machine has a first process."""
    monkeypatch.setitem(ENVIRONMENT, launcher.SMALL, "1")
    for node in two_machines(forking / ".venv" / "bin" / "python", 1, few, tmp_path / "run"):
        _, error = node.communicate(timeout=300)
        assert node.returncode == 0, error
    best = json.loads((tmp_path / "run" / "result.json").read_text())["best"]
    run_here(valid, tmp_path / "run", "--json", tmp_path / "valid.json")
    assert json.loads((tmp_path / "valid.json").read_text())["fused"] == best["fused"]
    assert [row["fused"] for row in rows_of(tmp_path / "run")] == [best["fused"]]


def test_a_machine_that_is_killed_ends_the_other_in_one_line(few, tmp_path):
    first, second = two_machines(sys.executable, 1000, few, tmp_path / "run")
    wait_for((tmp_path / "run" / "last.pth").exists, first)
    children = subprocess.run(["pgrep", "-P", str(second.pid)], capture_output=True, text=True).stdout.split()
    for pid in [*map(int, children), second.pid]:
        os.kill(pid, signal.SIGKILL)
    _, error = first.communicate(timeout=60)
    second.communicate()
    assert first.returncode == 2 and len(error.splitlines()) == 1 and "another process of this run" in error, error

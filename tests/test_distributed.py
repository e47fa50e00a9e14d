"""Several processes: the parameters of one process on the same batches, and every test clip once."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

import main_dgl
import valid
from dataset import DATASETS
from models.weights import load_checkpoint
from tests import launcher
from tests.conftest import ROOT, SMALL, data_flags, run_fork, run_here
from tests.distributed_runs import RUNS, train_all
from tests.rules import write_teachers


def with_a_name_that_does_not_resolve():
    """Return the beginning of a command that runs on a machine of such a name, as in some containers."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-u", "true"], capture_output=True).returncode:
        return []
    return ["unshare", "-u", "sh", "-c", 'hostname no-such-host.invalid; exec "$@"', "sh"]


def torchrun(*arguments, python=None):
    """Run two processes on this machine, with `python` in forks that it makes. Returns the finished launcher."""
    command = ["-m", "engine.launch", "--standalone", "--nproc_per_node", "2", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if python:
        return run_fork(*command, check=False, environment=environment | {launcher.PYTHON: str(python)})
    command = [*with_a_name_that_does_not_resolve(), sys.executable, *command]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """Both ways to train RUNS, on 18 clips, tested on 5 that two processes cannot share evenly."""
    folder = tmp_path_factory.mktemp("distributed")
    shutil.copytree(corpus, folder / "corpus", ignore=shutil.ignore_patterns(".cache"))
    listed = (corpus / "test.csv").read_text().splitlines()
    (folder / "corpus" / "test.csv").write_text("\n".join(listed[:5]) + "\n")
    write_teachers(folder / "corpus", classes=DATASETS["CREMAD"].classes, n_classes=6)
    done = torchrun("tests/distributed_runs.py", folder / "corpus", folder / "two")
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith("training on ")]) == len(RUNS), done.stdout
    train_all(folder / "corpus", folder / "one")
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_reach_the_parameters_of_one(runs, name):
    one, two = (load_checkpoint(runs / folder / name / "last.pth") for folder in ("one", "two"))
    for key, value in one["model"].items():
        if value.is_floating_point():
            error = (two["model"][key] - value).norm() / value.norm().clamp(min=1e-12)
            assert error < 1e-5, f"{key}: {error:.2e}"
    logs = [
        [json.loads(line) for line in (runs / folder / name / "log.jsonl").read_text().splitlines()]
        for folder in ("one", "two")
    ]
    if name == "agm-clip":
        assert [row["gradient_norm"] for row in logs[0]] == [pytest.approx(1)]  # all steps are clipped
    for alone, shared in zip(*logs, strict=True):
        for key in ("loss", "loss_audio", "loss_visual", "gradient_norm"):
            assert shared[key] == pytest.approx(alone[key], rel=1e-6)
        for key in ("train_fused", "train_audio", "train_visual", "fused", "audio", "visual"):
            assert shared[key] == pytest.approx(alone[key], abs=1e-6), key
        right = {"test": 5, "val": 6}[shared["split"]] * shared["fused"]
        assert right == pytest.approx(round(right), abs=1e-6)  # of five clips, or six held out, none twice
        suppression = {key for key in alone if key.startswith("suppression_")}
        assert len(suppression) == 6 * (name == "joint-suppression")
        for key in {"val_loss", "relearn_audio", "relearn_visual", *suppression} & alone.keys():
            assert shared[key] == pytest.approx(alone[key], rel=1e-6), key


def test_several_gpus_in_one_process_are_refused_with_the_command(capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        run_here(main_dgl, "--train", "--gpu_ids", "0,1", "--ckpt_path", tmp_path)
    error = capsys.readouterr().err
    assert end.value.code == 2 and len(error.splitlines()) == 1
    assert "torchrun --nproc_per_node=2 main_dgl.py --gpu_ids 0,1" in error


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (["--batch_size", 6, "--ckpt_path", "two/concat-dgl"], "the run in"),
        (["--batch_size", 7, "--ckpt_path", "none"], "cannot be divided by 2 processes; use 6"),
        (["--batch_size", 2, "--ckpt_path", "none"], "one clip leaves BatchNorm a single value"),
        (["--split_path", "nowhere", "--ckpt_path", "none"], "no such list"),
    ],
)
def test_what_the_first_process_refuses_is_said_once(runs, forking, flag, message):
    """Both processes find it; one says so, and neither waits for the other."""
    flags = [*data_flags(runs / "corpus"), *SMALL, *flag[:-1], runs / flag[-1]]
    python = forking / ".venv" / "bin" / "python"
    done = torchrun("main_dgl.py", "--train", "--device", "cpu", *flags, python=python)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_one_gpu_for_a_checkpoint(capsys, runs):
    with pytest.raises(SystemExit) as end:
        run_here(valid, "--ckpt_path", runs / "one" / "concat-dgl" / "best.pth", "--gpu_ids", "0,1")
    error = capsys.readouterr().err
    assert end.value.code == 2 and "name one" in error and "torchrun" not in error


def two_nodes(epochs, corpus, out, port):
    """Start a run of two machines with one process each, on this machine -> its two launchers."""
    flags = [*data_flags(corpus), "--batch_size", 6, "--image_size", 33, "--num_workers", 0, "--modality", "audio"]
    flags = ["--train", "--device", "cpu", *flags, "--epochs", epochs, "--ckpt_path", out]
    launch = ["-m", "engine.launch", "--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1"]
    command = [sys.executable, *launch, f"--master_port={port}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            list(map(str, [*command, f"--node_rank={node}", "main_dgl.py", *flags])),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for node in range(2)
    ]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("epochs", [1, 2])
def test_two_machines_report_what_valid_says_of_their_best_epoch(few, tmp_path, epochs):
    """Process 0 writes best.pth and the others wait for it, also where each machine has a first process of its own."""
    for node in two_nodes(epochs, few, tmp_path / "run", free_port()):
        _, error = node.communicate(timeout=300)
        assert node.returncode == 0, error
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    run_here(valid, tmp_path / "run", "--json", tmp_path / "valid.json")
    assert json.loads((tmp_path / "valid.json").read_text())["fused"] == result["best"]["fused"]
    assert result["best"]["fused"] == max(row["fused"] for row in rows) and len(rows) == epochs


def test_a_machine_that_is_killed_ends_the_other_in_one_line(few, tmp_path):
    first, second = two_nodes(1000, few, tmp_path / "run", free_port())
    while not (tmp_path / "run" / "last.pth").exists() and first.poll() is None:
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(second.pid)], capture_output=True, text=True).stdout.split()
    for pid in [*map(int, children), second.pid]:
        os.kill(pid, signal.SIGKILL)
    _, error = first.communicate(timeout=60)
    second.communicate()
    assert first.returncode == 2 and len(error.splitlines()) == 1 and "another process of this run" in error, error

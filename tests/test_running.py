"""Runs as a cluster sees them: signals to scripts, little shared memory, readers that are killed, caches in common."""

import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import main_dgl
from data.CREMAD import make_split
from dataset import cache, loader
from engine import checkpoint
from models.weights import load_checkpoint
from tests import launcher
from tests.conftest import ROOT, SMALL, data_flags, run_here
from tests.test_cache import items, tree
from utils import pool, progress
from utils.files import release, take_lock


def environment(**changes):
    """The environment of a shell script, with the Python that runs the tests first on its PATH."""
    return os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"} | changes


def processes_of(folder):
    """Return the numbers of the processes that have a folder in their command line."""
    return subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True).stdout.split()


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition(), "it did not come to that"


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_to_a_script_ends_the_run(few, forking, tmp_path, number, status):
    flags = [*data_flags(few), *SMALL, "--batch_size", 6, "--num_workers", 0, "--epochs", 1000, "--ckpt_path", tmp_path]
    command = ["bash", forking / "cramed_dgl.sh", *map(str, flags)]
    files = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=environment(), text=True, start_new_session=True, **files)
    wait_for((tmp_path / "last.pth").exists, process)
    process.send_signal(number)  # to bash alone
    output, error = process.communicate(timeout=120)
    assert process.returncode == status, error
    assert "interrupted by" in error and "accuracy on" not in output  # it does not go on to validate
    release(take_lock(tmp_path / ".lock"))  # nobody is left who holds it
    assert not processes_of(tmp_path)


def test_slurm_queues_the_job_again(tmp_path):
    """With a script that ends as at SIGUSR1, and a scontrol that writes down what it is told."""
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/told\n')
    (tmp_path / "scontrol").chmod(0o755)
    (tmp_path / "job.sh").write_text("exit 138\n")
    path = f"{tmp_path}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    settings = {"PATH": path, "SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": str(ROOT), "script": str(tmp_path / "job.sh")}
    done = subprocess.run(["bash", ROOT / "docs" / "slurm.sh"], env=os.environ | settings, capture_output=True)
    assert done.returncode == 138 and (tmp_path / "told").read_text() == "requeue 17\n"


def can_mount():
    return shutil.which("unshare") and not subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode


@pytest.mark.skipif(not can_mount(), reason="a file system may not be mounted here")
def test_a_small_dev_shm_is_no_end(corpus, tmp_path):
    """As in a container: a megabyte of shared memory, and batches that are larger."""
    flags = [*data_flags(corpus), "--image_size", 224, "--batch_size", 8, "--num_workers", 2, "--epochs", 1]
    command = ["mount -t tmpfs -o size=1m tmpfs /dev/shm && exec", sys.executable, "main_dgl.py --train", *flags]
    command = " ".join(map(str, [*command, "--modality", "audio", "--ckpt_path", tmp_path]))
    done = subprocess.run(["unshare", "-m", "sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "warning: /dev/shm" in done.stderr, done.stderr
    assert done.stderr.count("warning") <= 2 and (tmp_path / "result.json").exists()


def test_batches_come_through_pipes_where_shared_memory_ends(corpus, monkeypatch):
    """The same batches, with memory that raises as a full one does."""
    args = [corpus, "train"]
    dataset, _ = items(*args)
    expected, _ = dataset[[0, 1, 2]]
    monkeypatch.setattr(loader, "get_worker_info", lambda: type("Worker", (), {"id": 1}))

    def full(_):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    shared, _ = loader.handed_over(dataset[[0, 1, 2]])
    assert all(isinstance(part, torch.Tensor) and part.is_shared() for part in shared.values())
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    handed, _ = loader.handed_over(dataset[[0, 1, 2]])
    assert all((part == expected[name].numpy()).all() for name, part in handed.items())


def test_a_reader_that_is_killed_ends_the_run_in_a_line(few, tmp_path):
    flags = [*data_flags(few), *SMALL, "--batch_size", 6, "--num_workers", 1, "--epochs", 1000, "--ckpt_path", tmp_path]
    with open(tmp_path / "error", "w+") as file, open(os.devnull, "w") as nowhere:
        process = launcher.start(["main_dgl.py", "--train", *map(str, flags)], ROOT, os.environ, nowhere, file)
        wait_for((tmp_path / "last.pth").exists, process)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        status = process.wait()
        file.seek(0)
        error = file.read()
    assert status == 2 and len(error.splitlines()) == 1 and "--num_workers" in error, error


@pytest.mark.parametrize("how", ["finished", "error"])
def test_a_run_with_workers_ends(few, tmp_path, how):
    """A real interpreter, since a fork of the tests' server leaves out what is registered for the exit."""
    root = shutil.copytree(few, tmp_path / "corpus", ignore=shutil.ignore_patterns(".cache"))
    flags = ["--num_workers", 2, "--cache_gb", 0, "--epochs", 2 if how == "finished" else 1000]
    command = ["main_dgl.py", "--train", *data_flags(root), *SMALL, "--batch_size", 2, *flags]
    command += ["--ckpt_path", tmp_path / "run"]
    files = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, start_new_session=True, **files)
    try:
        wait_for((tmp_path / "run" / "last.pth").exists, process)
        for wav in (root / "AudioWAV").iterdir() if how == "error" else ():
            wav.write_text("404 Not Found")
        error = process.communicate(timeout=120)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == (2 if how == "error" else 0), error
    assert how == "finished" or "not a readable sound file" in error
    assert not processes_of(tmp_path)


def test_a_worker_that_dies_while_a_checkpoint_is_written_does_not_spoil_it(few, tmp_path, small, capsys, monkeypatch):
    save, written = checkpoint.save, []

    def meanwhile(*arguments, **state):
        for child in multiprocessing.active_children():
            child.kill()
            time.sleep(0.5)  # its signal comes
        save(*arguments, **state)
        written.append(arguments[0])

    monkeypatch.setattr(checkpoint, "save", meanwhile)
    flags = [*data_flags(few), *SMALL, "--batch_size", 6, "--num_workers", 1, "--epochs", 3]
    with pytest.raises(SystemExit) as end:
        run_here(main_dgl, "--train", *flags, "--ckpt_path", tmp_path)
    error = capsys.readouterr().err
    assert end.value.code == 2 and len(error.splitlines()) == 1 and "--num_workers" in error
    assert len(written) >= 2 and len(load_checkpoint(tmp_path / "last.pth")["log"]) == 1


def test_a_log_gets_lines_now_and_then(monkeypatch, capsys):
    """None of what is over at once; with no time between them, one for every count but the last."""
    for _ in progress.progress_bar(range(3), desc="decoding clips"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "EVERY", 0)
    for _ in progress.progress_bar(range(3), desc="decoding clips"):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("decoding clips") and "\r" not in line for line in lines)


def test_the_cores_that_are_allowed_are_taken(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert pool.cores() == 1


READER = """
import sys, time
import torch
from pathlib import Path
from tests.test_cache import items
dataset, _ = items(Path(sys.argv[1]), "train")
print("reads", flush=True)
time.sleep(600)
"""


def test_another_process_keeps_what_it_reads(corpus, tmp_path):
    """A run of other settings finds no room while it reads, and all of it when it has ended."""
    shutil.copytree(corpus, tmp_path / "moved", ignore=shutil.ignore_patterns(".cache"))
    root = tmp_path / "moved"
    command = [sys.executable, "-c", READER, str(root)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "reads\n"
        made = set(root.rglob("*.f32"))
        limit = sum(path.stat().st_size for path in tree(root)) / 1e9
        dataset, _ = items(root, "test", cache_gb=limit)
        assert not dataset.stored and set(root.rglob("*.f32")) == made
    finally:
        process.kill()
        process.wait()
    del dataset
    gc.collect()
    dataset, _ = items(root, "test", cache_gb=limit)
    assert dataset.stored and not made & set(root.rglob("*.f32"))


def test_of_two_that_decode_the_same_one_waits(corpus, tmp_path, capsys):
    shutil.copytree(corpus, tmp_path / "moved", ignore=shutil.ignore_patterns(".cache"))
    root = tmp_path / "moved"
    items(root, "test")
    folder = next(iter(cache.folders_of(root / ".cache")))
    shutil.rmtree(folder)
    code = "import sys, time\nfrom utils.files import take_lock\ntake_lock(sys.argv[1])\nprint('held', flush=True)\n"
    command = [sys.executable, "-c", code + "time.sleep(1)\n", f"{folder}.decoding.lock"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        capsys.readouterr()
        dataset, _ = items(root, "test")
    assert "waiting for it" in capsys.readouterr().out and dataset.stored


def test_one_cache_for_a_folder_however_it_is_spelled(corpus, tmp_path, monkeypatch):
    shutil.copytree(corpus, tmp_path / "moved", ignore=shutil.ignore_patterns(".cache"))
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    first, _ = items(tmp_path / "moved", "test")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "moved").rglob("*.f32")}
    items(tmp_path / "link", "test")
    monkeypatch.chdir(tmp_path)
    items(tmp_path.__class__("moved"), "test")
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "moved").rglob("*.f32")}


def test_the_true_reason_why_nothing_is_kept(corpus, tmp_path, capsys, monkeypatch):
    shutil.copytree(corpus, tmp_path / "moved", ignore=shutil.ignore_patterns(".cache"))

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", "cache")

    monkeypatch.setattr(os, "makedirs", refused)
    dataset, _ = items(tmp_path / "moved", "test")
    assert "Permission denied" in capsys.readouterr().err and not dataset.stored


def test_other_lists_are_kept(corpus, tmp_path, capsys):
    shutil.copytree(corpus, tmp_path / "moved", ignore=shutil.ignore_patterns(".cache"))
    root = tmp_path / "moved"
    flags = ["--root", root, "--split_path", root]
    run_here(make_split, *flags, "--test_ratio", 0.25)  # its own, as they are
    (root / "test.csv").write_text("1001_DFA_ANG_XX,ANG\n")
    before = (root / "train.csv").read_text()
    with pytest.raises(SystemExit) as end:
        run_here(make_split, *flags, "--seed", 3)
    assert end.value.code == 2 and "--overwrite" in capsys.readouterr().err
    assert (root / "test.csv").read_text() == "1001_DFA_ANG_XX,ANG\n" and (root / "train.csv").read_text() == before
    run_here(make_split, *flags, "--seed", 3, "--overwrite")
    assert (root / "train.csv").read_text() != before


@pytest.fixture
def project(tmp_path):
    """A copy of what the scripts need to find their Python."""
    for name in ("cramed_dgl.sh", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "utils").mkdir()
    shutil.copy(ROOT / "utils" / "environment.sh", tmp_path / "utils")
    (tmp_path / "bin").mkdir()
    return tmp_path


def python_that(project, body):
    for name in ("python3", "python"):
        (project / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (project / "bin" / name).chmod(0o755)
    path = f"{project / 'bin'}:/usr/bin:/bin"
    return subprocess.run(
        ["bash", project / "cramed_dgl.sh"], env=os.environ | {"PATH": path}, capture_output=True, text=True
    )


def test_an_old_python_gets_a_line(project):
    done = python_that(project, f'exec {sys.executable} -c "import sys; sys.version_info = (3, 9); $2"')
    assert done.returncode == 2 and done.stderr == (
        "error: Python 3.10 or newer is needed; install it and put it on the PATH as python3\n"
    )
    code = "import sys; sys.version_info = (3, 9, 1); sys.argv = ['main_dgl.py']; import runpy; "
    for script in ("main_dgl.py", "valid.py", "data/CREMAD/make_split.py", "data/AVE/mp4_to_wav.py"):
        command = [sys.executable, "-c", f"{code}runpy.run_path('{script}', run_name='__main__')"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("error: Python 3.10 or newer"), done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_failed_installation_leaves_nothing(project):
    body = 'if [ "$2" = venv ]; then mkdir -p .venv/bin; printf "#!/bin/sh\\nexit 1\\n" >.venv/bin/python; '
    body += 'chmod +x .venv/bin/python; exit 0; fi\n[[ "$2" == *find_spec* ]] && exit 1\nexit 0'
    done = python_that(project, body)
    assert done.returncode == 2 and "could not be installed" in done.stderr and not (project / ".venv").exists()


def test_an_environment_without_its_python_is_told(project):
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "python").symlink_to(project / "gone")
    done = python_that(project, "exit 0")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "rm -r .venv" in done.stderr

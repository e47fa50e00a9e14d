"""Runs as a cluster sees them: signals to scripts, little shared memory, workers that end with their run."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from filelock import FileLock

from data.CREMAD import make_split
from dataset.loader import usable_workers
from tests.conftest import ROOT, SMALL, data_flags, run_here
from utils import pool, progress
from utils.errors import warn_once


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
    FileLock(tmp_path / ".lock").acquire(timeout=0)  # no process is left that holds it
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


def mounting(options, folder="/dev/shm", meanwhile=""):
    """Return words for `run_for_real` that mount a tmpfs at a folder, which this process alone sees."""
    return f"exec unshare -m sh -c 'mount -t tmpfs -o {options} tmpfs {folder}; {meanwhile} exec \"$@\"' sh"


def run_for_real(root, folder, *flags, before="exec", **changes):
    """Start training with workers in an interpreter of its own, which a shell runs after the words `before`."""
    command = [sys.executable, "main_dgl.py", "--train", *data_flags(root), *SMALL, "--batch_size", 2]
    command += ["--num_workers", 2, "--epochs", 1000, "--ckpt_path", folder, *flags]
    files = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    shell = ["sh", "-c", f'{before} "$@"', "sh", *map(str, command)]
    return subprocess.Popen(shell, cwd=ROOT, env=environment(**changes), start_new_session=True, **files)


def ended(process, seconds=120):
    """Wait for a process -> its status, and what it wrote to stderr, line by line."""
    try:
        error = process.communicate(timeout=seconds)[1]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, error.splitlines()


@pytest.mark.skipif(not can_mount(), reason="a file system may not be mounted here")
@pytest.mark.parametrize(("size", "filled"), [("1m", False), ("40m", True)], ids=["small", "filled"])
def test_little_shared_memory(corpus, tmp_path, size, filled):
    """As in a container: a small one is found before training, one that others fill during it ends the run."""
    fill = f"until [ -e {tmp_path}/last.pth ]; do sleep 0.1; done; "
    fill += "while sleep 0.01; do cat /dev/zero >>/dev/shm/full; done"
    before = mounting(f"size={size}", meanwhile=f"({fill}) >/dev/null 2>&1 &" if filled else "")
    flags = ["--image_size", 224, "--batch_size", 8, "--modality", "audio", "--epochs", 1000 if filled else 1]
    status, lines = ended(run_for_real(corpus, tmp_path, *flags, before=before))
    if filled:
        assert status == 2 and len(lines) == 1, "\n".join(lines)
        assert re.match("error: /dev/shm: (no room for a batch|No space left on device); ", lines[0])
    else:
        assert status == 0 and [line.startswith("warning: /dev/shm: too small") for line in lines] == [True], lines


@pytest.mark.skipif(not can_mount(), reason="a file system may not be mounted here")
def test_a_full_disk_under_tensorboard_is_one_warning(corpus, tmp_path):
    (tmp_path / "board").mkdir()
    flags = ["--epochs", 2, "--num_workers", 0, "--use_tensorboard", "--tensorboard_path", tmp_path / "board"]
    before = mounting("size=8k", tmp_path / "board")
    status, lines = ended(run_for_real(corpus, tmp_path / "run", *flags, before=before))
    assert status == 0 and (tmp_path / "run" / "result.json").exists()
    assert [line.partition(";")[0] for line in lines] == ["warning: TensorBoard: No space left on device"], lines


@pytest.mark.skipif(not can_mount(), reason="a file system may not be mounted here")
def test_shared_memory_that_cannot_be_written(corpus, tmp_path):
    """No process can be started; the run does without, with a warning for decoding and one for loading."""
    flags = ["--epochs", 1, "--cache_path", tmp_path / "cache"]
    status, lines = ended(run_for_real(corpus, tmp_path / "run", *flags, before=mounting("ro,size=1m")))
    reasons = [line.partition(";")[0] for line in lines]
    assert (status, reasons) == (0, ["warning: /dev/shm: Read-only file system"] * 2), lines


@pytest.mark.parametrize("how", ["finished", "error", "SIGTERM", "killed worker"])
def test_a_run_with_workers_ends_with_all_of_them(corpus, tmp_path, how):
    shutil.copytree(corpus, tmp_path / "corpus", ignore=shutil.ignore_patterns(".cache"))
    flags = {"finished": ["--epochs", 2], "error": ["--cache_gb", 0]}.get(how, [])
    process = run_for_real(tmp_path / "corpus", tmp_path / "run", *flags)
    wait_for((tmp_path / "run" / "last.pth").exists, process)
    if how == "error":
        for wav in (tmp_path / "corpus" / "AudioWAV").iterdir():
            wav.write_text("404 Not Found")
    elif how == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    while how == "killed worker" and process.poll() is None:  # workers are started for each epoch
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        for child in children[:1]:
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        time.sleep(0.1)
    status, lines = ended(process, 60)
    expected = {
        "finished": (0, None),
        "error": (2, f"error: {tmp_path}.*: not a readable audio file"),
        "SIGTERM": (143, "interrupted by SIGTERM"),
        "killed worker": (2, "error: a data-loading worker was killed.*--num_workers"),
    }[how]
    assert status == expected[0] and len(lines) == (how != "finished"), lines
    assert how == "finished" or re.match(expected[1], lines[0])
    assert not processes_of(tmp_path)


def test_a_temporary_folder_of_too_long_a_name_costs_the_workers(few, tmp_path):
    """PyTorch would wait forever for the batches that its workers cannot hand over."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    status, lines = ended(run_for_real(few, tmp_path / "run", "--epochs", 1, TMPDIR=str(long)))
    assert status == 0 and [line.startswith("warning: TMPDIR: ") for line in lines] == [True], lines


@pytest.mark.parametrize(("batches", "processes", "usable"), [(9, 1, 4), (8, 1, 3), (4, 1, 1), (2, 1, 0), (9, 2, 1)])
def test_workers_are_as_many_as_shared_memory_has_room_for(monkeypatch, capsys, batches, processes, usable):
    state = SimpleNamespace(f_bavail=batches * 10, f_frsize=100)
    monkeypatch.setattr(os, "statvfs", lambda path: state)
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    warn_once.cache_clear()
    assert usable_workers(4, batch_bytes=1000) == usable
    warnings = [f"using {usable}; make it larger" in line for line in capsys.readouterr().err.splitlines()]
    assert warnings == [True] * (usable < 4)


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


@pytest.mark.parametrize("reason", ["No such file or directory", "Permission denied"])
def test_an_environment_without_its_python_is_told(project, reason):
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "python").symlink_to(project / "python of another user")
    if reason == "Permission denied":
        (project / "python of another user").touch(mode=0o600)
    done = python_that(project, "exit 0")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert reason in done.stderr and "rm -r .venv" in done.stderr

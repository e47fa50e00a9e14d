"""Runs as machines and clusters see them: signals, file systems that are full, workers that end with their run."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from dataset.loader import usable_workers
from engine.folder import read_record
from models.weights import load_checkpoint
from tests import launcher
from tests.conftest import ROOT, SMALL, data_flags, processes_of, run_shell, wait_for
from utils import pool, progress
from utils.errors import warn_once


def training(root, folder, *flags):
    """Return the words of a command that trains with workers."""
    words = ["main_dgl.py", "--train", *data_flags(root), *SMALL, "--batch_size", 2, "--num_workers", 2]
    return list(map(str, [*words, "--epochs", 10**6, "--ckpt_path", folder, *flags]))


def numbers(*pgrep):
    """Return the numbers of the processes that `pgrep` finds, without those that have ended and wait for init."""
    found = subprocess.run(["pgrep", *map(str, pgrep)], capture_output=True, text=True).stdout.split()
    states = subprocess.run(["ps", "-o", "pid=,stat=", "-p", ",".join(found or "0")], capture_output=True, text=True)
    return [int(line.split()[0]) for line in states.stdout.splitlines() if "Z" not in line]


def test_signals_end_the_script_of_a_dataset_and_the_same_command_resumes(few, forking, tmp_path, monkeypatch):
    """Send each to the shell alone, and check that flags after the script's name override its settings."""
    run = tmp_path / "run"

    def has_started(times):
        return (run / "last.pth").exists() and len(read_record(run / "run.json")["starts"]) == times

    flags = [*data_flags(few), *SMALL, "--batch_size", 6, "--num_workers", 0, "--alpha", 5, "--ckpt_path", run]
    command = ["bash", forking / "cramed_dgl.sh", *map(str, flags), "--epochs", "1000000"]
    files = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    monkeypatch.setenv(launcher.SMALL, "1")
    for times, number in enumerate((signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT), start=1):
        process = subprocess.Popen(command, start_new_session=True, text=True, **files)
        wait_for(partial(has_started, times), process)
        process.send_signal(number)
        output, error = process.communicate(timeout=120)
        assert process.returncode == 128 + number, error
        assert "interrupted by" in error and "accuracy on" not in output  # it does not validate then
        FileLock(run / ".lock").acquire(timeout=0)  # no process is left that holds it
        assert not processes_of(tmp_path)
    assert "accuracy on" in run_shell("cramed_dgl.sh", *flags, "--epochs", 1, project=forking).stdout
    assert list(run.glob("tensorboard/events*"))
    settings = load_checkpoint(run / "last.pth")["settings"]
    assert settings["alpha"] == 5 and settings["learning_rate"] == 0.002 and settings["lr_decay_step"] == [70]


def can_mount():
    return shutil.which("unshare") and not subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode


MOUNT = """
mount -t tmpfs -o {} tmpfs /dev/shm; mount -t tmpfs -o size=8k tmpfs "$1/board"
(while kill -0 $$; do
  [ ! -e "$1/full" ] || [ ! -e "$1/run/last.pth" ] || cat /dev/zero >>/dev/shm/full
  sleep 0.05
done) >/dev/null 2>&1 &
shift; exec "$@"
"""


@pytest.mark.skipif(not can_mount(), reason="a file system may not be mounted here")
@pytest.mark.parametrize(
    ("options", "epochs", "status", "expected"),
    [
        ("size=1m", 2, 0, ["warning: /dev/shm: too small", "warning: TensorBoard: No space left on device;"]),
        ("size=40m", 10**6, 2, ["error: /dev/shm: (no room for a batch|No space left on device); "]),
        ("ro,size=1m", 1, 0, ["warning: /dev/shm: Read-only file system;"] * 2),
    ],
    ids=["little memory and a full disk", "memory that others fill", "memory that cannot be written"],
)
def test_file_systems_that_are_full_or_read_only(few, tmp_path, options, epochs, status, expected):
    """Run as in a container. Without any shared memory, decoding and loading have no workers."""
    (tmp_path / "board").mkdir()
    if epochs == 10**6:
        (tmp_path / "full").touch()
    flags = ["--image_size", 224, "--batch_size", 6, "--modality", "audio", "--cache_path", tmp_path / "cache"]
    flags += ["--use_tensorboard", "--tensorboard_path", tmp_path / "board"] if epochs == 2 else []
    command = ["unshare", "-m", "sh", "-c", MOUNT.format(options), "sh", tmp_path, sys.executable]
    command += training(few, tmp_path / "run", *flags, "--epochs", epochs)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    lines = done.stderr.splitlines()
    assert done.returncode == status and len(lines) == len(expected), done.stderr
    assert all(re.match(pattern, line) for pattern, line in zip(expected, lines, strict=True)), done.stderr
    assert (tmp_path / "run" / "result.json").exists() == (status == 0)


# Code that is run before main_dgl.main
FAULT = """
def fault(*_, **__):
    raise RuntimeError("of ours")
main_dgl.dgl_step = fault
"""
BUSY = """
ignore, start = loader.ignore_signals, loader.DataLoader.__iter__
def late(number):
    time.sleep(3)
    ignore(number)
def busy(self):
    iterator = start(self)
    open("{}", "w").close()
    sum(range(10**8))  # seconds in which Python calls no signal handler
    return iterator
loader.ignore_signals, loader.DataLoader.__iter__ = late, busy
"""
LOST = """
from multiprocessing import active_children, resource_sharer
def lost(*_):
    active_children()[0].kill()
    raise ConnectionResetError("by a worker")
resource_sharer._resource_sharer.get_connection = lost
"""
PATCHES = {"fault": FAULT, "SIGTERM to all, early": BUSY, "killed worker, handing over a batch": LOST}
KILLED = "error: a data-loading worker was killed.*--num_workers.*\n"


@pytest.mark.parametrize(
    ("how", "status", "message"),
    [
        ("finished", 0, ""),
        ("error", 2, "error: .*: not a readable audio file.*\n"),
        ("fault", 1, "(?s)Traceback.*RuntimeError: of ours\n"),
        ("SIGTERM", 143, "interrupted by SIGTERM.* to resume\n"),
        ("SIGTERM to all", 143, "interrupted by SIGTERM.* to resume\n"),  # as a terminal or a cluster sends it
        ("SIGTERM to all, early", 143, "interrupted by SIGTERM.* to resume\n"),  # before workers ignore it
        ("killed worker", 2, KILLED),
        ("killed worker, handing over a batch", 2, KILLED),
    ],
)
def test_a_run_with_workers_ends_with_all_of_them(few, tmp_path, how, status, message):
    root, run = shutil.copytree(few, tmp_path / "few"), tmp_path / "run"
    command = training(root, run, *{"finished": ["--epochs", 2], "error": ["--cache_gb", 0]}.get(how, []))
    ready = run / "last.pth"
    if how in PATCHES:
        ready = tmp_path / "started"
        code = PATCHES[how].format(ready)
        code = f"import sys, time\nsys.path[0] = {str(ROOT)!r}\nimport main_dgl\nfrom dataset import loader\n{code}"
        code += "\nfrom utils.errors import run_script\nrun_script(main_dgl.main)\n"
        (tmp_path / "patched.py").write_text(code)
        command[0] = str(tmp_path / "patched.py")
    with open(tmp_path / "errors", "w") as errors:
        process = launcher.start(command, environment=os.environ | {launcher.SMALL: "1"}, errors=errors)
    if PATCHES.get(how, BUSY) == BUSY:
        wait_for(ready.exists, process)
    if how == "error":
        for wav in (root / "AudioWAV").iterdir():
            wav.write_text("404 Not Found")
    elif how.startswith("SIGTERM"):
        (os.killpg if "all" in how else os.kill)(process.pid, signal.SIGTERM)
    while how == "killed worker" and process.poll() is None:  # workers are started for each epoch
        for child in numbers("-P", process.pid)[:1]:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.1)
    try:
        wait_for(lambda: process.poll() is not None)
        error = (tmp_path / "errors").read_text()
        assert process.returncode == status and re.fullmatch(message, error), error
        assert not numbers("-s", process.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_temporary_folder_of_too_long_a_name_costs_the_workers(few, tmp_path):
    """Check that loading has no workers: PyTorch would wait forever for batches that they cannot hand over."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    command = [sys.executable, *training(few, tmp_path / "run", "--epochs", 1)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"TMPDIR": str(long)}, capture_output=True, text=True)
    assert done.returncode == 0 and re.fullmatch("warning: TMPDIR: .*\n", done.stderr), done.stderr


@pytest.mark.parametrize(("batches", "processes", "usable"), [(9, 1, 4), (8, 1, 3), (4, 1, 1), (2, 1, 0), (9, 2, 1)])
def test_workers_are_as_many_as_shared_memory_has_room_for(monkeypatch, capsys, batches, processes, usable):
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=batches * 10, f_frsize=100))
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    warn_once.cache_clear()
    assert usable_workers(4, batch_bytes=1000) == usable
    warnings = [f"using {usable}; make it larger" in line for line in capsys.readouterr().err.splitlines()]
    assert warnings == [True] * (usable < 4)


def test_a_log_gets_lines_now_and_then(monkeypatch, capsys):
    """Check that quick work prints no line, and that without a pause every count but the last has one."""
    lines = []
    for seconds in (progress.EVERY, 0):
        monkeypatch.setattr(progress, "EVERY", seconds)
        list(progress.progress_bar(range(3), desc="decoding clips"))
        lines.append(capsys.readouterr().err.splitlines())
    assert not lines[0] and lines[1]
    assert all(line.startswith("decoding clips") and "\r" not in line for line in lines[1])


def test_the_cores_that_are_allowed_are_taken(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert pool.cores() == 1


def test_slurm_queues_the_job_again_and_not_one_from_elsewhere(tmp_path):
    """Run a script that ends as at SIGUSR1, and a scontrol; both record their arguments."""
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/arguments\n')
    (tmp_path / "scontrol").chmod(0o755)
    (tmp_path / "job.sh").write_text(f'echo "$@" >{tmp_path}/flags\nexit 138\n')
    job = {"script": str(tmp_path / "job.sh"), "SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": str(ROOT)}
    job["PATH"] = f"{tmp_path}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    for restarts, flags in (("0", "--alpha 5 --overwrite\n"), ("1", "--alpha 5\n")):
        done = run_shell("docs/slurm.sh", "--alpha", 5, "--overwrite", check=False, **job, SLURM_RESTART_COUNT=restarts)
        assert done.returncode == 138 and (tmp_path / "flags").read_text() == flags
        assert (tmp_path / "arguments").read_text() == "requeue 17\n"
    done = run_shell("docs/slurm.sh", check=False, SLURM_SUBMIT_DIR=str(tmp_path))
    error = f"error: {tmp_path}: not the project's folder; submit the job from there\n"
    assert (done.returncode, done.stderr) == (2, error)


def test_a_shell_with_a_search_path_for_folders_stays_in_the_project(tmp_path):
    """Set CDPATH, with which `cd folder` in a script called by a relative name would change to another folder."""
    elsewhere = tmp_path / ROOT.name / "utils"
    elsewhere.mkdir(parents=True)
    (elsewhere / "environment.sh").write_text("echo another project; exit 1\n")
    place = {"project": Path(ROOT.name), "folder": ROOT.parent, "CDPATH": str(tmp_path)}
    done = run_shell("cramed_dgl.sh", "--no_such_flag", check=False, **place)
    assert done.returncode == 2 and "--no_such_flag" in done.stderr and "another" not in done.stdout


OLD = f'exec {shlex.quote(sys.executable)} -c "import sys; sys.version_info = (3, 9); $2"'
NOT_INSTALLING = """
if [ "$2" = venv ]; then
  mkdir -p .venv/bin && printf "#!/bin/sh\\nexit 1\\n" >.venv/bin/python && chmod +x .venv/bin/python
else
  [[ "$2" != *find_spec* ]]
fi
"""


@pytest.mark.parametrize(
    ("python", "mode", "error"),
    [
        (OLD, None, "error: Python 3.10 or newer is needed; install it and put it on the PATH as python3\n"),
        (NOT_INSTALLING, None, "(?s).*could not be installed.*"),
        ("exit 0", 0, r".*No such file or directory.*rm -r \.venv.*\n"),
        ("exit 0", 0o600, r".*Permission denied.*rm -r \.venv.*\n"),
    ],
    ids=["old Python", "failed installation", ".venv without its Python", ".venv of another user"],
)
def test_a_python_that_cannot_be_used(tmp_path, python, mode, error):
    """Use a .venv whose Python is a link to a file of this mode, 0 for none."""
    (tmp_path / "utils").mkdir()
    for name in ("cramed_dgl.sh", "requirements.txt", "requirements-dev.txt", "utils/environment.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for name in ("python3", "python"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{python}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    if mode is not None:
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        (tmp_path / ".venv" / "bin" / "python").symlink_to(tmp_path / "other")
    if mode:
        (tmp_path / "other").touch(mode)
    done = run_shell("cramed_dgl.sh", project=tmp_path, check=False, PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert done.returncode == 2 and re.fullmatch(error, done.stderr), done.stderr
    assert (tmp_path / ".venv").exists() == (mode is not None)  # an installation that failed leaves nothing


@pytest.mark.parametrize("script", ["main_dgl.py", "valid.py", "data/CREMAD/make_split.py", "data/AVE/mp4_to_wav.py"])
def test_a_script_under_an_old_python_is_one_line(script):
    code = f"import sys; sys.version_info = (3, 9, 1); sys.argv = ['{script}']; import runpy; "
    command = [sys.executable, "-c", f"{code}runpy.run_path('{script}', run_name='__main__')"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and re.fullmatch("error: Python 3.10 or newer.*\n", done.stderr), done.stderr


def test_a_batch_of_no_clip_has_workers(monkeypatch):
    assert usable_workers(2, 0) in (0, 1, 2)

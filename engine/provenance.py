"""Record the command, code, packages and machine of a run, so that its results can be traced and reproduced."""

import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import torch

PACKAGES = ("torch", "torchvision", "torchaudio", "numpy", "scipy", "librosa", "opencv-python", "pillow", "soxr")


def provenance():
    """Return command line, commit, versions, processor, GPU, threads, processes, host and date as a plain dict."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "command": shlex.join(sys.argv),
        "folder": os.getcwd(),
        "commit": git("rev-parse", "HEAD"),
        "changed": changes(),
        "versions": versions,
        "system": platform.platform(),
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "host": socket.gethostname(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def git(*arguments):
    """Return the output of a git command in the project's folder, or None if it fails."""
    root = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(
            ["git", "-C", root, *arguments], capture_output=True, text=True, errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def changes():
    """Return a list of the project's files that differ from the commit, or None without git."""
    status = git("status", "--porcelain")
    return None if status is None else [line[3:] for line in status.splitlines()]


def processor():
    """Return the processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

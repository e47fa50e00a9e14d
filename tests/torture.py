"""Kill training with SIGKILL at random moments, resume it each time, and compare it with an uninterrupted run.

    python tests/torture.py CORPUS OUT [--kills 25] [--seed 0] [flags of main_dgl.py]

CORPUS is a folder in CREMA-D's layout with train.csv and test.csv, such as train_test_data/demo/CREMA-D; OUT is an
empty folder. The first and every third kill after it strike while a checkpoint is being written.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def is_same(a, b):
    """Return True if two values of checkpoints are the same to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_same(value, b[key]) for key, value in a.items())
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_same_run(expected, actual):
    """Raise AssertionError unless two runs ended with the same bits and the same log, its seconds aside."""
    for name in ("best.pth", "last.pth"):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (expected, actual))
        assert ("optimizer" in a) == ("optimizer" in b) == (name == "last.pth")
        for part in {"model", "epoch", "optimizer", "scheduler"} & a.keys():
            assert is_same(a[part], b[part]), f"{name}: {part}"
    files = (folder / "log.jsonl" for folder in (expected, actual))
    logs = [[json.loads(line) | {"seconds": 0} for line in file.read_text().splitlines()] for file in files]
    assert logs[0] == logs[1], "log.jsonl"


def in_writing(folder):
    """Return name and time of change of the checkpoints that are being written, or were when their run was killed."""
    found = set()
    for path in folder.glob("*.pth.partial"):
        with contextlib.suppress(FileNotFoundError):  # it has just been renamed
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def epochs_done(folder):
    log = folder / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def start(command):
    """Start a script, of which only errors are seen. Returns its process."""
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description="Kill and resume training; compare with an uninterrupted run.")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    args, flags = parser.parse_known_args()

    command = ["main_dgl.py", "--train", "--visual_path", args.corpus.absolute()]
    command += ["--audio_path", args.corpus.absolute() / "AudioWAV", "--split_path", args.corpus.absolute()]
    command += ["--cache_path", args.out.absolute() / "cache", "--image_size", "32", "--batch_size", "4"]
    command += ["--num_workers", "1", "--epochs", str(2 * args.kills + 2), *flags]  # a kill costs two epochs at most

    def train(name):
        return start([*command, "--ckpt_path", args.out.absolute() / name])

    started = time.perf_counter()
    if train("whole").wait():
        sys.exit("the uninterrupted run failed")
    total = time.perf_counter() - started
    log = [json.loads(line) for line in (args.out / "whole" / "log.jsonl").read_text().splitlines()]
    epoch = sum(row["seconds"] for row in log) / len(log)
    until_training = total - epoch * len(log)

    rng = random.Random(args.seed)
    folder, kills, writing = args.out / "killed", 0, 0
    while True:
        left_over = in_writing(folder)
        process = train("killed")
        if kills < args.kills and kills % 3 == 0:
            while process.poll() is None and not in_writing(folder) - left_over:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
        elif kills < args.kills:
            deadline, before = time.perf_counter() + rng.uniform(0, until_training + 1.5 * epoch), epochs_done(folder)
            while time.perf_counter() < deadline and epochs_done(folder) < before + 2:
                time.sleep(0.001)
        else:
            process.wait()
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        writing += bool(in_writing(folder) - left_over)
    if process.returncode or kills < args.kills:
        sys.exit(f"the run ended with status {process.returncode} after {kills} kills")
    assert_same_run(args.out / "whole", folder)
    leftovers = {name for name in os.listdir(folder) if name.endswith(".partial")}
    assert not leftovers, leftovers
    print(f"{kills} kills, {writing} of them while a checkpoint was being written: the same run")


if __name__ == "__main__":
    main()

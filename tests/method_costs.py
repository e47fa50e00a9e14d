"""What a step of a training rule costs beside one of joint training: processor time, peak memory, in one process.

    python tests/method_costs.py [dgl agm ..] [--rounds 5] [--batch_size 16] [--image_size 64]

Random clips, one thread. A rule's steps, the optimiser's included, take turns with joint training's; medians.
"""

import argparse
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.training.memory import return_large_tensors

return_large_tensors()

import torch  # noqa: E402

from methods import METHODS, build, resolve  # noqa: E402
from tests.rules import NEEDS, loaders_of, write_teachers  # noqa: E402
from utils.results.settings import training_parser  # noqa: E402
from utils.training.run import build_optimizer  # noqa: E402


def memory(name):
    """VmRSS or VmHWM, resident memory now or its peak, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000


def ready(name, flags, clips):
    """A function that makes one update of the rule -> (seconds, MB at its peak above what the process held)."""
    args = Namespace(**resolve(vars(training_parser().parse_args(["--method", name, *flags]))))
    torch.manual_seed(0)
    model, method = build(args, 6, prepare=True)
    model.to(memory_format=torch.channels_last)
    method.begin_epoch(0, model, loaders_of(*clips), torch.device("cpu"))
    model.train()
    optimizer, _ = build_optimizer(model, args)

    def finish():
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=40)
        optimizer.step()
        optimizer.zero_grad()

    def step():
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew
        before, start = memory("VmRSS"), time.process_time()
        method.update(model, *clips, finish)
        return time.process_time() - start, memory("VmHWM") - before

    step()  # the first allocates momentum
    return step


def main():
    parser = argparse.ArgumentParser(description="Time and peak memory of a step of every training rule.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="all of them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=64)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    frames = torch.randn(asked.batch_size, 3, 1, asked.image_size, asked.image_size)
    clips = torch.randn(asked.batch_size, 1, 257, 188), frames, torch.randint(6, (asked.batch_size,))
    joint = ready("joint", [], clips)
    print(f"{'method':16}{'time':>8}{'memory':>8}   of joint training's")
    with tempfile.TemporaryDirectory() as folder:
        flags = NEEDS | {"umt": write_teachers(Path(folder), n_classes=6, small=False)}
        flags |= {"relearn": ["--val_ratio", "0.1"]}
        for name in asked.names or METHODS:
            ours, rows = ready(name, flags.get(name, []), clips), []
            for _ in range(asked.rounds):
                rows.append((*joint(), *ours()))
            seconds_joint, memory_joint, seconds, peak = map(statistics.median, zip(*rows, strict=True))
            print(f"{name:16}{seconds / seconds_joint:8.2f}{peak / memory_joint:8.2f}", flush=True)
            del ours


if __name__ == "__main__":
    main()

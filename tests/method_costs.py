"""Compare the step of every method with that of joint training: processor time, and the peak of tensors in memory.

    python tests/method_costs.py [dgl agm ..] [--rounds 5] [--batch_size 16] [--image_size 64]

Random clips, one thread. A method's steps, with the optimiser's, take turns with those of joint training; medians of
their time. The peak is that of all tensors that a step creates and holds at one time, which is the same in every step.
"""

import argparse
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler logs its start and its end otherwise

import torch  # noqa: E402

from benchmark import take_turns  # noqa: E402
from engine.build import build, build_optimizer  # noqa: E402
from main_dgl import METHODS, clip_gradients  # noqa: E402
from tests.conftest import settings_of  # noqa: E402
from tests.rules import NEEDS, loaders_of, write_teachers  # noqa: E402


def peak_of_tensors(function):
    """Run a function; return the bytes of the tensors that it creates and holds at one time, at most."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = profile.profiler.kineto_results.events()
    return max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


def ready(name, flags, clips):
    """Return a function that takes one step of a method."""
    settings, (inputs, label) = settings_of("--dataset", "CREMAD", "--method", name, *flags), clips
    model, method = build(settings, torch.device("cpu"))
    method.begin_epoch(0, model, loaders_of(inputs, label), torch.device("cpu"))
    model.train()
    optimizer, _ = build_optimizer(model, settings)

    def step():
        for outputs in method.steps(model, inputs, label):
            method.adjust_gradients(model, outputs, label)
            clip_gradients(model)
            optimizer.step()
            optimizer.zero_grad()

    step()  # the first step allocates momentum
    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="all of them")
    for name, default in (("rounds", 5), ("batch_size", 16), ("image_size", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    frames = torch.randn(asked.batch_size, 3, 1, asked.image_size, asked.image_size)
    inputs = {"audio": torch.randn(asked.batch_size, 1, 257, 188), "visual": frames}
    clips = inputs, torch.randint(6, (asked.batch_size,))
    joint = ready("joint", [], clips)
    peak_joint = peak_of_tensors(joint)
    print(f"{'method':16}{'time':>8}{'memory':>8}   of joint training's")
    with tempfile.TemporaryDirectory() as folder:
        flags = NEEDS | {"umt": write_teachers(Path(folder), n_classes=6, small=False)}
        for name in asked.names or METHODS:
            ours = ready(name, flags.get(name, []), clips)
            peak = peak_of_tensors(ours) / peak_joint
            seconds = take_turns({"joint": joint, "ours": ours}, asked.rounds, time.process_time)
            print(f"{name:16}{seconds['ours'] / seconds['joint']:8.2f}{peak:8.2f}", flush=True)


if __name__ == "__main__":
    main()

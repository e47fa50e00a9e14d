"""The runs of a comparison, each after those that it learns from: made, several at a time, or printed; for compare.sh.

    python -m analysis.runner --out ckpt/compare/demo --methods joint dgl --seeds 0 1 -- --dataset CREMAD

What stands behind `--` are flags of main_dgl.py, of every run; those of one method go to its runs alone. A run that is
finished is left as it is, another goes on where it stopped, and one that was made with other flags is refused before
any is made.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from string import Formatter
from typing import NamedTuple

import torch

from dataset import DATASETS
from engine import folder
from engine.settings import parse_training, training_parser
from methods import METHODS, VARIANTS
from utils.config import OF_METHODS, at_least, parse
from utils.errors import InputError, Interrupted, OneLineParser, run
from utils.pool import cores

UNIMODAL = [name for name, entry in METHODS.items() if entry.modality != "full"]
ABLATIONS = [name for name in METHODS if name in VARIANTS["dgl"] and name not in UNIMODAL]
GROUPS = {"all": [*METHODS], "unimodal": UNIMODAL, "ablations": ABLATIONS}
GROUPS["baselines"] = [name for name in METHODS if name not in {*UNIMODAL, *ABLATIONS, "dgl"}]


class Planned(NamedTuple):
    """A run to be made: its method, alpha (None where it has none) and seed, its flags, and the runs it learns from."""

    method: str
    alpha: str | None
    seed: int
    flags: list
    needs: list


def plan(out, methods, alphas, seeds, common=()):
    """The runs, each method's by seed, and before it those that it learns from -> {name: Planned}.

    Args:
        out: folder of the runs.
        methods: names of METHODS or of GROUPS.
        common: flags of every run.

    Raises:
        InputError: a method is none, or a flag is of none of these methods.
    """
    settings, typed = parse(training_parser(), list(common))
    modalities, runs = tuple(DATASETS[settings.dataset].inputs), {}
    for seed in seeds:
        for word in methods:
            for method in GROUPS.get(word, [word]):
                if word not in GROUPS or METHODS[method].modality in ("full", *modalities):
                    add_runs(runs, out, method, alphas, seed, common, modalities)
    for name, flag in OF_METHODS.items():
        if name in typed and not any(each.method in flag.methods for each in runs.values()):
            raise InputError(
                f"--{name}: of --method {' or '.join(flag.methods)}, none of which is planned; leave it out"
            )
    return runs


def without_others(common, *methods):
    """Return flags without those that only methods other than these have."""
    others = OneLineParser(add_help=False)
    for name, flag in OF_METHODS.items():
        if not set(methods) & set(flag.methods):
            others.add_argument(f"--{name}", **({"action": "store_true"} if flag.type is bool else {}))
    return others.parse_known_args(common)[1]


def add_runs(runs, out, method, alphas, seed, common, modalities):
    if method not in METHODS:
        raise InputError(f"methods: '{method}' is none of {' '.join([*METHODS, *GROUPS])}; name one of them")
    entry, needs = METHODS[method], []
    words = [*without_others(common, method), "--random_seed", str(seed), "--method", method]
    for flag, form in entry.runs(modalities).items():
        others = {name: f"{name}-seed{seed}" for _, name, _, _ in Formatter().parse(form) if name}
        for other in others:
            add_runs(runs, out, other, alphas, seed, common, modalities)
        needs += others.values()
        words += [f"--{flag}", form.format(**{other: os.path.join(out, name) for other, name in others.items()})]
    for alpha in alphas if entry.tuned == "alpha" else [None]:
        name = f"{method}-alpha{alpha}-seed{seed}" if alpha else f"{method}-seed{seed}"
        of_alpha = ["--alpha", alpha] if alpha else []
        runs[name] = Planned(method, alpha, seed, [*words, *of_alpha, "--ckpt_path", os.path.join(out, name)], needs)


def print_plan(runs, args):
    """A command a line that makes a run; those that learn from other runs stand behind these, below a comment."""
    first, then = ([each for each in runs.values() if bool(each.needs) == later] for later in (False, True))
    for number, part in enumerate((first, then)):
        if number and part:
            print("# those below learn from runs above, which must be finished")
        for each in part:
            alpha = ["--alphas", each.alpha] if each.alpha else []
            flags = without_others(args.flags, each.method, *(runs[name].method for name in each.needs))
            words = ["--out", args.out, "--methods", each.method, *alpha, "--seeds", str(each.seed), "--", *flags]
            print(shlex.join([sys.executable, "-m", "analysis.runner", *words]))


def settings_of(planned):
    """The settings of a run as main_dgl.py has them.

    Raises:
        InputError: a flag is wrong, or the run's folder holds one with other settings.
    """
    settings, _ = parse_training(["--train", *planned.flags])
    folder.check_settings(settings)
    return settings


class Runner:
    """Makes runs, up to `jobs` at a time, each on a GPU of its own where there are any, else on its part of the cores.

    With one job the runs' output is shown; with more, it goes to output.txt in each run's folder.
    """

    def __init__(self, runs, jobs):
        self.runs, self.jobs = {name: (each, settings_of(each)) for name, each in runs.items()}, jobs
        self.slots, self.processes, self.lock = SimpleQueue(), set(), threading.RLock()
        self.failure = None  # what ended it all: the first run that failed, or a signal
        for environment in environments(jobs):
            self.slots.put(environment)

    def make_all(self):
        """Make every run, and return when all are made.

        Raises:
            InputError, SystemExit: one failed; the others have been stopped, and can be resumed.
            Interrupted: a signal has come, likewise.
        """
        futures = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                for name, (planned, _) in self.runs.items():  # in this order: no run waits for one behind it
                    futures[name] = pool.submit(self.make, name, [futures[other] for other in planned.needs])
                wait(futures.values())
            except Interrupted as interruption:
                self.stop(interruption)
                raise
        if self.failure:
            raise self.failure

    def stop(self, failure):
        """End the runs that are running, and start no more."""
        with self.lock:
            self.failure = self.failure or failure
            for process in self.processes:
                process.terminate()

    def make(self, name, needed):
        wait(needed)
        if self.failure:
            return
        args, environment = self.runs[name][1], self.slots.get()
        started = time.monotonic()
        try:
            if self.train_and_validate(name, args, environment) and self.jobs > 1:
                print(f"{args.ckpt_path}: made in {(time.monotonic() - started) / 60:.1f} min", flush=True)
        except BaseException as failure:
            self.stop(failure)
        finally:
            self.slots.put(environment)

    def train_and_validate(self, name, args, environment):
        """Train if it is not finished, and validate what is not validated yet -> whether there was anything to do."""
        path, made = Path(args.ckpt_path), False
        result, validated = path / "result.json", [path / "best.json", path / "predictions.csv"]
        if not folder.is_finished(args):
            print(f"== {path}", flush=True)
            self.call(["main_dgl.py", "--train", *self.runs[name][0].flags], path, environment)
            made = True
        if is_older(validated, result):
            flags = ["--linear_probe", "--json", validated[0], "--predictions", validated[1]]
            self.call(["valid.py", "--ckpt_path", path / "best.pth", *flags], path, environment, quiet=True)
            made = True
        if is_older([path / "last.json"], result):
            epochs = json.loads(result.read_text(encoding="utf-8"))
            if epochs["best"]["epoch"] == epochs["last"]["epoch"]:
                shutil.copy(validated[0], path / "last.json")
            else:
                flags = ["--linear_probe", "--json", path / "last.json"]
                self.call(["valid.py", "--ckpt_path", path / "last.pth", *flags], path, environment, quiet=True)
        return made

    def call(self, command, path, environment, quiet=False):
        """Run one of the project's scripts to its end.

        Raises:
            SystemExit: it failed, and has shown why; with several jobs InputError, with its last line.
        """
        log = path / "output.txt"
        if self.jobs > 1:  # else the run makes its folder, and leaves none if it is refused
            path.mkdir(parents=True, exist_ok=True)
        with open(log if self.jobs > 1 else os.devnull, "a", encoding="utf-8") as file:
            files = {"stdout": file, "stderr": file} if self.jobs > 1 else {"stdout": file} if quiet else {}
            with self.lock:
                if self.failure:
                    raise self.failure
                command = [sys.executable, *map(str, command)]
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, **files)
                self.processes.add(process)
        status = process.wait()
        with self.lock:
            self.processes.discard(process)
        if status and self.jobs == 1:
            sys.exit(status if status > 0 else 128 - status)
        if status:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            reason = last[0].removeprefix("error: ") if last else f"exit status {status}"
            raise InputError(f"{path}: {reason} (all it said: {log})")


def is_older(paths, than):
    """Whether one of the files is missing, or was made before `than`."""
    return any(not path.exists() or path.stat().st_mtime_ns < than.stat().st_mtime_ns for path in paths)


def environments(jobs):
    """What `jobs` runs at a time have as environment: the GPUs in turn, or without any the cores divided."""
    if jobs == 1:
        return [dict(os.environ)]
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    of_a_run = {"OMP_NUM_THREADS": str(max(1, cores() // jobs))}
    return [os.environ | ({"CUDA_VISIBLE_DEVICES": visible[k % count]} if count else of_a_run) for k in range(jobs)]


def main():
    parser = OneLineParser(prog="runner", description="Make the runs of a comparison.")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the runs")
    words = ", ".join(GROUPS)
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", required=True, help=f"names that --method takes, or {words}"
    )
    parser.add_argument("--alphas", nargs="+", metavar="A", default=["4"], help="for those that have it (default: 4)")
    parser.add_argument("--seeds", nargs="+", type=at_least(0), default=[0], metavar="N", help="(default: 0)")
    parser.add_argument("--jobs", type=at_least(1), default=1, metavar="K", help="runs at a time (default: 1)")
    parser.add_argument("--plan", action="store_true", help="print the runs, one command a line, and make none")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="behind --: flags of main_dgl.py, of every run")
    args = parser.parse_args()
    runs = plan(args.out, args.methods, args.alphas, args.seeds, args.flags)
    if args.plan:
        print_plan(runs, args)
    else:
        Runner(runs, args.jobs).make_all()


if __name__ == "__main__":
    run(main)

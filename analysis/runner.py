"""Train and validate the runs of a comparison, several at a time, or print their commands; for compare.sh.

    python -m analysis.runner --out ckpt/compare/demo --methods joint dgl --seeds 0 1 -- --dataset CREMAD

The flags after `--` are flags of main_dgl.py for every run; a flag of one method goes only to runs of that method. Runs
that need other runs, such as teachers, start after them. Finished runs are kept and interrupted runs resume. If a
folder has a run with other flags, this is an error before any run starts.
"""

import os
import shlex
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
from utils.config import METHOD_FLAGS, at_least, parse
from utils.errors import InputError, Interrupted, OneLineParser, run_script
from utils.files import read_json, read_text, write_text
from utils.pool import cores

UNIMODAL = [name for name, entry in METHODS.items() if entry.modality != "full"]
ABLATIONS = [name for name in METHODS if name in VARIANTS["dgl"] and name not in UNIMODAL]
GROUPS = {"all": [*METHODS], "unimodal": UNIMODAL, "ablations": ABLATIONS}
# methods that need held-out clips, or other runs that had held-out clips
HELD_OUT = {"gblend", *(name for name, entry in METHODS.items() if "val_ratio" in entry.needs)}
GROUPS["baselines"] = [name for name in METHODS if name not in {*UNIMODAL, *ABLATIONS, "dgl"}]


class PlannedRun(NamedTuple):
    """A run to train.

    Attributes:
        method: name of the method.
        alpha: its alpha, or None if the method has none.
        seed: its seed.
        flags: its flags of main_dgl.py.
        needs: names of the runs that must be finished first.
    """

    method: str
    alpha: str | None
    seed: int
    flags: list
    needs: list


def plan(out, methods, alphas, seeds, common=()):
    """List the runs of methods, alphas and seeds, each one after the runs that it needs.

    Args:
        out: folder of the runs.
        methods: names of METHODS or of GROUPS.
        alphas: values of --alpha, texts.
        seeds: values of --random_seed.
        common: flags of every run.

    Returns:
        {name: PlannedRun}.

    Raises:
        InputError: a name is not a method, a flag belongs to none of these methods, or a method needs held-out clips.
    """
    settings, typed = parse(training_parser(), list(common))
    modalities, runs = tuple(DATASETS[settings.dataset].inputs), {}
    for seed in seeds:
        for word in methods:
            for method in GROUPS.get(word, [word]):
                if word not in GROUPS or METHODS[method].modality in ("full", *modalities):
                    add_runs(runs, out, method, alphas, seed, common, modalities)
    for name, flag in METHOD_FLAGS.items():
        if name in typed and not any(each.method in flag.methods for each in runs.values()):
            raise InputError(
                f"--{name}: a flag of --method {' or '.join(flag.methods)}, which is not compared; leave it out"
            )
    names = sorted({each.method for each in runs.values()} & HELD_OUT)
    if names and "val_ratio" in typed and not settings.val_ratio:
        raise InputError(
            f"--val_ratio 0: {' and '.join(names)} cannot train without held-out clips; leave the methods out"
        )
    return runs


def flags_for(common, *methods):
    """Return the flags in `common` without those that belong only to other methods than `methods`."""
    others = OneLineParser(add_help=False)
    for name, flag in METHOD_FLAGS.items():
        if not set(methods) & set(flag.methods):
            others.add_argument(f"--{name}", **({"action": "store_true"} if flag.type is bool else {}))
    return others.parse_known_args(common)[1]


def add_runs(runs, out, method, alphas, seed, common, modalities):
    """Add the PlannedRuns of a method and a seed to `runs`, after the runs that they need; arguments as in `plan`."""
    if method not in METHODS:
        raise InputError(f"methods: '{method}' is not one of {' '.join([*METHODS, *GROUPS])}; name one of them")
    entry, needs = METHODS[method], []
    words = [*flags_for(common, method), "--random_seed", str(seed), "--method", method]
    for flag, template in entry.runs(modalities).items():
        others = {name: f"{name}-seed{seed}" for _, name, _, _ in Formatter().parse(template) if name}
        for other in others:
            add_runs(runs, out, other, alphas, seed, common, modalities)
        needs += others.values()
        words += [f"--{flag}", template.format(**{other: os.path.join(out, name) for other, name in others.items()})]
    for alpha in alphas if entry.tuned_flag == "alpha" else [None]:
        name = f"{method}-alpha{alpha}-seed{seed}" if alpha else f"{method}-seed{seed}"
        alpha_flags = ["--alpha", alpha] if alpha else []
        flags = [*words, *alpha_flags, "--ckpt_path", os.path.join(out, name)]
        runs[name] = PlannedRun(method, alpha, seed, flags, needs)


def print_plan(runs, args):
    """Print a command per run, one per line; runs that need others are last, after a comment."""
    first, then = ([each for each in runs.values() if bool(each.needs) == later] for later in (False, True))
    for number, part in enumerate((first, then)):
        if number and part:
            print("# the runs below need runs above: start them when those are finished")
        for each in part:
            alpha = ["--alphas", each.alpha] if each.alpha else []
            flags = flags_for(args.flags, each.method, *(runs[name].method for name in each.needs))
            words = ["--out", args.out, "--methods", each.method, *alpha, "--seeds", str(each.seed), "--", *flags]
            print(shlex.join([sys.executable, "-m", "analysis.runner", *words]))


def settings_of(planned):
    """Return the settings of a PlannedRun, as main_dgl.py would parse them.

    Raises:
        InputError: a flag is wrong, or the folder has a run with other settings.
    """
    settings, _ = parse_training(["--train", *planned.flags])
    folder.check_settings(settings)
    return settings


class Runner:
    """Train and validate runs, up to `jobs` at a time.

    Runs get the GPUs in turn, or without GPUs a part of the cores each. With one job, the output of the runs is
    printed. With several jobs, it goes to output.txt in the folder of each run.
    """

    def __init__(self, runs, jobs):
        self.runs, self.jobs = {name: (each, settings_of(each)) for name, each in runs.items()}, jobs
        self.slots, self.processes, self.lock = SimpleQueue(), set(), threading.RLock()
        self.failure = None  # the error of the first run that failed, or a signal
        for environment in environments(jobs):
            self.slots.put(environment)

    def make_all(self):
        """Train and validate every run, and return when all are finished.

        Raises:
            InputError, SystemExit: a run failed. The others were stopped and can be resumed.
            Interrupted: a signal arrived. The runs were stopped and can be resumed.
        """
        futures = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                for name, (planned, _) in self.runs.items():  # in this order, no run waits for a later one
                    futures[name] = pool.submit(self.make, name, [futures[other] for other in planned.needs])
                wait(futures.values())
            except Interrupted as interruption:
                self.stop(interruption)
                raise
        if self.failure:
            raise self.failure

    def stop(self, failure):
        """Stop all active runs, and start no more."""
        with self.lock:
            self.failure = self.failure or failure
            for process in self.processes:
                process.terminate()

    def make(self, name, needed):
        """Train and validate a run after the futures `needed` are done, unless another run has failed."""
        wait(needed)
        if self.failure:
            return
        args, environment = self.runs[name][1], self.slots.get()
        started = time.monotonic()
        try:
            if self.train_and_validate(name, args, environment) and self.jobs > 1:
                print(
                    f"{args.ckpt_path}: trained and validated in {(time.monotonic() - started) / 60:.1f} min",
                    flush=True,
                )
        except BaseException as failure:
            self.stop(failure)
        finally:
            self.slots.put(environment)

    def train_and_validate(self, name, args, environment):
        """Train a run if it is not finished, and validate its checkpoints; return False if both were done already."""
        path, worked = Path(args.ckpt_path), False
        result, validated = path / "result.json", [path / "best.json", path / "predictions.csv"]
        if not folder.is_finished(args):
            print(f"== {path}", flush=True)
            self.call(["main_dgl.py", "--train", *self.runs[name][0].flags], path, environment)
            worked = True
        if is_older(validated, result):
            flags = ["--linear_probe", "--json", validated[0], "--predictions", validated[1]]
            self.call(["valid.py", "--ckpt_path", path / "best.pth", *flags], path, environment, quiet=True)
            worked = True
        if is_older([path / "last.json"], result):
            epochs = read_json(result)
            if epochs["best"]["epoch"] == epochs["last"]["epoch"]:
                write_text(path / "last.json", read_text(validated[0]))
            else:
                flags = ["--linear_probe", "--json", path / "last.json"]
                self.call(["valid.py", "--ckpt_path", path / "last.pth", *flags], path, environment, quiet=True)
        return worked

    def call(self, command, path, environment, quiet=False):
        """Run one of the project's scripts until it ends.

        Raises:
            SystemExit: with one job, the script failed and has printed the reason.
            InputError: with several jobs, the script failed; the message has the last line of its output.
        """
        log = path / "output.txt"
        if self.jobs > 1:  # with one job, the run itself creates its folder, and none if it is rejected
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{path}: {error.strerror}; choose another --out (compare.sh: out=DIR)") from None
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
            raise InputError(f"{path}: {reason} (all output: {log})")


def is_older(paths, reference):
    """Return True if one of the files is missing, or is older than the file `reference`."""
    return any(not path.exists() or path.stat().st_mtime_ns < reference.stat().st_mtime_ns for path in paths)


def environments(jobs):
    """Return the environment variables of `jobs` runs at a time: a GPU for each in turn, else a part of the cores."""
    if jobs == 1:
        return [dict(os.environ)]
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // jobs)))}
    return [os.environ | ({"CUDA_VISIBLE_DEVICES": visible[k % count]} if count else threads) for k in range(jobs)]


def main():
    parser = OneLineParser(prog="runner", description="Train and validate the runs of a comparison.")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the runs")
    words = ", ".join(GROUPS)
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", required=True, help=f"names that --method takes, or {words}"
    )
    parser.add_argument(
        "--alphas", nargs="+", metavar="A", default=["4"], help="alphas of the methods that have one (default: 4)"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=at_least(0), default=[0], metavar="N", help="seeds of the runs (default: 0)"
    )
    parser.add_argument("--jobs", type=at_least(1), default=1, metavar="K", help="runs at a time (default: 1)")
    parser.add_argument(
        "--plan", action="store_true", help="print the commands of the runs, one per line, and start none"
    )
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="after --: flags of main_dgl.py for every run")
    args = parser.parse_args()
    runs = plan(args.out, args.methods, args.alphas, args.seeds, args.flags)
    if args.plan:
        print_plan(runs, args)
    else:
        Runner(runs, args.jobs).make_all()


if __name__ == "__main__":
    run_script(main)

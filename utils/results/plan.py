"""The runs of a comparison, in an order in which each finds what it needs; for compare.sh.

    python -m utils.results.plan --out ckpt/compare/demo --methods dgl joint --alphas 1 4 --seeds 0 1

A line a run: its name, which is its folder's in --out, and the flags of main_dgl.py that make it what it is.
"""

import shlex
from string import Formatter

from methods import METHODS
from utils.errors import InputError, OneLineParser, run
from utils.options import at_least


def plan(out, methods, alphas, seeds):
    """The runs, each method's by seed, and before it those that it learns from -> {name: flags}.

    Raises:
        InputError: a method is none.
    """
    runs = {}
    for seed in seeds:
        for method in methods:
            add_runs(runs, out, method, alphas, seed)
    return runs


def add_runs(runs, out, method, alphas, seed):
    if method not in METHODS:
        raise InputError(f"methods: '{method}' is none of {' '.join(METHODS)}; name one of them")
    entry, flags = METHODS[method], ["--random_seed", seed, "--method", method]
    for flag, form in entry.runs.items():
        others = [name for _, name, _, _ in Formatter().parse(form) if name]
        for other in others:
            add_runs(runs, out, other, alphas, seed)
        flags += [f"--{flag}", form.format(**{other: f"{out}/{other}-seed{seed}" for other in others})]
    if entry.tuned == "alpha":
        for alpha in alphas:
            runs[f"{method}-alpha{alpha}-seed{seed}"] = [*flags, "--alpha", alpha]
    else:
        runs[f"{method}-seed{seed}"] = flags


def main():
    parser = OneLineParser(prog="plan", description="List the runs of a comparison.")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the runs")
    parser.add_argument("--methods", nargs="+", metavar="NAME", required=True, help="training rules, or all")
    parser.add_argument("--alphas", nargs="+", metavar="A", default=["4"], help="for the rules that have --alpha")
    parser.add_argument("--seeds", nargs="+", type=at_least(0), default=[0], metavar="N", help="(default: 0)")
    args = parser.parse_args()
    methods = METHODS if args.methods == ["all"] else args.methods
    for name, flags in plan(args.out, methods, args.alphas, args.seeds).items():
        print(name, shlex.join(map(str, flags)))


if __name__ == "__main__":
    run(main)

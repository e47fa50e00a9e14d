"""The table and the pictures of a comparison: every method's mean over its seeds, and how sure its difference is.

    python -m utils.results.comparison ckpt/compare/demo [--reference joint_uni]

Reads the folders of finished runs that compare.sh leaves there; writes comparison.md, comparison.csv, curves.png, with
a reference comparison.png, and, where a method ran with more than one alpha, alpha.png.

Differences from the reference are those of the best epochs on test clips, by predictions.csv in the runs' folders, of
the seeds that both methods have: utils/results/significance.py.
"""

import csv
import json
import statistics
from collections import defaultdict
from pathlib import Path

import numpy as np

from methods import METHODS, describe, flags
from utils.errors import InputError, OneLineParser, run
from utils.files import write_csv, write_text
from utils.options import FREE_SETTINGS
from utils.results.settings import as_of_today, label
from utils.results.significance import Difference, difference
from utils.training.measurement import BRANCHES

COLUMNS = {
    "fused": lambda figures: figures["fused"],
    "audio": lambda figures: figures["audio"],
    "visual": lambda figures: figures["visual"],
    "probe audio": lambda figures: figures["linear_probe"]["audio"],
    "probe visual": lambda figures: figures["linear_probe"]["visual"],
}

# Settings in which the runs of a comparison may differ, those of the machine and of each method among them.
VARIED = {"method", "modality", "random_seed", *(FREE_SETTINGS - {"epochs"}), *(flag.name for flag in flags())}

REFERENCE = "joint_uni"  # ordinary training that has unimodal losses too: what is left is what the rule does
FIELDS = ("difference", *Difference._fields[1:])  # of a Difference, as columns of comparison.csv call them
BANDS = 5  # up to so many methods curves have bands, more could not be told apart
CLEAR = "*"  # marks a difference whose interval leaves out 0

OF_A_SEED = {"random_seed", "gblend_weights"}  # in which runs of one method differ: G-Blending measures its weights


def collect(folder):
    """The finished runs below a folder.

    Returns:
        {(method, alpha): [{"log": epochs, "best": figures, "last": figures, "settings": settings, "hits": hits} per
        seed]}, the keys as `describe` tells a run's settings, in the order of METHODS; hits as `read_hits` gives them

    Raises:
        InputError: there is none, one's files cannot be read, they differ in more than method, alpha and seed, or they
            were validated on different clips.
    """
    runs, first, of_first = defaultdict(list), None, None
    for path in sorted(Path(folder).glob("*/result.json")):
        try:
            entry = json.loads(path.read_text())
            entry["log"] = [json.loads(line) for line in (path.parent / "log.jsonl").read_text().splitlines()]
            for name in ("best", "last"):
                figures = json.loads((path.parent / f"{name}.json").read_text())
                entry[name] = {column: value(figures) for column, value in COLUMNS.items()}
            entry["hits"] = read_hits(path.parent / "predictions.csv")
            settings = entry["settings"] = as_of_today(entry["settings"])
            clips = entry["hits"] and entry["hits"]["fused"].keys()
        except (OSError, ValueError, KeyError, TypeError, InputError) as error:
            raise InputError(f"{path.parent}: not a finished run ({error}); run compare.sh again") from None
        key = describe(settings)
        refuse_difference(path.parent, settings, first or settings, settings.keys() - VARIED)
        first = first or settings
        of_first = of_first or clips
        if clips and clips != of_first:
            raise InputError(f"{path.parent}: validated on other clips than a run beside it; validate both again")
        for other in runs[key]:
            if other["settings"]["random_seed"] == settings["random_seed"]:
                raise InputError(
                    f"{path.parent}: a run of the same method and seed is beside it; move one of them away"
                )
            refuse_difference(path.parent, settings, other["settings"], settings.keys() - FREE_SETTINGS - OF_A_SEED)
        runs[key].append(entry)
    if not runs:
        raise InputError(f"{folder}: no finished run in it; run compare.sh")
    order = [entry.label for entry in METHODS.values()]
    return dict(sorted(runs.items(), key=lambda item: (order.index(item[0][0]), item[0][1] or 0)))


def read_hits(path):
    """Which clips a run's best epoch got right, by what valid.py --predictions wrote -> {branch: {clip: bool}}.

    None where there is no such file, as in runs of older versions.

    Raises:
        OSError, KeyError: it cannot be read, or lacks a column.
    """
    if not path.exists():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    branches = [branch for branch in BRANCHES if rows and branch in rows[0]]
    return {branch: {row["clip"]: row[branch] == row["true"] for row in rows} for branch in branches}


def find_reference(runs, name):
    """The key in `runs` of the method `name`, METHODS' name; of None that of REFERENCE, or None where it did not run.

    Raises:
        InputError: it is no method, did not run, or ran with several alphas.
    """
    if name is not None and name not in METHODS:
        raise InputError(f"--reference {name}: none of {' '.join(METHODS)}; name one of them")
    keys = [key for key in runs if key[0] == METHODS[name or REFERENCE].label]
    if name is not None and not keys:
        raise InputError(
            f"--reference {name}: no finished run of it; name a method that ran, or run compare.sh with it"
        )
    if len(keys) > 1:
        raise InputError(f"--reference {name}: it ran with several alphas; name a method with one setting")
    return keys[0] if keys else None


def compare(runs, reference):
    """The differences of every method from that under the key `reference` -> {key: {branch: Difference}}.

    A method lacks the branches of which it or the reference has no predictions, or no seed in common.
    """
    by_seed = {
        key: {entry["settings"]["random_seed"]: entry["hits"] for entry in entries if entry["hits"]}
        for key, entries in runs.items()
    }
    found = {}
    for key, of_seeds in by_seed.items():
        shared = sorted(of_seeds.keys() & by_seed[reference].keys())
        found[key] = {}
        for branch in BRANCHES if key != reference else ():
            pairs = [(of_seeds[seed].get(branch), by_seed[reference][seed].get(branch)) for seed in shared]
            if pairs and all(own and other for own, other in pairs):
                found[key][branch] = difference(*map(rows_of, zip(*pairs, strict=True)))
    return found


def rows_of(runs_hits):
    """Runs' {clip: bool} as an array, (R, N), in the order of the clips' names."""
    return np.array([[hits[clip] for clip in sorted(hits)] for hits in runs_hits])


def refuse_difference(folder, settings, others, names):
    """Raise InputError if a run's settings differ in one of `names` from another's beside it."""
    for name in sorted(names):
        if settings.get(name) != others.get(name):
            raise InputError(
                f"{folder}: --{name} is {settings.get(name)}, {others.get(name)} in another run beside it; "
                "move one of them away, or make it again with compare.sh"
            )


def mean_and_deviation(values):
    """Mean and sample standard deviation (None of one value) of accuracies; (None, None) where a run has none."""
    if None in values:
        return None, None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def tabulate(runs, differences):
    """Rows of a table, best epochs and last ones: [{"method": .., "alpha": .., "seeds": .., "epoch": .., ...}].

    Each of COLUMNS has its mean and its standard deviation, 0 to 1, under `<column>` and `<column> std`. Best epochs
    have the fields of their Difference, as `compare` gives them, under `<branch> difference`, `<branch> low` and so on.
    """
    rows = []
    for (method, alpha), entries in runs.items():
        for epoch in ("best", "last"):
            row = {"method": method, "alpha": alpha, "seeds": len(entries), "epoch": epoch}
            for column in COLUMNS:
                row[column], row[f"{column} std"] = mean_and_deviation([entry[epoch][column] for entry in entries])
            found = differences.get((method, alpha), {}) if epoch == "best" else {}
            for branch in BRANCHES:
                values = found.get(branch, [None] * len(FIELDS))
                row |= zip((f"{branch} {name}" for name in FIELDS), values, strict=True)
            rows.append(row)
    return rows


def markdown(rows, reference):
    """The table as Markdown in per cent, 'mean ± standard deviation'; with a reference its fused differences in points.

    Args:
        rows: as `tabulate` gives them.
        reference: the reference as tables call it, or None.
    """

    def cell(row, column):
        mean, deviation = row[column], row[f"{column} std"]
        if mean is None:
            return "-"
        return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")

    def difference_cells(row):
        if row["fused difference"] is None:
            return ["-", "-", "-"]
        found = Difference(*(row[f"fused {name}"] for name in FIELDS))
        low, mean, high = (f"{100 * value:+.1f}" for value in (found.low, found.mean, found.high))
        return [f"{mean}{CLEAR * found.clear}", f"{low} to {high}", f"{found.p:.3f}"]

    heads = ["method", "alpha", "seeds", "epoch", *COLUMNS]
    heads += [f"fused, less {reference}", "95 %", "p"] if reference else []
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        alpha = "-" if row["alpha"] is None else f"{row['alpha']:g}"
        cells = [row["method"], alpha, str(row["seeds"]), row["epoch"], *(cell(row, column) for column in COLUMNS)]
        lines.append("| " + " | ".join(cells + (difference_cells(row) if reference else [])) + " |")
    return "\n".join(lines) + "\n"


def notes(runs, reference):
    """What the table's differences are, and which runs are not in them, as lines of Markdown; "" without reference."""
    if not reference:
        return ""
    lines = [
        f"Differences from {label(*reference)} are in points, of the seeds that both have, with 95 % intervals over "
        f"seeds and clips; {CLEAR} marks those whose interval leaves out 0."
    ]
    if lacking := [label(*key) for key, entries in runs.items() if not all(entry["hits"] for entry in entries)]:
        lines.append(f"Runs without predictions.csv, made by an older compare.sh, have none: {', '.join(lacking)}.")
    return "\n" + "\n\n".join(lines) + "\n"


def new_figure():
    """Three panels side by side, one per branch -> (figure, {branch: axes})."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, len(BRANCHES), sharey=True)
    for branch, axes in zip(BRANCHES, panels, strict=True):
        axes.set_title(branch)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy")
    return figure, dict(zip(BRANCHES, panels, strict=True))


def draw(axes, x, values, band=True, **style):
    """A line of means, and a band of one standard deviation; values[k] are the seeds' accuracies at x[k]."""
    means, deviations = zip(*(mean_and_deviation(seeds) for seeds in values), strict=True)
    (line,) = axes.plot(x, means, marker="o", markersize=3, **style)
    if not band:
        return
    low, high = (
        [mean + sign * (deviation or 0) for mean, deviation in zip(means, deviations, strict=True)] for sign in (-1, 1)
    )
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def save_with_legend(figure, panels, path):
    """Write the figure with one legend below its panels."""
    from utils.results.figures import save_figure

    entries = {}
    for axes in panels.values():
        entries |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=5)
    save_figure(figure, path)


def plot_curves(runs, path):
    """Accuracy per epoch, one panel a branch, a line a method with a band of one standard deviation."""
    figure, panels = new_figure()
    for number, (key, entries) in enumerate(runs.items()):
        epochs = range(min(len(entry["log"]) for entry in entries))
        for branch, axes in panels.items():
            values = [[entry["log"][epoch][branch] for entry in entries] for epoch in epochs]
            if None not in values[0]:
                draw(axes, epochs, values, len(runs) <= BANDS, label=label(*key), color=f"C{number}")
    for axes in panels.values():
        axes.set_xlabel("epoch")
        axes.set_xlim(left=-0.3)
        axes.set_ylim(-0.02, 1.02)
        axes.xaxis.get_major_locator().set_params(integer=True)
    save_with_legend(figure, panels, path)


def plot_alphas(runs, path):
    """Best epoch's accuracy against alpha, one panel a branch, of the methods that ran with several; else no file."""
    path.unlink(missing_ok=True)
    methods = defaultdict(dict)
    for (method, alpha), entries in runs.items():
        if alpha is not None:
            methods[method][alpha] = entries
    methods = {method: alphas for method, alphas in methods.items() if len(alphas) > 1}
    if not methods:
        return
    figure, panels = new_figure()
    for method, alphas in methods.items():
        for branch, axes in panels.items():
            values = [[entry["best"][branch] for entry in entries] for entries in alphas.values()]
            draw(axes, list(alphas), values, label=method)
            axes.set_xlabel("alpha")
    save_with_legend(figure, panels, path)


def plot_differences(differences, reference, path):
    """Points and intervals of the differences, one panel a branch, a row a method; without any, no file.

    Filled points are those whose interval leaves out 0.
    """
    path.unlink(missing_ok=True)
    shown = {key: found for key, found in differences.items() if found}
    if not shown:
        return
    from utils.results.figures import save_figure

    figure, panels = new_figure()
    figure.set_figheight(1.6 + 0.35 * len(shown))
    for branch, axes in panels.items():
        axes.axvline(0, color="black", linewidth=1)
        for place, found in enumerate(each.get(branch) for each in shown.values()):
            if found:
                mean, low, high = (100 * value for value in (found.mean, found.low, found.high))
                colour = "grey" if not found.clear else "C2" if mean > 0 else "C3"
                axes.plot([low, high], [place, place], color=colour, linewidth=2)
                axes.plot(mean, place, "o", color=colour, markerfacecolor=colour if found.clear else "white", zorder=3)
        axes.set_xlabel(f"points, less {label(*reference)}")
        axes.set_ylim(len(shown) - 0.5, -0.5)
    first, *_ = panels.values()
    first.set_ylabel("")
    first.set_yticks(range(len(shown)), [label(*key) for key in shown])
    save_figure(figure, path)


def main():
    parser = OneLineParser(prog="comparison", description="Table and pictures of the runs that compare.sh made.")
    parser.add_argument("folder", type=Path, help="folder of the runs, such as ckpt/compare/demo")
    parser.add_argument(
        "--reference", metavar="METHOD", help=f"what others are compared with (default: {REFERENCE}, where it ran)"
    )
    args = parser.parse_args()
    folder, runs = args.folder, collect(args.folder)
    reference = find_reference(runs, args.reference)
    differences = compare(runs, reference) if reference else {}
    rows = tabulate(runs, differences)
    table = markdown(rows, reference and label(*reference)) + notes(runs, reference)
    write_text(folder / "comparison.md", table)
    write_csv(folder / "comparison.csv", [rows[0], *(row.values() for row in rows)])
    plot_curves(runs, folder / "curves.png")
    plot_alphas(runs, folder / "alpha.png")
    plot_differences(differences, reference, folder / "comparison.png")
    print(table, end="")
    written = ("comparison.md", "comparison.csv", "comparison.png", "curves.png", "alpha.png")
    print(f"written to {folder}: {', '.join(name for name in written if (folder / name).exists())}")


if __name__ == "__main__":
    run(main)

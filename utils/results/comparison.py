"""The table and the pictures of a comparison: mean and standard deviation over the seeds of every method.

    python -m utils.results.comparison ckpt/compare/demo

Reads the folders of finished runs that compare.sh leaves there; writes comparison.md, comparison.csv, curves.png and,
where a method ran with more than one alpha, alpha.png.
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path

from methods import METHODS, describe, flags
from utils.errors import InputError, OneLineParser, run
from utils.files import write_csv, write_text
from utils.options import FREE_SETTINGS
from utils.results.settings import as_of_today, label
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

OF_A_SEED = {"random_seed", "gblend_weights"}  # in which runs of one method differ: G-Blending measures its weights


def collect(folder):
    """The finished runs below a folder.

    Returns:
        {(method, alpha): [{"log": epochs, "best": figures, "last": figures, "settings": settings} per seed]}, the keys
        as `describe` tells a run's settings, in the order of METHODS

    Raises:
        InputError: there is none, one's files cannot be read, or they differ in more than method, alpha and seed.
    """
    runs, first = defaultdict(list), None
    for path in sorted(Path(folder).glob("*/result.json")):
        try:
            entry = json.loads(path.read_text())
            entry["log"] = [json.loads(line) for line in (path.parent / "log.jsonl").read_text().splitlines()]
            for name in ("best", "last"):
                figures = json.loads((path.parent / f"{name}.json").read_text())
                entry[name] = {column: value(figures) for column, value in COLUMNS.items()}
            settings = entry["settings"] = as_of_today(entry["settings"])
        except (OSError, ValueError, KeyError, TypeError, InputError) as error:
            raise InputError(f"{path.parent}: not a finished run ({error}); run compare.sh again") from None
        key = describe(settings)
        refuse_difference(path.parent, settings, first or settings, settings.keys() - VARIED)
        first = first or settings
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


def tabulate(runs):
    """Rows of a table, best epochs and last ones: [{"method": .., "alpha": .., "seeds": .., "epoch": .., ...}].

    Each of COLUMNS has its mean and its standard deviation, 0 to 1, under `<column>` and `<column> std`.
    """
    rows = []
    for (method, alpha), entries in runs.items():
        for epoch in ("best", "last"):
            row = {"method": method, "alpha": alpha, "seeds": len(entries), "epoch": epoch}
            for column in COLUMNS:
                row[column], row[f"{column} std"] = mean_and_deviation([entry[epoch][column] for entry in entries])
            rows.append(row)
    return rows


def markdown(rows):
    """The table as Markdown, 'mean ± standard deviation' in per cent."""

    def cell(row, column):
        mean, deviation = row[column], row[f"{column} std"]
        if mean is None:
            return "-"
        return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")

    lines = ["| method | alpha | seeds | epoch | " + " | ".join(COLUMNS) + " |", "|---" * (4 + len(COLUMNS)) + "|"]
    for row in rows:
        alpha = "-" if row["alpha"] is None else f"{row['alpha']:g}"
        cells = [row["method"], alpha, str(row["seeds"]), row["epoch"], *(cell(row, column) for column in COLUMNS)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


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


def draw(axes, x, values, **style):
    """A line of means and a band of one standard deviation; values[k] are the seeds' accuracies at x[k]."""
    means, deviations = zip(*(mean_and_deviation(seeds) for seeds in values), strict=True)
    (line,) = axes.plot(x, means, marker="o", markersize=3, **style)
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
                draw(axes, epochs, values, label=label(*key), color=f"C{number}")
    for axes in panels.values():
        axes.set_xlabel("epoch")
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


def main():
    parser = OneLineParser(description="Table and pictures of the runs that compare.sh made.")
    parser.add_argument("folder", type=Path, help="folder of the runs, such as ckpt/compare/demo")
    folder = parser.parse_args().folder
    runs = collect(folder)
    rows = tabulate(runs)
    write_text(folder / "comparison.md", markdown(rows))
    write_csv(folder / "comparison.csv", [rows[0], *(row.values() for row in rows)])
    plot_curves(runs, folder / "curves.png")
    plot_alphas(runs, folder / "alpha.png")
    print(markdown(rows), end="")
    written = ("comparison.md", "comparison.csv", "curves.png", "alpha.png")
    print(f"written to {folder}: {', '.join(name for name in written if (folder / name).exists())}")


if __name__ == "__main__":
    run(main)

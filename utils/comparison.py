"""The table and the pictures of a comparison: mean and standard deviation over the seeds of every method.

    python -m utils.comparison ckpt/compare/demo

Reads the folders of finished runs that compare.sh leaves there; writes comparison.md, comparison.csv, curves.png and,
where a method ran with more than one alpha, alpha.png.
"""

import csv
import io
import json
import statistics
from collections import defaultdict
from pathlib import Path

from utils.checkpoint import FREE_SETTINGS
from utils.errors import InputError, OneLineParser, run
from utils.evaluation import BRANCHES
from utils.files import write_text

COLUMNS = {
    "fused": lambda figures: figures["fused"],
    "audio": lambda figures: figures["audio"],
    "visual": lambda figures: figures["visual"],
    "probe audio": lambda figures: figures["linear_probe"]["audio"],
    "probe visual": lambda figures: figures["linear_probe"]["visual"],
}

# Settings in which the runs of a comparison may differ, those of the machine among them.
VARIED = {"method", "modulation", "modality", "no_mgt", "no_ugt", "alpha", "random_seed", *(FREE_SETTINGS - {"epochs"})}
METHODS = ("audio alone", "visual alone", "joint", "OGM", "OGM-GE", "DGL -MGT -UGT", "DGL -MGT", "DGL -UGT", "DGL")


def method_name(settings):
    """The name of a run's method, and its alpha where the method has one, else None."""
    if settings["modality"] != "full":
        return f"{settings['modality']} alone", None
    if settings["method"] == "joint":
        return {"Normal": "joint", "OGM": "OGM", "OGM_GE": "OGM-GE"}[settings["modulation"]], None
    left_out = [name for flag, name in (("no_mgt", "MGT"), ("no_ugt", "UGT")) if settings[flag]]
    return "DGL" + "".join(f" -{name}" for name in left_out), settings["alpha"]


def collect(folder):
    """The finished runs below a folder.

    Returns:
        {(method, alpha): [{"log": epochs, "best": figures, "last": figures, "settings": settings} per seed]}

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
            key = method_name(entry["settings"])
            shared = {name: value for name, value in entry["settings"].items() if name not in VARIED}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path.parent}: not a finished run ({error}); run compare.sh again") from None
        first = shared if first is None else first
        for name in sorted(first.keys() | shared.keys()):
            if first.get(name) != shared.get(name):
                raise InputError(
                    f"{path.parent}: --{name} is {shared.get(name)}, {first.get(name)} in another run beside it; "
                    "move one of them away, or make it again with compare.sh"
                )
        if any(other["settings"]["random_seed"] == entry["settings"]["random_seed"] for other in runs[key]):
            raise InputError(f"{path.parent}: a run of the same method and seed is beside it; move one of them away")
        runs[key].append(entry)
    if not runs:
        raise InputError(f"{folder}: no finished run in it; run compare.sh")
    return dict(sorted(runs.items(), key=lambda item: (METHODS.index(item[0][0]), item[0][1] or 0)))


def mean_and_deviation(values):
    """Mean and sample standard deviation (None of one value) of accuracies; (None, None) where a run has none."""
    if None in values:
        return None, None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def tabulate(runs):
    """Rows of a table, best epochs and last ones: [{"method": .., "alpha": .., "seeds": .., "epoch": .., ...}].

    Each of COLUMNS has its mean and its standard deviation, under `<column>` and `<column> std`.
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


def comma_separated(rows):
    """The table as CSV: accuracies from 0 to 1, empty where a model lacks the branch."""
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def label(method, alpha):
    return method if alpha is None else f"{method}, alpha {alpha:g}"


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
    from utils.figures import save_figure

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
    write_text(folder / "comparison.csv", comma_separated(rows))
    plot_curves(runs, folder / "curves.png")
    plot_alphas(runs, folder / "alpha.png")
    print(markdown(rows), end="")
    written = ("comparison.md", "comparison.csv", "curves.png", "alpha.png")
    print(f"written to {folder}: {', '.join(name for name in written if (folder / name).exists())}")


if __name__ == "__main__":
    run(main)

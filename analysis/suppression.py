"""Draw how much fusion suppresses the gradient of each encoder, as in figures 1(c) and 3 of the paper.

    python main_dgl.py --train --method joint --log_suppression ...       # logs the values of every epoch
    python -m analysis.suppression ckpt/compare/demo                      # draws all runs below a folder with values

engine/suppression.py defines the values.
"""

import json
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.runs import distinctions
from engine.figures import save_figure
from engine.folder import RECORD, read_record
from engine.settings import label as name_of
from engine.suppression import PREFIX
from methods import METHODS, describe, resolve
from utils.errors import InputError, OneLineParser, run_script

PANELS = {
    "s": "s: factor by which the others change the gradient",
    "ratio": "1 - p of the true class, fused / alone",
    "gradient": "gradient after clipping; DGL's divided by alpha",
}
STYLES = ("-", "--", ":", "-.")  # of the modalities, in order
OF_ALPHA = {"dgl", "no_ugt"}  # methods whose encoders get only alpha times the gradient of their own loss


class Run(NamedTuple):
    """A run with values of --log_suppression.

    Attributes:
        folder: folder of the run.
        name: label of its method.
        curves: {"s audio": {epoch: value}, ...}.
    """

    folder: Path
    name: str
    curves: dict


def read_runs(folders):
    """Return the Runs below some folders, in the order of METHODS; runs without values are left out.

    Raises:
        InputError: no run has values, or the files of a run cannot be read.
    """
    found = []
    for path in sorted({path for folder in folders for path in folder.rglob("log.jsonl")}):
        try:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            settings = resolve(read_record(path.parent / RECORD)["settings"])
            if curves := curves_of(rows, settings):
                found.append((path.parent, settings, curves))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError) as error:
            raise InputError(f"{path}: not the log of a run ({error}); train it again, or move it away") from None
    if not found:
        where = " ".join(map(str, folders))
        raise InputError(f"{where}: contains no run with --log_suppression; train one with this flag")
    found.sort(key=lambda entry: list(METHODS).index(entry[1]["method"]))
    texts = distinctions([settings for _, settings, _ in found])
    return [
        Run(folder, name_of(*describe(settings)) + text, curves)
        for (folder, settings, curves), text in zip(found, texts, strict=True)
    ]


def curves_of(rows, settings):
    """Return the values in a log, {"s audio": {epoch: value}, ...}; for methods in OF_ALPHA, gradients / alpha."""
    curves = {}
    for row in rows:
        for name in row:
            if name.startswith(PREFIX):
                panel, modality = name.removeprefix(PREFIX).split("_", 1)
                divided = panel == "gradient" and settings["method"] in OF_ALPHA and settings["alpha"] > 0
                value = row[name] / settings["alpha"] if divided else row[name]
                curves.setdefault(f"{panel} {modality}", {})[row["epoch"]] = value
    return curves


def suppression_figure(runs):
    """Draw s, the ratio and the gradients per epoch, a colour per method and a line style per modality."""
    names = list(dict.fromkeys(each.name for each in runs))
    modalities = list(dict.fromkeys(curve.split(" ", 1)[1] for each in runs for curve in each.curves))
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    panels = dict(zip(PANELS, figure.subplots(1, len(PANELS)), strict=True))
    for each in runs:
        for curve, values in each.curves.items():
            panel, modality = curve.split(" ", 1)
            style = STYLES[modalities.index(modality) % len(STYLES)]
            marker = "o" if len(values) <= 30 else None
            colour = f"C{names.index(each.name)}"
            panels[panel].plot([*values], [*values.values()], style, color=colour, marker=marker, markersize=3)
    for panel, axes in panels.items():
        axes.set_title(PANELS[panel])
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        if panel != "gradient":
            axes.set_yscale("log")
            axes.axhline(1, color="grey", linewidth=1)
    for number, name in enumerate(names):
        panels["s"].plot([], [], color=f"C{number}", label=name)
    for number, modality in enumerate(modalities):
        panels["s"].plot([], [], STYLES[number % len(STYLES)], color="black", label=modality)
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def main():
    parser = OneLineParser(
        prog="suppression", description="Draw the values that runs with --log_suppression have logged."
    )
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="folder of one or several runs; the first one gets the figure",
    )
    folders = parser.parse_args().folders
    runs = read_runs(folders)
    for each in runs:
        curves = {curve: [*values.values()] for curve, values in each.curves.items()}
        words = (f"{curve} {values[0]:.3g} to {values[-1]:.3g}" for curve, values in curves.items())
        print(f"{each.folder}: {each.name}: {', '.join(words)}")
    save_figure(suppression_figure(runs), folders[0] / "suppression.png")
    print(f"written to {folders[0] / 'suppression.png'}")


if __name__ == "__main__":
    run_script(main)

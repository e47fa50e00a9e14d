"""Write the table and the figures of a comparison: means over seeds, and differences from a reference method.

    python -m analysis.comparison ckpt/compare/demo [--reference joint_uni]

Reads all finished runs below the folder, from compare.sh or not. Writes comparison.md, comparison.csv and curves.png.
With a reference it also writes comparison.png, and if a method ran with several alphas, alpha.png.

Differences compare the best epochs on the test clips, from predictions.csv in the runs' folders, for the seeds that
both methods have; see analysis/significance.py.
"""

import csv
import json
import statistics
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analysis.significance import Difference, difference
from engine.figures import save_figure
from engine.folder import RECORD, read_record
from engine.settings import label
from methods import METHODS, describe, resolve
from utils.config import DEFAULTS, changes_results, format_value
from utils.errors import InputError, OneLineParser, run_script
from utils.files import write_csv, write_text

# Settings that `distinctions` ignores: the columns of the table, the weights that G-Blending computes, and settings
# that do not change results.
UNLISTED = {
    "method",
    "modality",
    "alpha",
    "random_seed",
    "gblend_weights",
    *(name for name in DEFAULTS if not changes_results(name) and name != "epochs"),
}

REFERENCE = "joint_uni"  # joint training with unimodal losses: the difference from it is the effect of a method's rule
FIELDS = ("difference", *Difference._fields[1:])  # of a Difference, as named in the columns of comparison.csv
MAX_BANDS = 5  # with more methods, curves have no bands, because these would overlap
CLEAR = "*"  # marks a difference whose interval excludes 0


def collect(folder):
    """Read all finished runs below a folder.

    Returns:
        {(method, alpha): [entry per seed]}, in the order of METHODS. The key is the run's `describe`, with the text of
        `distinctions` added to the method. An entry is {"folder": path, "log": rows, "best": metrics, "last": metrics,
        "settings": settings, "hits": `read_hits`, "record": run.json}.

    Raises:
        InputError: there are no finished runs, the files of a run cannot be read, or two runs have the same settings
            and seed.
    """
    found = [read_run(path.parent) for path in sorted(Path(folder).rglob("result.json"))]
    if not found:
        raise InputError(f"{folder}: contains no finished run; run compare.sh first")
    runs, texts = defaultdict(list), distinctions([entry["settings"] for entry in found])
    for entry, text in zip(found, texts, strict=True):
        method, alpha = describe(entry["settings"])
        entry["place"] = list(METHODS).index(entry["settings"]["method"]), text, alpha or 0
        entries = runs[f"{method}{text}", alpha]
        for other in entries:
            if other["settings"]["random_seed"] == entry["settings"]["random_seed"]:
                raise InputError(
                    f"{entry['folder']}: has the same settings and seed as {other['folder']}; move one of the two away"
                )
        entries.append(entry)
    return dict(sorted(runs.items(), key=lambda item: item[1][0]["place"]))


def read_run(folder):
    """Read the files of a finished run and return its entry for `collect`.

    Linear probes are in best.json and last.json, which compare.sh writes; without these files there are none.

    Raises:
        InputError: a file cannot be read.
    """
    try:
        entry = json.loads((folder / "result.json").read_text()) | {"folder": folder}
        entry["log"] = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        held_out = {row["epoch"]: row["fused"] for row in entry["log"] if row.get("split") == "val"}
        for name in ("best", "last"):
            path = folder / f"{name}.json"
            probes = json.loads(path.read_text())["linear_probe"] if path.exists() else {}
            epoch = entry[name].pop("epoch", None)
            entry[name] |= {f"probe {branch}": value for branch, value in (probes or {}).items()}
            entry[name]["held-out"] = held_out.get(epoch)
        entry["hits"] = read_hits(folder / "predictions.csv")
        entry["settings"] = resolve(entry["settings"])
        record = folder / RECORD
        entry["record"] = read_record(record) if record.exists() else {}
        return entry
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError) as error:
        raise InputError(f"{folder}: not a finished run ({error}); train it again, or run compare.sh again") from None


def distinctions(settings):
    """Return a text for each run with its settings that differ from those of most runs: ", <setting> <value>, ..".

    Method, alpha and seed are not included. The text is "" if no setting differs.

    Args:
        settings: list of the settings of all runs.
    """
    majority = majority_values(settings)
    return [
        "".join(
            f", {name} {format_value(each[name])}"
            for name in majority
            if name in each and format_value(each[name]) != majority[name]
        )
        for each in settings
    ]


def majority_values(settings):
    """Return the most frequent value of each setting in which runs differ: {name: value as text}.

    Method, alpha and seed are not included. Of equally frequent values, the default of the flag comes first.

    Args:
        settings: list of the settings of all runs.
    """
    majority = {}
    for name in sorted(set().union(*settings) - UNLISTED):
        counts = Counter(format_value(each[name]) for each in settings if name in each)
        if len(counts) > 1:
            default = format_value(DEFAULTS.get(name))
            majority[name] = max(counts, key=lambda value: (counts[value], value == default))
    return majority


def read_hits(path):
    """Read which test clips the best epoch of a run classified correctly, from the file of valid.py --predictions.

    Returns:
        {branch: {clip: bool}}, or None without the file, as in runs of older versions.

    Raises:
        OSError, KeyError: the file cannot be read, or a column is missing.
    """
    if not path.exists():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    branches = [name for name in rows[0] if name not in ("clip", "true") and " probability" not in name] if rows else []
    return {branch: {row["clip"]: row[branch] == row["true"] for row in rows} for branch in branches}


def find_reference(runs, name):
    """Return the key of the reference method in `runs`.

    Args:
        runs: as `collect` returns them.
        name: name of the method in METHODS, or None for REFERENCE.

    Returns:
        The key. If `name` is None, the key is None if REFERENCE did not run, or ran with several settings of which none
        is that of most runs.

    Raises:
        InputError: the named method does not exist, did not run, or ran with several settings.
    """
    if name is not None and name not in METHODS:
        raise InputError(f"--reference {name}: not one of {', '.join(METHODS)}; use one of them")
    wanted = name or REFERENCE
    keys = [key for key, entries in runs.items() if entries[0]["settings"]["method"] == wanted]
    keys = [key for key in keys if key[0] == METHODS[wanted].label] or keys  # prefer the settings of most runs
    if name is not None and not keys:
        raise InputError(
            f"--reference {name}: no finished run of this method; name another one, or run compare.sh with it"
        )
    if name is not None and len(keys) > 1:
        raise InputError(f"--reference {name}: ran with several settings; name a method that ran with one")
    return keys[0] if len(keys) == 1 else None


def compare(runs, reference):
    """Return the differences of every method from the one with the key `reference`: {key: {branch: Difference}}.

    A branch is missing if a method or the reference has no predictions of it, or if their clips differ. All branches
    are missing if the two have no seed in common.
    """
    by_seed = {
        key: {entry["settings"]["random_seed"]: entry["hits"] for entry in entries if entry["hits"]}
        for key, entries in runs.items()
    }
    differences = {}
    for key, hits in by_seed.items():
        seeds = sorted(hits.keys() & by_seed[reference].keys())
        differences[key] = {}
        for branch in branches_of(runs) if key != reference else ():
            pairs = [(hits[seed].get(branch), by_seed[reference][seed].get(branch)) for seed in seeds]
            if pairs and all(own and other and own.keys() == other.keys() for own, other in pairs):
                differences[key][branch] = difference(*map(rows_of, zip(*pairs, strict=True)))
    return differences


def branches_of(runs):
    """Return the branches of all runs, without duplicates, "fused" first."""
    names = (name for entries in runs.values() for entry in entries for name in entry["best"])
    return list(dict.fromkeys(name for name in names if name != "held-out" and not name.startswith("probe ")))


def columns_of(runs):
    """Return the accuracy columns of the table: branches, linear probes, and fused accuracy on held-out clips."""
    branches = branches_of(runs)
    return [*branches, *(f"probe {branch}" for branch in branches if branch != "fused"), "held-out"]


def rows_of(runs_hits):
    """Return the {clip: bool} of R runs as an array (R, N), with the clips sorted by name."""
    return np.array([[hits[clip] for clip in sorted(hits)] for hits in runs_hits])


def mean_and_deviation(values):
    """Return mean and sample standard deviation of accuracies; (None, None) if a run has none.

    The deviation of a single value is None.
    """
    if None in values:
        return None, None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def tabulate(runs, differences):
    """Return the rows of the table, two per method: [{"method": .., "alpha": .., "seeds": .., "epoch": .., ...}].

    "epoch" is "best" or "last". `<column>` and `<column> std` are the mean and the standard deviation of each of
    `columns_of`, 0 to 1. In rows of best epochs, `<branch> difference`, `<branch> low` and so on are the fields of the
    Difference that `compare` returns.
    """
    rows = []
    for (method, alpha), entries in runs.items():
        for epoch in ("best", "last"):
            row = {"method": method, "alpha": alpha, "seeds": len(entries), "epoch": epoch}
            for column in columns_of(runs):
                row[column], row[f"{column} std"] = mean_and_deviation([entry[epoch].get(column) for entry in entries])
            found = differences.get((method, alpha), {}) if epoch == "best" else {}
            for branch in branches_of(runs):
                values = found.get(branch, [None] * len(FIELDS))
                row |= zip((f"{branch} {name}" for name in FIELDS), values, strict=True)
            rows.append(row)
    return rows


def markdown(rows, reference):
    """Return the table as Markdown: accuracies in per cent, as 'mean ± standard deviation'.

    With a reference, the table also has the fused differences in points.

    Args:
        rows: as `tabulate` returns them.
        reference: label of the reference, or None.
    """

    def cell(row, column):
        mean, deviation = row[column], row[f"{column} std"]
        if mean is None:
            return "-"
        return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")

    def difference_cells(row):
        if row["fused difference"] is None:
            return ["-", "-", "-"]
        fused = Difference(*(row[f"fused {name}"] for name in FIELDS))
        low, mean, high = (f"{100 * value:+.1f}" for value in (fused.low, fused.mean, fused.high))
        return [f"{mean}{CLEAR * fused.clear}", f"{low} to {high}", f"{fused.p:.3f}"]

    columns = [name.removesuffix(" std") for name in rows[0] if name.endswith(" std")]
    heads = ["method", "alpha", "seeds", "epoch", *columns]
    heads += [f"fused, minus {reference}", "95 %", "p"] if reference else []
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        alpha = "-" if row["alpha"] is None else f"{row['alpha']:g}"
        cells = [row["method"], alpha, str(row["seeds"]), row["epoch"], *(cell(row, column) for column in columns)]
        lines.append("| " + " | ".join(cells + (difference_cells(row) if reference else [])) + " |")
    return "\n".join(lines) + "\n"


def notes(runs, differences, reference):
    """Return the notes below the table, as Markdown: common settings, meaning of differences, methods without one."""
    lines, majority = [], majority_values([entry["settings"] for entries in runs.values() for entry in entries])
    if majority:
        lines.append(
            f"Unless a row has another value: {', '.join(f'{name} {value}' for name, value in majority.items())}."
        )
    if reference:
        lines.append(
            f"Differences from {label(*reference)} are in points, over the seeds that both methods have, with 95 % "
            f"intervals over seeds and clips; {CLEAR} marks those whose interval excludes 0."
        )
    else:
        lines.append(
            f"No differences: {METHODS[REFERENCE].label} did not run, or with several settings; --reference names "
            "another method."
        )
    if any(entry.get("chosen_on") == "test" for entries in runs.values() for entry in entries):
        lines.append(
            "Best epochs were chosen on the test clips, as in the literature: new clips give lower accuracies."
        )
    if missing := [label(*key) for key, found in differences.items() if not found and key != reference]:
        lines.append(
            f"No difference (predictions.csv is missing, the clips differ, or no seed is shared): {', '.join(missing)}."
        )
    return "".join(f"\n{line}\n" for line in lines)


def origins(runs, folder):
    """Return a table of the runs behind every row, as Markdown: their folders, and how they were made.

    run.json in each folder has more. A commit with + had uncommitted changes. Lists are hashes of the test clips' names
    and labels.
    """

    def cell(entries, value):
        values = {value(entry["record"], entry["record"]["starts"][-1]) for entry in entries if entry["record"]}
        return ", ".join(sorted(values)) or "-"

    def commit(_, start):
        return f"{(start['commit'] or 'no git')[:9]}{'+' if start['changed'] else ''}"

    heads = ("rows", "runs", "commit", "torch", "processor", "test clips, lists")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for key, entries in runs.items():
        cells = [
            label(*key),
            ", ".join(entry["folder"].relative_to(folder).as_posix() for entry in entries),
            cell(entries, commit),
            cell(entries, lambda _, start: start["versions"]["torch"]),
            cell(entries, lambda _, start: start["gpu"] or start["processor"]),
            cell(entries, lambda record, _: "{clips}, {lists}".format(**record["data"]["test"])),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def new_figure(branches):
    """Return a figure with a panel per branch, side by side: (figure, {branch: axes})."""
    figure = Figure(figsize=(4 * len(branches), 4), layout="constrained")
    panels = figure.subplots(1, len(branches), sharey=True, squeeze=False)[0]
    for branch, axes in zip(branches, panels, strict=True):
        axes.set_title(branch)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy")
    return figure, dict(zip(branches, panels, strict=True))


def draw(axes, x, values, band=True, **style):
    """Draw a line of means with a band of one standard deviation; values[k] are the accuracies of all seeds at x[k]."""
    means, deviations = zip(*(mean_and_deviation(seeds) for seeds in values), strict=True)
    (line,) = axes.plot(x, means, marker="o", markersize=3, **style)
    if not band:
        return
    low, high = (
        [mean + sign * (deviation or 0) for mean, deviation in zip(means, deviations, strict=True)] for sign in (-1, 1)
    )
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def save_with_legend(figure, panels, path):
    """Write the figure to `path` with one legend below its panels."""
    entries = {}
    for axes in panels.values():
        entries |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    columns = max(1, min(5, 130 // (8 + max(map(len, entries)))))  # as many as fit into the width of the figure
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=columns)
    save_figure(figure, path)


def plot_curves(runs, path):
    """Draw the accuracy per epoch: a panel per branch, a line per method with a band of one standard deviation."""
    figure, panels = new_figure(branches_of(runs))
    for number, (key, entries) in enumerate(runs.items()):
        epochs = range(min(len(entry["log"]) for entry in entries))
        for branch, axes in panels.items():
            values = [[entry["log"][epoch].get(branch) for entry in entries] for epoch in epochs]
            if None not in values[0]:
                draw(axes, epochs, values, len(runs) <= MAX_BANDS, label=label(*key), color=f"C{number}")
    for axes in panels.values():
        axes.set_xlabel("epoch")
        axes.set_xlim(left=-0.3)
        axes.set_ylim(-0.02, 1.02)
        axes.xaxis.get_major_locator().set_params(integer=True)
    save_with_legend(figure, panels, path)


def plot_alphas(runs, path):
    """Draw the best epoch's accuracy against alpha for methods with several alphas; without any, write no file."""
    path.unlink(missing_ok=True)
    methods = defaultdict(dict)
    for (method, alpha), entries in runs.items():
        if alpha is not None:
            methods[method][alpha] = entries
    methods = {method: alphas for method, alphas in methods.items() if len(alphas) > 1}
    if not methods:
        return
    figure, panels = new_figure(branches_of(runs))
    for method, alphas in methods.items():
        for branch, axes in panels.items():
            values = [[entry["best"].get(branch) for entry in entries] for entries in alphas.values()]
            draw(axes, list(alphas), values, label=method)
            axes.set_xlabel("alpha")
    save_with_legend(figure, panels, path)


def reach(found):
    """Return the limits (left, right) of a panel's axis that shows the Differences `found`.

    The limits include all intervals, but each limit is at most three times as far from 0 as the median interval goes.
    Otherwise one method that fails would squeeze all others.
    """
    limit = 3 * statistics.median(max(-each.low, each.high, 0.001) for each in found)
    return max(min(each.low for each in found), -limit), min(max(each.high for each in found), limit)


def draw_difference(axes, place, found, left, right):
    """Draw the point and the interval of the Difference `found` in row `place` of a panel.

    The point is filled if its interval excludes 0. An arrowhead at the edge means that the interval continues beyond
    it. A number next to the arrowhead is the value of a point beyond the edge.

    Args:
        axes: axes of the panel.
        place: number of the row.
        found: a Difference.
        left, right: limits of the panel, in points.
    """
    mean, low, high = (100 * value for value in (found.mean, found.low, found.high))
    colour = "grey" if not found.clear else "C2" if mean > 0 else "C3"
    axes.plot(np.clip([low, high], left, right), [place, place], color=colour, linewidth=2)
    if low < left:
        axes.plot(left, place, "<", color=colour, zorder=3)
    if high > right:
        axes.plot(right, place, ">", color=colour, zorder=3)
    if left <= mean <= right:
        face = colour if found.clear else "white"
        axes.plot(mean, place, "o", color=colour, markerfacecolor=face, zorder=3)
    else:
        edge, inward, side = (left, 8, "left") if mean < left else (right, -8, "right")
        placement = {"xytext": (inward, 0), "textcoords": "offset points", "ha": side, "va": "center"}
        axes.annotate(f"{mean:+.1f}", (edge, place), color=colour, **placement)


def plot_differences(differences, reference, path):
    """Draw the differences with their intervals: a panel per branch, a row per method; without any, write no file."""
    path.unlink(missing_ok=True)
    drawn = {key: found for key, found in differences.items() if found}
    if not drawn:
        return
    figure, panels = new_figure(list(dict.fromkeys(branch for found in drawn.values() for branch in found)))
    figure.set_figheight(1.6 + 0.35 * len(drawn))
    for branch, axes in panels.items():
        axes.axvline(0, color="black", linewidth=1)
        places = {place: found[branch] for place, found in enumerate(drawn.values()) if branch in found}
        edges = [100 * value for value in reach(places.values())] if places else []
        for place, found in places.items():
            draw_difference(axes, place, found, *edges)
        axes.set_xlabel(f"points, minus {label(*reference)}")
        axes.set_ylim(len(drawn) - 0.5, -0.5)
    first, *_ = panels.values()
    first.set_ylabel("")
    first.set_yticks(range(len(drawn)), [label(*key) for key in drawn])
    save_figure(figure, path)


def main():
    parser = OneLineParser(
        prog="comparison", description="Write the table and the figures of finished runs, such as those of compare.sh."
    )
    parser.add_argument("folder", type=Path, help="folder of the runs, such as ckpt/compare/demo")
    parser.add_argument(
        "--reference",
        metavar="METHOD",
        help=f"method that the others are compared with (default: {REFERENCE}, if it ran)",
    )
    args = parser.parse_args()
    folder, runs = args.folder, collect(args.folder)
    reference = find_reference(runs, args.reference)
    differences = compare(runs, reference) if reference else {}
    rows = tabulate(runs, differences)
    table = markdown(rows, reference and label(*reference)) + notes(runs, differences, reference)
    write_text(folder / "comparison.md", f"{table}\n{origins(runs, folder)}")
    write_csv(folder / "comparison.csv", [rows[0], *(row.values() for row in rows)])
    plot_curves(runs, folder / "curves.png")
    plot_alphas(runs, folder / "alpha.png")
    plot_differences(differences, reference, folder / "comparison.png")
    print(table, end="")
    written = ("comparison.md", "comparison.csv", "comparison.png", "curves.png", "alpha.png")
    print(f"written to {folder}: {', '.join(name for name in written if (folder / name).exists())}")


if __name__ == "__main__":
    run_script(main)

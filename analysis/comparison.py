"""The table and the pictures of a comparison: every method's mean over its seeds, and how sure its difference is.

    python -m analysis.comparison ckpt/compare/demo [--reference joint_uni]

Reads the finished runs below the folder, those of compare.sh or any others; writes comparison.md, comparison.csv,
curves.png, with a reference comparison.png, and, where a method ran with more than one alpha, alpha.png.

Differences from the reference are those of the best epochs on test clips, by predictions.csv in the runs' folders, of
the seeds that both methods have: analysis/significance.py.
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
from utils.errors import InputError, OneLineParser, run
from utils.files import write_csv, write_text

# What runs differ in without a word: what the table's rows are told by, what decides nothing, and what is measured.
VARIED = {
    "method",
    "modality",
    "alpha",
    "random_seed",
    "gblend_weights",
    *(name for name in DEFAULTS if not changes_results(name) and name != "epochs"),
}

REFERENCE = "joint_uni"  # ordinary training that has unimodal losses too: what is left is what the rule does
FIELDS = ("difference", *Difference._fields[1:])  # of a Difference, as columns of comparison.csv call them
BANDS = 5  # up to so many methods curves have bands, more could not be told apart
CLEAR = "*"  # marks a difference whose interval leaves out 0


def collect(folder):
    """The finished runs below a folder, however deep.

    Returns:
        {(method, alpha): [{"folder": path, "log": epochs, "best": figures, "last": figures, "settings": settings,
        "hits": hits, "record": run.json} per seed]}, in the order of METHODS. Keys are as `describe` tells a run's
        settings, the method with what else sets it apart from most runs, as `apart` tells it; hits as `read_hits`
        gives them.

    Raises:
        InputError: there is none, one's files cannot be read, or two have the same settings and seed.
    """
    found = [read_run(path.parent) for path in sorted(Path(folder).rglob("result.json"))]
    if not found:
        raise InputError(f"{folder}: no finished run in it; run compare.sh")
    runs, others = defaultdict(list), apart([entry["settings"] for entry in found])
    for entry, words in zip(found, others, strict=True):
        method, alpha = describe(entry["settings"])
        entry["place"] = list(METHODS).index(entry["settings"]["method"]), words, alpha or 0
        beside = runs[f"{method}{words}", alpha]
        for other in beside:
            if other["settings"]["random_seed"] == entry["settings"]["random_seed"]:
                raise InputError(
                    f"{entry['folder']}: of the same settings and seed as {other['folder']}; move one of them away"
                )
        beside.append(entry)
    return dict(sorted(runs.items(), key=lambda item: item[1][0]["place"]))


def read_run(folder):
    """A finished run's files, as `collect` has them. Without best.json, which compare.sh has made, there are no probes.

    Raises:
        InputError: one cannot be read.
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


def apart(settings):
    """What sets runs apart from most others, beside method, alpha and seed -> for each ", <setting> <value>.." or "".

    Args:
        settings: of every run.
    """
    most = usual(settings)
    return [
        "".join(
            f", {name} {format_value(each[name])}"
            for name in most
            if name in each and format_value(each[name]) != most[name]
        )
        for each in settings
    ]


def usual(settings):
    """Of what runs differ in, beside method, alpha and seed, the value that most of them have -> {name: as shown}.

    Of values that as many have, a flag's default is the usual one.
    """
    most = {}
    for name in sorted(set().union(*settings) - VARIED):
        counted = Counter(format_value(each[name]) for each in settings if name in each)
        if len(counted) > 1:
            default = format_value(DEFAULTS.get(name))
            most[name] = max(counted, key=lambda value: (counted[value], value == default))
    return most


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
    branches = [name for name in rows[0] if name not in ("clip", "true") and " probability" not in name] if rows else []
    return {branch: {row["clip"]: row[branch] == row["true"] for row in rows} for branch in branches}


def find_reference(runs, name):
    """The key in `runs` of the method `name`, METHODS' name; of None that of REFERENCE, or None where it did not run,
    or with several settings of which none is the usual.

    Raises:
        InputError: a method that was named is none, did not run, or ran with several settings.
    """
    if name is not None and name not in METHODS:
        raise InputError(f"--reference {name}: none of {' '.join(METHODS)}; name one of them")
    wanted = name or REFERENCE
    keys = [key for key, entries in runs.items() if entries[0]["settings"]["method"] == wanted]
    keys = [key for key in keys if key[0] == METHODS[wanted].label] or keys  # with the usual settings, where it is
    if name is not None and not keys:
        raise InputError(
            f"--reference {name}: no finished run of it; name a method that ran, or run compare.sh with it"
        )
    if name is not None and len(keys) > 1:
        raise InputError(f"--reference {name}: it ran with several settings; name a method with one")
    return keys[0] if len(keys) == 1 else None


def compare(runs, reference):
    """The differences of every method from that under the key `reference` -> {key: {branch: Difference}}.

    A method lacks the branches of which it or the reference has no predictions, or none of the same clips, and all
    where no seed is in common.
    """
    by_seed = {
        key: {entry["settings"]["random_seed"]: entry["hits"] for entry in entries if entry["hits"]}
        for key, entries in runs.items()
    }
    found = {}
    for key, of_seeds in by_seed.items():
        shared = sorted(of_seeds.keys() & by_seed[reference].keys())
        found[key] = {}
        for branch in branches_of(runs) if key != reference else ():
            pairs = [(of_seeds[seed].get(branch), by_seed[reference][seed].get(branch)) for seed in shared]
            if pairs and all(own and other and own.keys() == other.keys() for own, other in pairs):
                found[key][branch] = difference(*map(rows_of, zip(*pairs, strict=True)))
    return found


def branches_of(runs):
    """Return the branches that any of the runs has, the fused one first."""
    names = (name for entries in runs.values() for entry in entries for name in entry["best"])
    return list(dict.fromkeys(name for name in names if name != "held-out" and not name.startswith("probe ")))


def columns_of(runs):
    """Return the columns of accuracies: branches, linear probes of the modalities, the fused one on held-out clips."""
    branches = branches_of(runs)
    return [*branches, *(f"probe {branch}" for branch in branches if branch != "fused"), "held-out"]


def rows_of(runs_hits):
    """Runs' {clip: bool} as an array, (R, N), in the order of the clips' names."""
    return np.array([[hits[clip] for clip in sorted(hits)] for hits in runs_hits])


def mean_and_deviation(values):
    """Mean and sample standard deviation (None of one value) of accuracies; (None, None) where a run has none."""
    if None in values:
        return None, None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def tabulate(runs, differences):
    """Rows of a table, best epochs and last ones: [{"method": .., "alpha": .., "seeds": .., "epoch": .., ...}].

    Each of `columns_of` has its mean and standard deviation, 0 to 1, under `<column>` and `<column> std`. Best epochs
    have the fields of their Difference, as `compare` gives them, under `<branch> difference`, `<branch> low` and so on.
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
    """What the rows have in common, what the differences are, and which runs are not in them, as lines of Markdown."""
    lines, most = [], usual([entry["settings"] for entries in runs.values() for entry in entries])
    if most:
        lines.append(f"Rows that say nothing else: {', '.join(f'{name} {value}' for name, value in most.items())}.")
    if reference:
        lines.append(
            f"Differences from {label(*reference)} are in points, of the seeds that both have, with 95 % intervals "
            f"over seeds and clips; {CLEAR} marks those whose interval leaves out 0."
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
    if lacking := [label(*key) for key, found in differences.items() if not found and key != reference]:
        lines.append(f"Without predictions.csv, of other clips, or without a seed in common: {', '.join(lacking)}.")
    return "".join(f"\n{line}\n" for line in lines)


def origins(runs, folder):
    """What made every row, as Markdown: its runs' folders, whose run.json has it all, and the least to make them again.

    A commit with + had changes; lists are digests of the test clips' names and labels.
    """

    def cell(entries, value):
        found = {value(entry["record"], entry["record"]["starts"][-1]) for entry in entries if entry["record"]}
        return ", ".join(sorted(found)) or "-"

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
    entries = {}
    for axes in panels.values():
        entries |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    columns = max(1, min(5, 130 // (8 + max(map(len, entries)))))  # as many as the figure's width takes
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=columns)
    save_figure(figure, path)


def plot_curves(runs, path):
    """Accuracy per epoch, one panel a branch, a line a method with a band of one standard deviation."""
    figure, panels = new_figure(branches_of(runs))
    for number, (key, entries) in enumerate(runs.items()):
        epochs = range(min(len(entry["log"]) for entry in entries))
        for branch, axes in panels.items():
            values = [[entry["log"][epoch].get(branch) for entry in entries] for epoch in epochs]
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
    figure, panels = new_figure(branches_of(runs))
    for method, alphas in methods.items():
        for branch, axes in panels.items():
            values = [[entry["best"].get(branch) for entry in entries] for entries in alphas.values()]
            draw(axes, list(alphas), values, label=method)
            axes.set_xlabel("alpha")
    save_with_legend(figure, panels, path)


def reach(found):
    """How far a panel shows Differences, (left, right): to the ends of their intervals, but from 0 at most three times
    as far as half of them go, that one method which fails does not squeeze all others.
    """
    limit = 3 * statistics.median(max(-each.low, each.high, 0.001) for each in found)
    return max(min(each.low for each in found), -limit), min(max(each.high for each in found), limit)


def draw_difference(axes, place, found, left, right):
    """A Difference's point and interval in row `place` of a panel that shows from `left` to `right`, in points.

    A filled point is one whose interval leaves out 0. An arrowhead at the edge ends an interval that goes on; with a
    figure beside it, it stands for a point further out.
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
        beside = {"xytext": (inward, 0), "textcoords": "offset points", "ha": side, "va": "center"}
        axes.annotate(f"{mean:+.1f}", (edge, place), color=colour, **beside)


def plot_differences(differences, reference, path):
    """Points and intervals of the differences, one panel a branch, a row a method; without any, no file."""
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
    run(main)

"""Write the table and the figures of a comparison: means over seeds, and differences from a reference method.

    python -m analysis.comparison ckpt/compare/demo [--reference joint_uni]

Reads all finished runs below the folder, from compare.sh or not. Writes comparison.md, comparison.csv and curves.png.
With a reference it also writes comparison.png. If a method ran with several alphas, it writes alpha.png.

Differences compare the best epochs on the test clips, from predictions.csv in the runs' folders, for the seeds that
both methods have; see analysis/significance.py.
"""

from pathlib import Path

import numpy as np

from analysis.comparison_figures import plot_alphas, plot_curves, plot_differences
from analysis.runs import branches_of, collect, majority_values, mean_and_deviation
from analysis.significance import Difference, difference
from engine.settings import label
from methods import METHODS
from utils.errors import InputError, OneLineParser, run_script
from utils.files import write_csv, write_text

REFERENCE = "joint_uni"  # joint training with unimodal losses: a difference from it is the effect of the method itself
FIELDS = ("difference", *Difference._fields[1:])  # of a Difference, as named in the columns of comparison.csv
CLEAR = "*"  # marks a difference whose interval excludes 0


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

    A branch is missing if a method or the reference has no predictions of it, if clips differ between runs, or if there
    is a single clip. All branches are missing if the two have no seed in common.
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
            clips = {frozenset(each or ()) for pair in pairs for each in pair}
            if len(clips) == 1 and len(*clips) > 1:
                differences[key][branch] = difference(*map(rows_of, zip(*pairs, strict=True)))
    return differences


def columns_of(runs):
    """Return the accuracy columns of the table: branches, linear probes, and fused accuracy on held-out clips."""
    branches = branches_of(runs)
    return [*branches, *(f"probe {branch}" for branch in branches if branch != "fused"), "held-out"]


def rows_of(runs_hits):
    """Return the {clip: bool} of R runs as an array (R, N), with the clips sorted by name."""
    return np.array([[hits[clip] for clip in sorted(hits)] for hits in runs_hits])


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
            f"No differences: {METHODS[REFERENCE].label} did not run, or ran with several settings; choose another "
            "method with --reference."
        )
    if any(entry.get("chosen_on") == "test" for entries in runs.values() for entry in entries):
        lines.append(
            "Best epochs were chosen on the test clips, as in the literature: new clips give lower accuracies."
        )
    if missing := [label(*key) for key, found in differences.items() if not found and key != reference]:
        lines.append(
            "No difference (predictions.csv is missing, test clips differ between runs or are too few, or no seed is "
            f"shared): {', '.join(missing)}."
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

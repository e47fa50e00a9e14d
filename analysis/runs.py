"""Read the finished runs of a comparison, and find the settings in which they differ."""

import csv
import json
import statistics
from collections import Counter, defaultdict
from pathlib import Path

from engine.folder import RECORD, read_record
from methods import METHODS, describe, resolve
from utils.config import DEFAULTS, changes_results, format_value
from utils.errors import InputError
from utils.files import read_json, read_text

# Settings that `distinctions` ignores: columns of the table, and settings that change no results, except epochs.
UNLISTED = {
    "method",
    "modality",
    "alpha",
    "random_seed",
    *(name for name in DEFAULTS if not changes_results(name) and name != "epochs"),
}


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
        entry = read_json(folder / "result.json") | {"folder": folder}
        entry["log"] = [json.loads(line) for line in read_text(folder / "log.jsonl").splitlines()]
        held_out = {row["epoch"]: row["fused"] for row in entry["log"] if row.get("split") == "val"}
        for name in ("best", "last"):
            path = folder / f"{name}.json"
            probes = read_json(path)["linear_probe"] if path.exists() else {}
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
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    branches = [name for name in rows[0] if name not in ("clip", "true") and " probability" not in name] if rows else []
    return {branch: {row["clip"]: row[branch] == row["true"] for row in rows} for branch in branches}


def branches_of(runs):
    """Return the branches of all runs, without duplicates, "fused" first."""
    names = (name for entries in runs.values() for entry in entries for name in entry["best"])
    return list(dict.fromkeys(name for name in names if name != "held-out" and not name.startswith("probe ")))


def mean_and_deviation(values):
    """Return mean and sample standard deviation of accuracies; (None, None) if a run has none.

    The deviation of a single value is None.
    """
    if None in values:
        return None, None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None

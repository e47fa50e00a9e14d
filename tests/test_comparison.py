"""Check compare.sh: its plan of runs, its table, and its figures."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress

import cv2
import numpy as np
import pytest
from filelock import FileLock

from analysis import comparison, comparison_figures, runner
from analysis.significance import Difference
from engine.settings import parse_training
from methods import METHODS
from tests import launcher
from tests.conftest import ROOT, SMALL, data_flags, processes_of, rows_of, run_shell, settings_of, wait_for
from utils.files import write_csv
from utils.pool import cores

BRANCHES = ("fused", "audio", "visual")
SETTINGS = {"modality": "full", "method": "dgl", "modulation": "Normal", "alpha": 4.0, "no_mgt": False, "no_ugt": False}
SETTINGS |= {"random_seed": 0, "epochs": 3}


def write_run(folder, rng, older=False, **settings):
    """Write a finished run of three epochs with random metrics -> its best epoch's, and the log's under "held-out".

    A run of one modality has no metrics of the other one; older versions wrote null for them.
    """
    folder.mkdir(parents=True)
    missing = {"audio": "visual", "visual": "audio"}.get(settings.get("modality"))

    def draw(epoch, *names):
        return {"epoch": epoch} | {
            name: None if name == missing else rng.random() for name in names if older or name != missing
        }

    split = {"split": "val" if settings.get("val_ratio") else "test"}
    rows = [draw(epoch, *BRANCHES) for epoch in range(3)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row | split) + "\n" for row in rows))
    result = {"best": draw(1, *BRANCHES), "last": draw(2, *BRANCHES), "settings": SETTINGS | settings}
    (folder / "result.json").write_text(json.dumps(result | {"chosen_on": split["split"]}))
    for name in ("best", "last"):
        result[name] |= {"linear_probe": draw(0, "audio", "visual")}
        (folder / f"{name}.json").write_text(json.dumps(result[name]))
    return result["best"] | {"held-out": rows[1]["fused"]}


def write_runs(folder, methods, rng, **settings):
    """Write runs with predictions of 100 clips: {method: (seeds, accuracy)} -> {(method, seed): fused hits (100,)}."""
    hits = {}
    heads = [f"{branch}{end}" for branch in BRANCHES for end in ("", " probability", " probability of true")]
    for method, seed, accuracy in [
        (name, seed, accuracy) for name, (seeds, accuracy) in methods.items() for seed in seeds
    ]:
        run = folder / f"{method}-seed{seed}"
        write_run(run, rng, method=method, random_seed=seed, **settings)
        right = rng.random((100, 3)) < accuracy
        cells = [[cell for hit in clip for cell in ("ANG" if hit else "SAD", 0.5, 0.5)] for clip in right]
        rows = [[f"clip{k}", "ANG", *cells[k]] for k in rng.permutation(100)]
        write_csv(run / "predictions.csv", [["clip", "true", *heads], *rows])
        hits[method, seed] = right[:, 0]
    return hits


def table_of(folder):
    """Return the rows of comparison.csv by method and epoch, with alpha in between where it has one."""
    with open(folder / "comparison.csv", newline="") as file:
        rows = csv.DictReader(file)
        return {tuple(filter(None, (row["method"], row["alpha"], row["epoch"]))): row for row in rows}


def test_table_and_figures(tmp_path, output_of):
    rng = np.random.default_rng(0)
    dgl = [write_run(tmp_path / f"dgl-4-{seed}", rng, random_seed=seed) for seed in range(3)]
    write_run(tmp_path / "dgl-1-0", rng, alpha=1.0)
    write_run(tmp_path / "ge", rng, method="joint", modulation="OGM_GE")  # as older runs record it
    write_run(tmp_path / "ablation", rng, method="no_mgt")
    audio = write_run(tmp_path / "audio", rng, modality="audio")
    write_run(tmp_path / "visual", rng, older=True, modality="visual")
    (tmp_path / "unfinished").mkdir()
    output, rows = output_of(comparison, tmp_path), table_of(tmp_path)
    keys = [("audio alone",), ("visual alone",), ("OGM-GE",), ("DGL -MGT", "4.0"), ("DGL", "1.0"), ("DGL", "4.0")]
    assert list(rows) == [(*key, epoch) for key in keys for epoch in ("best", "last")]
    row = rows["DGL", "4.0", "best"]
    for column in BRANCHES:
        values = [metrics[column] for metrics in dgl]
        assert float(row[column]) == pytest.approx(np.mean(values))
        assert float(row[f"{column} std"]) == pytest.approx(np.std(values, ddof=1))
    probes = [metrics["linear_probe"]["visual"] for metrics in dgl]
    assert float(row["probe visual"]) == pytest.approx(np.mean(probes))
    for name, missing in (("audio alone", "visual"), ("visual alone", "audio")):
        assert rows[name, "best"][missing] == rows[name, "best"][f"probe {missing}"] == ""
    assert rows["DGL", "1.0", "best"]["fused std"] == ""

    table, _, origins = (tmp_path / "comparison.md").read_text().partition("\n\n")
    assert table in output and len({line.count("|") for line in table.splitlines()}) == 1
    assert f"| audio alone | - | 1 | best | {100 * audio['fused']:.1f} |" in table
    values = 100 * np.array([metrics["fused"] for metrics in dgl])
    assert f"| DGL | 4 | 3 | best | {values.mean():.1f} ± {values.std(ddof=1):.1f} |" in table
    assert "| DGL, alpha 4 | dgl-4-0, dgl-4-1, dgl-4-2 | - |" in origins  # of runs without a record
    assert "No differences: joint+uni did not run" in output
    assert "Best epochs were chosen on the test clips" in output
    for name in ("curves.png", "alpha.png"):
        assert cv2.imread(str(tmp_path / name)).std() > 5  # not blank


def test_the_plan_has_the_runs_by_seed_and_method_with_their_flags():
    every, ogm = ["--epochs", "3", "--lr_decay_step", "[4, 5]"], ["--ogm_alpha", ".3"]
    agm = ["--agm_clip", "--agm_alpha", "2"]
    own = {"joint": [], "agm": agm, "ogm": ogm, "ogm_ge": ogm, "dgl-alpha1": [], "dgl-alpha4": []}
    runs = runner.plan("some out", ["joint", "agm", "ogm", "ogm_ge", "dgl"], ["1", "4"], [0, 3], [*agm, *every, *ogm])
    assert list(runs) == [f"{name}-seed{seed}" for seed in (0, 3) for name in own]
    for name, planned in runs.items():
        words, args = planned.flags[: planned.flags.index("--random_seed")], settings_of(*planned.flags)
        method, _, seed = name.rpartition("-seed")
        assert sorted(words) == sorted(every + own[method])
        assert (args.method, str(args.random_seed)) == (method.partition("-")[0], seed)
        assert args.lr_decay_step == [4, 5] and args.ckpt_path == f"some out/{name}"
        assert args.method != "dgl" or args.alpha == int(method[-1])
        assert own[method] != ogm or args.ogm_alpha == 0.3


def test_groups_of_methods_have_every_method_once():
    parts = [runner.GROUPS[name] for name in ("unimodal", "baselines", "ablations")]
    assert sorted(sum(parts, ["dgl"])) == sorted(METHODS) == sorted(runner.GROUPS["all"])
    runs = runner.plan("out", ["all"], ["4"], [0], ["--dataset", "MOSI"])
    assert len(runs) == len(METHODS) == len(runner.plan("out", ["all"], ["4"], [0])) + 1, "CREMA-D has no text"
    order = list(runs)
    assert all(order.index(other) < order.index(name) for name, planned in runs.items() for other in planned.needs)
    assert runs["umt-seed0"].needs == ["audio-seed0", "visual-seed0", "text-seed0"]


def test_the_plan_is_printed_as_a_command_per_run(output_of):
    """Check the order, and that each line, planned again, is its own run and the runs it needs."""
    flags = ["--dataset", "CREMAD", "--lr_decay_step", "[4, 5]", "--agm_clip", "--agm_alpha", 2]
    methods = ["umt", "dgl", "agm"]
    output = output_of(runner, "--out", "some out", "--methods", *methods, "--seeds", 0, 1, "--plan", "--", *flags)
    lines = output.splitlines()
    split = next(number for number, line in enumerate(lines) if line.startswith("#"))
    assert split == 8 and len(lines) == 11
    for line in lines[:split] + lines[split + 1 :]:
        python, minus_m, module, *words = shlex.split(line)
        assert (python, minus_m, module) == (sys.executable, "-m", "analysis.runner")
        again = output_of(runner, *words[: words.index("--")], "--plan", *words[words.index("--") :]).splitlines()
        assert again[-1] == line and len(again) == (4 if "umt" in line else 1)
    assert subprocess.run(lines[split], shell=True).returncode == 0  # the comment is a command that does nothing


def test_errors_are_found_before_any_run_starts(few, tmp_path, rejected, monkeypatch):
    monkeypatch.setattr(runner.Runner, "call", lambda *_: pytest.fail("a run was started"))
    held = tmp_path / "dgl-alpha4-seed0"
    write_run(held, np.random.default_rng(0))
    (held / "last.pth").touch()
    (held / "run.json").write_text(json.dumps({"settings": vars(settings_of("--batch_size", 7, *data_flags(few)))}))
    for flags, words in (
        (["--agm_alpha", 2], "--agm_alpha: a flag of --method agm, which is not compared"),
        (["--lr", 2], "did you mean"),
        (data_flags(few), f"--batch_size 64: the run in {held} has 7"),
    ):
        assert words in rejected(runner, "--out", tmp_path, "--methods", "joint", "dgl", "--", *flags)


def test_runs_below_a_folder_are_distinguished_by_settings(tmp_path, output_of):
    """Check runs as training alone leaves them: without probes, in folders of datasets, with held-out clips or not."""
    rng, found = np.random.default_rng(0), []
    for folder, settings in {
        "cremad/ge": {"method": "ogm_ge"},
        "cremad/first": {"method": "ogm_ge", "ogm_alpha": 0.3},  # of as many, the default is usual
        **{f"cremad/dgl-{seed}": {"random_seed": seed} for seed in range(3)},
        "cremad/slow": {"learning_rate": 0.5},
    }.items():
        found.append(write_run(tmp_path / folder, rng, val_ratio=0.2, **settings))
    write_run(tmp_path / "ave" / "dgl", rng, dataset="AVE")
    for path in tmp_path.rglob("best.json"):
        path.unlink()
    values = dict.fromkeys(BRANCHES, 0.5) | {"linear_probe": None}
    (tmp_path / "cremad" / "ge" / "best.json").write_text(json.dumps(values))
    output = output_of(comparison, tmp_path)
    assert [line.split(" | ")[:3] for line in output.splitlines() if "| best |" in line] == [
        ["| OGM-GE", "-", "1"],
        ["| OGM-GE, ogm_alpha 0.3", "-", "1"],
        ["| DGL", "4", "3"],
        ["| DGL, dataset AVE, val_ratio None", "4", "1"],
        ["| DGL, learning_rate 0.5", "4", "1"],
    ]
    assert (
        "Unless a row has another value: dataset CREMAD, learning_rate 0.001, ogm_alpha 0.1, val_ratio 0.2." in output
    )
    assert "cremad/dgl-0, cremad/dgl-1, cremad/dgl-2 | " in (tmp_path / "comparison.md").read_text()
    rows = [row for row in table_of(tmp_path).values() if row["epoch"] == "best"]
    for row, own in zip(rows, [found[:1], found[1:2], found[2:5], [], found[5:]], strict=True):
        for name in ("fused", "held-out") if own else ():
            assert float(row[name]) == pytest.approx(np.mean([metrics[name] for metrics in own]))
    assert rows[3]["held-out"] == ""  # accuracies on test clips do not fill the column


def test_unusable_folders_are_rejected(tmp_path, rejected):
    rng, run, other = np.random.default_rng(0), tmp_path / "run", tmp_path / "run2"
    for action, words in (
        (lambda: None, "compare.sh"),  # there is no run
        (lambda: [write_run(run, rng), write_run(other, rng)], "has the same settings and seed as"),
        (lambda: (run / "last.json").write_text('{"fused": 0.'), "compare.sh"),
        (lambda: [(other / "last.json").rename(run / "last.json"), (run / "log.jsonl").unlink()], "compare.sh"),
    ):
        action()
        assert words in rejected(comparison, tmp_path)


def test_differences_from_the_reference(tmp_path, output_of):
    """Check them in table, CSV and figure: paired by clip and seed; runs that cannot be paired have none."""
    rng = np.random.default_rng(3)
    methods = {"joint_uni": (range(4), 0.5), "dgl": (range(1, 4), 0.9), "joint": (range(9, 11), 0.5)}
    hits = write_runs(tmp_path, methods | {"ogm_ge": ([1], 0.5)}, rng, val_ratio=0.1)
    path = tmp_path / "ogm_ge-seed1" / "predictions.csv"
    path.write_text(path.read_text().replace("clip7,", "clip107,"))
    write_run(tmp_path / "old", rng, method="agm", val_ratio=0.1)
    (tmp_path / "alpha.png").touch()
    output, rows = output_of(comparison, tmp_path), table_of(tmp_path)
    row = rows["DGL", "4.0", "best"]
    own, other = ([hits[method, seed] for seed in (1, 2, 3)] for method in ("dgl", "joint_uni"))
    mean, low, high, p = (float(row[f"fused {name}"]) for name in ("difference", "low", "high", "p"))
    assert mean == pytest.approx(np.mean(own) - np.mean(other)) and row["fused runs"] == "3"
    assert 0 < low < mean < high and p < 0.05
    table, _, origins = (tmp_path / "comparison.md").read_text().rpartition("\n\n")
    assert table in output and "| fused, minus joint+uni | 95 % | p |" in table
    assert f"{100 * mean:+.1f}* | {100 * low:+.1f} to {100 * high:+.1f} | {p:.3f} |" in table
    assert "or no seed is shared): joint, OGM-GE, AGM." in table
    assert "No differences" not in table and "chosen on the test clips" not in table
    for key in (("DGL", "4.0", "last"), *((name, "best") for name in ("joint", "joint+uni", "AGM", "OGM-GE"))):
        assert rows[key]["fused difference"] == ""  # last, no seed in common, itself, no predictions, other clips
    image = cv2.imread(str(tmp_path / "comparison.png"))
    green, red = ((image == colour).all(axis=2).sum() for colour in ([44, 160, 44], [40, 39, 214]))
    assert green > 100 and red == 0  # DGL is better, in all three panels
    assert (tmp_path / "curves.png").exists() and not (tmp_path / "alpha.png").exists()  # of a single alpha

    output = output_of(comparison, tmp_path, "--reference", "dgl")
    image = cv2.imread(str(tmp_path / "comparison.png"))
    assert (image == [40, 39, 214]).all(axis=2).any() and "minus DGL, alpha 4" in output


def test_a_reference_is_found_by_its_method_or_rejected(tmp_path, output_of, rejected):
    """Check a reference whose label names its settings, since more runs have others."""
    rng = np.random.default_rng(0)
    write_runs(tmp_path, {"joint": (range(2), 0.5), "dgl": (range(2), 0.6)}, rng)
    for k in range(5):
        write_run(tmp_path / f"ave{k}", rng, dataset="AVE", random_seed=k)
    output = output_of(comparison, tmp_path, "--reference", "joint")
    assert "minus joint, dataset CREMAD" in output and "| DGL, dataset CREMAD | 4 | 2 | best | " in output
    write_run(tmp_path / "alpha1", rng, dataset="AVE", alpha=1.0)
    for name, words in {"dgl2": "not one of", "agm": "no finished run", "dgl": "several"}.items():
        error = rejected(comparison, tmp_path, "--reference", name)
        assert f"--reference {name}" in error and words in error


def test_figures_cut_off_a_method_that_fails_and_mark_it_with_arrowheads(tmp_path, monkeypatch):
    near = [Difference(mean, mean - 0.02, mean + 0.02, 0.5, 3) for mean in (-0.03, 0.0, 0.04)]
    assert comparison_figures.axis_limits(near) == pytest.approx((-0.05, 0.06))  # all of them
    wide, failed = Difference(0.0, -0.9, 0.9, 0.9, 3), Difference(-0.8, -0.9, -0.7, 0.001, 3)
    assert comparison_figures.axis_limits([*near, failed]) == pytest.approx((-0.165, 0.06))  # 3 times the median
    figures = []
    monkeypatch.setattr("analysis.comparison_figures.save_figure", lambda figure, _: figures.append(figure))
    near = [Difference(mean, mean - 0.02, mean + 0.02, 0.5, 3) for mean in (0.0, 0.01, 0.0)]
    found = {("all", k): {"fused": each} for k, each in enumerate([*near, wide, failed])}
    comparison_figures.plot_differences(found, ("all", 9), tmp_path / "x.png")
    axes = figures[0].axes[0]
    markers = [(line.get_marker(), line.get_ydata()[0]) for line in axes.lines if line.get_marker() in "<o>"]
    assert markers == [("o", 0), ("o", 1), ("o", 2), ("<", 3), (">", 3), ("o", 3), ("<", 4)]
    assert [text.get_text() for text in axes.texts] == ["-80.0"] and -11 < axes.get_xlim()[0] < -9


@pytest.mark.parametrize("dataset", ["CREMAD", "KineticSound", "kinect400", "VGGSound", "MOSI"])
def test_compare_has_the_alpha_of_the_datasets_script(forking, monkeypatch, dataset):
    """Check also that val_ratio=0 is the paper's protocol: no clips are held out."""
    scripts = [path.read_text() for path in ROOT.glob("*_dgl.sh")]
    (alpha,) = (re.search(r"alpha:-(\d)", text)[1] for text in scripts if re.search(rf"--dataset {dataset}\s", text))
    for name, value in {"dataset": dataset, "methods": "dgl", "seeds": "0", "plan": "1", "val_ratio": "0"}.items():
        monkeypatch.setenv(name, value)
    output = run_shell("compare.sh", project=forking).stdout
    assert f"--alphas {alpha} " in output and "--val_ratio 0.1" in output
    flags = shlex.split(output)[shlex.split(output).index("--") + 1 :]
    assert parse_training(["--train", *flags])[0].val_ratio is None


@pytest.fixture
def start(few, forking):
    """Return a function that starts compare.sh for audio and visual, of one seed -> its process."""

    def call(out, jobs, *flags, **environment):
        environment |= {"dataset": "CREMAD", "methods": "unimodal", "seeds": "0", "jobs": str(jobs), "out": str(out)}
        environment[launcher.SMALL] = "1"
        flags = [*data_flags(few), *SMALL, "--num_workers", 0, "--learning_rate", 0.01, *flags]
        command = ["bash", forking / "compare.sh", *flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        return subprocess.Popen([*map(str, command)], env=inherited | environment, **pipes, text=True)

    return call


def test_interrupted_and_killed_it_ends_with_the_same_table(start, tmp_path):
    """Check two runs at a time, which a signal to the script reaches, against a comparison with one after the other."""
    parts, whole, names, threads = tmp_path / "parts", tmp_path / "whole", ("audio", "visual"), max(1, cores() // 2)
    runs = [parts / f"{name}-seed0" for name in names]

    def epochs_done():
        return max(len((run / "log.jsonl").read_text().splitlines()) for run in runs)

    process = start(parts, 2, "--epochs", 10**6)
    wait_for(lambda: all((run / "last.pth").exists() for run in runs), process)
    process.terminate()
    _, error = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM and len(error.splitlines()) == 1, error
    for run in runs:
        assert (run / "last.pth").exists() and "interrupted by SIGTERM" in (run / "output.txt").read_text()
    done = epochs_done()
    process = start(parts, 2, "--epochs", 10**6)
    wait_for(lambda: epochs_done() > done, process)
    for number in processes_of(parts):
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(number, signal.SIGKILL)
    process.communicate()
    for run in runs:
        with FileLock(run / ".lock", timeout=120):  # until it has ended
            epochs = epochs_done() + 1
    assert not any((run / "result.json").exists() for run in runs)

    process = start(parts, 2, "--epochs", epochs)
    output, error = process.communicate()
    assert not error and not process.returncode
    for run in runs:
        assert len(rows_of(run)) == epochs
        assert f"{run}: trained and validated in" in output and "epoch " in (run / "output.txt").read_text()
        assert json.loads((run / "run.json").read_text())["starts"][-1]["threads"] == threads
        clips = len((run / "predictions.csv").read_text().splitlines()) - 1
        assert clips == json.loads((run / "best.json").read_text())["clips"]
    output, _ = start(whole, 1, "--epochs", epochs, OMP_NUM_THREADS=str(threads)).communicate()
    assert all(f"| {name} alone | - | 1 | best | " in output for name in names) and "\nepoch " in output
    for name in ("comparison.md", "comparison.csv"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()

    finished = [(run / "result.json").stat().st_mtime_ns for run in runs]
    output, _ = start(parts, 1, "--epochs", epochs).communicate()
    assert "| visual alone | - | 1 | best | " in output and "\nepoch " not in output
    assert [(run / "result.json").stat().st_mtime_ns for run in runs] == finished


def test_clips_that_differ_between_seeds_have_no_difference(tmp_path, output_of):
    rng = np.random.default_rng(0)
    write_runs(tmp_path, {"joint_uni": (range(2), 0.5), "dgl": (range(2), 0.6)}, rng, val_ratio=0.1)
    for method in ("joint_uni", "dgl"):
        path = tmp_path / f"{method}-seed1" / "predictions.csv"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not line.startswith("clip7,")))
    assert "test clips differ between runs" in output_of(comparison, tmp_path)


def test_runs_with_other_weights_and_other_branches_are_apart(tmp_path, output_of):
    rng = np.random.default_rng(0)
    for number, weights in enumerate(([0.2, 0.4, 0.4], [1.0, 0.0, 0.0])):
        write_run(tmp_path / f"gblend{number}", rng, method="gblend", gblend_weights=weights)
    for alpha in (1.0, 4.0):
        write_run(tmp_path / f"dgl{alpha}", rng, alpha=alpha)
    path = tmp_path / "dgl1.0" / "result.json"
    result = json.loads(path.read_text())
    for epoch in ("best", "last"):
        result[epoch]["text"] = 0.5
    path.write_text(json.dumps(result))
    output = output_of(comparison, tmp_path)
    assert output.count("| G-Blending, gblend_weights ") == 2 and (tmp_path / "alpha.png").exists()


def test_threads_of_the_environment_and_a_folder_that_cannot_be_made(tmp_path, monkeypatch, rejected):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert {each["OMP_NUM_THREADS"] for each in runner.environments(2)} == {"3"}
    (tmp_path / "file").touch()
    flags = ["--out", tmp_path / "file" / "x", "--methods", "joint", "--jobs", 2]
    assert "choose another --out" in rejected(runner, *flags)

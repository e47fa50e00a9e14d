"""compare.sh and its table: figures against numpy, finished runs kept, interruption without effect on the table."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

from analysis import comparison, runner
from analysis.significance import Difference
from engine.settings import parse_training
from methods import METHODS
from tests.conftest import ROOT, SMALL, data_flags, run_here, settings_of
from utils.pool import cores

SETTINGS = {"modality": "full", "method": "dgl", "modulation": "Normal", "alpha": 4.0, "no_mgt": False, "no_ugt": False}
SETTINGS |= {"random_seed": 0, "epochs": 3}


def write_run(folder, rng, older=False, **settings):
    """Write a finished run of three epochs with random metrics; return those of its best epoch.

    A run of one modality has no metrics of the other one; older versions wrote null for them.
    """
    folder.mkdir(parents=True)
    missing, figures = {"audio": "visual", "visual": "audio"}.get(settings.get("modality")), []
    for epoch in range(3):
        accuracies = {name: rng.random() for name in ("fused", "audio", "visual") if name != missing}
        probes = {name: rng.random() for name in ("audio", "visual") if name != missing}
        if older and missing:
            accuracies[missing] = probes[missing] = None
        figures.append(accuracies | {"epoch": epoch, "linear_probe": probes})
    split = {"split": "val" if settings.get("val_ratio") else "test"}
    (folder / "log.jsonl").write_text("".join(json.dumps(epoch | split) + "\n" for epoch in figures))
    (folder / "best.json").write_text(json.dumps(figures[1]))
    (folder / "last.json").write_text(json.dumps(figures[2]))
    best, last = ({name: value for name, value in row.items() if name != "linear_probe"} for row in figures[1:])
    result = {"best": best, "last": last, "settings": SETTINGS | settings, "chosen_on": split["split"]}
    (folder / "result.json").write_text(json.dumps(result))
    return figures[1]


def test_table_and_pictures(tmp_path, capsys):
    rng = np.random.default_rng(0)
    dgl = [write_run(tmp_path / f"dgl-4-{seed}", rng, random_seed=seed) for seed in range(3)]
    write_run(tmp_path / "dgl-1-0", rng, alpha=1.0)
    write_run(tmp_path / "ge", rng, method="joint", modulation="OGM_GE")  # as older runs record it
    write_run(tmp_path / "ablation", rng, method="no_mgt")
    audio = write_run(tmp_path / "audio", rng, modality="audio")
    write_run(tmp_path / "visual", rng, older=True, modality="visual")
    (tmp_path / "unfinished").mkdir()
    run_here(comparison, tmp_path)

    with open(tmp_path / "comparison.csv", newline="") as file:
        rows = {(row["method"], row["alpha"], row["epoch"]): row for row in csv.DictReader(file)}
    methods = [
        ("audio alone", ""),
        ("visual alone", ""),
        ("OGM-GE", ""),
        ("DGL -MGT", "4.0"),
        ("DGL", "1.0"),
        ("DGL", "4.0"),
    ]
    assert list(rows) == [(*method, epoch) for method in methods for epoch in ("best", "last")]
    row = rows["DGL", "4.0", "best"]
    for column in ("fused", "audio", "visual"):
        values = [figures[column] for figures in dgl]
        assert float(row[column]) == pytest.approx(np.mean(values))
        assert float(row[f"{column} std"]) == pytest.approx(np.std(values, ddof=1))
    probes = [figures["linear_probe"]["visual"] for figures in dgl]
    assert float(row["probe visual"]) == pytest.approx(np.mean(probes))
    for name, missing in (("audio alone", "visual"), ("visual alone", "audio")):
        assert rows[name, "", "best"][missing] == rows[name, "", "best"][f"probe {missing}"] == ""
    assert rows["DGL", "1.0", "best"]["fused std"] == ""

    table = (tmp_path / "comparison.md").read_text()
    assert table.partition("\n\n")[0] in capsys.readouterr().out
    assert f"| audio alone | - | 1 | best | {100 * audio['fused']:.1f} |" in table
    values = 100 * np.array([figures["fused"] for figures in dgl])
    assert f"| DGL | 4 | 3 | best | {values.mean():.1f} ± {values.std(ddof=1):.1f} |" in table
    shown, _, made = table.partition("\n\n")
    assert len({line.count("|") for line in shown.splitlines()}) == 1
    assert "| DGL, alpha 4 | dgl-4-0, dgl-4-1, dgl-4-2 | - |" in made  # of runs without a record
    for name in ("curves.png", "alpha.png"):
        assert cv2.imread(str(tmp_path / name)).std() > 5  # not blank


def test_plan_lists_the_runs_by_method_and_seed():
    runs = runner.plan("some out", ["joint", "dgl"], ["1", "4"], [0, 3])
    names = ["joint", "dgl-alpha1", "dgl-alpha4"]
    assert list(runs) == [f"{name}-seed{seed}" for seed in (0, 3) for name in names]
    for name, planned in runs.items():
        args = settings_of(*planned.flags)
        assert name.startswith(args.method) and name.endswith(f"-seed{args.random_seed}")
        assert args.method == "joint" or f"-alpha{args.alpha:g}-" in name
        assert args.ckpt_path == f"some out/{name}"


def test_groups_of_methods_are_every_method_once():
    parts = [runner.GROUPS[name] for name in ("unimodal", "baselines", "ablations")]
    assert sorted(sum(parts, ["dgl"])) == sorted(METHODS) == sorted(runner.GROUPS["all"])
    runs = runner.plan("out", ["all"], ["4"], [0], ["--dataset", "MOSI"])
    assert len(runs) == len(METHODS) == len(runner.plan("out", ["all"], ["4"], [0])) + 1, "CREMA-D has no text"
    order = list(runs)
    for name, planned in runs.items():
        assert all(order.index(other) < order.index(name) for other in planned.needs)
    assert runs["umt-seed0"].needs == ["audio-seed0", "visual-seed0", "text-seed0"]


def test_flags_of_one_method_go_to_its_runs_alone(capsys):
    """Also those without a value, and also in the commands of a plan, each of which can be planned by itself."""
    common = ["--agm_clip", "--epochs", "3", "--agm_alpha", "2"]
    runs = runner.plan("out", ["joint", "agm"], ["4"], [0], common)
    assert not any("agm" in str(word) for word in runs["joint-seed0"].flags)
    assert runs["agm-seed0"].flags[: len(common)] == common and "--epochs" in runs["joint-seed0"].flags
    runner.print_plan(runs, Namespace(out="out", flags=common))
    for line, name in zip(capsys.readouterr().out.splitlines(), ("joint", "agm"), strict=True):
        flags = shlex.split(line)
        assert list(runner.plan("out", [name], ["4"], [0], flags[flags.index("--") + 1 :])) == [f"{name}-seed0"]


def test_the_plan_is_a_command_a_line_that_makes_one_run(capsys):
    """Those that others learn from first; each line, planned again, is its own run and what it needs."""
    flags = ["--dataset", "CREMAD", "--lr_decay_step", "[4, 5]"]
    run_here(runner, "--out", "some out", "--methods", "umt", "dgl", "--seeds", 0, 1, "--plan", "--", *flags)
    lines = capsys.readouterr().out.splitlines()
    split = next(number for number, line in enumerate(lines) if line.startswith("#"))
    assert split == 6 and len(lines) == 9
    for line in lines[:split] + lines[split + 1 :]:
        python, minus_m, module, *words = shlex.split(line)
        assert (python, minus_m, module) == (sys.executable, "-m", "analysis.runner")
        run_here(runner, *words[: words.index("--")], "--plan", *words[words.index("--") :])
        again = capsys.readouterr().out.splitlines()
        assert again[-1] == line and len(again) == (4 if "umt" in line else 1)
    assert subprocess.run(lines[split], shell=True).returncode == 0  # the comment is a command that does nothing


def test_what_is_wrong_is_refused_before_any_run_is_made(few, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner.Runner, "call", lambda *_: pytest.fail("a run was begun"))
    common = ["--out", tmp_path, "--methods", "joint", "dgl", "--"]
    held = tmp_path / "dgl-alpha4-seed0"
    write_run(held, np.random.default_rng(0))
    (held / "last.pth").touch()
    (held / "run.json").write_text(json.dumps({"settings": vars(settings_of("--batch_size", 7, *data_flags(few)))}))
    for flags, words in (
        (["--agm_alpha", 2], "--agm_alpha: of --method agm, none of which is planned"),
        (["--lr", 2], "did you mean"),
        ([*data_flags(few)], f"--batch_size 64: the run in {held} has 7"),
    ):
        with pytest.raises(SystemExit):
            run_here(runner, *common, *flags)
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1


def test_a_methods_flags_go_to_its_runs_alone():
    runs = runner.plan(
        "out", ["ogm", "ogm_ge", "joint"], ["4"], [0], ["--ogm_alpha", "0.3", "--lr_decay_step", "[4, 5]"]
    )
    settings = {name: settings_of(*planned.flags) for name, planned in runs.items()}
    assert settings["ogm-seed0"].ogm_alpha == settings["ogm_ge-seed0"].ogm_alpha == 0.3
    assert all(each.lr_decay_step == [4, 5] for each in settings.values())
    assert "--ogm_alpha" not in runs["joint-seed0"].flags


def test_runs_below_a_folder_are_told_by_what_sets_them_apart(tmp_path, capsys):
    """As training alone leaves them: without probes, in folders of datasets, with settings of all kinds."""
    rng = np.random.default_rng(0)
    for seed in range(3):
        write_run(tmp_path / "cremad" / f"dgl-{seed}", rng, random_seed=seed)
    write_run(tmp_path / "cremad" / "slow", rng, learning_rate=0.5)
    write_run(tmp_path / "cremad" / "ge", rng, method="ogm_ge")
    write_run(tmp_path / "cremad" / "first", rng, method="ogm_ge", ogm_alpha=0.3)  # of as many, the default is usual
    write_run(tmp_path / "ave" / "dgl", rng, dataset="AVE")
    for path in tmp_path.rglob("best.json"):
        path.unlink()
    (tmp_path / "cremad" / "ge" / "best.json").write_text(
        json.dumps({"fused": 0.5, "audio": 0.5, "visual": 0.5} | {"linear_probe": None})
    )
    run_here(comparison, tmp_path)
    output = capsys.readouterr().out
    rows = [line.split(" | ")[:3] for line in output.splitlines() if "| best |" in line]
    assert rows == [
        ["| OGM-GE", "-", "1"],
        ["| OGM-GE, ogm_alpha 0.3", "-", "1"],
        ["| DGL", "4", "3"],
        ["| DGL, dataset AVE", "4", "1"],
        ["| DGL, learning_rate 0.5", "4", "1"],
    ]
    assert "Rows that say nothing else: dataset CREMAD, learning_rate 0.001, ogm_alpha 0.1." in output
    assert "cremad/dgl-0, cremad/dgl-1, cremad/dgl-2 | " in (tmp_path / "comparison.md").read_text()


def test_a_sweep_shows_what_held_out_clips_say(tmp_path):
    """The accuracy that a value is chosen by, of runs that have held-out clips; no test clip stands in for them."""
    rng = np.random.default_rng(0)
    low, high = (
        write_run(tmp_path / f"ge{value}", rng, method="ogm_ge", ogm_alpha=value, val_ratio=0.2) for value in (0.1, 0.3)
    )
    write_run(tmp_path / "all", rng, method="joint", val_ratio=None)
    for path in tmp_path.rglob("result.json"):  # a result's accuracies are of test clips
        result = json.loads(path.read_text())
        result["best"] |= {"fused": 0.5, "audio": 0.5, "visual": 0.5}
        path.write_text(json.dumps(result))
    run_here(comparison, tmp_path)
    with open(tmp_path / "comparison.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["epoch"] == "best"]
    assert [row["held-out"] for row in rows] == ["", str(low["fused"]), str(high["fused"])]
    assert {row["fused"] for row in rows} == {"0.5"}


def test_the_reference_is_found_by_its_method(tmp_path, capsys):
    """Whatever it is called: beside more runs of other settings than its own."""
    rng = np.random.default_rng(0)
    write_runs(tmp_path, {"joint": (range(2), 0.5), "dgl": (range(2), 0.6)}, rng)
    for k in range(5):
        write_run(tmp_path / f"ave{k}", rng, dataset="AVE", random_seed=k)
    run_here(comparison, tmp_path, "--reference", "joint")
    output = capsys.readouterr().out
    assert "minus joint, dataset CREMAD" in output and "| DGL, dataset CREMAD | 4 | 2 | best | " in output


def test_no_alpha_picture_of_a_single_alpha(tmp_path):
    write_run(tmp_path / "dgl", np.random.default_rng(0))
    run_here(comparison, tmp_path)
    assert (tmp_path / "curves.png").exists() and not (tmp_path / "alpha.png").exists()


def spoil(folder, damage):
    rng = np.random.default_rng(0)
    if damage == "no run":
        return
    write_run(folder / "run", rng)
    if damage == "no log":
        (folder / "run" / "log.jsonl").unlink()
    elif damage == "half a figure":
        (folder / "run" / "last.json").write_text('{"fused": 0.')
    else:
        write_run(folder / "run2", rng)


@pytest.mark.parametrize("damage", ["no run", "no log", "half a figure", "same seed"])
def test_bad_folders_are_one_line(tmp_path, capsys, damage):
    spoil(tmp_path, damage)
    with pytest.raises(SystemExit) as end:
        run_here(comparison, tmp_path)
    error = capsys.readouterr().err
    assert end.value.code == 2 and len(error.splitlines()) == 1 and ("compare.sh" in error or damage == "same seed")


def kill_all(folder):
    """Kill the processes whose command line names a folder of this test."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            if os.fsencode(folder) in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)


def test_interrupted_and_run_again_it_ends_with_the_same_table(few, forking, tmp_path):
    flags = [*data_flags(few), *SMALL, "--epochs", 4, "--learning_rate", 0.01]
    environment = os.environ | {
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        "dataset": "CREMAD",
        "methods": "visual",
        "seeds": "0",
    }

    def start(out, *more):
        return subprocess.Popen(
            ["bash", forking / "compare.sh", *map(str, flags), *more],
            env=environment | {"out": str(out)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    interrupted, whole = tmp_path / "interrupted", tmp_path / "whole"
    process = start(interrupted)
    log, result = (interrupted / "visual-seed0" / name for name in ("log.jsonl", "result.json"))
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    kill_all(interrupted)  # before the last epoch ends
    process.communicate()
    assert not result.exists()
    for out in (interrupted, whole):
        output, _ = start(out).communicate()
        assert "| visual alone | - | 1 | best | " in output
        clips = len((out / "visual-seed0" / "predictions.csv").read_text().splitlines()) - 1
        assert clips == json.loads((out / "visual-seed0" / "best.json").read_text())["clips"]
    for name in ("comparison.md", "comparison.csv"):
        assert (interrupted / name).read_bytes() == (whole / name).read_bytes()

    finished = result.stat().st_mtime_ns
    output, _ = start(interrupted).communicate()
    assert "epoch" not in output.replace("| epoch |", "") and result.stat().st_mtime_ns == finished
    environment["jobs"] = "2"
    process = start(interrupted, "--batch_size", "4")
    assert "--batch_size 4: the run in" in process.communicate()[0] and process.returncode == 2


def write_predictions(folder, hits):
    """What valid.py --predictions writes, of clips in a drawn order; hits: {branch: {clip: bool}}."""
    clips = list(hits["fused"])
    np.random.default_rng(len(clips)).shuffle(clips)
    rows = [["clip", "true", *(name for b in hits for name in (b, f"{b} probability", f"{b} probability of true"))]]
    for clip in clips:
        cells = (cell for b in hits for cell in ("ANG" if hits[b][clip] else "SAD", 0.5, 0.5))
        rows.append([clip, "ANG", *cells])
    with open(folder / "predictions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_runs(folder, methods, rng):
    """Runs with predictions of 100 clips: {method: (seeds, accuracy)} -> {(method, seed): fused hits (100,)}."""
    hits = {}
    for method, (seeds, accuracy) in methods.items():
        for seed in seeds:
            run = folder / f"{method}-seed{seed}"
            write_run(run, rng, method=method, random_seed=seed)
            of_run = {
                b: {f"clip{k}": rng.random() < accuracy for k in range(100)} for b in ("fused", "audio", "visual")
            }
            write_predictions(run, of_run)
            hits[method, seed] = [of_run["fused"][f"clip{k}"] for k in range(100)]
    return hits


def test_differences_from_the_reference(tmp_path, capsys):
    """Paired by clip and by the seeds that both have, in table, CSV and picture; older runs have none, and are told."""
    rng = np.random.default_rng(3)
    methods = {"joint_uni": (range(4), 0.5), "dgl": (range(1, 4), 0.9), "joint": (range(9, 11), 0.5)}
    hits = write_runs(tmp_path, methods, rng)
    write_run(tmp_path / "old", rng, method="agm")
    run_here(comparison, tmp_path)
    with open(tmp_path / "comparison.csv", newline="") as file:
        rows = {(row["method"], row["epoch"]): row for row in csv.DictReader(file)}
    row = rows["DGL", "best"]
    own, other = ([hits[method, seed] for seed in (1, 2, 3)] for method in ("dgl", "joint_uni"))
    mean, low, high, p = (float(row[f"fused {name}"]) for name in ("difference", "low", "high", "p"))
    assert mean == pytest.approx(np.mean(own) - np.mean(other)) and row["fused runs"] == "3"
    assert 0 < low < mean < high and p < 0.05
    table = (tmp_path / "comparison.md").read_text()
    assert f"{100 * mean:+.1f}* | {100 * low:+.1f} to {100 * high:+.1f} | {p:.3f} |" in table
    assert (
        "| fused, minus joint+uni | 95 % | p |" in table
        and "in common: AGM, joint." not in table
        and "joint, AGM." in table
    )
    assert table.rpartition("\n\n")[0] in capsys.readouterr().out
    for key in (("DGL", "last"), ("joint", "best"), ("joint+uni", "best"), ("AGM", "best")):
        assert rows[key]["fused difference"] == ""  # last, no seed in common, itself, without predictions
    picture = cv2.imread(str(tmp_path / "comparison.png"))
    green, red = ((picture == colour).all(axis=2).sum() for colour in ([44, 160, 44], [40, 39, 214]))
    assert green > 100 and red == 0  # DGL is better, in all three panels

    run_here(comparison, tmp_path, "--reference", "dgl")
    picture = cv2.imread(str(tmp_path / "comparison.png"))
    assert (picture == [40, 39, 214]).all(axis=2).any() and "minus DGL, alpha 4" in capsys.readouterr().out


def test_one_method_that_fails_does_not_squeeze_the_picture():
    near = [Difference(mean, mean - 0.02, mean + 0.02, 0.5, 3) for mean in (-0.03, 0.0, 0.04)]
    assert comparison.reach(near) == pytest.approx((-0.05, 0.06))  # all of them
    failed = Difference(-0.8, -0.9, -0.7, 0.001, 3)
    left, right = comparison.reach([*near, failed])  # half of them need up to 0.055, between 0.05 and 0.06
    assert (left, right) == pytest.approx((-0.165, 0.06))


def test_what_a_picture_cuts_off_has_arrowheads(tmp_path, monkeypatch):
    pictures = []
    monkeypatch.setattr("analysis.comparison.save_figure", lambda figure, _: pictures.append(figure))
    near = [Difference(mean, mean - 0.02, mean + 0.02, 0.5, 3) for mean in (0.0, 0.01, 0.0)]
    wide, failed = Difference(0.0, -0.9, 0.9, 0.9, 3), Difference(-0.8, -0.9, -0.7, 0.001, 3)
    found = {("all", k): {"fused": each} for k, each in enumerate([*near, wide, failed])}
    comparison.plot_differences(found, ("all", 9), tmp_path / "x.png")
    axes = pictures[0].axes[0]
    markers = [(line.get_marker(), line.get_ydata()[0]) for line in axes.lines if line.get_marker() in "<o>"]
    assert markers == [("o", 0), ("o", 1), ("o", 2), ("<", 3), (">", 3), ("o", 3), ("<", 4)]
    assert [text.get_text() for text in axes.texts] == ["-80.0"] and -11 < axes.get_xlim()[0] < -9


REFERENCES = {"none": ("dgl2", "none of"), "not there": ("agm", "no finished run"), "two alphas": ("dgl", "several")}


@pytest.mark.parametrize("case", REFERENCES)
def test_a_wrong_reference_is_one_line(tmp_path, capsys, case):
    rng, (name, words) = np.random.default_rng(0), REFERENCES[case]
    write_runs(tmp_path, {"joint_uni": (range(2), 0.5), "dgl": (range(2), 0.5)}, rng)
    write_run(tmp_path / "alpha1", rng, alpha=1.0)
    with pytest.raises(SystemExit) as end:
        run_here(comparison, tmp_path, "--reference", name)
    error = capsys.readouterr().err
    assert end.value.code == 2 and len(error.splitlines()) == 1 and f"--reference {name}" in error and words in error


@pytest.mark.parametrize(("method", "val_ratio"), [("joint", None), ("joint_uni", 0.1)])
def test_the_table_says_why_it_has_no_differences_and_what_chose_the_epochs(tmp_path, capsys, method, val_ratio):
    for seed, name in enumerate((method, "dgl")):
        write_run(tmp_path / name, np.random.default_rng(seed), method=name, val_ratio=val_ratio)
    run_here(comparison, tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    assert ("No differences: joint+uni did not run" in text) == (method == "joint")
    assert ("Best epochs were chosen on the test clips" in text) == (val_ratio is None)


@pytest.mark.parametrize("dataset", ["CREMAD", "KineticSound", "kinect400", "VGGSound", "AVE", "MOSI", "Folder"])
def test_compare_has_the_alpha_of_the_datasets_script(forking, dataset):
    """And with val_ratio=0 the paper's protocol: no clips are held out."""
    scripts = [path for path in ROOT.glob("*_dgl.sh") if f"--dataset {dataset} " in path.read_text().replace("\n", " ")]
    (alpha,) = {re.search(r"alpha:-(\d)", path.read_text())[1] for path in scripts}
    environment = os.environ | {"dataset": dataset, "methods": "dgl", "seeds": "0", "plan": "1", "val_ratio": "0"}
    command = ["bash", forking / "compare.sh"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"--alphas {alpha} " in done.stdout and "--val_ratio 0.1" in done.stdout
    flags = shlex.split(done.stdout)[shlex.split(done.stdout).index("--") + 1 :]
    assert parse_training(["--train", *flags])[0].val_ratio is None


def test_runs_of_other_clips_have_no_difference(tmp_path, capsys):
    write_runs(tmp_path, {"joint_uni": (range(2), 0.5), "dgl": (range(2), 0.5)}, np.random.default_rng(0))
    path = tmp_path / "dgl-seed1" / "predictions.csv"
    path.write_text(path.read_text().replace("clip7,", "clip107,"))
    run_here(comparison, tmp_path)
    assert "of other clips, or without a seed in common: DGL, alpha 4." in capsys.readouterr().out


def test_several_at_a_time_and_ended_by_a_signal(few, forking, tmp_path):
    """Two runs share the cores, each with its output in its folder; SIGTERM to the script reaches both, which go on."""
    flags = [*data_flags(few), *SMALL, "--learning_rate", 0.01]
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    environment |= {"dataset": "CREMAD", "methods": "unimodal", "seeds": "0", "jobs": "2", "out": str(tmp_path)}

    def start(epochs):
        command = ["bash", forking / "compare.sh", *map(str, flags), "--epochs", str(epochs)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=environment, **pipes, text=True)

    runs, process = [tmp_path / f"{name}-seed0" for name in ("audio", "visual")], start(1000)
    while process.poll() is None and not all((run / "last.pth").exists() for run in runs):
        time.sleep(0.05)
    process.terminate()
    output, error = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM and len(error.splitlines()) == 1, error
    assert all(
        (run / "last.pth").exists() and "interrupted by SIGTERM" in (run / "output.txt").read_text() for run in runs
    )
    epochs = max(len((run / "log.jsonl").read_text().splitlines()) for run in runs) + 1
    output, error = start(epochs).communicate()
    assert not error and "| audio alone | - | 1 | best |" in output and "| visual alone | - | 1 | best |" in output
    for run in runs:
        assert len((run / "log.jsonl").read_text().splitlines()) == epochs
        assert f"{run}: made in" in output and "epoch " in (run / "output.txt").read_text()
        assert json.loads((run / "run.json").read_text())["starts"][-1]["threads"] == max(1, cores() // 2)

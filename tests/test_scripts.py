"""The scripts as a user runs them: train, validate, override, measure, and the flags that they take."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import benchmark
import main_dgl
import valid
from dataset import DATASETS, build_dataset
from engine import evaluation, settings
from engine.build import build_optimizer
from models.basic_model import AVClassifier
from models.weights import load_checkpoint
from tests.conftest import ROOT, SMALL, data_flags, rows_of, run_here, settings_of, train
from utils.config import as_markdown


def accuracies(output):
    """Return the fused, audio and visual cells of the table row that starts with 'accuracy'."""
    row = re.search(r"^accuracy +\d+ +(\S+) +(\S+) +(\S+)$", output, re.MULTILINE)
    return [float(cell) for cell in row.groups()]


def test_training_writes_log_result_and_checkpoints(trained):
    folder, output = trained
    rows, result = rows_of(folder), json.loads((folder / "result.json").read_text())
    assert [row["epoch"] for row in rows] == [0, 1]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.01, 0.001])  # decays at the epoch given
    assert all(0 <= row[name] <= 1 for row in rows for name in ("fused", "audio", "visual"))
    assert len([line for line in output.splitlines() if line.startswith("epoch ")]) == 2
    names = "best.pth confusion.png curves.png last.pth log.jsonl result.json run.json skipped.csv"
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == names.split()
    best = max(rows, key=lambda row: row["fused"])  # the first one where several are best
    for name, row in (("best", best), ("last", rows[-1])):
        assert result[name] == {key: row[key] for key in ("epoch", "fused", "audio", "visual")}
        assert f"{name} epoch {row['epoch']}:  fused {row['fused']:.4f}" in output
        saved = torch.load(folder / f"{name}.pth", weights_only=True)
        assert saved["epoch"] == row["epoch"] and saved["settings"]["alpha"] == 4.0
        assert set(saved["model"]) == set(AVClassifier(6).state_dict())
        assert saved["classes"] == list(DATASETS["CREMAD"].classes)


def test_validation_of_a_run(trained, corpus, moved, tmp_path, capsys, output_of, rejected, monkeypatch):
    folder, best = trained[0], trained[0] / "best.pth"
    last = rows_of(folder)[-1]
    expected = [last[name] for name in ("fused", "audio", "visual")]
    assert accuracies(output_of(valid, "--ckpt_path", folder / "last.pth")) == pytest.approx(expected, abs=1e-4)
    plain = output_of(valid, "--ckpt_path", best)
    assert output_of(valid, folder) == plain
    run_here(main_dgl, "--dataset", "CREMAD", "--ckpt_path", folder, "--gpu_ids", 0, "--batch_size", 3)
    output = capsys.readouterr()
    assert output.out == plain and (torch.cuda.is_available() or "warning: --gpu_ids" in output.err)

    flags = ["--dataset", "CREMAD", "--batch_size", 1, "--num_workers", 0, *data_flags(moved)]
    assert accuracies(output_of(valid, "--ckpt_path", best, *flags)) == accuracies(plain)
    (moved / "test.csv").write_text("\n".join((corpus / "test.csv").read_text().splitlines()[:5]))
    assert "test: 5 clips" in output_of(valid, "--ckpt_path", best, *data_flags(moved))
    (moved / "AudioWAV" / f"{(moved / 'test.csv').read_text().partition(',')[0]}.wav").unlink()
    flags = ["--root", moved, "--split_path", moved]  # which also moves the recorded --audio_path
    assert "test: 4 clips, 1 skipped" in output_of(valid, "--ckpt_path", best, *flags)

    monkeypatch.chdir(tmp_path)
    assert "ckpt" in rejected(valid)
    for name, changed in (("older", 1), ("newer", 2)):
        (tmp_path / "ckpt" / name).mkdir(parents=True)
        shutil.copy(best, tmp_path / "ckpt" / name)
        os.utime(tmp_path / "ckpt" / name / "best.pth", (changed, changed))
    output = output_of(valid)
    assert output.startswith("ckpt/newer/best.pth: the newest of 2 run(s) below ckpt/; others: ckpt/older/best.pth\n")
    assert accuracies(output) == accuracies(plain)


def test_val_ratio_chooses_on_held_out_clips_and_tests_once(corpus, tmp_path, small, monkeypatch):
    evaluated, evaluate = [], evaluation.evaluate

    def watched(*arguments):
        accuracies, predictions = evaluate(*arguments)
        evaluated.append(predictions["label"].tolist())
        return accuracies, predictions

    monkeypatch.setattr(main_dgl, "evaluate", watched)
    monkeypatch.setattr(evaluation, "evaluate", watched)
    flags = ["--epochs", 3, "--learning_rate", 0.01, "--val_ratio", 0.3]
    train(corpus, tmp_path, *flags, "--num_workers", 0)
    args = settings_of(*data_flags(corpus), *SMALL, *flags)
    val, test = ([clip.label for clip in build_dataset(args, split).clips] for split in ("val", "test"))
    assert Counter(val) == dict.fromkeys(range(6), 1)
    rows, result = rows_of(tmp_path), json.loads((tmp_path / "result.json").read_text())
    assert {row["split"] for row in rows} == {"val"}
    assert result["best"]["epoch"] == max(rows, key=lambda row: row["fused"])["epoch"] and result["chosen_on"] == "val"
    assert evaluated == [val] * 3 + [test] * len({result[name]["epoch"] for name in ("best", "last")}) and val != test
    for name in ("best", "last"):
        run_here(valid, "--ckpt_path", tmp_path / f"{name}.pth", "--json", tmp_path / "valid.json")
        validated = json.loads((tmp_path / "valid.json").read_text())
        assert {key: validated[key] for key in result[name]} == result[name]


def test_linear_probe_fits_unaugmented_training_features(trained, corpus, tmp_path):
    best = trained[0] / "best.pth"
    run_here(valid, "--ckpt_path", best, "--linear_probe", "--json", tmp_path / "valid.json")
    model = AVClassifier(6)
    model.load_state_dict(load_checkpoint(best)["model"])
    model.eval()
    features = {}
    for split in ("train", "test"):
        items = list(build_dataset(settings_of(*data_flags(corpus), *SMALL), split, training=False))
        with torch.no_grad():
            a = [model.audio_net(inputs["audio"][None]).mean((2, 3)) for inputs, _ in items]
            v = [model.visual_net(inputs["visual"].transpose(0, 1)).mean((0, 2, 3))[None] for inputs, _ in items]
        features[split] = {"audio": torch.cat(a).numpy(), "visual": torch.cat(v).numpy()}
        features[split]["label"] = [label for _, label in items]
    probe = json.loads((tmp_path / "valid.json").read_text())["linear_probe"]
    for modality in ("audio", "visual"):
        x, mean = features["train"][modality], features["train"][modality].mean(0)
        scale = np.where(x.std(0) > 0, x.std(0), 1)
        classifier = LogisticRegression(max_iter=1000).fit((x - mean) / scale, features["train"]["label"])
        predicted = classifier.predict((features["test"][modality] - mean) / scale)
        assert probe[modality] == pytest.approx(np.mean(predicted == features["test"]["label"]))


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-4}),
        ("Adam", torch.optim.AdamW, {"betas": (0.9, 0.999), "weight_decay": 0.01}),
        ("AdaGrad", torch.optim.Adagrad, {"weight_decay": 0}),
    ],
)
def test_optimisers_are_those_of_the_authors(name, kind, expected):
    flags = settings_of("--optimizer", name, "--lr_decay_step", "[1]")
    optimizer, scheduler = build_optimizer(torch.nn.Linear(2, 2), flags)
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in expected} == expected and group["lr"] == 0.001 and isinstance(optimizer, kind)
    optimizer.step()
    scheduler.step()
    assert group["lr"] == pytest.approx(1e-4 if name == "sgd" else 1e-3)


@pytest.mark.parametrize("script", ["main_dgl.py", "valid.py"])
def test_a_wrong_flag_is_answered_with_where_the_flags_are_listed(rejected, script):
    assert f"{script} --help" in rejected(script, "--alhpa", 4)


def test_output_that_nobody_reads(trained, corpus):
    command = [sys.executable, "valid.py", "--ckpt_path", trained[0] / "best.pth", *data_flags(corpus)]
    reader = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert b"best.pth" in reader.stdout.readline()
    reader.stdout.close()  # as `| head -1` does
    assert reader.stderr.read() == b""
    assert reader.wait() == 128 + signal.SIGPIPE


def test_the_benchmark_measures_everything_unless_told(monkeypatch):
    measured = []
    for part in benchmark.PARTS:
        monkeypatch.setattr(benchmark, f"measure_{part}", lambda *arguments, part=part: measured.append(part))
    run_here(benchmark)
    run_here(benchmark, "epoch", "reader")
    assert measured == [*benchmark.PARTS, "epoch", "reader"]


def test_the_benchmark_of_an_epoch_runs(small_encoders, output_of):
    rows = [line for line in output_of(benchmark, "epoch", "--rounds", 1).splitlines() if line.startswith("epoch of")]
    assert len(rows) == 2 and all(float(row.split()[-1]) > 0 for row in rows)


def test_docs_flags_md_is_generated_and_lists_what_the_scripts_take():
    """Compare the page with the parsers; if this fails, run `python -m utils.config > docs/flags.md`."""
    text = (ROOT / "docs" / "flags.md").read_text()
    assert text == as_markdown()
    of_data = set(re.findall(r"^\| `--(\w+)`", text.partition("## Data\n")[2].partition("##")[0], re.MULTILINE))
    rows = re.findall(r"^\| `--(\w+)`(?: \*)?( \(`valid.py`\))? \|", text, re.MULTILINE)
    of_validation = {name for name, only in rows if only} | {"device", "gpu_ids", "ckpt_path", "paths"}
    parsers = settings.training_parser, settings.validation_parser
    names = [{action.dest for action in parser()._actions} - {"help"} for parser in parsers]
    assert names == [{name for name, only in rows if not only}, of_data | of_validation]

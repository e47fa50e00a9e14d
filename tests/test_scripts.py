"""The scripts as a user runs them: train, validate, override, the authors' checkpoints, and one line for bad input."""

import json
import os
import pstats
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
from dataset import build_dataset
from engine import evaluation
from engine.build import build_optimizer
from models.basic_model import AVClassifier
from models.weights import load_checkpoint
from tests.conftest import ROOT, SMALL, data_flags, run_fork, run_here, run_script, run_shell, settings_of


@pytest.fixture
def output_of(capsys):
    """Run a script's main in this process and return what it printed to stdout."""

    def call(script, *arguments):
        capsys.readouterr()
        run_here(script, *arguments)
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(capsys):
    """Call a script's main as its command line does; it must end with status 2 and one line, which is returned."""

    def call(script, *arguments):
        with pytest.raises(SystemExit) as end:
            run_here(script, *arguments)
        output = capsys.readouterr()
        assert end.value.code == 2
        assert len(output.err.splitlines()) == 1 and "Traceback" not in output.err, output.err
        assert "code ran" not in output.out
        return output.err

    return call


def accuracies(output):
    """The fused, audio and visual cells of the table row that begins with 'accuracy'."""
    row = re.search(r"^accuracy +\d+ +(\S+) +(\S+) +(\S+)$", output, re.MULTILINE)
    return [float(cell) for cell in row.groups()]


def test_training_writes_log_and_checkpoints(trained):
    folder, output = trained
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.01, 0.001])  # decays at the epoch given
    assert all(0 <= row[name] <= 1 for row in rows for name in ("fused", "audio", "visual"))
    assert len([line for line in output.splitlines() if line.startswith("epoch ")]) == 2
    names = ["best.pth", "confusion.png", "curves.png", "last.pth", "log.jsonl", "result.json", "run.json"]
    names += ["skipped.csv"]
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == names
    saved = torch.load(folder / "last.pth", weights_only=True)
    assert saved["epoch"] == 1 and saved["settings"]["alpha"] == 4.0
    assert set(saved["model"]) == set(AVClassifier(6).state_dict())


def test_valid_needs_the_checkpoint_alone(trained):
    folder, _ = trained
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    done = run_script("valid.py", "--ckpt_path", folder / "last.pth")
    expected = [rows[1][name] for name in ("fused", "audio", "visual")]
    assert accuracies(done.stdout) == pytest.approx(expected, abs=1e-4)
    counts = {name: re.search(rf"^{name} +(\d+) ", done.stdout, re.MULTILINE)[1] for name in ("NEU", "ANG", "accuracy")}
    assert counts == {"NEU": "1", "ANG": "1", "accuracy": "6"}


def test_valid_takes_overrides_and_does_not_depend_on_the_batch(trained, corpus, tmp_path, output_of):
    folder, _ = trained
    plain = output_of(valid, "--ckpt_path", folder / "best.pth")
    moved = tmp_path / "moved"
    shutil.copytree(corpus, moved)
    flags = ["--dataset", "CREMAD", "--batch_size", 1, "--num_workers", 0, *data_flags(moved)]
    assert accuracies(output_of(valid, "--ckpt_path", folder / "best.pth", *flags)) == accuracies(plain)
    (moved / "test.csv").write_text("\n".join((corpus / "test.csv").read_text().splitlines()[:5]))
    assert "test: 5 clips" in output_of(valid, "--ckpt_path", folder / "best.pth", *data_flags(moved))
    (moved / "AudioWAV" / f"{(moved / 'test.csv').read_text().partition(',')[0]}.wav").unlink()
    flags = ["--root", moved, "--split_path", moved]  # which also moves the recorded --audio_path
    assert "test: 4 clips, 1 skipped" in output_of(valid, "--ckpt_path", folder / "best.pth", *flags)


def test_main_without_train_evaluates_best(trained, output_of):
    folder, _ = trained
    done = run_fork("main_dgl.py", "--dataset", "CREMAD", "--ckpt_path", folder, "--gpu_ids", 0, "--batch_size", 3)
    assert done.stdout == output_of(valid, "--ckpt_path", folder / "best.pth")
    if not torch.cuda.is_available():
        assert "warning: --gpu_ids" in done.stderr


def test_valid_takes_a_folder_or_finds_the_newest_run(trained, corpus, tmp_path, output_of, refused, monkeypatch):
    expected = accuracies(output_of(valid, "--ckpt_path", trained[0] / "best.pth"))
    assert accuracies(output_of(valid, trained[0])) == expected
    monkeypatch.chdir(tmp_path)
    assert "ckpt" in refused(valid)
    for name, changed in (("older", 1), ("newer", 2)):
        (tmp_path / "ckpt" / name).mkdir(parents=True)
        shutil.copy(trained[0] / "best.pth", tmp_path / "ckpt" / name)
        os.utime(tmp_path / "ckpt" / name / "best.pth", (changed, changed))
    output = output_of(valid)
    assert output.startswith("ckpt/newer/best.pth: the newest of 2 run(s) below ckpt/; others: ckpt/older/best.pth\n")
    assert accuracies(output) == expected


@pytest.mark.parametrize("dataset", ["CREMAD", "VGGSound"])
def test_the_authors_spelling(dataset, tmp_path):
    done = run_script(f"data/{dataset}/video_preprecessing.py", "--root", tmp_path, "--fps", 0, check=False)
    assert done.returncode == 2 and "--fps" in done.stderr


@pytest.mark.parametrize(
    ("typed", "meant"), [("--lr", "--learning_rate"), ("--alhpa", "--alpha"), ("--epoch", "--epochs"), ("--xyz", "")]
)
def test_did_you_mean(refused, typed, meant):
    error = refused(main_dgl, "--train", typed, 3)
    assert (f"did you mean {meant}" in error) if meant else "did you mean" not in error


def test_same_seed_same_weights(trained, corpus, tmp_path):
    folder, _ = trained
    flags = ["--epochs", 2, "--lr_decay_step", "1", "--learning_rate", 0.01, "--ckpt_path", tmp_path]
    run_fork("main_dgl.py", "--train", *data_flags(corpus), *SMALL, "--num_workers", 0, *flags)
    first, second = (load_checkpoint(path / "last.pth")["model"] for path in (folder, tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_result_holds_best_and_last_epoch(trained):
    folder, output = trained
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    best = max(rows, key=lambda row: row["fused"])  # the first one where several are best
    for name, row in (("best", best), ("last", rows[-1])):
        assert result[name] == {key: row[key] for key in ("epoch", "fused", "audio", "visual")}
        assert f"{name} epoch {row['epoch']}:  fused {row['fused']:.4f}" in output


def test_val_ratio_chooses_on_held_out_clips_and_tests_once(corpus, tmp_path, small, monkeypatch):
    evaluated, evaluate = [], evaluation.evaluate

    def watched(*arguments):
        accuracies, predictions = evaluate(*arguments)
        evaluated.append(predictions["label"].tolist())
        return accuracies, predictions

    monkeypatch.setattr(main_dgl, "evaluate", watched)
    monkeypatch.setattr(evaluation, "evaluate", watched)
    flags = [*data_flags(corpus), *SMALL, "--epochs", 3, "--learning_rate", 0.01, "--val_ratio", 0.3]
    run_here(main_dgl, "--train", *flags, "--num_workers", 0, "--ckpt_path", tmp_path)
    args = settings_of(*flags)
    val, test = ([clip.label for clip in build_dataset(args, split).clips] for split in ("val", "test"))
    assert Counter(val) == dict.fromkeys(range(6), 1)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {row["split"] for row in rows} == {"val"}
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["best"]["epoch"] == max(rows, key=lambda row: row["fused"])["epoch"] and result["chosen_on"] == "val"
    assert evaluated == [val] * 3 + [test] * len({result[name]["epoch"] for name in ("best", "last")}) and val != test
    for name in ("best", "last"):
        run_here(valid, "--ckpt_path", tmp_path / f"{name}.pth", "--json", tmp_path / "valid.json")
        validated = json.loads((tmp_path / "valid.json").read_text())
        assert {key: validated[key] for key in result[name]} == result[name]


def test_linear_probe_fits_unaugmented_training_features(trained, corpus, tmp_path):
    folder, _ = trained
    run_here(valid, "--ckpt_path", folder / "best.pth", "--linear_probe", "--json", tmp_path / "valid.json")
    model = AVClassifier(6)
    model.load_state_dict(load_checkpoint(folder / "best.pth")["model"])
    model.eval()
    args = settings_of(*data_flags(corpus), *SMALL)
    features = {}
    for split in ("train", "test"):
        items = list(build_dataset(args, split, training=False))
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
    "flags",
    [
        ["--fusion_method", "film", "--optimizer", "Adam", "--use_tensorboard"],
        ["--modality", "audio", "--optimizer", "AdaGrad"],
        ["--modality", "visual", "--use_video_frames", 2, "--modulation_starts", 0],
        ["--no_mgt", "--fusion_method", "gated"],
    ],
)
def test_other_settings_train_and_validate(corpus, tmp_path, small_encoders, output_of, flags):
    run_here(main_dgl, "--train", *data_flags(corpus), *SMALL, "--epochs", 1, "--ckpt_path", tmp_path, *flags)
    assert "accuracy" in output_of(valid, "--ckpt_path", tmp_path / "best.pth")
    assert bool(list(tmp_path.glob("tensorboard/events*"))) == ("--use_tensorboard" in flags)


def test_script_of_the_dataset_runs_with_flags_behind_it(few, forking, tmp_path):
    """cramed_dgl.sh trains and validates; flags typed behind it win."""
    flags = [*data_flags(few), *SMALL, "--batch_size", 6, "--epochs", 1, "--alpha", 5, "--ckpt_path", tmp_path]
    done = run_shell("cramed_dgl.sh", *flags, project=forking)
    assert "accuracy" in done.stdout
    settings = load_checkpoint(tmp_path / "last.pth")["settings"]
    assert settings["alpha"] == 5 and settings["learning_rate"] == 0.002 and settings["lr_decay_step"] == [70]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", {"momentum": 0.9, "weight_decay": 1e-4}),
        ("Adam", {"betas": (0.9, 0.999), "weight_decay": 0.01}),
        ("AdaGrad", {"weight_decay": 0}),
    ],
)
def test_optimisers_are_those_of_the_authors(name, expected):
    model = torch.nn.Linear(2, 2)
    optimizer, scheduler = build_optimizer(model, settings_of("--optimizer", name, "--lr_decay_step", "[1]"))
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in expected} == expected and group["lr"] == 0.001
    assert isinstance(optimizer, {"sgd": torch.optim.SGD, "Adam": torch.optim.AdamW}.get(name, torch.optim.Adagrad))
    optimizer.step()
    scheduler.step()
    assert group["lr"] == pytest.approx(1e-4 if name == "sgd" else 1e-3)


def authors_checkpoint(path, model, fusion, **extra):
    """What the authors' code saves: a DataParallel model with an unused layer, and three settings."""
    weights = {f"module.{name}": value for name, value in model.state_dict().items()}
    weights["module.fusion_module.fc_auxi.weight"] = torch.zeros(6, 1024)
    weights["module.fusion_module.fc_auxi.bias"] = torch.zeros(6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 70)
    state = {"saved_epoch": 3, "modulation": "Normal", "alpha": 4.0, "fusion": fusion, "acc": 0.5, "model": weights}
    torch.save(state | {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()} | extra, path)


def test_a_checkpoint_of_the_authors(trained, corpus, tmp_path, output_of, refused):
    folder, _ = trained
    model = AVClassifier(6)
    model.load_state_dict(load_checkpoint(folder / "best.pth")["model"])
    authors_checkpoint(tmp_path / "authors.pth", model, "concat")
    flags = ["--ckpt_path", tmp_path / "authors.pth", "--image_size", 32, *data_flags(corpus)]
    expected = accuracies(output_of(valid, "--ckpt_path", folder / "best.pth"))
    assert accuracies(output_of(valid, *flags, "--dataset", "CREMAD")) == expected
    assert "--dataset" in refused(valid, *flags)


def test_film_of_the_authors_is_bilinear(tmp_path):
    model = torch.nn.ModuleDict({"audio_net": torch.nn.Linear(2, 2)})
    authors_checkpoint(tmp_path / "authors.pth", model, "film")
    loaded = load_checkpoint(tmp_path / "authors.pth")
    assert loaded["settings"]["fusion_method"] == "bilinear"
    assert set(loaded["model"]) == {"audio_net.weight", "audio_net.bias"}


def test_a_wrong_flag_as_a_user_types_it():
    for script in ("main_dgl.py", "valid.py"):
        done = run_script(script, "--alhpa", "4", check=False)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and f"{script} --help" in done.stderr


def test_python_can_profile_a_step(corpus, tmp_path):
    """Under cProfile __main__ is the profiler."""
    profile = ["-m", "cProfile", "-o", tmp_path / "profile", "main_dgl.py", "--gradient_report"]
    run_script(*profile, *data_flags(corpus), *SMALL, "--num_workers", 0)
    assert "dgl_step" in {name for _, _, name in pstats.Stats(str(tmp_path / "profile")).stats}


def test_output_that_nobody_reads(trained, corpus):
    folder, _ = trained
    command = [sys.executable, "valid.py", "--ckpt_path", folder / "best.pth", *data_flags(corpus)]
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
    assert tuple(measured) == benchmark.PARTS
    run_here(benchmark, "epoch", "reader")
    assert measured[len(benchmark.PARTS) :] == ["epoch", "reader"]


def test_the_benchmark_of_an_epoch_runs(small_encoders, capsys):
    run_here(benchmark, "epoch", "--rounds", 1)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch of")]
    assert len(rows) == 2 and all(float(row.split()[-1]) > 0 for row in rows)

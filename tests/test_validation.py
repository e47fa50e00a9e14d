"""What valid.py shows: the figures against scikit-learn's, files, several checkpoints, and a single video."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics

import main_dgl
import valid
from analysis.tables import measure
from data.media import extract_audio
from data.video import read_video
from dataset import DATASETS, build_dataset
from dataset.loader import build_loader
from engine.checkpoint import save
from engine.evaluation import evaluate
from models.backbone import BACKBONES
from models.basic_model import AVClassifier
from models.weights import load_checkpoint
from tests.conftest import SMALL, NarrowEncoder, SmallEncoder, data_flags, run_here, settings_of, write_video

BRANCHES = ("fused", "audio", "visual")
EMOTIONS = DATASETS["CREMAD"].classes


def average_precision(relevant, scores):
    """Return the area under the steps of precision over recall, from its definition."""
    area = found = 0
    for threshold in sorted(set(scores), reverse=True):
        retrieved = scores >= threshold
        recalled = (relevant & retrieved).sum()
        area += (recalled - found) / relevant.sum() * recalled / retrieved.sum()
        found = recalled
    return area


@pytest.mark.parametrize("present", [range(7), (0, 2, 5), (4,)], ids=["all classes", "three", "one"])
@pytest.mark.parametrize("steps", [None, 4], ids=["", "ties"])
def test_figures_are_those_of_scikit_learn(present, steps):
    """Check also classes that are never predicted, or that have no clip."""
    rng = np.random.default_rng(len(present))
    label = rng.choice(list(present), 60)
    scores = {branch: rng.normal(size=(60, 7)) for branch in ("fused", "audio")}
    scores["fused"][:, 2] = -50
    scores["audio"][:, 3] += 1
    predictions = {branch: torch.from_numpy(values).softmax(dim=1) for branch, values in scores.items()}
    if steps:
        predictions = {branch: (steps * values).round() / steps for branch, values in predictions.items()}
    figures = measure({"label": torch.from_numpy(label), **predictions}, tuple("ABCDEFG"))
    present = np.unique(label)
    for branch, probability in predictions.items():
        probability = probability.numpy()
        predicted = probability.argmax(axis=1)
        assert figures[branch] == pytest.approx(metrics.accuracy_score(label, predicted))
        f1 = metrics.f1_score(label, predicted, labels=range(7), average=None, zero_division=0)
        assert figures["macro_f1"][branch] == pytest.approx(np.mean(f1[present]))
        precision = [average_precision(label == c, probability[:, c]) for c in present]
        assert figures["mean_average_precision"][branch] == pytest.approx(np.mean(precision))
        recall = metrics.recall_score(label, predicted, labels=range(7), average=None, zero_division=np.nan)
        for c, of_class in enumerate(figures["per_class"].values()):
            assert of_class["clips"] == (label == c).sum()
            assert of_class[branch] == (pytest.approx(recall[c]) if c in present else None)
    tables = figures, figures["macro_f1"], figures["mean_average_precision"], figures["per_class"]["A"]
    assert [*figures["per_class"]] == [*"ABCDEFG"]
    assert not any("visual" in table for table in tables)  # a branch that the model does not have


def test_table_json_and_predictions_agree(trained, tmp_path, output_of):
    files = ["--json", tmp_path / "figures.json", "--predictions", tmp_path / "predictions.csv"]
    output = output_of(valid, "--ckpt_path", trained[0] / "best.pth", *files)
    figures = json.loads((tmp_path / "figures.json").read_text())
    named = {"accuracy": figures, "macro F1": figures["macro_f1"], "mAP": figures["mean_average_precision"]}
    for name, values in {**named, **figures["per_class"]}.items():
        row = re.search(rf"^{name} +{values.get('clips', 6)} +(\S+) +(\S+) +(\S+)$", output, re.MULTILINE)
        assert [float(cell) for cell in row.groups()] == pytest.approx([values[b] for b in BRANCHES], abs=1e-4)
    assert {name: values["clips"] for name, values in figures["per_class"].items()} == dict.fromkeys(EMOTIONS, 1)
    table = output.split("\n\n", 1)[1].splitlines()
    assert len({len(line) for line in table if re.search(r"\d$", line)}) == 1  # aligned

    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == figures["clips"] == 6
    for branch in BRANCHES:
        assert np.mean([row[branch] == row["true"] for row in rows]) == pytest.approx(figures[branch])
        for row in rows:
            assert row["true"] == row["clip"].split("_")[2]  # the demo's clips are named by their emotion
            predicted, true = (float(row[f"{branch} probability{of}"]) for of in ("", " of true"))
            assert predicted == true if row[branch] == row["true"] else true <= predicted <= 1 - true


def test_several_checkpoints_side_by_side_and_confusion_matrices_of_each(trained, fresh, tmp_path, output_of):
    """Check that a branch that a model lacks has `-` in the table and no matrix in the figure."""
    paths = [
        trained[0] / "best.pth",
        fresh(6, **load_checkpoint(trained[0] / "best.pth")["settings"] | {"modality": "audio"}),
    ]
    single, sizes = [], []
    for path in paths:
        run_here(valid, path, "--json", tmp_path / "single.json", "--confusion", tmp_path / "confusion.png")
        single.append(json.loads((tmp_path / "single.json").read_text()))
        sizes.append(Image.open(tmp_path / "confusion.png").size)
    assert sizes[0][0] > 1.3 * sizes[1][0] and sizes[0][1] == sizes[1][1] > 100
    output = output_of(valid, "--ckpt_path", *paths, "--json", tmp_path / "several.json")
    assert json.loads((tmp_path / "several.json").read_text()) == single
    for path, run, figures in zip(paths, ("DGL, alpha 4, seed 0", "audio alone, seed 0"), single, strict=True):
        assert figures["run"] == run
        row = re.search(rf"^{path}  {run}((?: +\S+){{9}})$", output, re.MULTILINE)[1].split()
        values = [v.get(b) for v in (figures, figures["macro_f1"], figures["mean_average_precision"]) for b in BRANCHES]
        assert [value is None for value in values] == 3 * [False, False, path == paths[1]]
        assert row == ["-" if value is None else f"{value:.4f}" for value in values]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Return a folder with a video of three emotions, extracted as a dataset, and the settings to read it."""
    root = tmp_path_factory.mktemp("spoken")
    for number, emotion in enumerate(EMOTIONS[:3], start=1):
        video = root / "VideoFlash" / f"1001_D00_{emotion}_XX.flv"
        write_video(video, range(80 * number, 80 * number + 15), codec="flv1", tone=300 * number)
        extract_audio(video, root / "AudioWAV" / f"{video.stem}.wav", root)
    run_here("data/CREMAD/video_preprocessing.py", "--root", root)
    (root / "test.csv").write_text("".join(f"1001_D00_{emotion}_XX,{emotion}\n" for emotion in EMOTIONS[:3]))
    return root, settings_of(*data_flags(root), *SMALL)


def shown(output):
    """Return {branch: {class: probability}} of what --video prints, in its order."""
    branches = {}
    for line in output.splitlines():
        if line in BRANCHES:
            rows = branches.setdefault(line, {})
        elif row := re.fullmatch(r"  (\S+) +([01]\.\d{4}) *(█*)", line):
            rows[row[1]] = float(row[2])
            assert len(row[3]) == pytest.approx(valid.BAR * float(row[2]), abs=0.51)
    return branches


@pytest.fixture
def fresh(tmp_path):
    """Save a checkpoint of an untrained model with this number of classes and these settings. Returns its path."""

    def write(n_classes, *, modality="full", classes=(), **settings):
        settings = {"dataset": "CREMAD", "modality": modality, "image_size": 32, **settings}
        save(tmp_path / "fresh.pth", AVClassifier(n_classes, modality=modality), settings, classes=list(classes))
        return tmp_path / "fresh.pth"

    return write


@pytest.mark.parametrize("modality", ["full", "audio", "visual"])
def test_a_video_gives_the_logits_of_the_dataset(spoken, fresh, tmp_path, output_of, rejected, monkeypatch, modality):
    """Check also that a video without audio is classified by its frames, and that no file is left."""
    root, args = spoken
    path = fresh(6, modality=modality)
    model = AVClassifier(6, modality=modality)
    model.load_state_dict(load_checkpoint(path)["model"])
    model.eval()
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    write_video(tmp_path / "silent.flv", range(240, 255), codec="flv1")  # the frames of the last one
    before = sorted((*root.rglob("*"), *tmp_path.rglob("*")))
    dataset = build_dataset(args, "test")
    for clip, (inputs, _) in zip(dataset.clips, dataset, strict=True):
        video = root / "VideoFlash" / f"{clip.id}.flv"
        (of_video, _), has_audio = read_video(str(video), args)
        with torch.inference_mode():
            expected, logits = (model({name: x[None] for name, x in each.items()}) for each in (inputs, of_video))
        assert has_audio and list(logits) == list(model.branches)
        assert all(torch.equal(expected[branch], logits[branch]) for branch in logits)
    output = output_of(valid, "--ckpt_path", path, "--video", video)
    assert list(shown(output)) == list(BRANCHES if modality == "full" else [modality]) and "frames alone" not in output
    for branch, rows in shown(output).items():
        probability, label = logits[branch][0].softmax(0).topk(5)
        assert list(rows) == [EMOTIONS[each] for each in label]
        assert list(rows.values()) == pytest.approx(probability.tolist(), abs=1e-4)
    silent = ["--ckpt_path", path, "--video", tmp_path / "silent.flv"]
    if modality == "audio":
        assert "silent.flv: has no audio" in rejected(valid, *silent)
    else:
        of_frames = output_of(valid, *silent)
        assert "frames alone" in of_frames and shown(of_frames) == {"visual": shown(output)["visual"]}
    assert sorted((*root.rglob("*"), *tmp_path.rglob("*"))) == before


NAMES = [f"class{number}" for number in range(33)]  # one fewer than outputs


@pytest.mark.parametrize(
    ("name", "codec", "n_classes", "settings", "known"),
    [
        ("a.mp4", "libx264", 34, {"dataset": "KineticSound", "classes": NAMES}, [*NAMES, "33"]),
        ("a b.mkv", "mpeg4", 34, {"dataset": "KineticSound"}, [str(number) for number in range(34)]),
        ("-a.avi", "mjpeg", 6, {}, EMOTIONS),
    ],
)
def test_any_container_and_the_classes_that_the_checkpoint_records(
    fresh, tmp_path, output_of, name, codec, n_classes, settings, known
):
    """Check that CREMA-D's classes are known for an old checkpoint, and that others are shown by number."""
    write_video(tmp_path / name, [90] * 40, codec=codec, tone=440)
    output = output_of(valid, "--ckpt_path", fresh(n_classes, **settings), f"--video={tmp_path / name}")
    branches = shown(output)
    assert list(branches) == list(BRANCHES)
    assert all(len(rows) == 5 and {*rows} <= {*known} for rows in branches.values())


# What commit a5d3c2e, before the code was divided into engine/, analysis/ and utils/, wrote into every checkpoint.
SETTINGS_OF_A5D3C2E = {
    **{"dataset": "CREMAD", "fps": 1, "num_frame": 1, "image_size": 32, "val_ratio": None},
    **{"cache_gb": 16, "batch_size": 8, "num_workers": None, "fusion_method": "concat", "backbone": "resnet18"},
    **{"weights": None, "freeze": None, "epochs": 5, "optimizer": "sgd", "learning_rate": 0.002, "lr_decay_step": [4]},
    **{"lr_decay_ratio": 0.1, "random_seed": 0, "compile": False, "amp": None, "deterministic": False, "alpha": 4.0},
    **{"train": True, "max_skipped": 0.05, "ckpt_path": "ckpt/demo", "resume": False, "overwrite": False},
    **{"config": None, "device": "auto", "gpu_ids": [], "use_tensorboard": True, "tensorboard_path": None},
    **{"tensorboard_steps": False, "gradient_report": False, "method": "dgl", "modality": "full"},
}


def evaluated(output_of, model, root, path, *flags):
    """Return the output of valid.py and the run's name; the accuracies must be those of the model on a corpus."""
    output = output_of(valid, "--ckpt_path", path, "--json", path.with_suffix(".json"), *flags)
    loader = build_loader(settings_of(*data_flags(root), *SMALL), "test", torch.device("cpu"))
    expected = evaluate(model, loader, torch.device("cpu"))[0]
    figures = json.loads((path.with_suffix(".json")).read_text())
    assert {branch: figures[branch] for branch in expected} == expected and figures["clips"] == 6
    return output, figures["run"]


@pytest.mark.parametrize(("name", "modality"), [("best.pth", "full"), ("last.pth", "audio")])
def test_a_checkpoint_of_commit_a5d3c2e_evaluates(corpus, small_encoders, tmp_path, output_of, name, modality):
    model = AVClassifier(6, modality=modality)
    *of_encoders, weight, bias = model.state_dict()
    head = "fusion_module.fc_out" if modality == "full" else "fusion_module"  # as that commit named the weights
    assert (weight, bias) == (f"{head}.weight", f"{head}.bias")
    assert {each.partition(".")[0] for each in of_encoders} == {f"{each}_net" for each in model.modalities}
    folders = dict(zip(*[iter(map(str, data_flags(corpus)))] * 2, strict=True))
    settings = SETTINGS_OF_A5D3C2E | {flag.strip("-"): folder for flag, folder in folders.items()}
    if modality == "audio":
        settings |= {"method": "audio", "modality": "audio"}
        del settings["alpha"]
    state = {"model": model.state_dict(), "settings": settings, "epoch": 4, "classes": [*EMOTIONS]}
    if name == "last.pth":
        state |= {"optimizer": {}, "scheduler": {}, "method": {}, "clips": 1, "log": []}
        state["progress"] = {"epoch": 5, "step": 0, "totals": torch.zeros(3, 3)}
    torch.save(state, tmp_path / name)
    output, run = evaluated(output_of, model, corpus, tmp_path / name)
    assert f"{tmp_path / name}, epoch 4: CREMAD, concat fusion, modality {modality}" in output
    assert run == ("DGL, alpha 4, seed 0" if modality == "full" else "audio alone, seed 0")


@pytest.mark.parametrize("fusion", ["concat", "sum", "gated", "film"])
def test_a_checkpoint_of_the_authors_code_evaluates(corpus, tmp_path, output_of, rejected, monkeypatch, fusion):
    """Evaluate one with three settings, DataParallel's names, an unused layer, and an optimiser's state."""
    monkeypatch.setitem(BACKBONES, "resnet18", NarrowEncoder if fusion == "film" else SmallEncoder)
    name = "bilinear" if fusion == "film" else fusion  # what the authors' code calls film
    path, model = tmp_path / "authors.pth", AVClassifier(6, name)
    weights = {f"module.{name}": value for name, value in model.state_dict().items()}
    unused = torch.nn.Linear(1024, 6)
    weights |= {f"module.fusion_module.fc_auxi.{name}": value for name, value in unused.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    states = {"optimizer": optimizer, "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 70)}
    state = {"saved_epoch": 7, "modulation": "Normal", "alpha": 2.0, "fusion": fusion, "acc": 0.5, "model": weights}
    torch.save(state | {name: each.state_dict() for name, each in states.items()}, path)
    assert "add --dataset" in rejected(valid, path)
    output, _ = evaluated(output_of, model, corpus, path, *data_flags(corpus), *SMALL, "--dataset", "CREMAD")
    assert f"{name} fusion" in output


def test_checkpoints_are_evaluated_on_the_first_of_several_gpus(few, trained, monkeypatch):
    seen = []
    monkeypatch.setattr("valid.validate", lambda paths, typed: seen.append(typed["gpu_ids"]))
    run_here(main_dgl, *data_flags(few), "--ckpt_path", trained[0], "--gpu_ids", "2,3")
    assert seen == [[2]]

"""What valid.py shows: the figures against scikit-learn's, files, several checkpoints, and a single video."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics

import valid
from analysis.tables import measure
from data.media import extract_audio
from data.video import read_video
from dataset import DATASETS, build_dataset
from dataset.loader import build_loader
from engine.checkpoint import save as save_checkpoint
from engine.evaluation import evaluate
from models.basic_model import AVClassifier
from models.weights import load_checkpoint
from tests.conftest import SMALL, data_flags, ffmpeg, run_here, settings_of, write_video

BRANCHES = ("fused", "audio", "visual")
EMOTIONS = DATASETS["CREMAD"].classes


def output_of(capsys, *flags):
    capsys.readouterr()
    run_here(valid, *flags)
    return capsys.readouterr().out


def average_precision(relevant, scores):
    """The area under the steps of precision over recall, from its definition."""
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
    rng = np.random.default_rng(len(present))
    label = rng.choice(list(present), 60)
    scores = {branch: rng.normal(size=(60, 7)) for branch in ("fused", "audio")}
    scores["fused"][:, 2] = -50  # never predicted
    scores["audio"][:, 3] += 1  # often predicted, also where no clip is of it
    predictions = {branch: torch.from_numpy(values).softmax(dim=1) for branch, values in scores.items()}
    if steps:
        predictions = {branch: (steps * values).round() / steps for branch, values in predictions.items()}
    names = tuple("ABCDEFG")
    figures = measure({"label": torch.from_numpy(label), **predictions}, names)
    present = np.unique(label)
    for branch, probability in predictions.items():
        probability = probability.numpy()
        predicted = probability.argmax(axis=1)
        assert figures[branch] == pytest.approx(metrics.accuracy_score(label, predicted))
        f1 = metrics.f1_score(label, predicted, labels=range(7), average=None, zero_division=0)
        assert figures["macro_f1"][branch] == pytest.approx(np.mean(f1[present]))
        precision = [metrics.average_precision_score(label == c, probability[:, c]) for c in present]
        by_definition = [average_precision(label == c, probability[:, c]) for c in present]
        assert precision == pytest.approx(by_definition)
        assert figures["mean_average_precision"][branch] == pytest.approx(np.mean(precision))
        recall = metrics.recall_score(label, predicted, labels=range(7), average=None, zero_division=np.nan)
        for c, name in enumerate(names):
            of_class = figures["per_class"][name]
            assert of_class["clips"] == (label == c).sum()
            assert of_class[branch] == (pytest.approx(recall[c]) if c in present else None)
    tables = figures, figures["macro_f1"], figures["mean_average_precision"], figures["per_class"]["A"]
    assert not any("visual" in table for table in tables)  # a branch that the model does not have


def test_table_json_and_predictions_agree(trained, tmp_path, capsys):
    files = ["--json", tmp_path / "figures.json", "--predictions", tmp_path / "predictions.csv"]
    output = output_of(capsys, "--ckpt_path", trained[0] / "best.pth", *files)
    figures = json.loads((tmp_path / "figures.json").read_text())
    named = {"accuracy": figures, "macro F1": figures["macro_f1"], "mAP": figures["mean_average_precision"]}
    for name, values in {**named, **figures["per_class"]}.items():
        clips = values.get("clips", 6)
        row = re.search(rf"^{name} +{clips} +(\S+) +(\S+) +(\S+)$", output, re.MULTILINE)
        assert [float(cell) for cell in row.groups()] == pytest.approx([values[b] for b in BRANCHES], abs=1e-4)
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


def test_confusion_matrices_are_drawn_to_a_file(trained, fresh, spoken, tmp_path):
    """Also of a model with an output that has no class's name, and of one modality."""
    path = tmp_path / "confusion.png"
    run_here(valid, "--ckpt_path", trained[0] / "best.pth", "--confusion", path)
    three = Image.open(path).size
    run_here(valid, "--ckpt_path", fresh(6, modality="audio"), *data_flags(spoken[0]), "--confusion", path)
    two = Image.open(path).size
    assert three[0] > 1.3 * two[0] and three[1] == two[1] > 100  # fused and audio, which here are the same


def test_several_checkpoints_in_one_table(trained, tmp_path, capsys):
    paths = [trained[0] / "best.pth", tmp_path / "audio.pth"]
    settings = load_checkpoint(paths[0])["settings"]
    save_checkpoint(paths[1], AVClassifier(6, modality="audio"), settings | {"modality": "audio"})
    single = []
    for path in paths:
        run_here(valid, "--ckpt_path", path, "--json", tmp_path / "single.json")
        single.append(json.loads((tmp_path / "single.json").read_text()))
    output = output_of(capsys, "--ckpt_path", *paths, "--json", tmp_path / "several.json")
    assert json.loads((tmp_path / "several.json").read_text()) == single
    for path, rule, figures in zip(paths, ("DGL, alpha 4, seed 0", "audio alone, seed 0"), single, strict=True):
        assert figures["run"] == rule
        row = re.search(rf"^{path}  {rule}((?: +\S+){{9}})$", output, re.MULTILINE)[1].split()
        values = [v.get(b) for v in (figures, figures["macro_f1"], figures["mean_average_precision"]) for b in BRANCHES]
        assert [value is None for value in values] == 3 * [False, False, path == paths[1]]
        assert row == ["-" if value is None else f"{value:.4f}" for value in values]


@pytest.fixture(scope="module")
def spoken(raw_corpus, tmp_path_factory):
    """The demo's test clips as FLV files with an audio track, extracted as a dataset: (its folder, its settings)."""
    root = tmp_path_factory.mktemp("spoken") / "CREMA-D"
    (root / "VideoFlash").mkdir(parents=True)
    clips = sorted(raw_corpus.glob("VideoFlash/*_D00_*.flv"))[:6]
    for flv in clips:
        wav = raw_corpus / "AudioWAV" / f"{flv.stem}.wav"
        sound = ["-c:v", "copy", "-c:a", "libmp3lame", "-ar", 44100]
        ffmpeg("-i", flv, "-i", wav, *sound, root / "VideoFlash" / flv.name)
        extract_audio(root / "VideoFlash" / flv.name, root / "AudioWAV" / wav.name, root)
    run_here("data/CREMAD/video_preprocessing.py", "--root", root)
    rows = "".join(f"{flv.stem},{flv.stem.split('_')[2]}\n" for flv in clips)
    for split in ("train", "test"):
        (root / f"{split}.csv").write_text(rows)
    return root, settings_of(*data_flags(root), *SMALL)


def shown(output):
    """{branch: [(class, probability), ...]} of what --video prints, in its order."""
    branches = {}
    for line in output.splitlines():
        if line in BRANCHES:
            rows = branches.setdefault(line, [])
        elif row := re.fullmatch(r"  (\S+) +([01]\.\d{4}) *(█*)", line):
            rows.append((row[1], float(row[2])))
            assert len(row[3]) == pytest.approx(valid.BAR * float(row[2]), abs=0.51)
    return branches


def top(probability, names=EMOTIONS):
    values, labels = probability.topk(5)
    return [(names[label], pytest.approx(float(value), abs=1e-4)) for value, label in zip(values, labels, strict=True)]


def test_a_video_gives_the_logits_of_the_dataset(spoken, trained, capsys):
    root, args = spoken
    dataset = build_dataset(args, "test")
    model = AVClassifier(6)
    model.load_state_dict(load_checkpoint(trained[0] / "best.pth")["model"])
    model.eval()
    for clip, (inputs, label) in zip(dataset.clips, dataset, strict=True):
        video = root / "VideoFlash" / f"{clip.id}.flv"
        (of_video, _), has_audio = read_video(str(video), args)
        assert has_audio
        inputs, of_video = ({name: x[None] for name, x in each.items()} for each in (inputs, of_video))
        with torch.inference_mode():
            expected, logits = model(inputs), model(of_video)
        assert list(logits) == list(BRANCHES) and all(torch.equal(expected[b], logits[b]) for b in BRANCHES)
        _, predictions = evaluate(model, [(inputs, torch.tensor([label]))], torch.device("cpu"))
        output = output_of(capsys, "--ckpt_path", trained[0] / "best.pth", "--video", video)
        assert shown(output) == {branch: top(predictions[branch][0]) for branch in BRANCHES}


def test_a_silent_video_is_classified_by_its_frames_alone(spoken, raw_corpus, trained, capsys):
    root, args = spoken
    clip = build_dataset(args, "test").clips[0].id
    spoken_output, silent_output = (
        output_of(capsys, "--ckpt_path", trained[0] / "best.pth", "--video", folder / "VideoFlash" / f"{clip}.flv")
        for folder in (root, raw_corpus)
    )
    assert "frames alone" in silent_output and "frames alone" not in spoken_output
    assert shown(silent_output) == {"visual": shown(spoken_output)["visual"]}


@pytest.fixture
def fresh(tmp_path):
    """Save a checkpoint of a model as it begins, by its number of classes and settings. Returns its path."""

    def save(n_classes, *, modality="full", classes=None, **settings):
        model = AVClassifier(n_classes, modality=modality)
        state = {} if classes is None else {"classes": classes}
        settings = {"dataset": "CREMAD", "modality": modality, "image_size": 32, **settings}
        save_checkpoint(tmp_path / "fresh.pth", model, settings, **state)
        return tmp_path / "fresh.pth"

    return save


@pytest.mark.parametrize("modality", ["audio", "visual"])
def test_a_model_of_one_modality_uses_that_one(spoken, fresh, capsys, modality):
    root, args = spoken
    path = fresh(6, modality=modality)
    model = AVClassifier(6, modality=modality)
    model.load_state_dict(load_checkpoint(path)["model"])
    item = build_dataset(args, "test")[0]
    _, predictions = evaluate(model, torch.utils.data.DataLoader([item]), torch.device("cpu"))
    video = root / "VideoFlash" / f"{build_dataset(args, 'test').clips[0].id}.flv"
    output = output_of(capsys, "--ckpt_path", path, "--video", video)
    assert shown(output) == {modality: top(predictions[modality][0])}


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a b.mkv", "mpeg4"), ("-a.avi", "mjpeg")])
def test_any_container(fresh, tmp_path, capsys, name, codec):
    write_video(tmp_path / name, [90] * 20, codec=codec, tone=440)
    assert set(shown(output_of(capsys, "--ckpt_path", fresh(6), f"--video={tmp_path / name}"))) == set(BRANCHES)


def test_classes_are_those_the_checkpoint_records(fresh, tmp_path, capsys):
    """An old one records none: CREMA-D's are known, others are shown by number."""
    write_video(tmp_path / "clip.mp4", [90] * 40, tone=440)
    names = [f"class{number}" for number in range(33)]  # one fewer than outputs
    for n_classes, settings, known in (
        (34, {"dataset": "KineticSound", "classes": names}, [*names, "33"]),
        (34, {"dataset": "KineticSound"}, [str(number) for number in range(34)]),
        (6, {}, EMOTIONS),
    ):
        output = output_of(capsys, "--ckpt_path", fresh(n_classes, **settings), "--video", tmp_path / "clip.mp4")
        branches = shown(output)
        assert list(branches) == list(BRANCHES)
        assert all(len(rows) == 5 and {name for name, _ in rows} <= set(known) for rows in branches.values())


def test_a_run_records_its_classes(trained):
    for name in ("best.pth", "last.pth"):
        assert load_checkpoint(trained[0] / name)["classes"] == list(EMOTIONS)


def test_nothing_is_left_behind(spoken, fresh, tmp_path, monkeypatch):
    root, _ = spoken
    path = fresh(6)
    shutil.copytree(root / "VideoFlash", tmp_path / "clips")
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    run_here(valid, "--ckpt_path", path, "--video", next((tmp_path / "clips").iterdir()))
    assert not list((tmp_path / "scratch").iterdir())
    (tmp_path / "scratch").rmdir()
    assert sorted(tmp_path.rglob("*")) == before


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


def expected_metrics(model, root):
    """Return the accuracies of a model on the test clips of a corpus."""
    loader = build_loader(settings_of(*data_flags(root), *SMALL), "test", torch.device("cpu"))
    return evaluate(model, loader, torch.device("cpu"))[0]


@pytest.mark.parametrize("modality", ["full", "audio"])
@pytest.mark.parametrize("name", ["best.pth", "last.pth"])
def test_a_checkpoint_of_commit_a5d3c2e_evaluates(corpus, small_encoders, tmp_path, capsys, name, modality):
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
    output = output_of(capsys, "--ckpt_path", tmp_path / name, "--json", tmp_path / "metrics.json")
    assert f"{tmp_path / name}, epoch 4: CREMAD, concat fusion, modality {modality}" in output
    metrics, expected = json.loads((tmp_path / "metrics.json").read_text()), expected_metrics(model, corpus)
    assert {branch: metrics[branch] for branch in expected} == expected and metrics["clips"] == 6
    assert metrics["run"] == ("DGL, alpha 4, seed 0" if modality == "full" else "audio alone, seed 0")


@pytest.mark.parametrize("fusion", ["concat", "sum", "gated"])
def test_a_checkpoint_of_the_authors_code_evaluates(corpus, small_encoders, tmp_path, capsys, fusion):
    """It has no settings but these three, DataParallel's names, and a layer that nothing uses."""
    path, model = tmp_path / "authors.pth", AVClassifier(6, fusion)
    weights = {f"module.{name}": value for name, value in model.state_dict().items()}
    weights |= {"module.fusion_module.fc_auxi.weight": torch.zeros(6, 1024)}
    state = {"saved_epoch": 7, "modulation": "Normal", "alpha": 2.0, "fusion": fusion, "acc": 0.5, "model": weights}
    torch.save(state | {"optimizer": {}, "scheduler": {}}, path)
    flags = ["--ckpt_path", path, "--json", tmp_path / "metrics.json", *data_flags(corpus), *SMALL]
    with pytest.raises(SystemExit) as end:
        run_here(valid, *flags)
    error = capsys.readouterr().err
    assert end.value.code == 2 and len(error.splitlines()) == 1 and "add --dataset" in error
    assert f"{fusion} fusion" in output_of(capsys, *flags, "--dataset", "CREMAD")
    metrics, expected = json.loads((tmp_path / "metrics.json").read_text()), expected_metrics(model, corpus)
    assert {branch: metrics[branch] for branch in BRANCHES} == expected

"""CMU-MOSI: published feature files are read, or rejected with their line, and every method trains on them."""

import csv
import json

import numpy as np
import pytest

import main_dgl
import valid
from dataset import build_dataset
from dataset.mosi import FILES, MOSI
from methods import METHODS
from tests.conftest import run_here, settings_of
from utils.errors import InputError

CLIPS = {"train": 40, "test": 12}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Write files of the published form: text gives the label, audio and video are noise, one column is constant."""
    folder, rng = tmp_path_factory.mktemp("mosi"), np.random.default_rng(0)
    for split, count in CLIPS.items():
        labels = np.arange(count) % 2
        for name, file in FILES.items():
            values = rng.normal(5, 3, (count, MOSI.inputs[name]))
            if name == "text":
                values[:, :20] += 9 * labels[:, None]
            values[:, 50] = 0.25
            (folder / file).mkdir(exist_ok=True)
            with open(folder / file / f"{file}_{split}0.csv", "w", newline="") as out:
                rows = zip(values.tolist(), labels.tolist(), strict=True)
                csv.writer(out, quoting=csv.QUOTE_ALL).writerows([*map(repr, row), label] for row, label in rows)
    return folder


def flags(root, *others):
    return ["--dataset", "MOSI", "--root", root, "--batch_size", 8, "--epochs", 2, *others]


def test_features_are_standardised_by_the_training_set(root):
    datasets = {split: build_dataset(settings_of(*flags(root)), split) for split in CLIPS}
    for name, file in FILES.items():
        texts = {split: (root / file / f"{file}_{split}0.csv").read_text().replace('"', "") for split in CLIPS}
        raw = {split: np.genfromtxt(text.splitlines(), delimiter=",") for split, text in texts.items()}
        mean, deviation = raw["train"][:, :-1].mean(0), raw["train"][:, :-1].std(0)
        deviation[deviation == 0] = 1
        for split, dataset in datasets.items():
            inputs, label = dataset[list(range(len(dataset)))]
            assert np.allclose(inputs[name], (raw[split][:, :-1] - mean) / deviation, atol=1e-5)
            assert label.tolist() == raw[split][:, -1].tolist()


def test_val_ratio_holds_out_training_clips(root):
    settings = settings_of(*flags(root, "--val_ratio", 0.2))
    train, val, test = (
        {clip.id for clip in build_dataset(settings, split).clips} for split in ("train", "val", "test")
    )
    assert len(val) == 8 and len(train | val) == CLIPS["train"] == 8 + len(train) and len(test) == CLIPS["test"]


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("audio", lambda rows: rows[2].__setitem__(5, "abc"), "line 3: not 73 finite numbers"),
        ("audio", lambda rows: rows[2].__setitem__(5, "nan"), "line 3: not 73 finite numbers"),
        ("audio", lambda rows: rows[4].pop(), "line 5: not 73 finite numbers and a label, 0 or 1"),
        ("video", lambda rows: rows[6].__setitem__(-1, "1"), "line 7: another label than in"),
        ("audio", lambda rows: rows[6].__setitem__(-1, "2"), "line 7: not 73 finite numbers and a label, 0 or 1"),
        ("video", lambda rows: rows.pop(), "39 rows, but"),
        ("audio", lambda rows: rows.clear(), "an empty file"),
        ("audio", None, "No such file.*data/MOSI/README.md"),
    ],
)
def test_a_damaged_or_missing_file_is_named_with_its_line(root, tmp_path, file, change, words):
    for name in FILES.values():
        (tmp_path / name).mkdir()
        for split in CLIPS:
            (tmp_path / name / f"{name}_{split}0.csv").symlink_to(root / name / f"{name}_{split}0.csv")
    path = tmp_path / file / f"{file}_train0.csv"
    rows = list(csv.reader(path.read_text().splitlines()))
    path.unlink()
    if change:
        change(rows)
        path.write_text("".join(f"{','.join(row)}\n" for row in rows))
    with pytest.raises(InputError, match=f"{path}.*{words}"):
        build_dataset(settings_of(*flags(tmp_path)), "train")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_three_modalities(root, tmp_path, method):
    options = {
        "gblend": ["--gblend_weights", "0.4,0.2,0.2,0.2"],
        "relearn": ["--val_ratio", 0.2, "--relearn_every", 1],
        "umt": [word for name in FILES for word in (f"--umt_{name}", tmp_path / name / "best.pth")],
    }
    fusion = [] if METHODS[method].own_fusion else ["--fusion_method", "mixer"]
    for name in (*FILES, method) if method == "umt" else (method,):
        own = fusion + options.get(name, []) if name == method else []
        run_here(main_dgl, "--train", *flags(root, "--method", name, *own, "--ckpt_path", tmp_path / name))
    best = json.loads((tmp_path / method / "result.json").read_text())["best"]
    names = METHODS[method].modality
    assert set(best) == {"epoch", "fused", *(FILES if names == "full" else [names])}


def test_dgl_learns_and_valid_agrees(root, tmp_path):
    out = tmp_path / "run"
    run_here(main_dgl, "--train", *flags(root, "--epochs", 20, "--learning_rate", 0.05, "--ckpt_path", out))
    best = json.loads((out / "result.json").read_text())["best"]
    assert best["fused"] > 0.9 and best["text"] > 0.9
    run_here(valid, out, "--json", tmp_path / "valid.json", "--linear_probe")
    found = json.loads((tmp_path / "valid.json").read_text())
    assert {name: found[name] for name in ("fused", *FILES)} == {name: best[name] for name in ("fused", *FILES)}

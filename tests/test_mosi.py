"""CMU-MOSI: published feature files are read, or rejected with their line, and every method trains on them."""

import csv
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import main_dgl
import valid
from dataset import build_dataset
from dataset.mosi import FILES, MOSI
from engine.build import build, build_model
from methods import METHODS
from tests.conftest import run_here, settings_of
from utils.errors import InputError

CLIPS = {"train": 40, "test": 12}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Files of the published form: text says the label, audio and video are noise, and one column is constant."""
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
                rows = np.column_stack([values, labels])
                csv.writer(out, quoting=csv.QUOTE_ALL).writerows(
                    [*map(repr, row[:-1].tolist()), int(row[-1])] for row in rows
                )
    return folder


def flags(root, *others):
    return ["--dataset", "MOSI", "--root", root, "--batch_size", 8, "--epochs", 2, *others]


def test_features_are_standardised_by_the_training_set(root):
    settings = settings_of(*flags(root))
    train, test = (build_dataset(settings, split) for split in ("train", "test"))
    for name, file in FILES.items():
        raw = {split: np.genfromtxt(read_lines(root / file / f"{file}_{split}0.csv"), delimiter=",") for split in CLIPS}
        mean, deviation = raw["train"][:, :-1].mean(0), raw["train"][:, :-1].std(0)
        deviation[deviation == 0] = 1
        for split, dataset in (("train", train), ("test", test)):
            inputs, label = dataset[list(range(len(dataset)))]
            assert np.allclose(inputs[name], (raw[split][:, :-1] - mean) / deviation, atol=1e-5)
            assert label.tolist() == raw[split][:, -1].tolist()


def read_lines(path):
    return [line.replace('"', "") for line in path.read_text().splitlines()]


def test_val_ratio_holds_out_by_class_and_seed(root):
    def ids(split, seed):
        settings = settings_of(*flags(root, "--val_ratio", 0.2, "--random_seed", seed))
        return {clip.id: clip.label for clip in build_dataset(settings, split).clips}

    train, val = ids("train", 0), ids("val", 0)
    assert not train.keys() & val.keys() and len(train) + len(val) == CLIPS["train"]
    assert sorted(val.values()) == [0] * 4 + [1] * 4
    assert ids("val", 0) == val != ids("val", 1) and len(ids("test", 0)) == CLIPS["test"]


def test_ogm_modulates_all_parameters_of_encoders_without_convolutions():
    """The encoder of the leading modality gets k times the gradient of joint training, the others their own."""
    torch.manual_seed(0)
    gradients = {}
    for method in ("joint", "ogm"):
        settings = settings_of("--dataset", "MOSI", "--method", method, *["--ogm_alpha", 0.6] * (method == "ogm"))
        model, rule = build(settings, torch.device("cpu"))
        generator = torch.Generator().manual_seed(1)
        inputs = {name: torch.randn(8, width, generator=generator) for name, width in MOSI.inputs.items()}
        label = torch.arange(8) % 2
        outputs = rule.step(model, inputs, label)
        rule.epoch = 0
        rule.adjust_gradients(model, outputs, label)
        gradients[method] = {name: p.grad.clone() for name, p in model.named_parameters()}
    bias, label = model.fusion_module.fc_out.bias.detach(), torch.arange(8) % 2
    scores = {
        name: F.softmax(output.logits - 2 / 3 * bias, 1)[range(8), label].sum()
        for name, output in outputs.items()
        if name in MOSI.inputs
    }
    for name, score in scores.items():
        rho = sum(score / other for key, other in scores.items() if key != name) / 2
        factor = 1 - math.tanh(0.6 * rho) if rho > 1 else 1
        for key, gradient in gradients["joint"].items():
            if key.startswith(f"{name}_net"):
                torch.testing.assert_close(gradients["ogm"][key], factor * gradient)
    assert any(not torch.equal(gradients["ogm"][key], gradient) for key, gradient in gradients["joint"].items())


def edit(row, column, value):
    return lambda rows: rows[row].__setitem__(column, value)


DAMAGES = {
    "text in a cell": (edit(2, 5, "abc"), "line 3: 'abc' is not a finite number"),
    "not finite": (edit(2, 5, "nan"), "line 3: 'nan' is not a finite number"),
    "a cell is missing": (lambda rows: rows[4].pop(), "line 5: 73 cells, not 73 features and a label"),
    "another label": (edit(6, -1, "1"), "line 7: another label than in"),
    "no class": (edit(6, -1, "2"), "line 7: the label is '2', not 0 or 1"),
    "a row is missing": (lambda rows: rows.pop(), "39 rows, but"),
    "empty": (lambda rows: rows.clear(), "an empty file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_its_line(root, tmp_path, damage):
    change, words = DAMAGES[damage]
    for name in FILES.values():
        (tmp_path / name).symlink_to(root / name)
    file = "video" if damage in ("another label", "a row is missing") else "audio"
    (tmp_path / file).unlink()
    (tmp_path / file).mkdir()
    for split in CLIPS:
        rows = list(csv.reader((root / file / f"{file}_{split}0.csv").open()))
        if split == "train":
            change(rows)
        csv.writer((tmp_path / file / f"{file}_{split}0.csv").open("w", newline="")).writerows(rows)
    with pytest.raises(InputError, match=words) as error:
        build_dataset(settings_of(*flags(tmp_path)), "train")
    assert str(tmp_path / file) in str(error.value)


def test_a_missing_file_is_named(root, tmp_path):
    with pytest.raises(InputError, match=r"audio_train0.csv: No such file.*data/MOSI/README.md"):
        build_dataset(settings_of(*flags(tmp_path)), "train")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_three_modalities(root, tmp_path, method):
    out = tmp_path / method
    options = {
        "gblend": ["--gblend_weights", "0.4,0.2,0.2,0.2"],
        "relearn": ["--val_ratio", 0.2, "--relearn_every", 1],
        "umt": [word for name in FILES for word in (f"--umt_{name}", tmp_path / name / "best.pth")],
    }
    if method == "umt":
        for name in FILES:
            run_here(main_dgl, "--train", *flags(root, "--method", name, "--ckpt_path", tmp_path / name))
    fusion = [] if METHODS[method].own_fusion else ["--fusion_method", "mixer"]
    typed = flags(root, "--method", method, "--ckpt_path", out, *fusion, *options.get(method, ()))
    run_here(main_dgl, "--train", *typed)
    best = json.loads((out / "result.json").read_text())["best"]
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


REJECTED = {
    "--image_size 64": "no effect with --dataset MOSI",
    "--backbone resnet18": "does not fit MOSI; use mlp",
    "--fusion_method gated": "takes 2 modalities, not 3",
    "--method umt": "needs --umt_audio",
    "--dataset CREMAD --method text": "--method text: CREMAD has audio, visual",
    "--dataset CREMAD --backbone mlp": "does not fit CREMAD; use resnet18",
    "--dataset CREMAD --freeze text": "--freeze text: CREMAD has audio, visual",
}


@pytest.mark.parametrize("typed", REJECTED)
def test_flags_that_do_not_fit_are_rejected(root, tmp_path, capsys, typed):
    with pytest.raises(SystemExit) as error:
        run_here(main_dgl, "--train", *flags(root, "--ckpt_path", tmp_path / "run", *typed.split()))
    assert error.value.code == 2 and REJECTED[typed] in capsys.readouterr().err


def test_an_encoder_alone_starts_as_in_the_whole_model(root):
    import torch

    states = []
    for method in ("joint", "text"):
        torch.manual_seed(0)
        states.append(build_model(settings_of(*flags(root, "--method", method)))[0].text_net.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])

"""Check --log_suppression: the values against the formulas written out, in runs, and the figure of them."""

import shutil

import pytest
import torch

import main_dgl
from analysis import suppression as drawing
from engine.gradients import CLIP_NORM, clip_gradients, entry_sizes
from engine.meter import Meter
from engine.suppression import suppression
from methods.base import encode_all
from models.fusion_modules import ConcatFusion_AUXI
from models.weights import load_checkpoint
from tests.conftest import SMALL, data_flags, make_small, rows_of, settings_of, train
from tests.rules import toy, toy_batch, toy_logits, toy_rule
from tests.test_displays import assert_whole
from tests.test_methods_runs import Steps
from utils.batches import to_device

RUN = ["--epochs", 2, "--learning_rate", 0.01, "--num_workers", 0]
VALUES = {f"suppression_{value}_{name}" for value in ("s", "ratio", "gradient") for name in ("audio", "visual")}


def test_the_ratio_is_finite_where_probabilities_round_to_1():
    fusion = ConcatFusion_AUXI(3, 1, "ab")
    with torch.no_grad():
        fusion.fc_out.weight.copy_(torch.tensor([[60.0, 50.0], [0, 0], [0, 0]]))
        fusion.fc_out.bias.zero_()
    found = suppression(fusion, {"a": torch.ones(1, 1), "b": torch.ones(1, 1)}, torch.tensor([0]))
    assert found["s_a"].item() == pytest.approx(torch.tensor(-50.0).double().exp().item())
    assert found["ratio_a"].item() == pytest.approx(found["s_a"].item(), rel=1e-6)  # both wrong classes shrink alike


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_s_and_ratio_of_three_modalities_by_plain_loops(fusion):
    (model, _), (inputs, label) = toy(fusion=fusion), toy_batch()
    features = encode_all(model, inputs)
    own = toy_logits(model, fusion, features)  # W_u z_u + the bias of u: with concat the whole one
    zero = toy_logits(model, fusion, {name: torch.zeros_like(z) for name, z in features.items()})
    terms = {name: own[name] - zero[name] for name in own}  # W_u z_u
    bias = zero["a"][0] if fusion == "concat" else sum(zero.values())[0]
    found = suppression(model.fusion_module, features, label)
    assert list(found) == [f"{value}_{name}" for name in "avt" for value in ("s", "ratio")]
    for name in "avt":
        for clip, y in enumerate(label.tolist()):
            others = sum(terms[other][clip] for other in "avt" if other != name)
            s = [(others[k] - others[y]).exp().item() for k in range(model.n_classes) if k != y]
            assert found[f"s_{name}"][clip].item() == pytest.approx(sum(s) / len(s), rel=1e-6)
            fused = (sum(term[clip] for term in terms.values()) + bias).softmax(dim=0)
            alone = (terms[name][clip] + bias).softmax(dim=0)
            ratio = ((1 - fused[y]) / (1 - alone[y])).item()
            assert found[f"ratio_{name}"][clip].item() == pytest.approx(ratio, rel=1e-9)


@pytest.mark.parametrize("scale", [1, 1e4])
def test_the_gradient_measure_is_of_the_clipped_gradients(scale):
    model, method = toy_rule("dgl")
    inputs, label = toy_batch()
    method.step(model, inputs, label)
    for parameter in model.parameters():
        parameter.grad *= scale
    meter = Meter(model, Steps(1), suppression=True)
    norms = clip_gradients(model)
    assert (norms[-1] > CLIP_NORM) == (scale > 1)
    meter.add_gradients(norms)
    expected = [sum(p.grad.abs().mean().item() for p in model.encoder_parameters(name)) for name in model.modalities]
    assert entry_sizes(model).tolist() == pytest.approx(expected)
    model.zero_grad()  # as the loop does, before the batch is added
    meter.add_batch(method.step(model, inputs, label), label)
    means = meter.means()
    assert [means[f"suppression_gradient_{name}"] for name in model.modalities] == pytest.approx(expected)
    assert means["clipped"] == (scale > 1)


@pytest.fixture(scope="module")
def runs(few, tmp_path_factory):
    """Return the folder of runs with the flag, joint, dgl and audio, and of one without it, plain."""
    folder = tmp_path_factory.mktemp("suppression")
    flags = {name: ["--method", name, "--alpha", 3, "--log_suppression"] for name in ("joint", "dgl", "audio")}
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        for name, own in (flags | {"plain": ["--method", "joint", "--alpha", 3]}).items():
            train(few, folder / name, *RUN, *own)
    return folder


def test_a_run_logs_the_values_and_ends_with_the_same_weights(runs):
    expected_of = {"joint": VALUES, "dgl": VALUES, "audio": {"suppression_gradient_audio"}, "plain": set()}
    for name, expected in expected_of.items():
        for row in rows_of(runs / name):
            assert {key for key in row if key.startswith("suppression_")} == expected
            assert all(row[key] > 0 for key in expected)
    with_it, without = (load_checkpoint(runs / name / "last.pth")["model"] for name in ("joint", "plain"))
    assert all(torch.equal(value, without[key]) for key, value in with_it.items())
    for row, plain in zip(rows_of(runs / "joint"), rows_of(runs / "plain"), strict=True):
        assert [row[key] for key in plain if key != "seconds"] == [plain[key] for key in plain if key != "seconds"]


def test_the_logged_values_are_those_of_the_epochs_model(runs, few, small):
    """Check the last row against the checkpoint, over the training clips read as in evaluation, one by one."""
    model, _ = main_dgl.build(main_dgl.parse_args(["--method", "joint"]), torch.device("cpu"))
    model.load_state_dict(load_checkpoint(runs / "joint" / "last.pth")["model"])
    data = main_dgl.Data(settings_of(*data_flags(few), *SMALL, *RUN), ("plain",))
    data.load(torch.device("cpu"))
    clips, parts = data.datasets["plain"], []
    with torch.no_grad():
        for number in range(len(clips)):
            inputs, label = to_device(clips[[number]], "cpu")
            parts.append(suppression(model.fusion_module, encode_all(model.eval(), inputs), label))
    assert len(parts) == 6
    row = rows_of(runs / "joint")[-1]
    for name in parts[0]:
        mean = torch.cat([part[name] for part in parts]).mean().item()
        assert row[f"suppression_{name}"] == pytest.approx(mean, rel=1e-4)


def test_the_figure(runs, tmp_path, output_of):
    shutil.copytree(runs, tmp_path / "runs")
    lines = output_of(drawing, tmp_path / "runs").splitlines()
    assert (tmp_path / "runs" / "suppression.png").exists()
    assert len(lines) == 4 and "plain" not in "".join(lines[:3])
    first, last = rows_of(runs / "joint")
    text = f"s audio {first['suppression_s_audio']:.3g} to {last['suppression_s_audio']:.3g}"
    assert any("joint: " in line and text in line for line in lines)
    found = drawing.read_runs([tmp_path / "runs" / "dgl", tmp_path / "runs" / "joint"])
    assert [each.name for each in found] == ["joint", "DGL, alpha 3"]
    first, last = (row["suppression_gradient_visual"] / 3 for row in rows_of(runs / "dgl"))
    assert found[1].curves["gradient visual"] == pytest.approx({0: first, 1: last})
    figure = drawing.suppression_figure(found)
    assert_whole(figure, tmp_path / "suppression.png")
    assert [len(axes.get_lines()) for axes in figure.axes] == [9, 5, 4]  # with a line at 1, and the legend's four
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["joint", "DGL, alpha 3", "audio", "visual"]


def test_unusable_folders_are_rejected(runs, tmp_path, rejected):
    sources = {"no folder": None, "no values": "plain", "broken log": "joint", "no run.json": "joint"}
    for name, source in sources.items():
        folder = tmp_path / name
        if source:
            shutil.copytree(runs / source, folder)
        if name == "broken log":
            (folder / "log.jsonl").write_text("{")
        elif name == "no run.json":
            (folder / "run.json").unlink()
        assert str(folder) in rejected(drawing, folder)

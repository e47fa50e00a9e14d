"""Check --alone zeros: one modality alone is scored with 0 in place of the others, as eq. 12 and 14 print it."""

import pytest
import torch
import torch.nn.functional as F

import main_dgl
from engine.build import build_model
from engine.checkpoint import load_model, save
from main_dgl import dgl_step
from models.backbone import BACKBONES
from models.fusion_modules import FUSION_MODULES, SumFusion_AUXI
from tests.conftest import NarrowEncoder, settings_of
from tests.rules import assert_gradients, gradients, whole_step
from tests.test_dgl_step import batch, features, linear
from utils.errors import InputError

DIM, ALPHA = NarrowEncoder.dim, 3.0

# parameters by name, x, y -> logits fused, of audio alone (y = 0), of video alone (x = 0)
ZEROS = {
    "sum": (
        lambda p, x, y: linear(p, "fc_x", x) + linear(p, "fc_y", y),
        lambda p, x: linear(p, "fc_x", x) + p["fc_y.bias"],
        lambda p, y: p["fc_x.bias"] + linear(p, "fc_y", y),
    ),
    "gated": (
        lambda p, x, y: linear(p, "fc_out", linear(p, "fc_x", x).sigmoid() * linear(p, "fc_y", y)),
        lambda p, x: linear(p, "fc_out", linear(p, "fc_x", x).sigmoid() * p["fc_y.bias"]),
        lambda p, y: linear(p, "fc_out", p["fc_x.bias"].sigmoid() * linear(p, "fc_y", y)),
    ),
    "film": (
        lambda p, x, y: linear(p, "fc_out", linear(p, "fc", x)[:, :DIM] * y + linear(p, "fc", x)[:, DIM:]),
        lambda p, x: linear(p, "fc_out", linear(p, "fc", x)[:, DIM:]),
        lambda p, y: linear(p, "fc_out", p["fc.bias"][:DIM] * y + p["fc.bias"][DIM:]),
    ),
    "bilinear": (
        lambda p, x, y: linear(p, "fc_out", linear(p, "fc", torch.einsum("bi,bj->bij", x, y).flatten(1))),
        lambda p, x: linear(p, "fc_out", p["fc.bias"]).expand(len(x), -1),
        lambda p, y: linear(p, "fc_out", p["fc.bias"]).expand(len(y), -1),
    ),
}


@pytest.fixture(autouse=True)
def narrow_encoders(monkeypatch):
    monkeypatch.setitem(BACKBONES, "resnet18", NarrowEncoder)


def built(fusion, *flags):
    """Return a model with --alone zeros, in float64, with biases other than 0, and its method."""
    torch.manual_seed(0)
    model, method = build_model(settings_of("--fusion_method", fusion, "--alone", "zeros", *flags))
    with torch.no_grad():
        for name, parameter in model.fusion_module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model.double().train(), method


def written_out(model, fusion, inputs):
    """Return the logits of every branch by the formulas."""
    p, (x, y) = dict(model.fusion_module.named_parameters()), features(model, inputs)
    fused, audio, visual = ZEROS[fusion]
    return {"fused": fused(p, x, y), "audio": audio(p, x), "visual": visual(p, y)}


def test_every_fusion_that_has_another_way_is_checked():
    always = {name for name, module in FUSION_MODULES.items() if module.zeros}
    assert ZEROS.keys() | always == FUSION_MODULES.keys()


@pytest.mark.parametrize("fusion", ZEROS)
@pytest.mark.parametrize("method", ["dgl", "no_mgt", "no_ugt", "no_mgt+no_ugt", "joint"])
def test_logits_and_gradients(fusion, method):
    model, rule = built(fusion, "--method", method, *([] if method == "joint" else ["--alpha", ALPHA]))
    inputs, label = batch()
    outputs = whole_step(model, rule, inputs, label)
    logits = written_out(model, fusion, inputs)
    losses = {branch: F.cross_entropy(each, label) for branch, each in logits.items()}
    for branch, each in logits.items():
        torch.testing.assert_close(outputs[branch].logits, each)
        torch.testing.assert_close(outputs[branch].loss, losses[branch])
        torch.testing.assert_close(model(inputs)[branch], each)
    fused, alone = (gradients(model, each) for each in (losses["fused"], ALPHA * (losses["audio"] + losses["visual"])))
    expected = {}
    for name in fused:
        reached = ("no_mgt" in method, True) if "net" in name else (True, "no_ugt" in method)
        reached = (True, False) if method == "joint" else reached
        expected[name] = reached[0] * fused[name] + reached[1] * alone[name]
    assert_gradients(model, expected)


def test_the_unimodal_gradient_of_bilinear_is_0():
    model, _ = built("bilinear")
    dgl_step(model, *batch(), ALPHA)
    for name, parameter in model.named_parameters():
        assert (parameter.grad == 0).all() if "net" in name else parameter.grad.any(), name


def test_sum_of_three_modalities():
    fusion = SumFusion_AUXI(2, 3, "avt")
    feature, (x, y, z) = torch.randn(4, 3), (fusion.fc_x, fusion.fc_y, fusion.fc_z)
    torch.testing.assert_close(fusion.alone_with_zeros("v", feature), x.bias + y(feature) + z.bias)
    torch.testing.assert_close(fusion.alone("v", feature), y(feature))


@pytest.mark.parametrize("modalities", ["av", "avt"])
def test_sum_splits_its_biases_evenly(modalities):
    """Check that own logits less `shared_bias` hold one part of all biases, as with concat, and add up to the fused."""
    fusion, n = SumFusion_AUXI(2, 3, modalities), len(modalities)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.normal_()
    layers = [getattr(fusion, fusion.layer(k)) for k in range(n)]
    features = {name: torch.randn(4, 3) for name in modalities}
    assert fusion.shared_bias == 0
    fusion.use_zeros()
    parts = {name: fusion.alone(name, z) - fusion.shared_bias for name, z in features.items()}
    for layer, (name, part) in zip(layers, parts.items(), strict=True):
        torch.testing.assert_close(part, features[name] @ layer.weight.T + sum(each.bias for each in layers) / n)
    torch.testing.assert_close(sum(parts.values()), fusion.fuse(features))


@pytest.mark.parametrize("fusion", ZEROS)
def test_a_checkpoint_is_evaluated_as_it_was_trained(fusion, tmp_path):
    model, _ = built(fusion)
    settings = settings_of("--fusion_method", fusion, "--alone", "zeros")
    save(tmp_path / "best.pth", model.float(), vars(settings), classes=[])
    loaded, _ = load_model(str(tmp_path / "best.pth"), {})
    inputs, _ = batch()
    inputs = {name: x.float() for name, x in inputs.items()}
    model.eval(), loaded.eval()
    expected = written_out(model, fusion, inputs)
    for branch, logits in loaded(inputs).items():
        torch.testing.assert_close(logits, expected[branch])
    save(tmp_path / "own.pth", model, vars(settings) | {"alone": "own"}, classes=[])
    own, _ = load_model(str(tmp_path / "own.pth"), {})
    assert not torch.allclose(own.eval()(inputs)["audio"], expected["audio"])


@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "dgl"],
        ["--method", "joint", "--fusion_method", "concat"],
        ["--method", "dgl", "--fusion_method", "mixer"],
        ["--method", "joint_uni", "--fusion_method", "gated"],
        ["--method", "gblend", "--gblend_weights", "0.2,0.5,0.3", "--fusion_method", "film"],
        ["--method", "mmpareto", "--fusion_method", "sum"],
        ["--method", "inforeg", "--inforeg_unimodal", "1", "--fusion_method", "gated"],
        ["--method", "relearn", "--relearn_unimodal", "1", "--val_ratio", "0.3", "--fusion_method", "gated"],
        ["--method", "mla"],
        ["--method", "lfm"],
    ],
    ids=lambda flags: " ".join(flags[1:]),
)
def test_it_is_rejected_where_it_has_no_effect(flags):
    assert main_dgl.parse_args(["--train", *flags]).alone == "own"
    with pytest.raises(InputError, match=f"--alone zeros: no effect with --method {flags[1]} .*; leave it out"):
        main_dgl.parse_args(["--train", "--alone", "zeros", *flags])


@pytest.mark.parametrize(
    "flags", [[], ["--method", "inforeg"], ["--method", "relearn", "--val_ratio", "0.3"], ["--method", "ogm"]]
)
def test_it_is_accepted_where_it_has_an_effect(flags):
    flags = ["--train", "--alone", "zeros", "--fusion_method", "gated", *flags]
    assert main_dgl.parse_args(flags).alone == "zeros"

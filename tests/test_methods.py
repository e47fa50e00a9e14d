"""Check which loss reaches which module, for every fusion; OGM with two modalities; and how flags name methods."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.build import build_model
from engine.checkpoint import load_model, save
from engine.settings import complete
from main_dgl import DGL
from methods import build_method
from methods.ablations import Ablation, NoMGT, NoMGTNoUGT, NoUGT
from methods.ogm import OGM, OGM_GE
from methods.unimodal import Unimodal
from models.backbone import BACKBONES, Encoder
from models.fusion_modules import FUSION_MODULES, SumFusion_AUXI
from tests.conftest import NarrowEncoder, SmallEncoder, settings_of
from tests.rules import Toy, assert_gradients, gradients, small_model, toy, toy_batch, whole_step
from tests.test_dgl_step import FORMULAS, batch, linear

ALPHA = 3.0
# fusion, and: --alone, where there is a choice; --backbone; or the number of modalities
WAYS = ["gated own", "sum zeros", "gated zeros", "film zeros", "bilinear zeros", "mixer 2", "mixer 3", "mmtm"]
WAYS += ["concat", "concat resnet50"]
REACHED = {  # method: weights of L_m and of each L_u in the encoders, the same in the fusion module
    "joint": ((1, 0), (1, 0)),
    "dgl": ((0, ALPHA), (1, 0)),
    "ablation of nothing": ((0, ALPHA), (1, 0)),
    "no_mgt": ((1, ALPHA), (1, 0)),
    "no_ugt": ((0, ALPHA), (1, ALPHA)),
    "no_mgt+no_ugt": ((1, ALPHA), (1, ALPHA)),
    "joint_uni": ((1, 1), (1, 1)),  # tests/test_methods_gradients.py has it with other fusions
}
CASES = [(way, method) for way in WAYS for method in (["dgl"] if "resnet" in way else REACHED)]
CASES = [(way, method) for way, method in CASES if way == "mmtm" or method != "joint_uni"]


class ResNet14(Encoder):
    """With bottleneck blocks, so with 2048 channels."""

    block, layers = BACKBONES["resnet50"].block, (1, 1, 1, 1)


class NarrowResNet(Encoder):
    """A ResNet of four blocks with 16, 32, 64 and 128 channels."""

    layers = (1, 1, 1, 1)

    def __init__(self, in_channels):
        super().__init__(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 16, 7, stride=2, padding=3, bias=False)
        self.bn1, self.inplanes, self.dim = nn.BatchNorm2d(16), 16, 128
        for k in range(4):
            setattr(self, f"layer{k + 1}", self._make_layer(self.block, 16 << k, 1, stride=2 if k else 1))


def built(patch, way, *flags):
    """Return a model in float64, with biases other than 0, its method, and a batch."""
    fusion, _, kind = way.partition(" ")
    patch.setitem(BACKBONES, "resnet18", {"bilinear": NarrowEncoder, "mmtm": NarrowResNet}.get(fusion, SmallEncoder))
    patch.setitem(BACKBONES, "resnet50", ResNet14)
    flags = ["--fusion_method", fusion, *flags, *(["--backbone", kind] if "resnet" in kind else [])]
    settings = settings_of(*flags, *(["--alone", kind] if kind in ("own", "zeros") else []))
    torch.manual_seed(0)
    model, method = build_model(settings)
    inputs, label = batch()
    if fusion == "mixer":
        (inputs, label), encoders = toy_batch(), dict(list(toy()[0].encoders.items())[: int(kind)])
        model = Toy("mixer", encoders)
        inputs, method = {name: inputs[name] for name in encoders}, build_method(settings, model)
    with torch.no_grad():
        for name, parameter in model.fusion_module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model.double().train(fusion != "mixer"), method, inputs, label


def mixer(p, *features):
    """Return the mixer's logits of features (B, dim) by the formulas of CubeMLP, without dropout."""

    def perceptron(name, x):
        spread = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        hidden = linear(p, f"{name}.1", spread * p[f"{name}.0.weight"] + p[f"{name}.0.bias"])
        return linear(p, f"{name}.3", hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)  # GELU

    tokens = torch.stack(features, dim=1)
    for k in range(2):
        tokens = tokens + perceptron(f"blocks.{k}.over_modalities", tokens.transpose(1, 2)).transpose(1, 2)
        tokens = tokens + perceptron(f"blocks.{k}.over_channels", tokens)
    return linear(p, "fc_out", tokens.flatten(1))


def mmtm_vectors(p, streams, maps):
    """Return what the given streams of mmtm end in, {modality: (B, dim)}, by the formulas; p are the parameters."""

    def gated(k, maps):
        mean = {name: x.mean((1, 3, 4)) for name, x in maps.items()}
        squeezed = [mean.get(name, torch.zeros_like(next(iter(mean.values())))) for name in streams]
        z = linear(p, f"mmtm{k}.squeeze", torch.hstack(squeezed)).clamp(min=0)
        gates = {name: 1 / (1 + (-linear(p, f"mmtm{k}.excite.{name}", z)).exp()) for name in maps}
        return {name: x * gates[name][:, None, :, None, None] for name, x in maps.items()}

    maps = gated(2, maps)
    for k in (3, 4):
        images = {name: streams[name][f"layer{k}"](x.flatten(0, 1)) for name, x in maps.items()}
        maps = gated(k, {name: x.unflatten(0, maps[name].shape[:2]) for name, x in images.items()})
    return {name: x.mean((1, 3, 4)) for name, x in maps.items()}


def written_out(way, model, inputs):
    """Return the logits of every branch by the formulas."""
    fusion, _, kind = way.partition(" ")
    module, z = model.fusion_module, {name: model.encode(name, x) for name, x in inputs.items()}
    p, apart = dict(getattr(module, "joint", module).named_parameters()), z
    fused = {"mixer": mixer, "mmtm": FORMULAS["concat"][0]} | {name: each[0] for name, each in FORMULAS.items()}
    if fusion == "mmtm":
        streams = getattr(module, "joint", module).streams
        apart = {name: mmtm_vectors(p, streams, {name: maps})[name] for name, maps in z.items()}
        z = mmtm_vectors(p, streams, z)
    logits = {"fused": fused[fusion](p, *z.values())}
    for k, (name, feature) in enumerate(apart.items(), start=1):
        zeros = [feature if other == name else torch.zeros_like(feature) for other in z]
        logits[name] = FORMULAS[fusion][k](p, feature) if kind == "own" else fused[fusion](p, *zeros)
        if hasattr(module, f"{name}_head"):
            logits[name] = linear(dict(module.named_parameters()), f"{name}_head", feature)
    return logits


def assert_reached(model, losses, method):
    """Check the gradients that a step of a method has left, from the losses in one graph -> {parameter: expected}."""
    losses = dict(losses)
    of_joint = gradients(model, losses.pop("fused"))
    of_alone, expected = gradients(model, sum(losses.values())), {}
    for name, parameter in model.named_parameters():
        m, u = REACHED[method]["fusion" in name]
        expected[name] = m * of_joint[name] + u * of_alone[name]
        assert (parameter.grad - expected[name]).norm() <= 1e-9 * expected[name].norm(), name
    return expected


def test_every_fusion_is_checked():
    assert {way.split()[0] for way in WAYS} == FUSION_MODULES.keys()


@pytest.mark.parametrize(("way", "method"), CASES)
def test_which_loss_reaches_which_module(way, method, monkeypatch):
    """Check all logits, losses and gradients; with bilinear fusion an encoder alone, next to zeros, learns nothing."""
    flags = [] if method.startswith("joint") else ["--alpha", ALPHA]
    name = method.replace("ablation of nothing", "dgl")
    model, rule, inputs, label = built(monkeypatch, way, "--method", name, *flags)
    if name != method:
        rule = Ablation(rule.settings, model)
    outputs, logits = whole_step(model, rule, inputs, label), written_out(way, model, inputs)
    assert list(outputs) == list(model.branches) == list(logits)
    losses = {branch: F.cross_entropy(each, label) for branch, each in logits.items()}
    for branch, output in outputs.items():
        torch.testing.assert_close(output.logits, logits[branch], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(output.loss, losses[branch])
    if not isinstance(model, Toy):
        torch.testing.assert_close(model(inputs), logits)
    for name, gradient in assert_reached(model, losses, method).items():
        none = way == "bilinear zeros" and "fusion" not in name and REACHED[method][0][0] == 0
        assert gradient.any() != none, name


@pytest.mark.parametrize("way", ["mixer 2", "mixer 3"])
def test_dropout_draws_a_mask_for_each_pass_in_training_and_none_in_evaluation(way, monkeypatch):
    model, method, inputs, label = built(monkeypatch, way, "--alpha", ALPHA)
    fusion, modules = model.train().fusion_module, model.fusion_module.modules()
    assert [layer.p for layer in modules if isinstance(layer, torch.nn.Dropout)] == [0.1] * 4
    torch.manual_seed(5)
    outputs = whole_step(model, method, inputs, label)
    torch.manual_seed(5)
    z = {name: model.encode(name, x) for name, x in inputs.items()}
    losses = {name: F.cross_entropy(fusion.alone(name, each), label) for name, each in z.items()}
    losses["fused"] = F.cross_entropy(fusion.fuse(z), label)
    assert all(torch.equal(outputs[branch].loss, loss) for branch, loss in losses.items())
    assert_reached(model, losses, "dgl")
    assert not torch.equal(fusion.fuse(z), fusion.fuse(z))
    model.eval()
    assert torch.equal(fusion.fuse(z), fusion.fuse(z))


@pytest.mark.parametrize("modalities", ["av", "avt"])
def test_sum_with_zeros_splits_its_biases_evenly(modalities):
    """Check that own logits hold all biases, and less `shared_bias` add up to the fused ones, as with concat."""
    fusion = SumFusion_AUXI(2, 3, modalities)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.normal_()
    layers = dict(zip(modalities, (fusion.fc_x, fusion.fc_y, getattr(fusion, "fc_z", None)), strict=False))
    features, biases = {name: torch.randn(4, 3) for name in modalities}, sum(layer.bias for layer in layers.values())
    assert fusion.shared_bias == 0
    fusion.use_zeros()
    alone = {name: fusion.alone(name, z) for name, z in features.items()}
    for name, logits in alone.items():
        torch.testing.assert_close(logits, features[name] @ layers[name].weight.T + biases)
    parts = sum(logits - fusion.shared_bias for logits in alone.values())
    torch.testing.assert_close(parts, fusion.fuse(features))


@pytest.mark.parametrize("way", [way for way in WAYS if "zeros" in way])
def test_a_checkpoint_is_evaluated_as_it_was_trained(way, tmp_path, monkeypatch):
    model, method, inputs, _ = built(monkeypatch, way)
    inputs, found = {name: x.float() for name, x in inputs.items()}, {}
    expected = written_out(way, model.float().eval(), inputs)
    for alone in ("zeros", "own"):
        save(tmp_path / "best.pth", model, vars(method.settings) | {"alone": alone}, classes=[])
        loaded, _ = load_model(str(tmp_path / "best.pth"), {})
        found[alone] = loaded.eval()(inputs)
    torch.testing.assert_close(found["zeros"], expected)
    assert not torch.allclose(found["own"]["audio"], expected["audio"])


@pytest.mark.parametrize(("leader", "other"), [("audio", "visual"), ("visual", "audio")])
@pytest.mark.parametrize("way", ["concat", "sum own", "gated own"])
def test_ogm_slows_the_leading_encoder_alone_within_its_window(way, leader, other, monkeypatch):
    """Check it by each modality's own logits, with concat W_u z_u + b / 2 (Peng et al. 2022, eq. 8 to 10)."""
    flags = ["--method", "ogm", "--ogm_alpha", 0.6, "--modulation_starts", 2, "--modulation_ends", 4]
    model, method, inputs, _ = built(monkeypatch, way, *flags)
    half, logits = model.fusion_module.fc_out.bias / 2 if way == "concat" else 0, written_out(way, model, inputs)
    p = {name: (logits[name] - half).softmax(1) for name in model.modalities}
    label = (p[leader] - p[other]).argmax(dim=1)  # with which the first one leads
    rho = (p[leader].gather(1, label[:, None]).sum() / p[other].gather(1, label[:, None]).sum()).item()
    assert rho > 1
    for method.epoch in range(6):
        model.zero_grad()
        whole_step(model, method, inputs, label)
        expected = gradients(model, F.cross_entropy(written_out(way, model, inputs)["fused"], label))
        assert all(gradient.any() for gradient in expected.values())
        for name, gradient in expected.items():
            if 2 <= method.epoch <= 4 and name.startswith(leader) and gradient.dim() == 4:
                expected[name] = gradient * (1 - math.tanh(0.6 * rho))
        assert_gradients(model, expected)


@pytest.mark.parametrize(
    ("flags", "name", "method"),
    [
        ([], "dgl", DGL),
        (["--modulation", "Normal"], "dgl", DGL),
        (["--method", "dgl", "--no_mgt"], "no_mgt", NoMGT),
        (["--no_mgt", "--no_ugt"], "no_mgt+no_ugt", NoMGTNoUGT),
        (["--method", "no_ugt"], "no_ugt", NoUGT),
        (["--method", "joint", "--modulation", "OGM_GE"], "ogm_ge", OGM_GE),
        (["--modulation", "OGM"], "ogm", OGM),
        (["--modality", "audio"], "audio", Unimodal),
        (["--method", "visual"], "visual", Unimodal),
    ],
)
def test_flags_choose_the_method(flags, name, method):
    settings = settings_of(*flags)
    assert settings.method == name and settings.modality == (name if name in ("audio", "visual") else "full")
    assert type(build_method(settings, small_model(modality=settings.modality))) is method
    assert complete(vars(settings)) == settings  # as a checkpoint records them


def test_a_method_has_its_own_flags_alone():
    dgl, joint = settings_of("--alpha", 2), vars(settings_of("--method", "joint"))
    assert dgl.alpha == 2 and not hasattr(dgl, "ogm_alpha")
    assert not joint.keys() & {"alpha", "ogm_alpha", "modulation", "no_mgt"}


def test_settings_of_an_older_run_are_completed():
    """Check that a missing setting counts as its default, and that earlier flags name the method."""
    recorded = {"method": "joint", "modulation": "OGM_GE", "modality": "full", "no_mgt": False, "ogm_alpha": 0.4}
    assert complete(recorded | {"alpha": 4.0}) == settings_of("--method", "ogm_ge", "--ogm_alpha", 0.4)

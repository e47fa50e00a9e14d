"""The gradient contract: encoders get alpha * d(L_a + L_v), fusion gets d(L_m), for every fusion module."""

import copy
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import benchmark
from main_dgl import dgl_step
from models.backbone import BACKBONES, ResNet18
from models.basic_model import AVClassifier
from models.fusion_modules import FUSION_MODULES, Fusion_AUXI
from tests.conftest import NarrowEncoder, SmallEncoder, method_of

ALPHA, CLASSES = 3.0, 5


def linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def film(p, x, y):
    hidden = linear(p, "fc", x)
    return linear(p, "fc_out", hidden[:, :512] * y + hidden[:, 512:])


def bilinear(p, x, y):
    return linear(p, "fc_out", linear(p, "fc", torch.einsum("bi,bj->bij", x, y).flatten(1)))


# The formulas of the fusion modules: parameters by name, x, y -> logits fused, of audio alone, of video alone.
FORMULAS = {
    "concat": (
        lambda p, x, y: linear(p, "fc_out", torch.hstack([x, y])),
        lambda p, x: x @ p["fc_out.weight"][:, :512].T + p["fc_out.bias"],
        lambda p, y: y @ p["fc_out.weight"][:, 512:].T + p["fc_out.bias"],
    ),
    "sum": (
        lambda p, x, y: linear(p, "fc_x", x) + linear(p, "fc_y", y),
        lambda p, x: linear(p, "fc_x", x),
        lambda p, y: linear(p, "fc_y", y),
    ),
    "gated": (
        lambda p, x, y: linear(p, "fc_out", linear(p, "fc_x", x).sigmoid() * linear(p, "fc_y", y)),
        lambda p, x: linear(p, "fc_out", linear(p, "fc_x", x).sigmoid() * linear(p, "fc_x", x)),
        lambda p, y: linear(p, "fc_out", linear(p, "fc_y", y).sigmoid() * linear(p, "fc_y", y)),
    ),
    "film": (film, lambda p, x: film(p, x, x), lambda p, y: film(p, y, y)),
    "bilinear": (bilinear, lambda p, x: bilinear(p, x, x), lambda p, y: bilinear(p, y, y)),
}


def batch(size=4, frames=2):
    """Return a batch of random clips in float64: {"audio": .., "visual": ..}, label."""
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "audio": torch.randn(size, 1, 40, 44, generator=generator, dtype=torch.float64),
        "visual": torch.randn(size, 3, frames, 36, 36, generator=generator, dtype=torch.float64),
    }
    return inputs, torch.randint(CLASSES, (size,), generator=generator)


def build(fusion_method):
    torch.manual_seed(0)
    return AVClassifier(CLASSES, fusion_method).double().train()


def features(model, inputs):
    """Return a and v: global average pool, for video over frames, height and width together."""
    spectrogram, frames = inputs.values()
    a = model.audio_net(spectrogram).flatten(2).mean(2)
    images = torch.stack([clip[:, n] for clip in frames for n in range(frames.shape[2])])
    v = model.visual_net(images).reshape(len(frames), frames.shape[2], a.shape[1], -1).mean(dim=(1, 3))
    return a, v


def assert_equal_gradients(parameters, expected):
    for (name, parameter), gradient in zip(parameters, expected, strict=True):
        assert parameter.grad is not None, f"{name} got no gradient"
        assert gradient.norm() > 0, name
        error = (parameter.grad - gradient).norm() / gradient.norm()
        assert error < 1e-5, f"{name}: relative error {error:.2e}"


def written_out(model, fusion_method, a, v, label):
    """Return the logits of every branch, their losses, and the gradients of all parameters, by the formulas."""
    fused, audio_alone, video_alone = FORMULAS[fusion_method]
    weights = dict(model.fusion_module.named_parameters())
    logits = {"fused": fused(weights, a, v), "audio": audio_alone(weights, a), "visual": video_alone(weights, v)}
    l_m, l_a, l_v = losses = [F.cross_entropy(each, label) for each in logits.values()]
    encoders = [p for name in model.modalities for p in model.encoder_parameters(name)]
    of_encoders = torch.autograd.grad(ALPHA * (l_a + l_v), encoders, retain_graph=True)
    return logits, losses, [*of_encoders, *torch.autograd.grad(l_m, list(weights.values()))]


def test_every_fusion_is_checked():
    elsewhere = {"mixer", "mmtm"}  # tests/test_methods.py
    assert FORMULAS.keys() | elsewhere == FUSION_MODULES.keys()


@pytest.fixture
def encoders(fusion_method, monkeypatch):
    """Use ResNets of one block per layer for concat, and smaller encoders for the other fusions."""
    monkeypatch.setattr(ResNet18, "layers", (1, 1, 1, 1))
    if fusion_method != "concat":
        monkeypatch.setitem(BACKBONES, "resnet18", NarrowEncoder if fusion_method == "bilinear" else SmallEncoder)


@pytest.mark.parametrize("fusion_method", FORMULAS)
def test_gradients_are_those_of_the_formulas(fusion_method, encoders):
    model, (inputs, label) = build(fusion_method), batch()
    outputs = dgl_step(model, inputs, label, ALPHA)
    logits, losses, expected = written_out(model, fusion_method, *features(model, inputs), label)
    assert list(outputs) == list(model.branches) == list(logits)
    torch.testing.assert_close([output.logits for output in outputs.values()], list(logits.values()))
    torch.testing.assert_close([output.loss for output in outputs.values()], losses)
    assert_equal_gradients(model.named_parameters(), expected)


def test_without_the_detach_the_step_raises(small_encoders, monkeypatch):
    monkeypatch.setattr(Fusion_AUXI, "forward", lambda self, features: self.fuse(features))
    with pytest.raises(RuntimeError, match="second time"):
        dgl_step(build("concat"), *batch(), ALPHA)


def test_gradients_accumulate_until_the_caller_zeroes_them(small_encoders):
    model = build("sum").eval()  # BatchNorm's running statistics stay as they are between the two steps
    dgl_step(model, *batch(), ALPHA)
    once = [p.grad.clone() for p in model.parameters()]
    dgl_step(model, *batch(), ALPHA)
    torch.testing.assert_close([p.grad for p in model.parameters()], [2 * gradient for gradient in once])


@pytest.mark.parametrize("modality", ["audio", "visual", "text"])
def test_unimodal_step_is_plain_cross_entropy(modality, small_encoders):
    torch.manual_seed(0)
    model = AVClassifier(CLASSES, modality=modality, inputs={"audio": 1, "visual": 3, "text": 1}).double()
    inputs, label = batch()
    inputs["text"] = inputs["audio"]
    outputs = method_of(model, "--method", modality).step(model, inputs, label)
    head = model.fusion_module
    expected = F.cross_entropy(F.linear(model.encode(modality, inputs[modality]), head.weight, head.bias), label)
    assert_equal_gradients(model.named_parameters(), torch.autograd.grad(expected, list(model.parameters())))
    assert list(outputs) == ["fused", modality]
    assert all(output.loss == expected for output in outputs.values())


@pytest.mark.parametrize("fusion_method", ["concat", "gated"])
def test_in_bfloat16_the_gradients_go_the_same_ways(fusion_method, encoders):
    torch.manual_seed(0)
    model, (inputs, label) = AVClassifier(CLASSES, fusion_method).train(), batch()
    model.amp, inputs = True, {name: x.float() for name, x in inputs.items()}
    dgl_step(model, inputs, label, ALPHA)
    a, v = (model.encode(name, x) for name, x in inputs.items())
    assert a.dtype == torch.float32 and v.dtype == torch.float32
    _, _, expected = written_out(model, fusion_method, a, v, label)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - gradient).norm() <= 0.1 * gradient.norm()
    full, audio = copy.deepcopy(model), inputs["audio"]
    full.amp = False
    with torch.no_grad():
        difference = (full.encode("audio", audio) - model.encode("audio", audio)).norm() / a.norm()
        assert 1e-4 < difference < 0.05, "no bfloat16 in it, or too little else"
        full.load_state_dict(model.state_dict())  # with the running statistics of now
        assert torch.equal(full.eval().encode("audio", audio), model.eval().encode("audio", audio))


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads /proc/self/status")
def test_a_step_needs_at_most_0_55_of_a_plain_steps_tensors(monkeypatch):
    """Compare steps of 16 clips. Larger batches have a smaller ratio. benchmark.py measures the process's memory."""
    from tests.method_costs import peak_of_tensors  # which imports this module

    monkeypatch.setattr(benchmark, "take_turns", lambda ways, rounds: {name: way() for name, way in ways.items()})
    ours, plain = (peak_of_tensors(partial(benchmark.one_step, way, 16, rounds=1)) for way in ("ours", "plain"))
    print(f"tensors at most: ours {ours / 2**30:.3f} GiB, plain {plain / 2**30:.3f} GiB, {ours / plain:.3f}")
    assert ours <= 0.55 * plain


def test_a_step_apart_reports_its_time_and_memory():
    seconds, gigabytes = benchmark.step_apart("ours", 2, rounds=1)
    assert seconds > 0 and gigabytes > 0.2  # more than parameters, gradients and momentum

"""Check the mixer fusion: DGL's gradients against the formulas, what dropout does, and its two blocks."""

import pytest
import torch
import torch.nn.functional as F

from main_dgl import dgl_step
from models.fusion_modules import MixerFusion_AUXI
from tests.rules import Toy, toy, toy_batch

ALPHA = 3.0


def perceptron(p, name, x):
    """Return one of CubeMLP's steps over the last axis, by its formula and without dropout."""
    spread = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    hidden = F.linear(spread * p[f"{name}.0.weight"] + p[f"{name}.0.bias"], p[f"{name}.1.weight"], p[f"{name}.1.bias"])
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2  # GELU
    return F.linear(hidden, p[f"{name}.3.weight"], p[f"{name}.3.bias"])


def written_out(fusion, features):
    """Return the logits of given features (B, dim), in order, by the formulas."""
    p, tokens = dict(fusion.named_parameters()), torch.stack(features, dim=1)
    for k in range(2):
        mixed = perceptron(p, f"blocks.{k}.over_modalities", tokens.transpose(1, 2)).transpose(1, 2)
        tokens = tokens + mixed
        tokens = tokens + perceptron(p, f"blocks.{k}.over_channels", tokens)
    return F.linear(tokens.flatten(1), p["fc_out.weight"], p["fc_out.bias"])


def mixer_toy(n):
    """Return a Toy of the first n modalities with the mixer, and a batch of it."""
    encoders, (inputs, label) = dict(toy()[0].encoders), toy_batch()
    names = list(encoders)[:n]
    model = Toy("mixer", {name: encoders[name] for name in names}).double()
    return model, {name: inputs[name] for name in names}, label


def assert_contract(model, losses):
    """Assert that encoders have alpha dL_u and the fusion module has dL_m, from {branch: loss} in one graph."""
    parts = {name: model.encoder_parameters(name) for name in model.modalities}
    parts["fused"] = list(model.fusion_module.parameters())
    for branch, parameters in parts.items():
        weight = 1 if branch == "fused" else ALPHA
        expected = torch.autograd.grad(weight * losses[branch], parameters, retain_graph=True)
        for parameter, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
        assert any(gradient.abs().max() > 1e-6 for gradient in expected)


@pytest.mark.parametrize("n", [2, 3])
def test_dgl_with_the_mixer(n):
    model, inputs, label = mixer_toy(n)
    outputs = dgl_step(model.eval(), inputs, label, ALPHA)
    z = {name: model.encode(name, x) for name, x in inputs.items()}
    logits = {"fused": written_out(model.fusion_module, [*z.values()])}
    for name in z:  # zeros in place of the other tokens
        alone = [each if other == name else torch.zeros_like(each) for other, each in z.items()]
        logits[name] = written_out(model.fusion_module, alone)
    losses = {branch: F.cross_entropy(each, label) for branch, each in logits.items()}
    for branch, output in outputs.items():
        torch.testing.assert_close(output.logits, logits[branch], rtol=1e-10, atol=1e-10)
    assert_contract(model, losses)


@pytest.mark.parametrize("n", [2, 3])
def test_dropout_draws_a_mask_for_each_pass_in_training_and_none_in_evaluation(n):
    model, inputs, label = mixer_toy(n)
    fusion, modules = model.fusion_module, model.fusion_module.modules()
    assert [layer.p for layer in modules if isinstance(layer, torch.nn.Dropout)] == [0.1] * 4
    torch.manual_seed(5)
    outputs = dgl_step(model.train(), inputs, label, ALPHA)
    torch.manual_seed(5)
    z = {name: model.encode(name, x) for name, x in inputs.items()}
    losses = {name: F.cross_entropy(fusion.alone(name, each), label) for name, each in z.items()}
    losses["fused"] = F.cross_entropy(fusion.fuse(z), label)
    assert all(torch.equal(outputs[branch].loss, loss) for branch, loss in losses.items())
    assert_contract(model, losses)
    assert not torch.equal(fusion.fuse(z), fusion.fuse(z))
    model.eval()
    assert torch.equal(fusion.fuse(z), fusion.fuse(z))


def test_the_mixer_mixes():
    """Check that every logit depends on every modality, and no clip on another clip."""
    fusion = MixerFusion_AUXI(4, 6, "avt").eval()
    features = {name: torch.randn(3, 6, requires_grad=True) for name in "avt"}
    logits = fusion.fuse(features)
    for k in range(4):
        for gradient in torch.autograd.grad(logits[0, k], list(features.values()), retain_graph=True):
            assert gradient[0].any() and not gradient[1:].any()

"""Check docs/own-model.md: its examples train, its ten lines are dgl_step, and what it says to watch is so."""

import contextlib
import io
import re
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from main_dgl import dgl_step
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "own-model.md").read_text()
SNIPPETS = dict(re.findall(r"^```python\n# (.*?)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
ALPHA = 3.0


@cache
def run_example(name):
    """Run an example of the page -> (its names, what it printed)."""
    names, output = {"__name__": "example"}, io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(SNIPPETS[name], names)
    return names, output.getvalue()


def snippet(name, **names):
    """Return the function that a snippet of the page defines."""
    exec(SNIPPETS[name], names)
    return names["dgl_step" if name == "the ten lines" else "check"]


check, copied = snippet("the check", dgl_step=dgl_step), snippet("the ten lines")


def example(name):
    """Return an example's trained model in float64 and evaluation mode, and a batch of it."""
    names, _ = run_example(name)
    if name == "segmentation":
        inputs, label = names["toy_batch"](4)
    else:
        *inputs, label = (x[:20] for x in names["test"][:])
        inputs = dict(zip(names["model"].modalities, inputs, strict=True))
    return names["model"].double().eval(), {key: x.double() for key, x in inputs.items()}, label


class TwoVectors(nn.Module):
    """A small model of the page's kind, concatenation with zeros, as a class to change one thing of."""

    modalities = ("a", "b")

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.nets = nn.ModuleDict({name: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)) for name in "ab"})
        self.fusion_module = self.Fusion()
        self.double()

    class Fusion(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 3)

        def forward(self, features):
            return self.fc(torch.cat([feature.detach() for feature in features.values()], dim=1))

        def alone(self, name, feature):
            zeros = torch.zeros_like(feature)
            return self.fc(torch.cat([feature, zeros] if name == "a" else [zeros, feature], dim=1))

    def encode(self, name, x):
        return self.nets[name](x)

    def encoder_parameters(self, name):
        return [parameter for parameter in self.nets[name].parameters() if parameter.requires_grad]


def batch(size=12):
    generator = torch.Generator().manual_seed(1)
    inputs = {name: torch.randn(size, 3, generator=generator, dtype=torch.float64) for name in "ab"}
    return inputs, torch.randint(3, (size,), generator=generator)


def gradients(model, inputs, label, step=dgl_step, alpha=ALPHA):
    """Return the gradients that a step leaves, {name: gradient}."""
    model.zero_grad()
    step(model, inputs, label, alpha)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_key_points(model, inputs, label, found, loss=F.cross_entropy):
    """Compare gradients with torch.autograd.grad of the losses, each in a graph of its own."""
    features = {name: model.encode(name, inputs[name]) for name in model.modalities}
    fused = loss(model.fusion_module(features), label)
    sources = {"fusion_module.": (fused, list(model.fusion_module.parameters()))}
    for name in model.modalities:
        alone = ALPHA * loss(model.fusion_module.alone(name, model.encode(name, inputs[name])), label)
        sources[name] = alone, model.encoder_parameters(name)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    compared = 0
    for total, parameters in sources.values():
        for parameter, expected in zip(parameters, torch.autograd.grad(total, parameters), strict=True):
            torch.testing.assert_close(found[names[id(parameter)]], expected)
            compared += 1
    assert compared == len(names)


def test_the_page_has_its_snippets():
    assert list(SNIPPETS) == ["the ten lines", "the check", "three modalities", "segmentation"]


@pytest.mark.parametrize(("name", "better"), [("three modalities", 0.85), ("segmentation", 0.88)])
def test_an_example_learns(name, better):
    """Check losses and accuracy: the commonest class is a fifth of the samples, and the wall 0.6 of the pixels."""
    names, output = run_example(name)
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", output)]
    assert losses[-1] < 0.6 * losses[0] and names["accuracy"] > better


@pytest.mark.parametrize("name", ["three modalities", "segmentation"])
def test_an_examples_gradients_are_dgls(name):
    model, inputs, label = example(name)
    found = gradients(model, inputs, label)
    assert_key_points(model, inputs, label, found)
    torch.testing.assert_close(gradients(model, inputs, label, copied), found)
    check(model, inputs, label)


def test_a_token_left_out_is_a_token_masked_out():
    model, inputs, _ = example("three modalities")
    fusion, name = model.fusion_module, "visual"
    features = {each: model.encode(each, inputs[each]) for each in model.modalities}
    tokens = [features[each] + fusion.place[each] for each in model.modalities]
    tokens = torch.stack([fusion.place["answer"].expand_as(tokens[0]), *tokens], dim=1)
    masked = torch.tensor([[False, *(each != name for each in model.modalities)]]).expand(len(tokens), -1)
    expected = fusion.fc_out(fusion.transformer(tokens, src_key_padding_mask=masked)[:, 0])
    torch.testing.assert_close(fusion.alone(name, features[name]), expected)


@pytest.mark.parametrize("loss", [F.mse_loss, F.binary_cross_entropy_with_logits])
def test_another_loss_in_the_copied_lines(loss, monkeypatch):
    model, (inputs, label) = TwoVectors(), batch()
    target = F.one_hot(label, 3).double()
    monkeypatch.setattr(F, "cross_entropy", loss)  # what an editor's "replace all" does to the copy
    assert_key_points(model, inputs, target, gradients(model, inputs, target, copied), loss)


class LateDetach(TwoVectors):
    class Fusion(TwoVectors.Fusion):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)

        def forward(self, features):
            return super().forward({name: self.first(feature) for name, feature in features.items()})

        def alone(self, name, feature):
            return super().alone(name, self.first(feature))


class Unlisted(TwoVectors):
    def encoder_parameters(self, name):
        return [*self.nets[name][0].parameters()]


class Reentrant(TwoVectors):
    def encode(self, name, x):
        return checkpoint(self.nets[name], x.requires_grad_(), use_reentrant=True)


class Tied(TwoVectors):
    def encode(self, name, x):
        return self.nets[name](x) * self.fusion_module.fc.weight.mean()

    def encoder_parameters(self, name):
        return [*super().encoder_parameters(name), self.fusion_module.fc.weight]


class Product(TwoVectors):
    class Fusion(TwoVectors.Fusion):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, features):
            return self.fc(features["a"].detach() * features["b"].detach())

        def alone(self, name, feature):
            return self.fc(feature * torch.zeros_like(feature))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Product, "a: its own loss has no gradient"),
        (LateDetach, "fusion_module.first.weight gets no gradient"),
        (Unlisted, "nets.a.2.weight gets no gradient"),
        (Reentrant, "nets.a.0.weight gets no gradient"),
        (Tied, "fusion_module.fc.weight: an encoder's loss reaches it"),
    ],
)
def test_the_check_finds(kind, message):
    with pytest.raises(AssertionError, match=message):
        check(kind(), *batch())


def test_without_a_detach_the_step_raises():
    model = TwoVectors()
    model.fusion_module.forward = lambda features: model.fusion_module.fc(torch.cat([*features.values()], dim=1))
    with pytest.raises(RuntimeError, match="second time"):
        dgl_step(model, *batch(), ALPHA)


def test_frozen_layers_are_left_out():
    model = TwoVectors()
    model.nets["a"][0].requires_grad_(False)
    check(model, *batch())
    model.encoder_parameters = lambda name: [*model.nets[name].parameters()]
    with pytest.raises(RuntimeError, match="can't retain_grad"):
        dgl_step(model, *batch(), ALPHA)


def test_an_encoder_that_is_frozen_as_a_whole():
    model = TwoVectors()
    model.nets["a"].requires_grad_(False)
    with pytest.raises(RuntimeError, match="cannot be empty"):
        dgl_step(model, *batch(), ALPHA)
    names, line = {}, "        (alpha * losses[name]).backward"
    exec(SNIPPETS["the ten lines"].replace(line, "        if model.encoder_parameters(name):\n    " + line), names)
    found = gradients(model, *batch(), step=names["dgl_step"])
    assert {name for name, gradient in found.items() if gradient is None} == {
        f"nets.a.{name}" for name, _ in model.nets["a"].named_parameters()
    }


def test_checkpointing_without_reentrance():
    model = TwoVectors()
    expected = gradients(model, *batch())
    model.encode = lambda name, x: checkpoint(model.nets[name], x, use_reentrant=False)
    torch.testing.assert_close(gradients(model, *batch()), expected)


def test_encoders_that_share_weights_get_the_sum():
    model, (inputs, label) = TwoVectors(), batch()
    model.nets["b"] = model.nets["a"]
    found = gradients(model, inputs, label)
    alone = [F.cross_entropy(model.fusion_module.alone(name, model.encode(name, inputs[name])), label) for name in "ab"]
    parameters = model.encoder_parameters("a")
    expected = torch.autograd.grad(ALPHA * sum(alone), parameters)
    torch.testing.assert_close([found[f"nets.a.{name}"] for name, _ in model.nets["a"].named_parameters()], [*expected])


def test_accumulated_gradients_are_those_of_the_whole_batch():
    model, (inputs, label) = TwoVectors(), batch(12)
    expected = gradients(model, inputs, label)
    model.zero_grad()
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
        dgl_step(model, {name: x[part] for name, x in inputs.items()}, label[part], ALPHA)
    torch.testing.assert_close({name: p.grad / 3 for name, p in model.named_parameters()}, expected)


def test_clipped_steps_of_fusion_shrink_with_alpha():
    model, norms, apart = TwoVectors(), [], []
    for alpha in (1, 10, 100):
        for found, clipped in ((norms, [model]), (apart, [model.nets, model.fusion_module])):
            gradients(model, *batch(), alpha=alpha)
            for module in clipped:
                nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            found.append(nn.utils.get_total_norm([p.grad for p in model.fusion_module.parameters()]).item())
    assert norms[0] > 5 * norms[1] > 25 * norms[2]
    assert apart == pytest.approx([apart[0]] * 3)


def test_adam_undoes_alpha():
    """Check how far encoders end apart with alpha 1 and 8, relative to the way from the start."""

    def trained(alpha, optimizer_class, rate):
        model = TwoVectors()
        optimizer = optimizer_class(model.parameters(), lr=rate)
        for _ in range(30):
            gradients(model, *batch(), alpha=alpha)
            optimizer.step()
        return nn.utils.parameters_to_vector(model.nets.parameters())

    start = nn.utils.parameters_to_vector(TwoVectors().nets.parameters())
    for kind, rate, low, high in ((torch.optim.Adam, 1e-3, 0, 0.05), (torch.optim.SGD, 0.01, 1, 20)):
        one, eight = (trained(alpha, kind, rate) for alpha in (1, 8))
        assert low <= (one - eight).norm() / (one - start).norm() <= high, kind


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype):
    """Check autocast around the step, and with float16 the scaled losses that the page describes."""
    model, (inputs, label) = TwoVectors().float(), batch()
    inputs = {name: x.float() for name, x in inputs.items()}
    expected, step = gradients(model, inputs, label), dgl_step
    if dtype == torch.float16:
        scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(model.parameters(), 0.1)
        code = SNIPPETS["the ten lines"].replace("(alpha * losses[name])", "scale(alpha * losses[name])")
        code = code.replace('losses["fused"].backward', 'scale(losses["fused"]).backward')
        names = {"scale": scaler.scale}
        exec(code, names)
        step = names["dgl_step"]
    with torch.autocast("cpu", dtype):
        found = gradients(model, inputs, label, step)
    if dtype == torch.float16:
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() <= 0.1 * expected[name].norm(), name

"""Check docs/own-model.md: its examples train, its ten lines equal dgl_step, and its warnings hold."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from main_dgl import dgl_step
from tests.conftest import ROOT
from tests.rules import TOY_CLASSES, TOY_DIM, gradients, toy, toy_batch

PAGE = (ROOT / "docs" / "own-model.md").read_text()
SNIPPETS = dict(re.findall(r"^```python\n# (.*?)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
ALPHA = 3.0
LINE = "        (alpha * losses[name]).backward"  # of the ten lines


def run_snippet(name, *changes, **names):
    """Run a snippet of the page after changes of its lines, (old, new) each, which use `names` -> all names."""
    code = SNIPPETS[name]
    for old, new in changes:
        assert old in code
        code = code.replace(old, new)
    exec(code, names)
    return names


check = run_snippet("the check", dgl_step=dgl_step)["check"]


def copied(*changes, **names):
    return run_snippet("the ten lines", *changes, **names)["dgl_step"]


def step_gradients(model, inputs, label, step=dgl_step, alpha=ALPHA):
    """Return the gradients that a step leaves, {name: gradient}."""
    model.zero_grad()
    step(model, inputs, label, alpha)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_key_points(model, inputs, label, step=dgl_step, loss=F.cross_entropy):
    """Compare a step's gradients with those of the losses, each in a graph of its own."""
    fusion, features = model.fusion_module, {name: model.encode(name, inputs[name]) for name in model.modalities}
    expected = gradients(model, loss(fusion(features), label))
    for name, feature in features.items():
        own = gradients(model, ALPHA * loss(fusion.alone(name, feature), label))
        listed = {id(parameter) for parameter in model.encoder_parameters(name)}
        for each, parameter in model.named_parameters():
            expected[each] = expected[each] + own[each] if id(parameter) in listed else expected[each]
    torch.testing.assert_close(step_gradients(model, inputs, label, step), expected)


def test_the_page_has_its_snippets():
    assert list(SNIPPETS) == ["the ten lines", "the check", "three modalities", "segmentation"]


@pytest.mark.parametrize(("name", "better"), [("three modalities", 0.85), ("segmentation", 0.88)])
def test_an_example_learns_by_the_gradients_of_dgl(name, better, capsys):
    """Check accuracy too: the commonest class is a fifth of the samples, and the wall 0.6 of the pixels."""
    names = run_snippet(name)
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", capsys.readouterr().out)]
    assert losses[-1] < 0.6 * losses[0] and names["accuracy"] > better
    model = names["model"].double().eval()
    if name == "segmentation":
        inputs, label = names["toy_batch"](4)
    else:
        *inputs, label = (x[:20] for x in names["test"][:])
        inputs = dict(zip(model.modalities, inputs, strict=True))
    inputs = {key: x.double() for key, x in inputs.items()}
    for step in (dgl_step, copied()):
        assert_key_points(model, inputs, label, step)
    check(model, inputs, label)
    if name == "three modalities":
        assert_left_out_is_masked_out(model, inputs)


def assert_left_out_is_masked_out(model, inputs):
    """Compare one modality's logits, for which the other tokens are left out, with those of masked attention."""
    fusion, name = model.fusion_module, "visual"
    features = {each: model.encode(each, inputs[each]) for each in model.modalities}
    tokens = [features[each] + fusion.place[each] for each in model.modalities]
    tokens = torch.stack([fusion.place["answer"].expand_as(tokens[0]), *tokens], dim=1)
    masked = torch.tensor([[False, *(each != name for each in model.modalities)]]).expand(len(tokens), -1)
    expected = fusion.fc_out(fusion.transformer(tokens, src_key_padding_mask=masked)[:, 0])
    torch.testing.assert_close(fusion.alone(name, features[name]), expected)


@pytest.mark.parametrize("loss", [F.mse_loss, F.binary_cross_entropy_with_logits])
def test_another_loss_in_the_copied_lines(loss):
    inputs, label = toy_batch()
    step = copied(("F.cross_entropy", "loss"), loss=loss)
    assert_key_points(toy()[0], inputs, F.one_hot(label, TOY_CLASSES).double(), step, loss)


def mistaken(mistake):
    """Return a model with a mistake that the page describes."""
    model, _ = toy()
    encoders, fusion, listed = model.encoders, model.fusion_module, model.encoder_parameters
    forward, alone = fusion.forward, fusion.alone
    if mistake == "product":
        fusion.fc_out = nn.Linear(TOY_DIM, TOY_CLASSES).double()
        fusion.forward = lambda features: fusion.fc_out(math.prod(feature.detach() for feature in features.values()))
        fusion.alone = lambda name, feature: fusion.fc_out(feature * torch.zeros_like(feature))
    elif mistake == "late detach":
        fusion.first = nn.Linear(TOY_DIM, TOY_DIM).double()
        fusion.forward = lambda features: forward({name: fusion.first(feature) for name, feature in features.items()})
        fusion.alone = lambda name, feature: alone(name, fusion.first(feature))
    elif mistake == "unlisted":
        model.encoder_parameters = lambda name: [*encoders[name][0].parameters()]
    elif mistake == "reentrant":
        model.encode = lambda name, x: checkpoint(encoders[name], x.requires_grad_(), use_reentrant=True)
    elif mistake == "tied":
        model.encode = lambda name, x: encoders[name](x) * fusion.fc_out.weight.mean()
        model.encoder_parameters = lambda name: [*listed(name), fusion.fc_out.weight]
    return model


MISTAKES = {
    "product": "a: its own loss has no gradient",
    "late detach": "fusion_module.first.weight gets no gradient",
    "unlisted": "encoders.a.3.weight gets no gradient",
    "reentrant": "encoders.a.0.weight gets no gradient",
    "tied": "fusion_module.fc_out.weight: an encoder's loss reaches it",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_finds_a_mistake(mistake):
    with pytest.raises(AssertionError, match=MISTAKES[mistake]):
        check(mistaken(mistake), *toy_batch())


def test_frozen_layers_and_encoders_are_left_out_of_encoder_parameters():
    model, _ = toy()
    model.encoders["a"][0].requires_grad_(False)
    with pytest.raises(RuntimeError, match="can't retain_grad"):
        dgl_step(model, *toy_batch(), ALPHA)
    model.encoder_parameters = lambda name: [p for p in model.encoders[name].parameters() if p.requires_grad]
    check(model, *toy_batch())
    model.encoders["a"].requires_grad_(False)
    with pytest.raises(RuntimeError, match="cannot be empty"):
        dgl_step(model, *toy_batch(), ALPHA)
    step = copied((LINE, "        if model.encoder_parameters(name):\n    " + LINE))
    for name, gradient in step_gradients(model, *toy_batch(), step).items():
        assert (gradient is None) == name.startswith("encoders.a."), name


def test_checkpointed_and_shared_encoders_and_accumulated_gradients():
    model, (inputs, label) = toy()[0], toy_batch(size=12)
    expected = step_gradients(model, inputs, label)
    encode, model.encode = model.encode, lambda name, x: checkpoint(model.encoders[name], x, use_reentrant=False)
    torch.testing.assert_close(step_gradients(model, inputs, label), expected)
    model.encode = encode
    model.zero_grad()
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
        dgl_step(model, {name: x[part] for name, x in inputs.items()}, label[part], ALPHA)
    torch.testing.assert_close({name: p.grad / 3 for name, p in model.named_parameters()}, expected)
    model.encoders["v"] = model.encoders["a"]
    assert_key_points(model, inputs | {"v": inputs["a"]}, label)  # the sum of both losses' gradients


def test_clipped_steps_of_fusion_shrink_with_alpha():
    """Check that they do not if encoders and the fusion module are clipped apart."""
    model, norms = toy()[0], {"together": [], "apart": []}
    for alpha in (1, 10, 100):
        for found, clipped in zip(norms.values(), ([model], [model.encoders, model.fusion_module]), strict=True):
            step_gradients(model, *toy_batch(), alpha=alpha)
            for module in clipped:
                nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            found.append(nn.utils.get_total_norm([p.grad for p in model.fusion_module.parameters()]).item())
    together, apart = norms.values()
    assert together[0] > 5 * together[1] > 25 * together[2]
    assert apart == pytest.approx([apart[0]] * 3)


def test_adam_undoes_alpha():
    """Check how far encoders end apart with alpha 1 and 8, relative to the way from the start."""

    def trained(alpha, optimizer_class, rate):
        model, _ = toy()
        optimizer = optimizer_class(model.parameters(), lr=rate)
        for _ in range(30):
            step_gradients(model, *toy_batch(), alpha=alpha)
            optimizer.step()
        return nn.utils.parameters_to_vector(model.encoders.parameters())

    start = nn.utils.parameters_to_vector(toy()[0].encoders.parameters())
    for kind, rate, low, high in ((torch.optim.Adam, 1e-3, 0, 0.05), (torch.optim.SGD, 0.01, 1, 20)):
        one, eight = (trained(alpha, kind, rate) for alpha in (1, 8))
        assert low <= (one - eight).norm() / (one - start).norm() <= high, kind


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype):
    """Check autocast around the step, and with float16 the scaled losses that the page describes."""
    model, (inputs, label) = toy()[0].float(), toy_batch()
    inputs = {name: x.float() for name, x in inputs.items()}
    expected, step = step_gradients(model, inputs, label), dgl_step
    if dtype == torch.float16:
        scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(model.parameters(), 0.1)
        losses = "(alpha * losses[name])", 'losses["fused"]'
        step = copied(*((f"{loss}.backward", f"scale({loss}).backward") for loss in losses), scale=scaler.scale)
    with torch.autocast("cpu", dtype):
        found = step_gradients(model, inputs, label, step)
    if dtype == torch.float16:
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() <= 0.1 * expected[name].norm(), name

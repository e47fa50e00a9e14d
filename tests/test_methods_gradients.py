"""Check the gradients of the other methods against their equations, which are written out here."""

import math
from functools import partial, reduce
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from methods import features as clip_features
from methods import gblend, lfm, statistics
from tests.rules import (
    alone,
    assert_gradients,
    assert_same_parameters,
    fused,
    gradients,
    labels_that_favour,
    likely,
    loaders_of,
    mla_half_step,
    own,
    rule,
    small_model,
    whole_step,
)
from tests.test_dgl_step import CLASSES, batch, features

CPU = torch.device("cpu")


def joint_gradients(model, clips, fusion="concat"):
    inputs, label = clips
    return gradients(model, F.cross_entropy(fused(model, *features(model, inputs), fusion), label))


@pytest.mark.parametrize("fusion", ["concat", "gated"])
@pytest.mark.parametrize(
    ("name", "flags", "weights"),
    [
        ("joint_uni", [], (1, 1, 1)),
        ("joint_uni", ["--joint_uni_weight", 2], (1, 2, 2)),
        ("gblend", [], (0.2, 0.5, 0.3)),
        ("relearn", ["--relearn_unimodal", 0.5], (1, 0.5, 0.5)),
    ],
)
def test_weighted_losses_with_own_heads(name, flags, weights, fusion):
    model, method = rule(name, *flags, fusion=fusion)
    inputs, label = batch()
    outputs = method.step(model, inputs, label)
    a, v = features(model, inputs)
    apart = [F.cross_entropy(logits, label) for logits in (fused(model, a, v, fusion), *own(model, a, v))]
    parts = [gradients(model, loss) for loss in apart]
    expected = {name: sum(w * part[name] for w, part in zip(weights, parts, strict=True)) for name in parts[0]}
    assert_gradients(model, expected)
    assert list(outputs) == ["fused", "audio", "visual"]
    torch.testing.assert_close([output.loss for output in outputs.values()], apart)
    wrong = (own(model, a, v)[0].softmax(1) - F.one_hot(label, CLASSES)).detach()
    head = model.fusion_module.audio_head.weight
    torch.testing.assert_close(head.grad, weights[1] * wrong.T @ a.detach() / len(label))


def test_weights_1_0_0_are_joint_training_to_the_bit():
    (model, method), (plain, joint) = rule("gblend"), rule("joint")
    method.weights = 1, 0, 0
    plain.fusion_module.load_state_dict(model.fusion_module.joint.state_dict())
    for m, r in ((model, method), (plain, joint)):
        r.step(m, *batch())
    for (name, p), q in zip(plain.named_parameters(), model.parameters(), strict=False):
        assert torch.equal(p.grad, q.grad), name
    assert not model.fusion_module.audio_head.weight.grad.any()


def test_blending_weights():
    """Check O .5, 1, .3 and G .5, .5, .2: weights .42353, .10588, .47059; in other units they are the same."""
    for scale in (1, 7):
        found = {}
        for method, o, g in (("joint", 0.5, 0.5), ("audio", 1, 0.5), ("visual", 0.3, 0.2)):
            end = 2 - g
            found[method] = (2 * scale, 2 * scale), ((end - o) * scale, end * scale)
        assert gblend.blended(found) == pytest.approx([0.42353, 0.10588, 0.47059], abs=1e-5)
    worse = {method: ((1, 1), (0.5, 2)) for method in ("joint", "audio", "visual")}
    assert gblend.blended(worse) == [1 / 3] * 3
    assert gblend.blended(worse | {"audio": ((1, 1), (0.5, 0.5))}) == [0, 1, 0]


def encoder_of(gradients, net):
    return torch.cat([g.flatten() for name, g in gradients.items() if name.startswith(net)])


@pytest.mark.parametrize("rescale", ["encoder", "tensor"])
@pytest.mark.parametrize("conflict", [False, True])
def test_mmpareto(conflict, rescale):
    model, method = rule("mmpareto", "--mmpareto_gamma", 1.3, "--mmpareto_rescale", rescale)
    (inputs, label), joint = batch(), model.fusion_module.joint.fc_out.weight
    with torch.no_grad():  # heads alike or opposite: gradients agree, or are in conflict
        for head, part in (
            (model.fusion_module.audio_head, joint[:, :512]),
            (model.fusion_module.visual_head, joint[:, 512:]),
        ):
            head.weight.copy_(-0.5 * part if conflict else part)
            head.bias.zero_()
    method.step(model, inputs, label)
    a, v = features(model, inputs)
    l_m, l_a, l_v = (F.cross_entropy(each, label) for each in (fused(model, a, v), *own(model, a, v)))
    expected = gradients(model, l_m + l_a + l_v)  # of the heads
    for net, loss in (("audio_net", l_a), ("visual_net", l_v)):
        of_m, of_u = (gradients(model, each) for each in (l_m, loss))
        g_m, g_u = encoder_of(of_m, net), encoder_of(of_u, net)
        assert (g_m @ g_u > 0) != conflict
        c = (((g_u - g_m) @ g_u) / (g_m - g_u).square().sum()).item() if conflict else 0.5
        nearby = torch.tensor([c + step for step in (-1e-3, 0, 1e-3)], dtype=torch.float64).unsqueeze(1)
        lengths = (nearby * g_m + (1 - nearby) * g_u).norm(dim=1)
        assert not conflict or lengths.argmin() == 1
        h = {name: 2 * c * of_m[name] + 2 * (1 - c) * of_u[name] for name in of_m if name.startswith(net)}
        for name in h:
            whole = name if rescale == "tensor" else net
            plain = encoder_of({n: of_m[n] + of_u[n] for n in of_m}, whole).norm()
            expected[name] = 1.3 * max(1, plain / encoder_of(h, whole).norm()) * h[name]
        grad = encoder_of({name: p.grad for name, p in model.named_parameters()}, net)
        if rescale == "encoder":
            assert grad.norm().item() == pytest.approx(1.3 * (g_m + g_u).norm().item(), rel=1e-9)
            if conflict:
                assert (grad @ g_m).item() == pytest.approx((grad @ g_u).item(), rel=1e-6) and grad @ g_m > 0
    assert_gradients(model, expected)


def test_mmpareto_in_numbers():
    _, method = rule("mmpareto", "--mmpareto_gamma", 1)
    g_m, g_u = ([torch.tensor(values, dtype=torch.float64)] for values in ((2.0, 0.0), (-1.0, 1.0)))
    (combined,) = method.combined(g_m, g_u)  # c 0.4: h / 2 is (0.2, 0.6)
    torch.testing.assert_close(combined / combined.norm(), torch.tensor([0.2, 0.6], dtype=torch.float64) / 0.4**0.5)
    assert combined.norm().item() == pytest.approx(2**0.5)  # as long as (1, 1)


@pytest.mark.parametrize("fusion", ["concat", "gated"])
def test_umt(fusion):
    model, method = rule("umt", "--umt_lambda", 10, fusion=fusion)
    inputs, label = batch()
    method.step(model, inputs, label)
    a, v = features(model, inputs)
    with torch.no_grad():
        a_t, v_t = (teacher.encode(name, inputs[name]) for name, teacher in method.teachers.items())
    border = {"a": 10 * 2 * (a - a_t) / (512 * 4), "v": 10 * 2 * (v - v_t) / (512 * 4)}
    loss = F.cross_entropy(fused(model, a, v, fusion), label)
    expected = gradients(model, (loss, a, v), (None, border["a"].detach(), border["v"].detach()))
    assert_gradients(model, expected)
    assert all(
        p.grad is None and not teacher.training for teacher in method.teachers.values() for p in teacher.parameters()
    )
    assert not any("teacher" in name for name in model.state_dict())


@pytest.mark.parametrize("way", ["lambda 0", "teachers are students"])
def test_umt_that_is_joint_training(way):
    model, method = rule("umt", "--umt_lambda", 0 if way == "lambda 0" else 10)
    if way != "lambda 0":
        model.eval()  # as the teachers are
        for teacher in method.teachers.values():
            own = {name: value for name, value in model.state_dict().items() if name in teacher.state_dict()}
            teacher.double().load_state_dict(own | {n: v for n, v in teacher.state_dict().items() if "fusion" in n})
    method.step(model, *batch())
    assert_gradients(model, joint_gradients(model, batch()))


def shifted(model, by):
    """Move every encoder weight."""
    with torch.no_grad():
        for net in (model.audio_net, model.visual_net):
            for parameter in net.parameters():
                parameter += by


@pytest.mark.parametrize(
    ("leader", "fusion"), [("audio", "concat"), ("visual", "concat"), ("audio", "gated"), ("visual", "gated")]
)
def test_inforeg_regulates_who_leads(leader, fusion):
    model, method = rule("inforeg", fusion=fusion)
    inputs, label = batch()
    whole_step(model, method, inputs, label)
    assert_gradients(model, joint_gradients(model, (inputs, label), fusion))  # w = w_start
    model.zero_grad()
    shifted(model, 0.1)
    method.traces = [[1.0, 1.0], [1.05, 1.05]]
    own_logits = dict(zip(("audio", "visual"), alone(model, *features(model, inputs), fusion), strict=True))
    other = {"audio": "visual", "visual": "audio"}[leader]
    label = labels_that_favour(own_logits[leader], own_logits[other])
    lead = likely(own_logits[leader], label).log().mean() - likely(own_logits[other], label).log().mean()
    assert lead > 0
    whole_step(model, method, inputs, label)
    expected = joint_gradients(model, (inputs, label), fusion)
    for name in expected:
        if name.startswith(leader):
            expected[name] = expected[name] + 0.1 * math.exp(0.9 * math.tanh(lead.item()))
    assert_gradients(model, expected)


def test_inforeg_in_numbers(monkeypatch):
    model, method = rule("inforeg")
    for traces, inside in (([1.0, 1.05], True), ([1.0, 1.03], False), ([1.0], False)):
        method.traces = [[trace, trace] for trace in traces]
        assert method.windows(model) == [inside, inside]
    method.traces = [[1.0, 1.0], [1.05, 1.05]]
    shifted(model, 0.1)
    scores = iter((torch.tensor(-0.2), torch.tensor(-0.7)))  # Delta_a 0.5
    monkeypatch.setattr("methods.inforeg.batch_mean", lambda _: next(scores))
    whole_step(model, method, *batch())
    expected = joint_gradients(model, batch())
    for name in expected:
        if name.startswith("audio"):
            expected[name] = expected[name] + 0.1 * 1.515743
    assert_gradients(model, expected)


def test_inforeg_takes_the_epochs_mean_of_squared_gradients():
    model, method = rule("inforeg")
    squares = []
    for seed in range(3):
        model.zero_grad()
        whole_step(model, method, *batch(4 + seed))
        squares.append(
            [sum(p.grad.square().sum() for p in net.parameters()) for net in (model.audio_net, model.visual_net)]
        )
    method.begin_epoch(1, model, {}, CPU)
    assert method.traces[0] == pytest.approx(torch.tensor(squares).mean(dim=0).tolist())
    assert method.batches == 0 and not method.sums.any()


def test_inforeg_with_unimodal_losses():
    model, method = rule("inforeg", "--inforeg_unimodal", 1)
    inputs, label = batch()
    whole_step(model, method, inputs, label)
    a, v = features(model, inputs)
    losses = [F.cross_entropy(logits, label) for logits in (fused(model, a, v), *own(model, a, v))]
    assert_gradients(model, gradients(model, sum(losses)))


def evaluating(net):
    """Return the small encoder in evaluation, with its current running statistics, as a function."""
    layers = [
        partial(F.batch_norm, running_mean=layer.running_mean.clone(), running_var=layer.running_var.clone(),
                weight=layer.weight, bias=layer.bias) if isinstance(layer, torch.nn.BatchNorm2d) else layer
        for layer in net
    ]  # fmt: skip
    return lambda x: reduce(lambda value, layer: layer(value), layers, x)


def subset_logits(model, inputs, fusion, mask):
    """Return T, A, V with graphs; the running statistics are those that the step left."""
    evaluated = SimpleNamespace(audio_net=evaluating(model.audio_net), visual_net=evaluating(model.visual_net))
    a_none, v_none = features(evaluated, {name: torch.zeros_like(x) for name, x in inputs.items()})
    a_heard, v_seen = features(evaluated, inputs)
    a, v = features(model, inputs)
    if mask == "shared":
        a_heard, v_seen = a, v
    return fused(model, a, v, fusion), fused(model, a_heard, v_none, fusion), fused(model, a_none, v_seen, fusion)


@pytest.mark.parametrize("mask", ["shared", "passes"])
@pytest.mark.parametrize("fusion", ["concat", "gated"])
@pytest.mark.parametrize("leader", ["audio", "visual"])
def test_agm(fusion, mask, leader):
    model, method = rule("agm", "--agm_alpha", 2, "--agm_mask", mask, fusion=fusion)
    inputs, label = batch()
    method.means, method.batches = torch.tensor([1.0, 1.1], dtype=torch.float64), 7
    method.step(model, inputs, label)  # so that running statistics are no longer the initial ones
    model.zero_grad()
    method.means = torch.tensor([1.0, 1.1], dtype=torch.float64)
    T, A, V = subset_logits(model, inputs, fusion, mask)
    m = (T + A - V) / 2, (T - A + V) / 2
    label = labels_that_favour(*(m if leader == "audio" else m[::-1]))
    outputs = method.step(model, inputs, label)
    T, A, V = subset_logits(model, inputs, fusion, mask)
    m = (T + A - V) / 2, (T - A + V) / 2
    torch.testing.assert_close(sum(m), T)
    s_a, s_v = (-likely(each, label).log().mean().item() for each in m)
    assert (s_a < s_v) == (leader == "audio")
    kappa_a = math.exp(2 * min(math.exp(0.1) - math.exp(s_v - s_a), 10))
    kappa_v = math.exp(2 * min(math.exp(-0.1) - math.exp(s_a - s_v), 10))
    g = (T.softmax(1) - F.one_hot(label, CLASSES)).detach() / len(label)
    weights = (kappa_a + kappa_v) / 2 * g, (kappa_a - kappa_v) / 2 * g, (kappa_v - kappa_a) / 2 * g
    assert_gradients(model, gradients(model, (T, A, V), weights))
    torch.testing.assert_close(outputs["fused"].logits, T)
    for name, each in zip(("audio", "visual"), m, strict=True):
        torch.testing.assert_close(outputs[name].logits, each)
        torch.testing.assert_close(outputs[name].loss, F.cross_entropy(each, label))
    torch.testing.assert_close(method.means, torch.tensor([(8 * 1.0 + s_a) / 9, (8 * 1.1 + s_v) / 9]).double())


@pytest.mark.parametrize("mask", ["shared", "passes"])
@pytest.mark.parametrize("flags", [("--agm_alpha", 0), ("--agm_ends", 3)])
def test_agm_that_is_joint_training(mask, flags):
    model, method = rule("agm", "--agm_mask", mask, *flags)
    method.epoch = 4
    method.means = torch.tensor([1.0, 2.0])
    method.step(model, *batch())
    assert_gradients(model, joint_gradients(model, batch()))
    assert method.batches == 1


def test_agm_in_numbers(monkeypatch):
    _, method = rule("agm", "--agm_alpha", 2)
    method.means, scores = torch.tensor([1.0, 1.1]), iter((torch.tensor(1.0), torch.tensor(1.2)))
    monkeypatch.setattr("methods.agm.batch_mean", lambda _: next(scores))
    kappa = method.coefficients((torch.zeros(1, 2),) * 2, torch.zeros(1, dtype=torch.int64))
    assert kappa.tolist() == pytest.approx([0.792579, 1.187931], abs=1e-5)


def pmr_terms(model, method, inputs, label):
    """Return features, log p and rho by the equations."""
    found = features(model, inputs)
    log_p = []
    for feature, centres in zip(found, method.prototypes.values(), strict=True):
        distance = torch.stack([(feature - centre).square().sum(1).sqrt() for centre in centres], dim=1)
        log_p.append((-distance).log_softmax(1))
    score = [sum(rows[i, k].exp() for i, k in enumerate(label)).item() for rows in log_p]
    return found, log_p, score[0] / score[1]


@pytest.mark.parametrize("fusion", ["concat", "gated"])
@pytest.mark.parametrize("slower", ["audio", "visual"])
@pytest.mark.parametrize("way", ["paper", "without entropy", "code", "after its window"])
def test_pmr(slower, way, fusion):
    flags = ["--pmr_rule", "code" if way == "code" else "paper", "--pmr_ends", 20]
    model, method = rule("pmr", "--pmr_alpha", 2, "--pmr_mu", 0.3, *flags, fusion=fusion)
    method.epoch = {"paper": 9, "without entropy": 10, "code": 0, "after its window": 21}[way]
    inputs, label = batch()
    found, log_p, _ = pmr_terms(model, method, inputs, label)
    method.prototypes = {
        name: torch.lerp(feature.detach()[:1], centres, 0.5)
        for feature, (name, centres) in zip(found, method.prototypes.items(), strict=True)
    }
    _, log_p, _ = pmr_terms(model, method, inputs, label)
    label = labels_that_favour(*(log_p[::-1] if slower == "audio" else log_p))
    (a, v), log_p, rho = pmr_terms(model, method, inputs, label)
    assert (rho < 1) == (slower == "audio")
    beta, gamma = min(max(1 / rho - 1, 0), 1), min(max(rho - 1, 0), 1)
    if way == "code":
        beta, gamma = float(rho < 1), float(rho > 1)
    method.step(model, inputs, label)
    loss = F.cross_entropy(fused(model, a, v, fusion), label)
    if way != "after its window":
        pce = [-sum(rows[i, k] for i, k in enumerate(label)) / len(label) for rows in log_p]
        loss = loss + 2 * (beta * pce[0] + gamma * pce[1])
    if way == "paper":
        h = [-(rows.exp() * rows).sum() / len(label) for rows in log_p]
        loss = loss - 0.3 * (gamma * h[0] + beta * h[1])
    assert_gradients(model, gradients(model, loss))


def test_pmr_in_numbers():
    model, method = rule("pmr")
    for rho, expected in ((1.0, [0, 0]), (0.25, [1, 0]), (1.5, [0, 0.5]), (0.8, [0.25, 0])):
        helps, holds = method.coefficients(torch.tensor([rho, 1.0]))
        assert helps.tolist() == pytest.approx(expected) and holds.tolist() == pytest.approx(expected[::-1])
    method.settings.pmr_rule = "code"
    for rho, expected in ((1.0, [0, 1]), (0.25, [1, 0]), (1.5, [0, 1])):
        assert method.coefficients(torch.tensor([rho, 1.0]))[0].tolist() == expected
    equal = method.log_probabilities(torch.zeros(1, 512), torch.eye(CLASSES, 512))
    torch.testing.assert_close(equal, torch.full((1, CLASSES), -math.log(CLASSES)))
    assert statistics.entropy(equal).item() == pytest.approx(math.log(CLASSES))
    at = torch.eye(CLASSES, 512)[:1].requires_grad_()  # at a prototype, where the distance has no gradient
    method.log_probabilities(at, torch.eye(CLASSES, 512))[0, 0].backward()
    assert at.grad.isfinite().all()
    method.present[2] = False
    without = method.log_probabilities(torch.zeros(1, 512), torch.eye(CLASSES, 512)).exp()
    assert without[0, 2] == 0 and without[0, 0].item() == pytest.approx(1 / (CLASSES - 1))


def test_pmr_that_is_joint_training():
    model, method = rule("pmr", "--pmr_alpha", 0, "--pmr_mu", 0)
    method.step(model, *batch())
    assert_gradients(model, joint_gradients(model, batch()))


def test_pmr_prototypes_are_class_means_in_evaluation():
    model, method = rule("pmr", "--pmr_momentum", 0.25)
    method.prototypes = None
    inputs, _ = batch(12)
    label = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3, 3, 4, 4, 4])
    loaders = loaders_of(inputs, label)
    method.begin_epoch(0, model, loaders, CPU)
    first = method.prototypes["audio"]
    model.eval()
    a, v = (each.detach() for each in features(model, inputs))
    for centres, feature in zip(method.prototypes.values(), (a, v), strict=True):
        for k in (0, 1, 3, 4):
            torch.testing.assert_close(centres[k], feature[label == k].mean(0))
    assert method.present.tolist() == [True, True, False, True, True]
    shifted(model, 0.01)
    model.eval()
    a, _ = features(model, inputs)
    method.begin_epoch(1, model, loaders, CPU)
    torch.testing.assert_close(method.prototypes["audio"][3], (0.25 * first[3] + 0.75 * a[label == 3].mean(0)).detach())


def test_a_tenth_of_every_class():
    clips = loaders_of(batch()[0], torch.tensor([0] * 230 + [1] * 50 + [2] * 3))["train"].dataset.clips
    drawn = clip_features.drawn_of_each_class(clips, 0.1, 10, seed=0)
    counts = torch.bincount(torch.tensor([clips[k].label for k in drawn]))
    assert counts.tolist() == [23, 10, 3] and drawn == sorted(set(drawn))
    assert drawn != clip_features.drawn_of_each_class(clips, 0.1, 10, seed=1)


def test_mla_alternates_and_projects():
    """Compute both updates of a batch by hand, with plain steps of 0.1, from a projection other than the identity."""
    (model, method), (expected, _) = rule("mla"), rule("mla")
    expected.load_state_dict(model.state_dict())
    torch.manual_seed(3)
    seen = torch.rand(512, dtype=torch.float64)
    P = torch.eye(512, dtype=torch.float64) - torch.outer(seen, seen) / (0.1 + seen @ seen)
    method.projection, method.batch, method.batches = P.clone(), 3, 6
    inputs, label = batch()
    taken = []
    for outputs in method.steps(model, inputs, label):
        learning = [name for name in model.modalities if next(model.encoder(name).parameters()).grad is not None]
        taken.append((learning, list(outputs)))
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= 0.1 * p.grad
                    p.grad = None
    assert taken == [(["audio"], ["audio"]), (["visual"], ["fused", "audio", "visual"])]
    head = expected.fusion_module.head
    for k, net in enumerate((expected.audio_net, expected.visual_net)):
        feature = features(expected, inputs)[k]
        loss = F.cross_entropy(feature @ head.weight.T + head.bias, label)
        torch.testing.assert_close(outputs[model.modalities[k]].loss, loss)
        parameters = [*net.parameters(), head.weight, head.bias]
        P = mla_half_step(loss, parameters, feature, P)
    assert_same_parameters(model, expected)
    torch.testing.assert_close(method.projection, P)


def test_mla_without_projection_is_plain_alternation():
    model, method = rule("mla", "--mla_projection", "off")
    inputs, label = batch()
    a, v = features(model, inputs)
    logits = [F.linear(each, model.fusion_module.head.weight, model.fusion_module.head.bias) for each in (a, v)]
    expected = [gradients(model, F.cross_entropy(each, label)) for each in logits]
    for outputs in method.steps(model, inputs, label):
        assert_gradients(model, expected.pop(0))
        assert outputs["audio"].logits.shape == (len(label), CLASSES)
        model.zero_grad()
    assert not expected
    weights = torch.stack([-(each.softmax(1) * each.log_softmax(1)).sum(1) for each in logits]).neg().softmax(0)
    both = weights[0].unsqueeze(1) * logits[0] + weights[1].unsqueeze(1) * logits[1]
    torch.testing.assert_close(outputs["fused"].loss, F.cross_entropy(both, label))
    torch.testing.assert_close(model.fusion_module.fuse({"audio": a, "visual": v}), both)
    assert torch.equal(method.projection, torch.eye(512))


def test_mla_in_numbers():
    """Check that the projection is (I + sum of r r^T / alpha)^-1, and that certain logits count for more."""
    model, method = rule("mla")
    method.projection, method.batches = torch.eye(512, dtype=torch.float64), math.inf  # alpha is 0.1
    weight, inverse = model.fusion_module.head.weight, torch.eye(512, dtype=torch.float64)
    torch.manual_seed(0)
    for number in range(3):
        weight.grad, mean = torch.zeros_like(weight), torch.rand(512, dtype=torch.float64)
        method.project(weight, mean)
        inverse += torch.outer(mean, mean) / 0.1
        torch.testing.assert_close(method.projection, torch.linalg.inv(inverse))
        if number == 0:
            torch.testing.assert_close(method.projection @ mean, 0.1 / (0.1 + mean @ mean) * mean)
    sure, unsure = torch.tensor([[0.9, 0.05, 0.05]]).log(), torch.zeros(1, 3)
    torch.testing.assert_close(statistics.by_certainty(sure, unsure), 0.669122 * sure + 0.330878 * unsure)
    torch.testing.assert_close(statistics.by_certainty(sure, sure), sure)


def js_code(p, q):
    m = (p + q) / 2
    return ((m * (m / p).log()).sum(1) + (m * (m / q).log()).sum(1)).mean() / 2


def nce(x, y, tau):
    """Return the symmetric InfoNCE of two modalities' features by its equation."""
    cosine = torch.stack([F.cosine_similarity(each.unsqueeze(0), y) for each in x]) / tau
    log_p, log_q = cosine.log_softmax(1), cosine.log_softmax(0)
    return -sum(log_p[i, i] + log_q[i, i] for i in range(len(x))) / (2 * len(x))


@pytest.mark.parametrize("match", ["infonce", "code"])
@pytest.mark.parametrize(
    ("flags", "epoch", "weight"),
    [((), 0, 0.632121), ((), 2, 1 - math.exp(-1 / 3)), ((), 99, 0.00995), (("--lfm_weights", "fitted"), 10, 1 - 0.253)],
)
def test_lfm(flags, epoch, weight, match):
    model, method = rule("lfm", *flags, *([] if match == "infonce" else ["--lfm_match", match]))
    method.epoch = epoch
    inputs, label = batch()
    outputs = method.step(model, inputs, label)
    a, v = features(model, inputs)
    o_a, o_v = own(model, a, v)
    loss = F.cross_entropy(0.5 * o_a + 0.5 * o_v, label)
    assert method.weight() == pytest.approx(weight, abs=1e-5)
    weight = method.weight()
    matching = nce(a, v, 0.1) if match == "infonce" else js_code(o_a.softmax(1), o_v.softmax(1))
    assert_gradients(model, gradients(model, (1 - weight) * loss + weight * matching))
    torch.testing.assert_close(outputs["fused"].loss, loss)
    a, v = features(model.eval(), inputs)
    assert torch.equal(model.fusion_module.fuse({"audio": a, "visual": v}), sum(own(model, a, v)) / 2)


def test_divergence_in_numbers():
    torch.manual_seed(0)
    x, y = torch.randn(2, 6, CLASSES, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(lfm.divergence(x, y), lfm.divergence(y, x))
    torch.testing.assert_close(lfm.divergence(x, x + 3), torch.zeros((), dtype=torch.float64))
    (gradient,) = torch.autograd.grad(lfm.divergence(x, x.detach()), x)
    assert gradient.abs().max() < 1e-12


def test_relearning_is_joint_training_within_an_epoch():
    model, method = rule("relearn")
    method.step(model, *batch())
    assert_gradients(model, joint_gradients(model, batch()))


def test_relearning_goes_back_by_the_gap_in_purity(monkeypatch):
    model, method = rule("relearn", "--relearn_every", 5, "--relearn_times", 2)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    loaders = loaders_of(*batch())
    found = iter([0.9, 0.7, 0.5, 0.5] * 2)  # training and held-out clips of audio, then of video
    monkeypatch.setattr("methods.relearn.purity", lambda *_: next(found))
    for epoch in range(17):
        shifted(model, 0.5)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        method.begin_epoch(epoch, model, loaders, CPU)
        moved = epoch in (6, 11)
        assert method.row() == {"relearn_audio": pytest.approx(0.537050 if moved else 0, abs=1e-6), "relearn_visual": 0}
        parameters = dict(model.named_parameters())
        for name, value in model.state_dict().items():
            alpha = 0.5370496 if moved and name in parameters and name.startswith("audio_net") else 0
            torch.testing.assert_close(
                value, ((1 - alpha) * before[name] + alpha * start[name]).to(value), rtol=1e-6, atol=1e-6
            )
            assert alpha or torch.equal(value, before[name])
    method.strengths = {"audio": 1.0, "visual": 1.0}
    method.relearn(model)
    assert all(torch.equal(p, start[name]) for name, p in model.named_parameters() if "net" in name)


def test_purity_in_numbers():
    import numpy as np

    label = np.array([0, 0, 1, 1, 2])
    assert clip_features.of_clusters(label, np.array([1, 1, 0, 0, 0])) == 0.8
    torch.manual_seed(0)
    centres, label = 10 * torch.randn(3, 512), torch.arange(3).repeat(7)
    features_of_clips = centres[label] + torch.randn(21, 512)
    assert clip_features.purity(features_of_clips, label, 3) == 1
    assert clip_features.purity(features_of_clips, torch.arange(21) // 7, 3) < 0.7
    assert clip_features.purity(features_of_clips[:2], label[:2], 3) == 1  # fewer clips than classes


def test_features_in_evaluation_in_the_order_of_the_numbers():
    model = small_model().double().train()
    inputs, label = batch(7)
    dataset = loaders_of(inputs, label)["train"].dataset
    found, labels = clip_features.features_of(model, dataset, 2, CPU, [6, 1, 3])
    assert not model.training
    order = [1, 3, 6]
    assert torch.equal(labels, label[order]) and list(found) == ["audio", "visual"]
    for feature, expected in zip(found.values(), features(model, inputs), strict=True):
        torch.testing.assert_close(feature, expected[order].detach())

"""Check the gradients of every method with three modalities against its rule, written out with torch.autograd.grad.

The model is a Toy in float64. Labels are searched for with which a method's condition holds or does not.
"""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from methods import agm
from models.fusion_modules import LinearClassifier
from tests.rules import TOY_BATCH as BATCH
from tests.rules import TOY_CLASSES as CLASSES
from tests.rules import TOY_DIM as DIM
from tests.rules import (
    WIDTHS,
    assert_gradients,
    assert_same_parameters,
    gradients,
    mla_half_step,
    toy,
    toy_batch,
    toy_logits,
    toy_rule,
    toy_written_out,
    whole_step,
)
from tests.test_dgl_step import linear

CPU = torch.device("cpu")
SOME = ["a", "v", "t", "av", "at", "vt"]  # sets of modalities for which a condition holds


def features_of(model, inputs):
    return {name: model.encode(name, x) for name, x in inputs.items()}


def labels_where(holds):
    """Return the first labels (B,) for which `holds` is true."""
    for label in product(range(CLASSES), repeat=BATCH):
        if holds(torch.tensor(label)):
            return torch.tensor(label)
    raise AssertionError("there are no such labels")


def of_encoder(model, found, name):
    """Return the gradients of an encoder from {parameter name: gradient}, as one vector."""
    return torch.cat([found[each].flatten() for each, _ in named_encoder(model, name)])


def named_encoder(model, name):
    """Return the names and parameters of an encoder, as the model names them."""
    return [(f"encoders.{name}.{each}", p) for each, p in model.encoder(name).named_parameters()]


def with_biases(model, times=3):
    """Draw the biases of a fusion module, so that it matters how they are counted, and enlarge its weights."""
    with torch.no_grad():
        for name, parameter in model.fusion_module.named_parameters():
            parameter.copy_(torch.randn_like(parameter) if name.endswith("bias") else times * parameter)
    return model


def joint_gradients(model, inputs, label, fusion="concat"):
    return gradients(model, toy_written_out(model, fusion, inputs, label)[1]["fused"])


def own_losses(model, inputs, label):
    """Return the losses of a model with heads of their own by the formulas, {branch: ()}."""
    z, weights = features_of(model, inputs), dict(model.fusion_module.named_parameters())
    logits = {"fused": linear(weights, "joint.fc_out", torch.cat([*z.values()], dim=1))}
    logits |= {name: linear(weights, f"{name}_head", each) for name, each in z.items()}
    return {branch: F.cross_entropy(each, label) for branch, each in logits.items()}


# Joint training, and settings at which a method is joint training


JOINT = {  # method, flags, epoch
    "joint": ("joint", [], 0),
    "relearn": ("relearn", [], 0),
    "ogm of strength 0": ("ogm", ["--ogm_alpha", 0], 0),
    "ogm of strength 0, journal": ("ogm", ["--ogm_alpha", 0, "--ogm_rule", "journal"], 0),
    "ogm before its window": ("ogm", ["--ogm_alpha", 0.8, "--modulation_starts", 3], 2),
    "ogm after its window": ("ogm", ["--ogm_alpha", 0.8, "--ogm_rule", "journal", "--modulation_ends", 3], 4),
    "ogm_ge after its window": ("ogm_ge", ["--modulation_ends", 3], 4),
    "agm of strength 0": ("agm", ["--agm_alpha", 0], 0),
    "agm of strength 0, passes": ("agm", ["--agm_alpha", 0, "--agm_mask", "passes"], 0),
    "agm after its window": ("agm", ["--agm_alpha", 2, "--agm_ends", 3], 4),
    "pmr of weights 0": ("pmr", ["--pmr_alpha", 0, "--pmr_mu", 0], 0),
    "pmr after its window": ("pmr", ["--pmr_ends", 3], 4),
    "umt of weight 0": ("umt", ["--umt_lambda", 0], 0),
    "inforeg in its first step": ("inforeg", [], 0),
}


@pytest.mark.parametrize("fusion", ["concat", "sum"])
@pytest.mark.parametrize("way", JOINT)
def test_joint_training(way, fusion):
    name, flags, epoch = JOINT[way]
    model, method = toy_rule(name, *flags, fusion=fusion)
    with_biases(model)
    method.epoch = epoch
    if name == "agm":
        method.means = torch.tensor([1.0, 1.3, 1.6])
    inputs, label = toy_batch()
    outputs = whole_step(model, method, inputs, label)
    logits, losses = toy_written_out(model, fusion, inputs, label)
    assert_gradients(model, gradients(model, losses["fused"]))
    for branch in ("fused",) if name == "agm" else model.branches:
        torch.testing.assert_close(outputs[branch].logits, logits[branch])
        torch.testing.assert_close(outputs[branch].loss, losses[branch])


def test_teachers_that_are_the_students_make_joint_training():
    model, method = toy_rule("umt")
    method.teachers = dict.fromkeys(model.modalities, toy()[0])
    inputs, label = toy_batch()
    whole_step(model, method, inputs, label)
    assert_gradients(model, joint_gradients(model, inputs, label))


@pytest.mark.parametrize("name", WIDTHS)
def test_one_modality(name):
    model, method = toy("joint")
    model.modalities, model.branches = (name,), ("fused", name)
    model.fusion_module = LinearClassifier(CLASSES, DIM, (name,)).double()
    inputs, label = toy_batch()
    _, method = toy("audio")
    outputs = method.step(model, inputs, label)
    z, head = model.encode(name, inputs[name]), model.fusion_module
    loss = F.cross_entropy(z @ head.weight.T + head.bias, label)
    assert_gradients(model, gradients(model, loss))
    assert list(outputs) == ["fused", name] and all(output.loss == loss for output in outputs.values())


# Weighted losses, each modality with a head of its own


WEIGHTED = [
    ("joint_uni", [], (1, 1, 1, 1)),
    ("joint_uni", ["--joint_uni_weight", 2.5], (1, 2.5, 2.5, 2.5)),
    ("joint_uni", ["--joint_uni_weight", 0], (1, 0, 0, 0)),  # joint training
    ("gblend", ["--gblend_weights", "0.4,0.3,0.2,0.1"], (0.4, 0.3, 0.2, 0.1)),
    ("gblend", ["--gblend_weights", "1,0,0,0"], (1, 0, 0, 0)),  # joint training
    ("relearn", ["--relearn_unimodal", 0.7], (1, 0.7, 0.7, 0.7)),
    ("inforeg", ["--inforeg_unimodal", 0.7], (1, 0.7, 0.7, 0.7)),
]


@pytest.mark.parametrize(("name", "flags", "weights"), WEIGHTED)
def test_weighted_losses_with_own_heads(name, flags, weights):
    model, method = toy_rule(name, *flags)
    inputs, label = toy_batch()
    outputs = whole_step(model, method, inputs, label)
    losses = own_losses(model, inputs, label)
    loss = sum(weight * each for weight, each in zip(weights, losses.values(), strict=True))
    assert_gradients(model, gradients(model, loss))
    assert list(outputs) == list(losses)
    for branch, each in losses.items():
        torch.testing.assert_close(outputs[branch].loss, each)


# OGM, OGM-GE


def rho_of(logits, label, shared):
    """Return rho of every modality by its equation."""
    S = {name: (logits[name] - shared).softmax(1)[range(BATCH), label].sum().item() for name in WIDTHS}
    return {name: sum(S[name] / S[other] for other in S if other != name) / 2 for name in S}


@pytest.mark.parametrize("fusion", ["concat", "sum"])
@pytest.mark.parametrize("slowed", SOME)
@pytest.mark.parametrize(
    ("rule", "alpha"),
    [("cvpr", 0.6), ("journal", 0.6), ("journal", 20)],
    ids=["cvpr", "journal", "journal, at least 0"],
)
@pytest.mark.parametrize("name", ["ogm", "ogm_ge"])
def test_ogm(name, rule, alpha, slowed, fusion, monkeypatch):
    """Check k_u on the convolutions of encoder u; the noise of OGM-GE, drawn as 1 here, adds the deviation."""
    model, method = toy_rule(name, "--ogm_alpha", alpha, "--ogm_rule", rule, fusion=fusion)
    with_biases(model)
    monkeypatch.setattr(torch, "randn_like", lambda tensor, **_: torch.ones_like(tensor))
    inputs, _ = toy_batch()
    shared = 2 / 3 * model.fusion_module.fc_out.bias.detach() if fusion == "concat" else 0  # so that b / 3 is left
    logits, _ = toy_written_out(model, fusion, inputs, torch.zeros(BATCH, dtype=torch.int64))
    logits = {branch: each.detach() for branch, each in logits.items()}

    def holds(label):
        rho = rho_of(logits, label, shared)
        return {each for each in rho if rho[each] > 1} == set(slowed) and all(rho[each] > 1.1 for each in slowed)

    label = labels_where(holds)
    whole_step(model, method, inputs, label)
    expected, k = joint_gradients(model, inputs, label, fusion), {}
    for each, rho in rho_of(logits, label, shared).items():
        slower = max(1 - alpha * math.tanh(rho - 1), 0) if rule == "journal" else 1 - math.tanh(alpha * rho)
        k[each] = slower if rho > 1 else 1
        for parameter, p in named_encoder(model, each):
            if p.dim() == 4:
                noise = expected[parameter].std() if name == "ogm_ge" else 0
                expected[parameter] = k[each] * expected[parameter] + noise
    assert {each for each in k if k[each] < 1} == set(slowed)
    assert_gradients(model, expected)


# AGM


def agm_terms(model, fusion, inputs, label):
    """Return f(all) and the Shapley values by their formulas; a masked modality is the encoder's answer to zeros."""
    zeros, f = {name: torch.zeros_like(x) for name, x in inputs.items()}, {}
    for kept in agm.subsets(WIDTHS)[1:]:
        f[kept] = toy_written_out(model, fusion, zeros | {name: inputs[name] for name in kept}, label)[0]["fused"]
    a, v, t, av, at, vt, avt = (f[frozenset(some)] for some in ("a", "v", "t", "av", "at", "vt", "avt"))
    return avt, {
        "a": (avt - vt + a) / 3 + (av - v + at - t) / 6,
        "v": (avt - at + v) / 3 + (av - a + vt - t) / 6,
        "t": (avt - av + t) / 3 + (at - a + vt - v) / 6,
    }


MEANS = (1.05, 1.0, 1.1)  # of s_u so far


def kappas_of(m, label, alpha=2):
    """Return kappa of every modality by its equations."""
    s, found = [F.cross_entropy(each, label).item() for each in m.values()], []
    for score, mean in zip(s, MEANS, strict=True):
        r, tau = math.exp(1.5 * (sum(s) / 3 - score)), math.exp(1.5 * (sum(MEANS) / 3 - mean))
        found.append(math.exp(alpha * min(tau - r, 10)))
    return found


@pytest.mark.parametrize("mask", ["shared", "passes"])
@pytest.mark.parametrize("fusion", ["concat", "sum"])
@pytest.mark.parametrize("slowed", SOME)
def test_agm(fusion, mask, slowed):
    """Check sum of kappa_u g dm_u through all masked logits, with kappa below 1 for who is further ahead than usual."""
    model, method = toy_rule("agm", "--agm_alpha", 2, "--agm_mask", mask, fusion=fusion)
    with_biases(model)
    inputs, label = toy_batch()
    _, m = agm_terms(model, fusion, inputs, label)
    m = {name: each.detach() for name, each in m.items()}

    def holds(label):
        return slowed == "".join(name for name, kappa in zip(m, kappas_of(m, label), strict=True) if kappa < 1)

    label = labels_where(holds)
    method.means, method.batches = torch.tensor(MEANS, dtype=torch.float64), 7
    outputs = whole_step(model, method, inputs, label)
    avt, m = agm_terms(model, fusion, inputs, label)
    g = (avt.softmax(1) - F.one_hot(label, CLASSES)).detach() / BATCH
    weights = [kappa * g for kappa in kappas_of(m, label)]
    assert_gradients(model, gradients(model, [*m.values()], weights))
    torch.testing.assert_close(outputs["fused"].logits, avt)
    for name, each in m.items():
        torch.testing.assert_close(outputs[name].logits, each)


@pytest.mark.parametrize(
    ("of_head", "of_encoder", "clipped"), [(0.1, 0.1, False), (0.1, 100, False), (100, 0.1, True), (100, 100, True)]
)
def test_agm_with_clipping(of_head, of_encoder, clipped):
    """Check that all gradients have a norm of 1 if an entry of the head's is above 1; `of_head` scales the features."""
    found = []
    for flags in ([], ["--agm_clip"]):
        model, method = toy_rule("agm", *flags)
        method.means, method.batches = torch.tensor(MEANS, dtype=torch.float64), 7
        with torch.no_grad():
            for name in model.modalities:
                last = model.encoder(name)[-1]
                last.weight *= of_head
                last.bias *= of_head
            model.fusion_module.fc_out.weight *= of_encoder / of_head
        whole_step(model, method, *toy_batch())
        found.append({name: p.grad for name, p in model.named_parameters()})
    plain, ours = found
    assert (max(each.abs().max() for name, each in plain.items() if "fusion" in name) > 1) == clipped
    assert (max(each.abs().max() for name, each in plain.items() if "fusion" not in name) > 1) == (of_encoder == 100)
    norm = torch.cat([each.flatten() for each in plain.values()]).norm()
    assert_gradients(model, {name: each / norm if clipped else each for name, each in plain.items()})
    assert ours.keys() == plain.keys()


# PMR


def pmr_terms(model, method, inputs, label):
    """Return log p, the S and the coefficients of every modality by their equations."""
    log_p, S = {}, {}
    for name, centres in method.prototypes.items():
        distance = (model.encode(name, inputs[name]).unsqueeze(1) - centres).square().sum(dim=2).sqrt()
        log_p[name] = (-distance).log_softmax(1)
        S[name] = log_p[name][range(BATCH), label].exp().sum().item()
    beta, c = {}, {}
    for name in S:
        others = [S[other] for other in S if other != name]
        beta[name] = sum(min(max(other / S[name] - 1, 0), 1) for other in others) / 2
        c[name] = sum(min(max(S[name] / other - 1, 0), 1) for other in others) / 2
    return log_p, S, beta, c


@pytest.mark.parametrize("order", ["avt", "atv", "vat", "vta", "tav", "tva"])
@pytest.mark.parametrize(
    ("way", "epoch", "flags"),
    [
        ("paper", 9, []),
        ("without entropy", 10, []),
        ("without entropy", 5000, []),  # no last epoch
        ("without entropy", 20, ["--pmr_ends", 20]),
        ("code", 0, ["--pmr_rule", "code"]),
    ],
)
def test_pmr(way, epoch, flags, order):
    """Check L_m + alpha sum beta_u PCE_u - mu sum c_u H_u, what is added reaching its own encoder alone."""
    model, method = toy_rule("pmr", "--pmr_alpha", 2, "--pmr_mu", 0.3, *flags)
    method.epoch, (inputs, _) = epoch, toy_batch()

    def holds(label):
        _, S, _, _ = pmr_terms(model, method, inputs, label)
        return "".join(sorted(S, key=S.get, reverse=True)) == order

    with torch.no_grad():
        label = labels_where(holds)
    whole_step(model, method, inputs, label)
    loss = toy_written_out(model, "concat", inputs, label)[1]["fused"]
    log_p, S, beta, c = pmr_terms(model, method, inputs, label)
    if way == "code":  # helped by every modality that it is behind
        beta = {name: sum(S[name] < S[other] for other in S) / 2 for name in S}
    assert beta[order[0]] == 0 == c[order[2]] and beta[order[2]] > 0 < c[order[0]]
    for name, rows in log_p.items():
        loss = loss - 2 * beta[name] * rows[range(BATCH), label].mean()
        if way == "paper":
            loss = loss + 0.3 * c[name] * (rows.exp() * rows).sum(dim=1).mean()
    assert_gradients(model, gradients(model, loss))


# MMPareto


@pytest.mark.parametrize("rescale", ["encoder", "tensor"])
@pytest.mark.parametrize("conflicts", ["", *SOME, "avt"])
def test_mmpareto(conflicts, rescale):
    model, method = toy_rule("mmpareto", "--mmpareto_gamma", 1.3, "--mmpareto_rescale", rescale)
    (inputs, label), parts = toy_batch(), model.fusion_module.joint.fc_out.weight.split(DIM, dim=1)
    with torch.no_grad():  # heads alike or opposite: gradients agree, or are in conflict
        for name, part in zip(model.modalities, parts, strict=True):
            head = getattr(model.fusion_module, f"{name}_head")
            head.weight.copy_((-0.5 if name in conflicts else 1) * part)
    outputs = whole_step(model, method, inputs, label)
    losses = own_losses(model, inputs, label)
    expected, of_m = gradients(model, sum(losses.values())), gradients(model, losses["fused"])
    for name in model.modalities:
        of_u = gradients(model, losses[name])
        g_m, g_u = of_encoder(model, of_m, name), of_encoder(model, of_u, name)
        assert (g_m @ g_u < 0) == (name in conflicts)
        c = ((g_u @ g_u - g_m @ g_u) / (g_m - g_u).square().sum()).item() if name in conflicts else 0.5
        h = {each: 2 * c * of_m[each] + 2 * (1 - c) * of_u[each] for each, _ in named_encoder(model, name)}
        for each in h:
            group = [each] if rescale == "tensor" else list(h)
            plain = torch.cat([(of_m[one] + of_u[one]).flatten() for one in group]).norm()
            expected[each] = 1.3 * max(1, plain / torch.cat([h[one].flatten() for one in group]).norm()) * h[each]
        if name in conflicts:  # no shorter vector lies between the two gradients
            lengths = [((c + step) * g_m + (1 - c - step) * g_u).norm() for step in (-1e-3, 0, 1e-3)]
            assert min(lengths) == lengths[1]
    assert_gradients(model, expected)
    for branch, loss in losses.items():
        torch.testing.assert_close(outputs[branch].loss, loss)


def test_mmpareto_without_conflict_is_the_plain_sum():
    model, method = toy_rule("mmpareto", "--mmpareto_gamma", 1)
    with torch.no_grad():
        for name, part in zip(model.modalities, model.fusion_module.joint.fc_out.weight.split(DIM, dim=1), strict=True):
            getattr(model.fusion_module, f"{name}_head").weight.copy_(part)
    inputs, label = toy_batch()
    whole_step(model, method, inputs, label)
    assert_gradients(model, gradients(model, sum(own_losses(model, inputs, label).values())))


@pytest.mark.parametrize("rescale", ["encoder", "tensor"])
@pytest.mark.parametrize("missing", ["joint", "unimodal", "both"])
def test_mmpareto_where_a_loss_does_not_reach_an_encoder(missing, rescale):
    """Check a step in which g_m, g_u or both of one encoder are 0: gradient gamma g_u, gamma g_m or 0."""
    model, method = toy_rule("mmpareto", "--mmpareto_gamma", 1.3, "--mmpareto_rescale", rescale)
    heads, (inputs, label) = model.fusion_module, toy_batch()
    with torch.no_grad():
        if missing != "unimodal":
            heads.joint.fc_out.weight[:, DIM : 2 * DIM] = 0
        if missing != "joint":
            heads.v_head.weight.zero_()
    whole_step(model, method, inputs, label)
    losses = own_losses(model, inputs, label)
    expected = gradients(model, 1.3 * (losses["fused"] + losses["v"]))
    for name, parameter in named_encoder(model, "v"):
        assert (parameter.grad != 0).any() == (missing != "both")
        torch.testing.assert_close(parameter.grad, expected[name])


# MLA


@pytest.mark.parametrize("projection", ["on", "off"])
def test_mla(projection):
    """Compute the updates of a batch by hand, with plain steps of 0.1, from a projection other than the identity."""
    (model, method), (expected, _) = (toy_rule("mla", "--mla_projection", projection) for _ in range(2))
    r = torch.rand(DIM, dtype=torch.float64)
    start = P = torch.eye(DIM, dtype=torch.float64) - torch.outer(r, r) / (0.1 + r @ r)
    method.projection, method.batch, method.batches = P.clone(), 3, 6
    (inputs, label), seen = toy_batch(), []
    for outputs in method.steps(model, inputs, label):
        seen.append("".join(outputs))
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= 0.1 * p.grad
                    p.grad = None
    assert seen == ["a", "av", "fusedavt"]
    head, logits = expected.fusion_module.head, []
    for name in model.modalities:
        z = expected.encode(name, inputs[name])
        logits.append((z @ head.weight.T + head.bias).detach())
        loss = F.cross_entropy(z @ head.weight.T + head.bias, label)
        torch.testing.assert_close(outputs[name].loss, loss)
        parameters = [*expected.encoder_parameters(name), head.weight, head.bias]
        if projection == "on":
            P = mla_half_step(loss, parameters, z, P)
        else:
            mla_half_step(loss, parameters)
    assert_same_parameters(model, expected)
    torch.testing.assert_close(method.projection, P)
    assert (P - start).norm() > 0.01 or projection == "off"
    entropies = torch.stack([-(each.softmax(1) * each.log_softmax(1)).sum(1) for each in logits])
    weights = entropies.neg().softmax(0).unsqueeze(2)
    torch.testing.assert_close(outputs["fused"].logits, (weights * torch.stack(logits)).sum(0))


# LFM


def nce(x, y, tau):
    """Return the symmetric InfoNCE by its equation."""
    value = 0
    for i in range(len(x)):
        there = torch.stack([F.cosine_similarity(x[i], other, dim=0) / tau for other in y])
        back = torch.stack([F.cosine_similarity(y[i], other, dim=0) / tau for other in x])
        value = value - (there.log_softmax(0)[i] + back.log_softmax(0)[i]) / (2 * len(x))
    return value


def divergence(o, q):
    p, q = o.softmax(1), q.softmax(1)
    m = (p + q) / 2
    return ((m * (m / p).log()).sum(1) + (m * (m / q).log()).sum(1)).mean() / 2


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize(
    ("flags", "tau"),
    [([], 0.1), (["--lfm_tau", 0.7], 0.7), (["--lfm_weights", "fitted"], 0.1), (["--lfm_match", "code"], None)],
)
def test_lfm(flags, tau, epoch):
    """Check (1 - w) CE + w mean over pairs of the match; InfoNCE reaches the encoders and no head."""
    model, method = toy_rule("lfm", *flags)
    method.epoch, (inputs, label) = epoch, toy_batch()
    outputs = whole_step(model, method, inputs, label)
    z, weights = features_of(model, inputs), dict(model.fusion_module.named_parameters())
    o = {name: linear(weights, f"{name}_head", each) for name, each in z.items()}
    fused = sum(o.values()) / 3
    pairs = ("a", "v"), ("a", "t"), ("v", "t")
    of_pairs = [divergence(o[u], o[v]) if tau is None else nce(z[u], z[v], tau) for u, v in pairs]
    w = 1 - math.exp(-1 / (epoch + 1))
    if "fitted" in flags:
        w = 1 - (0.205 + (0.301 - 0.205) * epoch / 20)
    loss = (1 - w) * F.cross_entropy(fused, label) + w * sum(of_pairs) / 3
    assert_gradients(model, gradients(model, loss))
    torch.testing.assert_close(outputs["fused"].logits, fused)
    for name, each in o.items():
        torch.testing.assert_close(outputs[name].loss, F.cross_entropy(each, label))


@pytest.mark.parametrize("match", ["infonce", "code"])
def test_lfm_of_weight_0_is_joint_training_of_its_model(match, monkeypatch):
    model, method = toy_rule("lfm", "--lfm_match", match)
    monkeypatch.setattr(method, "weight", lambda: 0.0)
    inputs, label = toy_batch()
    whole_step(model, method, inputs, label)
    fused = model.fusion_module.fuse(features_of(model, inputs))
    assert_gradients(model, gradients(model, F.cross_entropy(fused, label)))


# UMT


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_umt(fusion):
    model, method = toy_rule("umt", "--umt_lambda", 10, fusion=fusion)
    inputs, label = toy_batch()
    whole_step(model, method, inputs, label)
    loss = toy_written_out(model, fusion, inputs, label)[1]["fused"]
    for name, x in inputs.items():
        loss = loss + 10 * (model.encode(name, x) - method.teachers[name].encode(name, x)).square().mean()
    assert_gradients(model, gradients(model, loss))
    assert all(p.grad is None for teacher in method.teachers.values() for p in teacher.parameters())


# InfoReg


@pytest.mark.parametrize("fusion", ["concat", "sum", "own heads"])
@pytest.mark.parametrize("windows", ["avt", "vt", "a", ""])
@pytest.mark.parametrize("order", ["avt", "atv", "vat", "tva"])
def test_inforeg(order, windows, fusion):
    """Check exp(beta tanh Delta_u) (w - w_start) on every modality that is not the last and is in its window."""
    own = fusion == "own heads"
    flags = ["--inforeg_beta", 0.7, *(["--inforeg_unimodal", 1] if own else [])]
    model, method = toy_rule("inforeg", *flags, fusion="concat" if own else fusion)
    with_biases(model)
    inputs, label = toy_batch()
    method.traces = [[1.0] * 3, [1.05 if name in windows else 1.03 for name in model.modalities]]
    with torch.no_grad():
        for name in model.modalities:
            for parameter in model.encoder_parameters(name):
                parameter += 0.1
        if own:
            weights = dict(model.fusion_module.named_parameters())
            logits = {name: linear(weights, f"{name}_head", z) for name, z in features_of(model, inputs).items()}
        else:
            of_others = 2 / 3 * model.fusion_module.fc_out.bias if fusion == "concat" else 0  # b / 3 is left
            found = toy_logits(model, fusion, features_of(model, inputs))
            logits = {name: each - of_others for name, each in found.items()}

    def scores(label):
        return {name: each.log_softmax(1)[range(BATCH), label].mean().item() for name, each in logits.items()}

    label = labels_where(lambda label: "".join(sorted(logits, key=scores(label).get, reverse=True)) == order)
    whole_step(model, method, inputs, label)
    expected = joint_gradients(model, inputs, label, fusion) if not own else None
    if own:
        expected = gradients(model, sum(own_losses(model, inputs, label).values()))
    s = scores(label)
    for name in windows.replace(order[2], ""):
        behind = [s[name] - s[other] for other in s if s[other] < s[name]]
        strength = math.exp(0.7 * math.tanh(sum(behind) / len(behind)))
        for each, _ in named_encoder(model, name):
            expected[each] = expected[each] + strength * 0.1
    assert_gradients(model, expected)

"""Check the gradients of every method against its equations, written out with torch.autograd.grad.

Of two modalities the model is an AVClassifier with small encoders and BatchNorm, of three a Toy, both in float64. Sets
and orders of modalities are strings of first letters. Labels are searched for with which a method's condition holds.
"""

import copy
import math
from itertools import combinations, permutations, product

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import NarrowEncoder
from tests.rules import (
    assert_gradients,
    encoder_names,
    features_of,
    gradients,
    joint_logits,
    rule,
    shared_bias,
    toy_batch,
    toy_rule,
    whole_step,
    written_out,
)
from tests.test_dgl_step import batch, linear

SOME = ["a", "v", "t", "av", "at", "vt"]  # sets of three modalities for which a condition holds
of_all_cases = pytest.mark.parametrize(("fusion", "n"), [("concat", 2), ("gated", 2), ("concat", 3), ("sum", 3)])


@pytest.fixture(autouse=True)
def narrow_encoders(monkeypatch):
    monkeypatch.setattr("tests.rules.SmallEncoder", NarrowEncoder)


def ready(name, *flags, fusion="concat", n=3):
    """Return a model of n modalities with biases other than 0, a method ready to step, and a batch of random clips."""
    if n == 2:
        return *rule(name, *flags, fusion=fusion), *batch()
    model, method = toy_rule(name, *flags, fusion=fusion)
    with torch.no_grad():
        for each, parameter in model.fusion_module.named_parameters():
            parameter.normal_() if each.endswith("bias") else parameter.mul_(3)
    return model, method, *toy_batch()


def labels_where(model, label, holds):
    """Return the first labels, as many as in `label`, for which `holds` is true."""
    return next(filter(holds, map(torch.tensor, product(range(model.n_classes), repeat=len(label)))))


def letters(names):
    return "".join(name[0] for name in names)


def order_of(scores):
    """Return the letters of {modality: score}, the highest first."""
    return letters(sorted(scores, key=scores.get, reverse=True))


def joined(found, names):
    """Return these gradients of {parameter name: gradient} as one vector."""
    return torch.cat([found[name].flatten() for name in names])


JOINT, ALL = (1, 0, 0, 0), (1, 3, 3, 3)
STUDENTS = ["--umt_lambda", 10]  # with the students as teachers
WEIGHTED = [  # method, flags, epoch, weights of L_m and each L_u in the gradients of encoders, and of the fusion module
    ("dgl", ["--alpha", 3], 0, (0, 3, 3, 3), JOINT),
    ("no_mgt", ["--alpha", 3], 0, ALL, JOINT),
    ("no_ugt", ["--alpha", 3], 0, (0, 3, 3, 3), ALL),
    ("no_mgt+no_ugt", ["--alpha", 3], 0, ALL, ALL),
    ("joint", [], 0, JOINT, JOINT),
    ("relearn", [], 0, JOINT, JOINT),
    ("ogm", ["--ogm_alpha", 0], 0, JOINT, JOINT),
    ("ogm", ["--ogm_alpha", 0, "--ogm_rule", "journal"], 0, JOINT, JOINT),
    ("ogm", ["--ogm_alpha", 0.8, "--modulation_starts", 3], 2, JOINT, JOINT),
    ("ogm", ["--ogm_rule", "journal", "--modulation_ends", 3], 4, JOINT, JOINT),
    ("ogm_ge", ["--modulation_ends", 3], 4, JOINT, JOINT),
    ("agm", ["--agm_alpha", 0], 0, JOINT, JOINT),
    ("agm", ["--agm_alpha", 0, "--agm_mask", "passes"], 0, JOINT, JOINT),
    ("agm", ["--agm_alpha", 2, "--agm_ends", 3], 4, JOINT, JOINT),
    ("agm", ["--agm_mask", "passes", "--agm_ends", 3], 4, JOINT, JOINT),
    ("pmr", ["--pmr_alpha", 0, "--pmr_mu", 0], 0, JOINT, JOINT),
    ("pmr", ["--pmr_ends", 3], 4, JOINT, JOINT),
    ("umt", ["--umt_lambda", 0], 0, JOINT, JOINT),
    ("umt", STUDENTS, 0, JOINT, JOINT),
    ("inforeg", [], 0, JOINT, JOINT),
    # each modality with a head of its own
    ("joint_uni", [], 0, (1, 1, 1, 1), None),
    ("joint_uni", ["--joint_uni_weight", 2.5], 0, (1, 2.5, 2.5, 2.5), None),
    ("joint_uni", ["--joint_uni_weight", 0], 0, JOINT, None),
    ("gblend", ["--gblend_weights"], 0, (0.4, 0.3, 0.2, 0.1), None),
    ("gblend", ["--gblend_weights"], 0, JOINT, None),
    ("relearn", ["--relearn_unimodal", 0.7], 0, (1, 0.7, 0.7, 0.7), None),
    ("inforeg", ["--inforeg_unimodal", 0.7], 0, (1, 0.7, 0.7, 0.7), None),
]


@of_all_cases
@pytest.mark.parametrize(("name", "flags", "epoch", "of_encoders", "of_fusion"), WEIGHTED)
def test_weighted_losses(name, flags, epoch, of_encoders, of_fusion, fusion, n):
    if name == "gblend":
        flags = [*flags, ",".join(map(str, of_encoders[: n + 1]))]
    model, method, inputs, label = ready(name, *flags, fusion=fusion, n=n)
    method.epoch = epoch
    if name == "agm":
        method.means = torch.tensor([1.0, 1.3, 1.6][:n])
    elif flags == STUDENTS:
        method.teachers = dict.fromkeys(model.modalities, copy.deepcopy(model.eval()))
    outputs = whole_step(model, method, inputs, label)
    _, logits, losses = written_out(model, fusion, inputs, label)
    encoders, expected = (
        gradients(model, sum(weight * loss for weight, loss in zip(weights, losses.values(), strict=False)))
        for weights in (of_encoders, of_fusion or of_encoders)
    )
    for each in (each for modality in model.modalities for each in encoder_names(model, modality)):
        expected[each] = encoders[each]
        assert expected[each].abs().max() > 1e-6
    assert_gradients(model, expected, tolerance=1e-10)
    assert list(outputs) == list(model.branches)
    for branch in ("fused",) if name == "agm" else model.branches:
        torch.testing.assert_close(outputs[branch].logits, logits[branch], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(outputs[branch].loss, losses[branch], rtol=1e-10, atol=1e-10)
    assert name != "agm" or method.batches == 1


@pytest.mark.parametrize("fusion", ["concat", "sum"])
@pytest.mark.parametrize("slowed", SOME)
def test_ogm(slowed, fusion, monkeypatch):
    """Check k_u on the convolutions of encoder u; the noise of OGM-GE, drawn as 1 here, adds the deviation."""
    model, _, inputs, label = ready("ogm", fusion=fusion)
    monkeypatch.setattr(torch, "randn_like", lambda tensor, **_: torch.ones_like(tensor))
    _, logits, _ = written_out(model, fusion, inputs, label)
    p = {name: (logits[name] - shared_bias(model, fusion)).detach().softmax(1) for name in model.modalities}

    def rho_of(label):
        S = {name: rows.gather(1, label.unsqueeze(1)).sum().item() for name, rows in p.items()}
        return {name: sum(S[name] / S[other] for other in S if other != name) / 2 for name in S}

    def holds(label):
        ahead = {name: rho for name, rho in rho_of(label).items() if rho > 1}
        return letters(ahead) == slowed and min(ahead.values()) > 1.1

    label = labels_where(model, label, holds)
    plain = gradients(model, written_out(model, fusion, inputs, label)[2]["fused"])
    for name, (way, alpha) in product(("ogm", "ogm_ge"), (("cvpr", 0.6), ("journal", 0.6), ("journal", 20))):
        model, method, _, _ = ready(name, "--ogm_alpha", alpha, "--ogm_rule", way, fusion=fusion)
        whole_step(model, method, inputs, label)
        expected, k = dict(plain), {}
        for modality, rho in rho_of(label).items():
            slower = max(1 - alpha * math.tanh(rho - 1), 0) if way == "journal" else 1 - math.tanh(alpha * rho)
            k[modality] = slower if rho > 1 else 1
            for each in encoder_names(model, modality):
                if plain[each].dim() == 4:
                    noise = plain[each].std() if name == "ogm_ge" else 0
                    expected[each] = k[modality] * plain[each] + noise
        assert letters(each for each in k if k[each] < 1) == slowed
        assert_gradients(model, expected)


MEANS = (1.05, 1.0, 1.1)  # of s_u so far


def agm_terms(model, fusion, inputs, mask):
    """Return f(all) and the Shapley values by their formulas; a masked modality is the encoder's answer to zeros.

    Everything but f(all) is encoded in evaluation, with the running statistics that f(all) leaves.
    """
    z = features_of(model, inputs)
    model.eval()
    masked = features_of(model, {name: torch.zeros_like(x) for name, x in inputs.items()})
    seen = features_of(model, inputs) if mask == "passes" else z
    model.train()
    orders, f = list(permutations(z)), {frozenset(): 0, frozenset(z): joint_logits(model, fusion, z)["fused"]}
    for kept in (frozenset(order[:k]) for order in orders for k in range(1, len(z))):
        f[kept] = joint_logits(model, fusion, masked | {name: seen[name] for name in kept})["fused"]
    m = dict.fromkeys(z, 0)  # means over all orders of what a modality adds to those before it
    for order, k in product(orders, range(len(z))):
        added = f[frozenset(order[: k + 1])] - f[frozenset(order[:k])]
        m[order[k]] = m[order[k]] + added / len(orders)
    return f[frozenset(z)], m


def kappas_of(m, label):
    """Return the scores s and kappa of every modality by their equations, for alpha 2."""
    s, n, kappas = [F.cross_entropy(each, label).item() for each in m.values()], len(m), []
    for score, mean in zip(s, MEANS, strict=False):
        r, tau = (math.exp(n / (n - 1) * (sum(x[:n]) / n - y)) for x, y in ((s, score), (MEANS, mean)))
        kappas.append(math.exp(2 * min(tau - r, 10)))
    return s, kappas


@pytest.mark.parametrize("mask", ["shared", "passes"])
@pytest.mark.parametrize(
    ("fusion", "n", "slowed"), [*product(["concat", "gated"], [2], "av"), *product(["concat", "sum"], [3], SOME)]
)
def test_agm(fusion, n, slowed, mask):
    """Check sum of kappa_u g dm_u through all masked logits, with kappa below 1 for who is further ahead than usual."""
    model, method, inputs, label = ready("agm", "--agm_alpha", 2, "--agm_mask", mask, fusion=fusion, n=n)
    _, m = agm_terms(copy.deepcopy(model), fusion, inputs, mask)
    m = {name: each.detach() for name, each in m.items()}

    def holds(label):
        return letters(name for name, kappa in zip(m, kappas_of(m, label)[1], strict=True) if kappa < 1) == slowed

    label, expected = labels_where(model, label, holds), copy.deepcopy(model)
    method.means, method.batches = torch.tensor(MEANS[:n], dtype=torch.float64), 7
    outputs = whole_step(model, method, inputs, label)
    fused, m = agm_terms(expected, fusion, inputs, mask)
    s, kappas = kappas_of(m, label)
    g = (fused.softmax(1) - F.one_hot(label, model.n_classes)).detach() / len(label)
    assert_gradients(model, gradients(expected, [*m.values()], [kappa * g for kappa in kappas]))
    torch.testing.assert_close(dict(model.named_buffers()), dict(expected.named_buffers()))
    torch.testing.assert_close({name: output.logits for name, output in outputs.items()}, {"fused": fused, **m})
    torch.testing.assert_close([output.loss.item() for output in outputs.values()][1:], s)
    torch.testing.assert_close(sum(m.values()), fused)
    means = [(7 * mean + score) / 8 for mean, score in zip(MEANS, s, strict=False)]
    assert method.means.tolist() == pytest.approx(means) and method.batches == 8


@pytest.mark.parametrize(
    ("of_head", "of_encoder", "clipped"), [(0.1, 0.1, False), (0.1, 100, False), (100, 0.1, True), (100, 100, True)]
)
def test_agm_with_clipping(of_head, of_encoder, clipped):
    """Check that all gradients have a norm of 1 if an entry of the head's is above 1; `of_head` scales the features."""
    plain = None
    for flags in ([], ["--agm_clip"]):
        model, method = toy_rule("agm", *flags)
        method.means, method.batches = torch.tensor(MEANS, dtype=torch.float64), 7
        with torch.no_grad():
            for parameter in (p for name in model.modalities for p in model.encoder(name)[-1].parameters()):
                parameter *= of_head
            model.fusion_module.fc_out.weight *= of_encoder / of_head
        whole_step(model, method, *toy_batch())
        plain = plain or {name: p.grad for name, p in model.named_parameters()}
    assert (max(each.abs().max() for name, each in plain.items() if "fusion" in name) > 1) == clipped
    assert (max(each.abs().max() for name, each in plain.items() if "fusion" not in name) > 1) == (of_encoder == 100)
    norm = joined(plain, plain).norm() if clipped else 1
    assert_gradients(model, {name: each / norm for name, each in plain.items()})


def pmr_terms(model, method, inputs, label):
    """Return log p, the S and the coefficients of every modality by their equations."""
    log_p, S, beta, c = {}, {}, {}, {}
    for name, z in features_of(model, inputs).items():
        distance = (z.unsqueeze(1) - method.prototypes[name]).square().sum(dim=2).sqrt()
        log_p[name] = (-distance).log_softmax(1)
        S[name] = log_p[name][range(len(label)), label].exp().sum().item()
    for name in S:
        others = [S[other] for other in S if other != name]
        beta[name] = sum(min(max(other / S[name] - 1, 0), 1) for other in others) / len(others)
        c[name] = sum(min(max(S[name] / other - 1, 0), 1) for other in others) / len(others)
    return log_p, S, beta, c


@pytest.mark.parametrize(
    ("fusion", "order"), [*product(["concat", "gated"], ["av", "va"]), *product(["concat"], permutations("avt"))]
)
def test_pmr(fusion, order):
    """Check L_m + alpha sum beta_u PCE_u - mu sum c_u H_u, what is added reaching its own encoder alone."""
    n, order = len(order), "".join(order)
    model, method, inputs, label = ready("pmr", "--pmr_alpha", 2, "--pmr_mu", 0.3, fusion=fusion, n=n)
    with torch.no_grad():
        for name, z in features_of(model, inputs).items():  # nearer, so that classes differ in probability
            method.prototypes[name] = torch.lerp(z[:1], method.prototypes[name], 0.5)
        label = labels_where(model, label, lambda label: order_of(pmr_terms(model, method, inputs, label)[1]) == order)
    for epoch, ends, way in ((9, None, "paper"), (10, 10, "paper"), (5000, None, "paper"), (0, None, "code")):
        method.epoch, method.settings.pmr_ends, method.settings.pmr_rule = epoch, ends, way
        model.zero_grad()
        whole_step(model, method, inputs, label)
        loss = written_out(model, fusion, inputs, label)[2]["fused"]
        log_p, S, beta, c = pmr_terms(model, method, inputs, label)
        if way == "code":  # helped by every modality that it is behind
            beta = {name: sum(S[name] < S[other] for other in S) / (n - 1) for name in S}
        first, *_, last = sorted(S, key=S.get, reverse=True)
        assert beta[first] == 0 == c[last] and beta[last] > 0 < c[first]
        for name, rows in log_p.items():
            loss = loss - 2 * beta[name] * rows[range(len(label)), label].mean()
            if epoch == 9:  # the last one with entropy
                loss = loss + 0.3 * c[name] * (rows.exp() * rows).sum(dim=1).mean()
        assert_gradients(model, gradients(model, loss))


@pytest.mark.parametrize("rescale", ["encoder", "tensor"])
@pytest.mark.parametrize(("n", "conflicts"), [*product([2], ["", "av"]), *product([3], ["", *SOME, "avt"])])
def test_mmpareto(n, conflicts, rescale):
    flags = ["--mmpareto_gamma", 1.3, "--mmpareto_rescale", rescale]
    model, method, inputs, label = ready("mmpareto", *flags, n=n)
    with torch.no_grad():  # heads alike or opposite: gradients agree, or are in conflict
        parts = model.fusion_module.joint.fc_out.weight.split(model.dim, dim=1)
        for name, part in zip(model.modalities, parts, strict=True):
            head = getattr(model.fusion_module, f"{name}_head")
            head.weight.copy_(-0.5 * part if name[0] in conflicts else part)
            head.bias.zero_()
    outputs = whole_step(model, method, inputs, label)
    _, _, losses = written_out(model, "concat", inputs, label)
    expected, of_m = gradients(model, sum(losses.values())), gradients(model, losses["fused"])
    for name in model.modalities:
        of_u, names = gradients(model, losses[name]), encoder_names(model, name)
        g_m, g_u = joined(of_m, names), joined(of_u, names)
        conflict = name[0] in conflicts
        assert (g_m @ g_u < 0) == conflict
        c = ((g_u @ g_u - g_m @ g_u) / (g_m - g_u).square().sum()).item() if conflict else 0.5
        plain = {each: of_m[each] + of_u[each] for each in names}
        h = {each: 2 * c * of_m[each] + 2 * (1 - c) * of_u[each] for each in names}
        for each in names:
            group = [each] if rescale == "tensor" else names
            expected[each] = 1.3 * max(1, joined(plain, group).norm() / joined(h, group).norm()) * h[each]
        if conflict:  # no vector between the two gradients is shorter
            lengths = [((c + step) * g_m + (1 - c - step) * g_u).norm() for step in (-1e-3, 0, 1e-3)]
            assert min(lengths) == lengths[1]
    assert_gradients(model, expected)
    torch.testing.assert_close({branch: output.loss for branch, output in outputs.items()}, losses)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("projection", ["on", "off"])
def test_mla(projection, n):
    """Compute the updates of a batch by hand, with plain steps of 0.1, from a projection other than the identity."""
    model, method, inputs, label = ready("mla", "--mla_projection", projection, n=n)
    expected, r = copy.deepcopy(model), torch.rand(model.dim, dtype=torch.float64)
    start = P = torch.eye(model.dim, dtype=torch.float64) - torch.outer(r, r) / (0.1 + r @ r)
    assert torch.equal(method.projection, torch.eye(model.dim))
    method.projection, method.batch, method.batches = start.clone(), 3, 6
    taken, names, head, logits = [], list(model.modalities), expected.fusion_module.head, []
    for outputs in method.steps(model, inputs, label):
        taken.append(([each for each in names if model.encoder_parameters(each)[0].grad is not None], list(outputs)))
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= 0.1 * p.grad
                    p.grad = None
    assert taken == [([names[k]], ["fused"] * (k == n - 1) + names[: k + 1]) for k in range(n)]
    for name in names:
        z = expected.encode(name, inputs[name])
        logits.append(z @ head.weight.T + head.bias)
        parameters = [*expected.encoder_parameters(name), head.weight, head.bias]
        loss = F.cross_entropy(logits[-1], label)
        torch.testing.assert_close(outputs[name].loss, loss)
        steps = list(torch.autograd.grad(loss, parameters, retain_graph=True))
        if projection == "on":
            r = z.detach().mean(0)
            k = P @ r
            steps[-2], P = steps[-2] @ P, P - torch.outer(k, k) / (0.1**1.5 + r @ k)
        with torch.no_grad():
            for parameter, step in zip(parameters, steps, strict=True):
                parameter -= 0.1 * step
    for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert (p - q).norm() <= 1e-9 * q.norm(), name
    torch.testing.assert_close(method.projection, P)
    assert (P - start).norm() > 0.01 or projection == "off"
    entropies = torch.stack([-(each.softmax(1) * each.log_softmax(1)).sum(1) for each in logits])
    fused = (entropies.neg().softmax(0).unsqueeze(2) * torch.stack(logits)).sum(0)
    torch.testing.assert_close(outputs["fused"], (F.cross_entropy(fused, label), fused))


def nce(x, y, tau):
    """Return the symmetric InfoNCE by its equation."""
    cosine = F.cosine_similarity(x.unsqueeze(1), y.unsqueeze(0), dim=2) / tau
    return -(cosine.log_softmax(1) + cosine.log_softmax(0)).diagonal().mean() / 2


def divergence(o, q):
    p, q = o.softmax(1), q.softmax(1)
    m = (p + q) / 2
    return ((m * (m / p).log()).sum(1) + (m * (m / q).log()).sum(1)).mean() / 2


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("epoch", [0, 10])
@pytest.mark.parametrize(
    ("flags", "tau"),
    [([], 0.1), (["--lfm_tau", 0.7], 0.7), (["--lfm_weights", "fitted"], 0.1), (["--lfm_match", "code"], None)],
)
def test_lfm(flags, tau, epoch, n):
    """Check (1 - w) CE + w mean over pairs of the match; InfoNCE reaches the encoders and no head."""
    model, method, inputs, label = ready("lfm", *flags, n=n)
    method.epoch = epoch
    outputs = whole_step(model, method, inputs, label)
    z, weights = features_of(model, inputs), dict(model.fusion_module.named_parameters())
    o = {name: linear(weights, f"{name}_head", each) for name, each in z.items()}
    fused = sum(o.values()) / n
    matches = [divergence(o[u], o[v]) if tau is None else nce(z[u], z[v], tau) for u, v in combinations(z, 2)]
    w = 1 - (0.205 + (0.301 - 0.205) * epoch / 20) if "fitted" in flags else 1 - math.exp(-1 / (epoch + 1))
    loss = F.cross_entropy(fused, label)
    assert_gradients(model, gradients(model, (1 - w) * loss + w * sum(matches) / len(matches)))
    torch.testing.assert_close(outputs["fused"], (loss, fused))
    torch.testing.assert_close(model.fusion_module.fuse(z), fused)
    for name, each in o.items():
        torch.testing.assert_close(outputs[name].loss, F.cross_entropy(each, label))


@of_all_cases
def test_umt(fusion, n):
    model, method, inputs, label = ready("umt", "--umt_lambda", 10, fusion=fusion, n=n)
    whole_step(model, method, inputs, label)
    z, _, losses = written_out(model, fusion, inputs, label)
    distances = [(each - method.teachers[name].encode(name, inputs[name])).square().mean() for name, each in z.items()]
    assert_gradients(model, gradients(model, losses["fused"] + 10 * sum(distances)))
    for teacher in method.teachers.values():
        assert not teacher.training and all(p.grad is None for p in teacher.parameters())
    assert not any("teacher" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("fusion", "order"),
    [
        *product(["concat", "gated"], ["av", "va"]),
        *product(["concat", "sum", "own heads"], ["avt", "atv", "vat", "tva"]),
    ],
)
def test_inforeg(fusion, order):
    """Check exp(beta tanh Delta_u) (w - w_start) on every modality that is not the last and is in its window."""
    n, own = len(order), fusion == "own heads"
    flags, fusion = ["--inforeg_beta", 0.7, "--inforeg_unimodal", int(own)], "concat" if own else fusion
    model, method, inputs, label = ready("inforeg", *flags, fusion=fusion, n=n)
    with torch.no_grad():
        for parameter in (p for name in model.modalities for p in model.encoder_parameters(name)):
            parameter += 0.1
        _, logits, _ = written_out(model, fusion, inputs, label)
        shared = 0 if own else shared_bias(model, fusion)
        log_p = {name: (logits[name] - shared).log_softmax(1) for name in model.modalities}

    def scores(label):
        return {name: rows[range(len(label)), label].mean().item() for name, rows in log_p.items()}

    label = labels_where(model, label, lambda label: order_of(scores(label)) == order)
    s = scores(label)
    for windows, epochs in (("avt", 2), ("vt", 2), ("a", 2), ("", 2), ("", 1)):  # with one epoch there is no window
        method.traces = [[1.0] * n, [1.05 if name[0] in windows else 1.041 for name in model.modalities]][:epochs]
        model.zero_grad()
        whole_step(model, method, inputs, label)
        _, _, losses = written_out(model, fusion, inputs, label)
        expected = gradients(model, sum(losses.values()) if own else losses["fused"])
        for name in s:
            behind = [s[name] - other for other in s.values() if other < s[name]]
            if behind and name[0] in windows:
                strength = math.exp(0.7 * math.tanh(sum(behind) / len(behind)))
                expected |= {each: expected[each] + strength * 0.1 for each in encoder_names(model, name)}
        assert_gradients(model, expected)

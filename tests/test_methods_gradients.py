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
from torch import nn

from tests.conftest import method_of
from tests.rules import (
    TOY_DIM,
    WIDTHS,
    assert_gradients,
    assert_outputs,
    encoder_names,
    features_of,
    gradients,
    linear,
    logits_of,
    shared_bias,
    small_network,
    toy_batch,
    toy_rule,
    whole_step,
    written_out,
)
from tests.test_methods import FEW, ready

SOME = ["a", "v", "t", "av", "at", "vt"]  # sets of three modalities for which a condition holds


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


@pytest.mark.parametrize(
    ("fusion", "n", "slowed", "linear_only"),
    [
        *product(["concat", "sum", "gated"], [2], "av", [""]),
        *product(["concat", "sum"], [3], SOME, [""]),
        *product(["concat"], [3], ["a", "v"], ["avt", "at"]),  # encoders of some modalities have no convolution
    ],
)
def test_ogm(fusion, n, slowed, linear_only, monkeypatch):
    """Check k_u on the convolutions of encoder u, on all its parameters if it has none, and GE's noise, drawn as 1."""
    torch.manual_seed(0)
    networks = {
        name: nn.Sequential(nn.Flatten(), nn.Linear(4 * width, TOY_DIM))
        if name in linear_only
        else small_network(width, TOY_DIM)
        for name, width in WIDTHS.items()
    }
    model, _, inputs, label = ready("ogm", fusion=fusion, n=n, encoders=networks)
    monkeypatch.setattr(torch, "randn_like", lambda tensor, **_: torch.ones_like(tensor))
    _, logits, _ = written_out(model, fusion, inputs, label)
    p = {name: (logits[name] - shared_bias(model, fusion)).detach().softmax(1) for name in model.modalities}

    def rho_of(label):
        S = {name: rows.gather(1, label.unsqueeze(1)).sum().item() for name, rows in p.items()}
        return {name: sum(S[name] / S[other] for other in S if other != name) / (n - 1) for name in S}

    def holds(label):
        ahead = {name: rho for name, rho in rho_of(label).items() if rho > 1}
        return letters(ahead) == slowed and min(ahead.values()) > 1.1

    label = labels_where(model, label, holds)
    plain = gradients(model, written_out(model, fusion, inputs, label)[2]["fused"])
    ways = [("cvpr", 0.6, 2), ("journal", 0.6, 4), ("journal", 20, 4)]  # rule, alpha, first or last epoch of the window
    for name, (way, alpha, epoch) in product(("ogm", "ogm_ge"), ways):
        flags = ["--ogm_rule", way, "--ogm_alpha", alpha, "--modulation_starts", 2, "--modulation_ends", 4]
        method = method_of(model, "--method", name, *flags)
        method.epoch = epoch
        model.zero_grad()
        whole_step(model, method, inputs, label)
        expected, k = dict(plain), {}
        for modality, rho in rho_of(label).items():
            slower = max(1 - alpha * math.tanh(rho - 1), 0) if way == "journal" else 1 - math.tanh(alpha * rho)
            k[modality] = slower if rho > 1 else 1
            for each in encoder_names(model, modality):
                if plain[each].dim() == 4 or modality in linear_only:
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
    orders, f = list(permutations(z)), {frozenset(): 0, frozenset(z): logits_of(model, fusion, z)["fused"]}
    for kept in (frozenset(order[:k]) for order in orders for k in range(1, len(z))):
        f[kept] = logits_of(model, fusion, masked | {name: seen[name] for name in kept})["fused"]
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
    _, logits, losses = written_out(model, "concat", inputs, label)
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
    assert_outputs(model, outputs, logits, losses)
    torch.testing.assert_close(model(inputs), logits)


def certainty_weighted_mean(logits):
    """Return the mean of several logits, weighted by the softmax of their negative entropies."""
    entropies = torch.stack([-(each.softmax(1) * each.log_softmax(1)).sum(1) for each in logits])
    return (entropies.neg().softmax(0).unsqueeze(2) * torch.stack([*logits])).sum(0)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("projection", ["on", "off"])
def test_mla(projection, n):
    """Compute the updates of a batch by hand, with plain steps of 0.1, from a projection other than the identity."""
    model, method, inputs, label = ready("mla", "--mla_projection", projection, n=n)
    expected, r = copy.deepcopy(model), torch.rand(model.dim, dtype=torch.float64)
    start = P = torch.eye(model.dim, dtype=torch.float64) - torch.outer(r, r) / (0.1 + r @ r)
    assert torch.equal(method.projection, torch.eye(model.dim))
    method.projection, method.batch, method.batches = start.clone(), 3, 6
    taken, names, head, logits, losses = [], list(model.modalities), expected.fusion_module.head, {}, {}
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
        logits[name] = z @ head.weight.T + head.bias
        parameters = [*expected.encoder_parameters(name), head.weight, head.bias]
        losses[name] = F.cross_entropy(logits[name], label)
        steps = list(torch.autograd.grad(losses[name], parameters, retain_graph=True))
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
    fused = certainty_weighted_mean(logits.values())
    assert_outputs(model, outputs, {"fused": fused, **logits}, {"fused": F.cross_entropy(fused, label), **losses})
    now = {name: z @ head.weight.T + head.bias for name, z in features_of(expected, inputs).items()}
    torch.testing.assert_close(expected(inputs), {"fused": certainty_weighted_mean(now.values()), **now})


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
    loss, losses = F.cross_entropy(fused, label), {name: F.cross_entropy(each, label) for name, each in o.items()}
    assert_gradients(model, gradients(model, (1 - w) * loss + w * sum(matches) / len(matches)))
    assert_outputs(model, outputs, {"fused": fused, **o}, {"fused": loss, **losses})
    torch.testing.assert_close(model(inputs), {"fused": fused, **o})


@pytest.mark.parametrize(("fusion", "n"), FEW)
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

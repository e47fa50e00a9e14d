"""Check the methods with three modalities: gradients against the rules written out, and examples worked by hand."""

import math
from argparse import Namespace
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from analysis.gradient_report import gradient_report
from main_dgl import dgl_step
from methods import METHODS, Output, agm, build_method, gblend, inforeg, statistics
from methods.ablations import NoMGT, NoMGTNoUGT, NoUGT
from models.fusion_modules import FUSION_MODULES, SumFusion_AUXI
from tests.conftest import settings_of
from tests.rules import whole_step
from utils.errors import InputError

ALPHA, CLASSES, DIM, BATCH = 3.0, 4, 6, 5
WIDTHS = {"a": 5, "v": 3, "t": 4}  # of the inputs
SCORES = torch.tensor([6.0, 4.0, 2.0])  # S of the worked examples


class Toy(nn.Module):
    """A model of three modalities, as the methods use one.

    Args:
        encoders: {modality: module}; by default small networks of DIM outputs.
    """

    frozen = ()

    def __init__(self, fusion="concat", encoders=None, n_classes=CLASSES, dim=DIM):
        super().__init__()
        encoders = encoders or {
            name: nn.Sequential(nn.Linear(width, 7), nn.Tanh(), nn.Linear(7, dim)) for name, width in WIDTHS.items()
        }
        self.encoders, self.n_classes, self.dim = nn.ModuleDict(encoders), n_classes, dim
        self.modalities, self.branches = tuple(encoders), ("fused", *encoders)
        self.fusion_module = FUSION_MODULES[fusion](n_classes, dim, self.modalities)

    def encoder(self, name):
        return self.encoders[name]

    def encoder_parameters(self, name):
        return list(self.encoders[name].parameters())

    def encode(self, name, x):
        return self.encoders[name](x)


def toy(name=None, *flags, fusion="concat", **arguments):
    """Return a Toy in float64 and the method of this name -> (model, method)."""
    torch.manual_seed(0)
    model = Toy(fusion, **arguments)
    method = build_method(settings_of("--method", name, *flags), model) if name else None
    return model.double(), method


def batch():
    generator = torch.Generator().manual_seed(1)
    inputs = {
        name: torch.randn(BATCH, width, generator=generator, dtype=torch.float64) for name, width in WIDTHS.items()
    }
    return inputs, torch.tensor([0, 3, 1, 2, 3])


def own_logits(model, fusion, features):
    """Return each modality's logits by the formulas: W_u z_u + b, or its own linear layer."""
    parameters = dict(model.fusion_module.named_parameters())
    if fusion == "concat":
        parts, bias = parameters["fc_out.weight"].split(DIM, dim=1), parameters["fc_out.bias"]
        return {name: z @ part.T + bias for part, (name, z) in zip(parts, features.items(), strict=True)}
    layers = zip(("fc_x", "fc_y", "fc_z"), features.items(), strict=True)
    return {name: z @ parameters[f"{fc}.weight"].T + parameters[f"{fc}.bias"] for fc, (name, z) in layers}


def written_out(model, fusion, inputs, label):
    """Return the logits of every branch and their cross-entropies by the formulas, in one graph."""
    alone = own_logits(model, fusion, {name: model.encode(name, x) for name, x in inputs.items()})
    fused = sum(alone.values())
    if fusion == "concat":
        fused = fused - 2 * model.fusion_module.fc_out.bias
    logits = {"fused": fused, **alone}
    return logits, {branch: F.cross_entropy(each, label) for branch, each in logits.items()}


def gradients(outputs, parameters, weights=None):
    """Return d(outputs), weighted, of the parameters; zeros where nothing reaches them."""
    return torch.autograd.grad(
        outputs, parameters, weights, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def assert_gradients(parameters, expected):
    for parameter, gradient in zip(parameters, expected, strict=True):
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-10)


def close(expected, tolerance=2e-6):
    return pytest.approx(expected, abs=tolerance)


# DGL and its ablations


@pytest.mark.parametrize("fusion", ["concat", "sum"])
@pytest.mark.parametrize("method", ["dgl", NoMGT, NoUGT, NoMGTNoUGT])
def test_gradients_are_those_of_the_rule(method, fusion):
    (model, _), (inputs, label) = toy(fusion=fusion), batch()
    if method == "dgl":
        outputs, mgt, ugt = dgl_step(model, inputs, label, ALPHA), True, True
    else:
        outputs, mgt, ugt = method(Namespace(alpha=ALPHA), model).step(model, inputs, label), method.mgt, method.ugt
    logits, losses = written_out(model, fusion, inputs, label)
    assert list(outputs) == ["fused", "a", "v", "t"]
    for branch, output in outputs.items():
        torch.testing.assert_close(output.logits, logits[branch], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(output.loss, losses[branch], rtol=1e-10, atol=1e-10)
    for name in model.modalities:
        loss = ALPHA * losses[name] + (0 if mgt else losses["fused"])
        parameters = model.encoder_parameters(name)
        assert_gradients(parameters, gradients(loss, parameters))
        assert all(parameter.grad.abs().max() > 1e-6 for parameter in parameters)
    loss = losses["fused"] + (0 if ugt else ALPHA * (losses["a"] + losses["v"] + losses["t"]))
    theta = list(model.fusion_module.parameters())
    assert_gradients(theta, gradients(loss, theta))


class Given(nn.Module):
    """An encoder whose feature is its parameter, so that the parameter's gradient is that of the feature."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([[value]], dtype=torch.float64))

    def forward(self, x):
        return self.value.expand(len(x), 1)


def example():
    """Return the model of the example, W_0 = (1, .5, -1), W_1 = (0, -.5, 1), z = (1, 2, .5), and a clip of class 0."""
    model, _ = toy(encoders={"a": Given(1.0), "v": Given(2.0), "t": Given(0.5)}, n_classes=2, dim=1)
    with torch.no_grad():
        model.fusion_module.fc_out.weight.copy_(torch.tensor([[1, 0.5, -1], [0, -0.5, 1]]))
        model.fusion_module.fc_out.bias.copy_(torch.tensor([0.1, -0.1]))
    return model, dict.fromkeys(model.modalities, torch.zeros(1, 1)), torch.tensor([0])


def gradients_of_features(model):
    return [model.encoder(name).value.grad.item() for name in model.modalities]


def test_dgl_in_numbers():
    model, inputs, label = example()
    outputs = dgl_step(model, inputs, label, 4.0)
    losses = [output.loss.item() for output in outputs.values()]
    likely = [output.logits.softmax(dim=1)[0, 0].item() for output in outputs.values()]
    assert losses == close([0.105083, 0.263282, 0.105083, 1.171101])
    assert likely == close([0.900250, 0.768525, 0.900250, 0.310026])
    assert gradients_of_features(model) == close([-0.925901, -0.399002, 5.519796])
    wrong = 1 - likely[0]  # the fusion module's gradient is that of L_d alone: (p - y) z
    assert model.fusion_module.fc_out.weight.grad.flatten().tolist() == close(
        [-wrong, -2 * wrong, -0.5 * wrong, wrong, 2 * wrong, 0.5 * wrong]
    )


def test_joint_training_in_numbers():
    model, inputs, label = example()
    outputs = build_method(settings_of("--method", "joint"), model).step(model, inputs, label)
    assert gradients_of_features(model) == close([-0.099750, -0.099750, 0.199501])
    others = (outputs["fused"].logits - outputs["a"].logits)[0]  # what the other modalities add to the logits
    assert (others[1] - others[0]).exp().item() == close(0.367879)  # s of the audio branch


def test_a_gradient_report_of_three_modalities():
    model, method = toy("dgl", "--alpha", ALPHA)
    report = gradient_report(method, model, *batch())
    assert list(report) == ["L_m", "L_a", "L_v", "L_t", "all"]
    for loss, module in (("L_m", "fusion"), ("L_a", "a"), ("L_v", "v"), ("L_t", "t")):
        assert {name: norm > 0 for name, norm in report[loss].items()} == {
            name: name == module for name in ("fusion", "a", "v", "t")
        }


@pytest.mark.parametrize("fusion", ["gated", "film", "bilinear"])
def test_fusion_of_two_rejects_three(fusion):
    with pytest.raises(ValueError, match="takes 2 modalities, not 3"):
        Toy(fusion)


def test_names_of_the_layers_of_sum():
    names = {name.partition(".")[0] for name in SumFusion_AUXI(2, 3, "abcde").state_dict()}
    assert names == {"fc_x", "fc_y", "fc_z", "fc_3", "fc_4"}


# The other methods


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].modality == "full"])
def test_a_step_has_outputs_and_gradients_of_every_modality(name):
    flags = {"gblend": ["--gblend_weights", "0.4,0.3,0.2,0.1"], "relearn": ["--val_ratio", 0.3]}
    model, method = toy(name, *flags.get(name, []))
    if name == "umt":
        method.teachers = dict.fromkeys(model.modalities, toy()[0])
    elif name == "pmr":
        method.prototypes = {each: torch.rand(CLASSES, DIM) for each in model.modalities}
        method.present = torch.ones(CLASSES, dtype=torch.bool)
    elif name == "inforeg":
        method.begin_epoch(0, model, {}, torch.device("cpu"))
    inputs, label = batch()
    reached = {each: 0.0 for each in model.modalities}
    for outputs in method.steps(model, inputs, label):
        method.adjust_gradients(model, outputs, label)
        for each in model.modalities:
            found = [p.grad for p in model.encoder_parameters(each) if p.grad is not None]
            reached[each] += sum(gradient.norm().item() for gradient in found)
        model.zero_grad()
    assert list(outputs) == ["fused", "a", "v", "t"] and all(reached.values())
    for output in outputs.values():
        torch.testing.assert_close(F.cross_entropy(output.logits, label), output.loss)


@pytest.mark.parametrize(("name", "weights"), [("joint_uni", (1, 1, 1, 1)), ("gblend", (0.4, 0.3, 0.2, 0.1))])
def test_weighted_losses_with_own_heads(name, weights):
    flags = ["--gblend_weights", ",".join(map(str, weights))] if name == "gblend" else []
    model, method = toy(name, *flags)
    inputs, label = batch()
    method.step(model, inputs, label)
    features, heads = {each: model.encode(each, x) for each, x in inputs.items()}, model.fusion_module
    logits = [torch.cat([*features.values()], dim=1) @ heads.joint.fc_out.weight.T + heads.joint.fc_out.bias]
    for each, z in features.items():
        head = getattr(heads, f"{each}_head")
        logits.append(z @ head.weight.T + head.bias)
    loss = sum(weight * F.cross_entropy(each, label) for weight, each in zip(weights, logits, strict=True))
    assert_gradients(list(model.parameters()), gradients(loss, list(model.parameters())))


def probabilities(values, size=1):
    """Return logits (size, 2) of two classes, of which the first one has the probability."""
    return [torch.tensor([[p, 1 - p]], dtype=torch.float64).log().expand(size, 2) for p in values]


def outputs_of(model, logits, label):
    """Return the Outputs of every modality's logits."""
    return {
        name: Output(F.cross_entropy(each, label), each) for name, each in zip(model.modalities, logits, strict=True)
    }


def convolutions():
    return {name: nn.Conv2d(1, 1, 2) for name in WIDTHS}


def test_ogm_in_numbers():
    assert statistics.mean_over_others(SCORES, torch.div).tolist() == close([2.25, 1.333333, 0.416667])
    model, method = toy("ogm", "--ogm_alpha", 0.1, fusion="sum", encoders=convolutions(), n_classes=2)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    label = torch.zeros(8, dtype=torch.int64)
    method.adjust_gradients(model, outputs_of(model, probabilities([0.75, 0.5, 0.25], 8), label), label)
    found = [model.encoder(name).weight.grad.unique().tolist() for name in model.modalities]
    assert found == [[close(0.778722)], [close(0.867451)], [1]]  # S is 6, 4, 2
    assert all((model.encoder(name).bias.grad == 1).all() for name in model.modalities)


def test_ogm_splits_the_bias_of_concat():
    model, method = toy("ogm", "--ogm_alpha", 0.1, encoders=convolutions(), n_classes=2)
    with torch.no_grad():
        model.fusion_module.fc_out.bias.copy_(torch.tensor([3.0, -6.0]))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    label, third = torch.zeros(8, dtype=torch.int64), torch.tensor([1.0, -2.0])
    logits = [each + third for each in probabilities([0.75, 0.5, 0.25], 8)]
    method.adjust_gradients(model, outputs_of(model, logits, label), label)
    assert model.encoder("a").weight.grad.unique().tolist() == [close(0.778722)]


def test_blending_weights_in_numbers():
    found = {}
    for name, o, g in zip(("joint", *WIDTHS), (0.5, 1, 0.2, 0.5), (0.4, 0.3, 0.1, 0.2), strict=True):
        found[name] = (2, 2), (2 - g - o, 2 - g)  # losses in training and held out: untrained, at the end
    assert gblend.blended(found) == close([0.307692, 0.057692, 0.480769, 0.153846])
    _, method = toy("gblend", "--gblend_weights", "0.4,0.3,0.2,0.1")
    assert method.runs == ("joint", "a", "v", "t")
    with pytest.raises(InputError, match="give 4 numbers, for joint, a, v, t"):
        toy("gblend", "--gblend_weights", "0.4,0.3,0.3")


def test_agm_in_numbers():
    def kappas(scores, means):
        _, method = toy("agm", "--agm_alpha", 1)
        method.means, method.batches = torch.tensor(means, dtype=torch.float64), 3
        found = method.coefficients(probabilities([math.exp(-s) for s in scores]), torch.zeros(1, dtype=torch.int64))
        expected = [(3 * mean + score) / 4 for mean, score in zip(means, scores, strict=True)]
        assert method.means.tolist() == close(expected) and method.batches == 4
        return found

    scores, means = [1, 1.2, 1.4], [1, 1.1, 1.3]
    assert kappas(scores, means).tolist() == close([0.879452, 1.052608, 1.038713])
    equal = [0.5, 0.5, 0.5]  # for which r or tau is 1
    assert (1 - kappas(scores, equal).log()).tolist() == close([1.349859, 1, 0.740818])  # r
    assert (1 + kappas(equal, means).log()).tolist() == close([1.221403, 1.051271, 0.778801])  # tau


def test_shapley_values_in_numbers():
    torch.manual_seed(0)
    f = {frozenset(some): torch.randn(2, 3) for n in (1, 2, 3) for some in combinations("avt", n)} | {frozenset(): 0}
    m = {name: agm.shapley(name, f) for name in "avt"}
    a, v, t, av, at, vt, avt = (f[frozenset(some)] for some in ("a", "v", "t", "av", "at", "vt", "avt"))
    torch.testing.assert_close(m["a"], (avt - vt + a) / 3 + (av - v + at - t) / 6)
    torch.testing.assert_close(m["v"], (avt - at + v) / 3 + (av - a + vt - t) / 6)
    torch.testing.assert_close(m["t"], (avt - av + t) / 3 + (at - a + vt - v) / 6)
    torch.testing.assert_close(sum(m.values()), avt)
    assert agm.subsets({"a", "v", "t"})[0] == frozenset() and len(agm.subsets({"a", "v", "t"})) == 8


def test_shapley_values_of_concat_with_features_of_zeros():
    (model, _), (inputs, _) = toy(), batch()
    features, fusion = {name: model.encode(name, x) for name, x in inputs.items()}, model.fusion_module
    zeros, f = {name: torch.zeros_like(z) for name, z in features.items()}, {frozenset(): 0}
    for kept in agm.subsets(features)[1:]:
        f[kept] = fusion.fuse(zeros | {name: features[name] for name in kept})
    for name, z in features.items():
        part = fusion.fc_out.weight[:, DIM * model.modalities.index(name) :][:, :DIM]
        torch.testing.assert_close(agm.shapley(name, f), z @ part.T + fusion.fc_out.bias / 3)


@pytest.mark.parametrize("mask", ["shared", "passes"])
@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_gradients_of_agm(fusion, mask):
    """Check sum of kappa_u g dm_u through all masked logits; a masked modality is the encoder's answer to zeros."""
    model, method = toy("agm", "--agm_alpha", 2, "--agm_mask", mask, fusion=fusion)
    inputs, label = batch()
    method.means, method.batches = torch.tensor([1.0, 1.3, 1.6], dtype=torch.float64), 7
    outputs = method.step(model, inputs, label)
    zeros, f = {name: torch.zeros_like(x) for name, x in inputs.items()}, {}
    for kept in agm.subsets(WIDTHS)[1:]:
        f[kept] = written_out(model, fusion, zeros | {name: inputs[name] for name in kept}, label)[0]["fused"]
    a, v, t, av, at, vt, avt = (f[frozenset(some)] for some in ("a", "v", "t", "av", "at", "vt", "avt"))
    m = {
        "a": (avt - vt + a) / 3 + (av - v + at - t) / 6,
        "v": (avt - at + v) / 3 + (av - a + vt - t) / 6,
        "t": (avt - av + t) / 3 + (at - a + vt - v) / 6,
    }
    s = [F.cross_entropy(each, label).item() for each in m.values()]
    g = (avt.softmax(1) - F.one_hot(label, CLASSES)).detach() / BATCH
    weights = []
    for score, mean in zip(s, (1.0, 1.3, 1.6), strict=True):
        r, tau = math.exp(1.5 * (sum(s) / 3 - score)), math.exp(1.5 * (1.3 - mean))
        weights.append(math.exp(2 * (tau - r)) * g)
    assert max(weights[0].norm() / g.norm(), weights[1].norm() / g.norm()) > 1.01
    assert_gradients(list(model.parameters()), gradients([*m.values()], list(model.parameters()), weights))
    for name, each in m.items():
        torch.testing.assert_close(outputs[name].logits, each)


def test_pmr_in_numbers():
    model, method = toy("pmr")
    helps, holds = method.coefficients(SCORES)
    assert helps.tolist() == close([0, 0.25, 1]) and holds.tolist() == close([0.75, 0.5, 0])


def test_gradients_of_pmr():
    """Check L_m + alpha sum beta_u PCE_u - mu sum c_u H_u, what is added reaching its own encoder alone."""
    model, method = toy("pmr", "--pmr_alpha", 2, "--pmr_mu", 0.3)
    inputs, label = batch()
    method.prototypes = {name: torch.randn(CLASSES, DIM, dtype=torch.float64) for name in model.modalities}
    method.present = torch.ones(CLASSES, dtype=torch.bool)
    method.step(model, inputs, label)
    loss = written_out(model, "concat", inputs, label)[1]["fused"]
    log_p = {}
    for name, centres in method.prototypes.items():
        z = model.encode(name, inputs[name])
        log_p[name] = (-(z.unsqueeze(1) - centres).square().sum(dim=2).sqrt()).log_softmax(1)
    own = {name: rows[range(BATCH), label] for name, rows in log_p.items()}
    S = {name: rows.exp().sum().item() for name, rows in own.items()}
    for name, rows in log_p.items():
        others = [S[other] for other in S if other != name]
        beta = sum(min(max(other / S[name] - 1, 0), 1) for other in others) / 2
        c = sum(min(max(S[name] / other - 1, 0), 1) for other in others) / 2
        loss = loss - 2 * beta * own[name].mean() + 0.3 * c * (rows.exp() * rows).sum(dim=1).mean()
    assert_gradients(list(model.parameters()), gradients(loss, list(model.parameters())))


@pytest.mark.parametrize(
    ("g_m", "g_u", "expected"),
    [
        ((2, 0), (-1, 1), (0.670820, 2.012461)),
        ((1, 0), (1, 1), (3, 1.5)),
        ((1, 0), (-1, 3), (3.744226, 2.496151)),
    ],
)
def test_mmpareto_in_numbers(g_m, g_u, expected):
    _, method = toy("mmpareto", "--mmpareto_gamma", 1.5)
    (found,) = method.combined(*([torch.tensor(each, dtype=torch.float64)] for each in (g_m, g_u)))
    assert found.tolist() == close(expected)


def test_mla_in_numbers():
    log_p = [torch.tensor([p], dtype=torch.float64).log() for p in ([0.9, 0.05, 0.05], [1 / 3] * 3, [0.6, 0.3, 0.1])]
    assert [statistics.entropy(each).item() for each in log_p] == close([0.394398, 1.098612, 0.897946])
    expected = sum(w * each for w, each in zip((0.476445, 0.235600, 0.287955), log_p, strict=True))
    torch.testing.assert_close(statistics.by_certainty(*log_p), expected, rtol=0, atol=5e-6)
    model, method = toy("mla", dim=2, encoders={name: nn.Linear(1, 2) for name in WIDTHS}, n_classes=1)
    weight, mean = model.fusion_module.head.weight, torch.tensor([1.0, 0.0], dtype=torch.float64)
    for expected in ([3, 4], [0.272727, 4]):  # the first gradient stays as it is, P being the identity
        weight.grad = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
        method.project(weight, mean)
        assert weight.grad.flatten().tolist() == close(expected)


def test_mla_updates_once_for_each_modality():
    model, method = toy("mla")
    inputs, label = batch()
    seen = []
    for outputs in method.steps(model, inputs, label):
        reached = [name for name in model.modalities if model.encoder_parameters(name)[0].grad is not None]
        seen.append((reached, list(outputs)))
        model.zero_grad()
    assert seen == [(["a"], ["a"]), (["v"], ["a", "v"]), (["t"], ["fused", "a", "v", "t"])]


def test_inforeg_in_numbers():
    scores = [-0.4, -0.9, -1.6]
    assert inforeg.leads(torch.tensor(scores)).tolist() == close([0.85, 0.7, 0])
    model, method = toy("inforeg", "--inforeg_beta", 0.9, fusion="sum", encoders=convolutions(), n_classes=2)
    method.begin_epoch(0, model, {}, torch.device("cpu"))
    method.traces = [[1.0] * 3, [2.0] * 3]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1  # w - w_start
            parameter.grad = torch.zeros_like(parameter)
    label = torch.zeros(1, dtype=torch.int64)
    method.adjust_gradients(model, outputs_of(model, probabilities(map(math.exp, scores)), label), label)
    found = [model.encoder(name).weight.grad.mean().item() for name in model.modalities]
    assert found == close([1.862580, 1.722766, 0])
    method.traces = [[1.0, 2.0, 1.0], [2.0, 1.0, 2.0]]
    assert method.windows(model) == [True, False, True]


def test_relearning_in_numbers(monkeypatch):
    flags = ["--val_ratio", 0.3, "--relearn_lambda", 8, "--relearn_every", 1, "--relearn_times", 1]
    model, method = toy("relearn", *flags)
    method.prepare(model)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    label = torch.arange(CLASSES)
    monkeypatch.setattr("methods.relearn.features_of", lambda *_: (dict.fromkeys(WIDTHS), label))
    purities = iter([0.9, 0.6, 0.5, 0.6, 0.72, 0.7])  # of training and held-out clips, modality by modality
    monkeypatch.setattr("methods.relearn.purity", lambda *_: next(purities))
    loaders = {split: SimpleNamespace(dataset=None) for split in ("plain", "val")}
    method.begin_epoch(2, model, loaders, torch.device("cpu"))
    alphas = [0.983675, 0.664037, 0.158649]
    assert list(method.row().values()) == close(alphas) and list(method.row()) == [f"relearn_{name}" for name in "avt"]
    moved = dict(zip(model.parameters(), start, strict=True))
    for name, alpha in zip(model.modalities, alphas, strict=True):
        for parameter in model.encoder_parameters(name):
            torch.testing.assert_close(parameter, moved[parameter] + 1 - alpha, rtol=0, atol=2e-6)
    assert all(torch.equal(p, moved[p] + 1) for p in model.fusion_module.parameters())


def test_umt_in_numbers(monkeypatch):
    model, method = toy("umt", "--umt_lambda", 10)
    inputs, label = batch()
    method.teachers, features = {}, {name: model.encode(name, x) for name, x in inputs.items()}
    for (name, z), distance in zip(features.items(), (0.01, 0.02, 0.03), strict=True):
        teacher = nn.Module()
        teacher.encode = lambda _, x, z=z, distance=distance: z + distance**0.5
        method.teachers[name] = teacher
    monkeypatch.setattr("methods.umt.joint_step", lambda model, inputs, label, extra: extra(features))
    assert method.step(model, inputs, label).item() == pytest.approx(0.6)


def test_gradients_of_umt():
    (model, method), (teacher, _) = toy("umt", "--umt_lambda", 10), toy()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.1
    method.teachers = dict.fromkeys(model.modalities, teacher.requires_grad_(False))
    inputs, label = batch()
    whole_step(model, method, inputs, label)
    loss = written_out(model, "concat", inputs, label)[1]["fused"]
    for name, x in inputs.items():
        loss = loss + 10 * (model.encode(name, x) - teacher.encode(name, x)).square().mean()
    assert_gradients(list(model.parameters()), gradients(loss, list(model.parameters())))

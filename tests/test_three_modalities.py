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
from methods import METHODS, Output, agm, build_method, gblend, inforeg, lfm, statistics
from methods.ablations import NoMGT, NoMGTNoUGT, NoUGT
from models.fusion_modules import SumFusion_AUXI
from tests.conftest import settings_of
from tests.rules import TOY_CLASSES as CLASSES
from tests.rules import TOY_DIM as DIM
from tests.rules import WIDTHS, Toy, toy, toy_rule
from tests.rules import toy_batch as batch
from tests.rules import toy_written_out as written_out
from utils.errors import InputError

ALPHA = 3.0
SCORES = torch.tensor([6.0, 4.0, 2.0])  # S of the worked examples


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
    model, method = toy_rule(name)
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


@pytest.mark.parametrize(
    ("rule", "expected"), [("cvpr", (0.778722, 0.867451)), ("journal", (0.915172, 0.967849))], ids=["cvpr", "journal"]
)
def test_ogm_in_numbers(rule, expected):
    assert statistics.mean_over_others(SCORES, torch.div).tolist() == close([2.25, 1.333333, 0.416667])
    flags = ["--ogm_alpha", 0.1, "--ogm_rule", rule]
    model, method = toy("ogm", *flags, fusion="sum", encoders=convolutions(), n_classes=2)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    label = torch.zeros(8, dtype=torch.int64)
    method.adjust_gradients(model, outputs_of(model, probabilities([0.75, 0.5, 0.25], 8), label), label)
    found = [model.encoder(name).weight.grad.unique().tolist() for name in model.modalities]
    assert found == [[close(each)] for each in expected] + [[1]]  # S is 6, 4, 2
    assert all((model.encoder(name).bias.grad == 1).all() for name in model.modalities)


def test_coefficients_of_ogm():
    """Check that the journal's k starts at 1 and is never below 0, and that CVPR's jumps where rho passes 1."""
    rho = torch.tensor([0.5, 1.0, 1.001, 3.0], dtype=torch.float64)
    for rule, alpha, expected in (
        ("cvpr", 0.8, [1, 1, 1 - math.tanh(0.8008), 1 - math.tanh(2.4)]),
        ("journal", 0.8, [1, 1, 1 - 0.8 * math.tanh(0.001), 1 - 0.8 * math.tanh(2)]),
        ("journal", 5, [1, 1, 1 - 5 * math.tanh(0.001), 0]),
    ):
        _, method = toy("ogm", "--ogm_alpha", alpha, "--ogm_rule", rule)
        assert method.coefficients(rho).tolist() == pytest.approx(expected, abs=1e-12)


def test_ogm_splits_the_bias_of_concat():
    model, method = toy("ogm", "--ogm_alpha", 0.1, encoders=convolutions(), n_classes=2)
    with torch.no_grad():
        model.fusion_module.fc_out.bias.copy_(torch.tensor([3.0, -6.0]))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    label, of_others = torch.zeros(8, dtype=torch.int64), torch.tensor([2.0, -4.0])  # W_u z_u + b / 3 is left
    logits = [each + of_others for each in probabilities([0.75, 0.5, 0.25], 8)]
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
    assert kappas([0.1, 3, 4], [0.1, 5, 9])[0].item() == pytest.approx(math.exp(10))  # tau - r is at most 10
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


def test_pmr_in_numbers():
    model, method = toy("pmr")
    helps, holds = method.coefficients(SCORES)
    assert helps.tolist() == close([0, 0.25, 1]) and holds.tolist() == close([0.75, 0.5, 0])


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


M, U = (0.3, -2.0), (1.5, 0.25)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rescale", ["encoder", "tensor"])
@pytest.mark.parametrize(
    ("g_m", "g_u", "expected"),
    [
        (M, (0, 0), (1.3 * 0.3, 1.3 * -2.0)),
        ((0, 0), U, (1.3 * 1.5, 1.3 * 0.25)),
        ((0, 0), (0, 0), (0, 0)),
        (M, (-0.3, 2.0), (0, 0)),  # g_m = - g_u
        ((-2 * 0.3, -2 * -2.0), M, (0, 0)),  # g_m = - 2 g_u
        (M, (-2 * 0.3, -2 * -2.0), (0, 0)),
        ((1.0, 0.0), (0.0, 3.0), (1.3, 3.9)),  # at right angles
        ((1.0, 1.0), (-2.0, 2.0), (-1.3, 3.9)),
        (M, (2.0, 0.3), (1.3 * 2.3, 1.3 * -1.7)),
    ],
)
def test_mmpareto_where_h_is_0_or_the_angle_a_right_one(g_m, g_u, expected, rescale, dtype):
    """Check encoders of three tensors, one after the other with these gradients; never 0 / 0."""
    _, method = toy("mmpareto", "--mmpareto_gamma", 1.3, "--mmpareto_rescale", rescale)
    lists = ([torch.tensor(each, dtype=dtype) * k for k in (1, 2, 1)] for each in (g_m, g_u))
    found = method.combined(*lists)
    for tensor, k in zip(found, (1, 2, 1), strict=True):
        assert tensor.dtype == dtype and tensor.isfinite().all()
        assert tensor.tolist() == pytest.approx([k * each for each in expected], rel=1e-5, abs=1e-12)


def test_mmpareto_rescales_small_tensors_next_to_large_ones():
    """Check a tensor whose gradients are 0, and one whose are a billionth of the others'."""
    _, method = toy("mmpareto", "--mmpareto_gamma", 1.3, "--mmpareto_rescale", "tensor")
    g_m, g_u = ([torch.tensor(each, dtype=torch.float64) * k for k in (1, 0, 1e-9)] for each in ((2, 0), (-1, 1)))
    large, zero, small = method.combined(g_m, g_u)
    c = 0.4
    h = torch.tensor([2 * c * 2 - 2 * (1 - c), 2 * (1 - c)], dtype=torch.float64)
    torch.testing.assert_close(large, 1.3 * 2**0.5 * h / h.norm())
    torch.testing.assert_close(small, 1e-9 * large, rtol=1e-9, atol=0)
    assert not zero.any()


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


class Rows(nn.Module):
    """An encoder whose features are given rows, as parameters."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows, dtype=torch.float64))

    def forward(self, x):
        return self.rows


def test_lfm_in_numbers(monkeypatch):
    same, swapped = [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]
    encoders = {"a": Rows(same), "v": Rows(same), "t": Rows(swapped)}
    model, method = toy("lfm", "--lfm_tau", 1, encoders=encoders, n_classes=2, dim=2)
    pairs = [lfm.infonce(encoders[u].rows, encoders[v].rows, 1).item() for u, v in ("av", "at", "vt")]
    assert pairs == close([0.313262, 1.313262, 1.313262]) and sum(pairs) / 3 == close(0.979928)
    losses = []
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: losses.append(loss.item()))
    inputs, label = dict.fromkeys("avt", torch.zeros(2, 1)), torch.tensor([0, 1])
    for method.epoch in (0, 1):
        outputs = method.step(model, inputs, label)
        w = 1 - math.exp(-1 / (method.epoch + 1))
        assert method.weight() == pytest.approx(w)
        assert losses.pop() == close((1 - w) * outputs["fused"].loss.item() + w * 0.979928)
    method.epoch = 0
    assert method.weight() == close(0.632121)


def test_infonce_depends_on_angles_alone():
    torch.manual_seed(0)
    x, y = torch.randn(2, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(lfm.infonce(7 * x, y, 0.1), lfm.infonce(y, x, 0.1))
    order = torch.randperm(6)
    torch.testing.assert_close(lfm.infonce(x[order], y[order], 0.1), lfm.infonce(x, y, 0.1))
    assert lfm.infonce(x, x, 1e-3) < 1e-6 and lfm.infonce(x, y, 1e9).item() == pytest.approx(math.log(6))
    zero = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)  # ReLU may leave a feature of zeros
    lfm.infonce(zero, y, 0.1).backward()
    assert zero.grad.isfinite().all()


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

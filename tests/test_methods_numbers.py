"""Check coefficients of methods in numbers and at their limits, what is done before an epoch, and clips' features."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis.gradient_report import gradient_report
from methods import features as clip_features
from methods import gblend, lfm
from methods.inforeg import InfoReg
from models.fusion_modules import SumFusion_AUXI
from tests.conftest import method_of, settings_of
from tests.rules import (
    CLASSES,
    WIDTHS,
    batch,
    encoder_names,
    features_of,
    loaders_of,
    rule,
    small_model,
    toy,
    toy_batch,
    whole_step,
)
from utils.errors import InputError

CPU = torch.device("cpu")


def close(expected):
    return pytest.approx(expected, abs=2e-6)


def shifted(model, by):
    """Move every encoder weight."""
    with torch.no_grad():
        for parameter in (p for name in model.modalities for p in model.encoder_parameters(name)):
            parameter += by


def test_a_gradient_report_of_three_modalities():
    model, method = toy("dgl", "--alpha", 3.0)
    report = gradient_report(method, model, *toy_batch())
    assert list(report) == ["L_m", "L_a", "L_v", "L_t", "all"]
    for loss, module in (("L_m", "fusion"), ("L_a", "a"), ("L_v", "v"), ("L_t", "t")):
        assert [name for name, norm in report[loss].items() if norm > 0] == [module]
        assert report[loss].keys() == {"fusion", "a", "v", "t"}


@pytest.mark.parametrize("fusion", ["gated", "film", "bilinear"])
def test_fusion_of_two_rejects_three(fusion):
    with pytest.raises(ValueError, match="takes 2 modalities, not 3"):
        toy(fusion=fusion)


def test_names_of_the_layers_of_sum():
    names = {name.partition(".")[0] for name in SumFusion_AUXI(2, 3, "abcde").state_dict()}
    assert names == {"fc_x", "fc_y", "fc_z", "fc_3", "fc_4"}


@pytest.mark.parametrize("way", ["cvpr", "journal"])
def test_ogm_slows_from_above_1(way):
    _, method = toy("ogm", "--ogm_rule", way)
    assert [k == 1 for k in method.coefficients(torch.tensor([0.5, 1.0, 1.001]))] == [True, True, False]


@pytest.mark.parametrize(
    ("overfitting", "gain", "weights"),
    [
        ((0.5, 1, 0.3), (0.5, 0.5, 0.2), [0.423529, 0.105882, 0.470588]),
        ((0.5, 1, 0.2, 0.5), (0.4, 0.3, 0.1, 0.2), [0.307692, 0.057692, 0.480769, 0.153846]),
        ((1.5, 1.5, 1.5), (-1, -1, -1), [1 / 3] * 3),
        ((1.5, 0, 1.5), (-1, 0.5, -1), [0, 1, 0]),
        ((0.5, 1, 0.3), (-1, 0.5, 0.2), [0, 0.183673, 0.816327]),
    ],
)
def test_blending_weights(overfitting, gain, weights):
    for scale in (1, 7):  # in other units the weights are the same
        found = {}
        for name, o, g in zip(("joint", *WIDTHS), overfitting, gain, strict=False):
            losses = (2, 2), (2 - g - o, 2 - g)  # in training and held out: untrained, at the end
            found[name] = [[scale * loss for loss in pair] for pair in losses]
        assert gblend.blending_weights(found) == close(weights)


def test_blending_weights_are_one_for_each_loss():
    _, method = toy("gblend", "--gblend_weights", "0.4,0.3,0.2,0.1")
    assert method.runs == ("joint", "a", "v", "t")
    with pytest.raises(InputError, match="needs 4 numbers, one each for joint, a, v, t"):
        toy("gblend", "--gblend_weights", "0.4,0.3,0.3")


def test_kappa_of_agm_is_at_most_e_to_the_10_alpha():
    _, method = toy("agm", "--agm_alpha", 1)
    method.means = torch.tensor([0.1, 5, 9])
    logits = [torch.tensor([[-s, math.log(1 - math.exp(-s))]], dtype=torch.float64) for s in (0.1, 3, 4)]
    assert method.coefficients(logits, torch.tensor([0]))[0].item() == pytest.approx(math.exp(10))


@pytest.mark.parametrize(
    ("way", "scores", "helps", "holds"),
    [
        ("paper", [1.0, 1.0], [0, 0], [0, 0]),
        ("paper", [6.0, 4.0, 2.0], [0, 0.25, 1], [0.75, 0.5, 0]),
        ("code", [1.0, 1.0], [0, 0], [0, 0]),
        ("code", [0.25, 1.0], [1, 0], [0, 1]),
    ],
)
def test_coefficients_of_pmr(way, scores, helps, holds):
    _, method = toy("pmr", "--pmr_rule", way)
    found = [each.tolist() for each in method.coefficients(torch.tensor(scores))]
    assert found == [close(helps), close(holds)]


def test_probabilities_of_pmr_at_a_prototype_and_without_one():
    (_, method), centres = rule("pmr"), torch.eye(CLASSES, 512)
    at = centres[:1].clone().requires_grad_()  # at a prototype, where the distance has no gradient
    method.log_probabilities(at, centres)[0, 0].backward()
    assert at.grad.isfinite().all()
    method.present[2] = False
    without = method.log_probabilities(torch.zeros(1, 512), centres).exp()
    assert without[0, 2] == 0 and without[0, 0].item() == pytest.approx(1 / (CLASSES - 1))


M, U = (0.3, -2.0), (1.5, 0.25)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rescale", ["encoder", "tensor"])
@pytest.mark.parametrize(
    ("g_m", "g_u", "expected"),  # over gamma
    [
        ((2.0, 0.0), (-1.0, 1.0), (0.447214, 1.341641)),
        (M, (0, 0), M),
        ((0, 0), U, U),
        ((0, 0), (0, 0), (0, 0)),
        (M, (-0.3, 2.0), (0, 0)),  # g_m = - g_u
        ((-2 * 0.3, -2 * -2.0), M, (0, 0)),  # g_m = - 2 g_u
        (M, (-2 * 0.3, -2 * -2.0), (0, 0)),
        ((1.0, 0.0), (0.0, 3.0), (1.0, 3.0)),  # at right angles
        ((1.0, 1.0), (-2.0, 2.0), (-1.0, 3.0)),
        (M, (2.0, 0.3), (2.3, -1.7)),
    ],
)
def test_mmpareto_in_numbers(g_m, g_u, expected, rescale, dtype):
    """Check encoders of three tensors, one after the other with these gradients; never 0 / 0."""
    _, method = toy("mmpareto", "--mmpareto_gamma", 1.3, "--mmpareto_rescale", rescale)
    found = method.combine(*([torch.tensor(each, dtype=dtype) * k for k in (1, 2, 1)] for each in (g_m, g_u)))
    for tensor, k in zip(found, (1, 2, 1), strict=True):
        assert tensor.dtype == dtype and tensor.isfinite().all()
        assert tensor.tolist() == pytest.approx([1.3 * k * each for each in expected], rel=2e-6, abs=1e-12)


def test_mmpareto_rescales_small_tensors_next_to_large_ones():
    """Check a tensor whose gradients are 0, and one whose are a billionth of the others'."""
    _, method = toy("mmpareto", "--mmpareto_gamma", 1.3, "--mmpareto_rescale", "tensor")
    g_m, g_u = ([torch.tensor(each, dtype=torch.float64) * k for k in (1, 0, 1e-9)] for each in ((2, 0), (-1, 1)))
    large, zero, small = method.combine(g_m, g_u)
    assert large.tolist() == close([1.3 * 0.2**0.5, 1.3 * 1.8**0.5])
    torch.testing.assert_close(small, 1e-9 * large, rtol=1e-9, atol=0)
    assert not zero.any()


def test_infonce_of_a_feature_of_zeros_has_a_finite_gradient():
    zero = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)  # ReLU may leave one
    lfm.infonce(zero, torch.rand(6, 3, dtype=torch.float64), 0.1).backward()
    assert zero.grad.isfinite().all()


def test_pmr_prototypes_are_class_means_in_evaluation():
    model, method = rule("pmr", "--pmr_momentum", 0.25, "--batch_size", 5)  # of 12 clips
    method.prototypes, (inputs, _), first = None, batch(12), None
    label = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3, 3, 4, 4, 4])
    for epoch in (0, 1):
        method.begin_epoch(epoch, model.train(), loaders_of(inputs, label), CPU)
        for name, z in features_of(model.eval(), inputs).items():
            for k in (0, 1, 3, 4):
                mean = z[label == k].mean(0).detach()
                expected = 0.25 * first[name][k] + 0.75 * mean if epoch else mean
                torch.testing.assert_close(method.prototypes[name][k], expected)
        first = method.prototypes
        shifted(model, 0.01)
    assert method.present.tolist() == [True, True, False, True, True]


def test_inforeg_takes_the_epochs_mean_of_squared_gradients():
    (model, method), squares = rule("inforeg"), []
    for size in (4, 5, 6):
        model.zero_grad()
        whole_step(model, method, *batch(size))
        squares.append([sum(p.grad.square().sum() for p in model.encoder_parameters(n)) for n in model.modalities])
    method.begin_epoch(1, model, {}, CPU)
    assert method.traces[0] == pytest.approx(torch.tensor(squares).mean(dim=0).tolist())
    assert method.batches == 0 and not method.sums.any()


@pytest.mark.parametrize(
    ("flags", "purities", "alphas"),
    [
        ([], [0.9, 0.7, 0.5, 0.5], [0.5370496, 0]),
        (["--relearn_lambda", 8], [0.9, 0.6, 0.5, 0.6, 0.72, 0.7], [0.98367486, 0.66403677, 0.15864850]),
    ],
)
def test_relearning_goes_back_by_the_gap_in_purity(flags, purities, alphas, monkeypatch):
    """Check 17 epochs; purities are those of training and held-out clips, modality by modality."""
    flags, n = ["--val_ratio", 0.3, "--relearn_every", 5, "--relearn_times", 2, *flags], len(alphas)
    model, clips = (small_model().double(), batch()) if n == 2 else (toy()[0], toy_batch())
    method, found = method_of(model, "--method", "relearn", *flags), iter(purities * 2)
    monkeypatch.setattr("methods.relearn.purity", lambda *_: next(found))
    method.prepare(model)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for epoch in range(17):
        shifted(model, 0.5)
        expected = {name: value.clone() for name, value in model.state_dict().items()}
        method.begin_epoch(epoch, model, loaders_of(*clips), CPU)
        now = epoch in (6, 11)
        assert list(method.row().values()) == close(alphas if now else [0] * n)
        assert list(method.row()) == [f"relearn_{name}" for name in model.modalities]
        for modality, alpha in zip(model.modalities, alphas, strict=True):
            for name in encoder_names(model, modality) if now else ():
                expected[name] = (1 - alpha) * expected[name] + alpha * start[name]
        tolerance = 1e-6 if now else 0
        torch.testing.assert_close(dict(model.state_dict()), expected, rtol=tolerance, atol=tolerance)
    method.strengths = dict.fromkeys(model.modalities, 1.0)
    method.relearn(model)
    assert all(torch.equal(p, start[name]) for name, p in model.named_parameters() if "fusion" not in name)


def test_a_tenth_of_every_class():
    clips = loaders_of(batch()[0], torch.tensor([0] * 230 + [1] * 50 + [2] * 3))["train"].dataset.clips
    drawn = clip_features.draw_per_class(clips, 0.1, 10, seed=0)
    counts = torch.bincount(torch.tensor([clips[k].label for k in drawn]))
    assert counts.tolist() == [23, 10, 3] and drawn == sorted(set(drawn))
    assert drawn != clip_features.draw_per_class(clips, 0.1, 10, seed=1)


def test_purity_in_numbers():
    assert clip_features.cluster_purity(np.array([0, 0, 1, 1, 2]), np.array([1, 1, 0, 0, 0])) == 0.8
    torch.manual_seed(0)
    label = torch.arange(3).repeat(7)
    features = 10 * torch.randn(3, 512)[label] + torch.randn(21, 512)
    assert clip_features.purity(features, label, 3) == 1
    assert clip_features.purity(features, torch.arange(21) // 7, 3) < 0.7
    assert clip_features.purity(features[:2], label[:2], 3) == 1  # fewer clips than classes


def test_inforeg_closes_the_window_of_an_encoder_without_a_gradient():
    settings = settings_of("--method", "inforeg")
    method = SimpleNamespace(traces=[[1.0, 1.0], [0.0, 2.0]], settings=settings)
    assert InfoReg.windows(method, None) == [False, True]

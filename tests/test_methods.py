"""Check OGM and OGM-GE with two modalities against the equations, and how flags name methods."""

import math

import pytest
import torch
import torch.nn.functional as F

from engine.settings import complete
from main_dgl import DGL
from methods import build_method
from methods.ablations import NoMGT, NoMGTNoUGT, NoUGT
from methods.ogm import OGM, OGM_GE
from methods.unimodal import Unimodal
from tests.conftest import settings_of
from tests.rules import (
    alone,
    assert_gradients,
    fused,
    gradients,
    labels_that_favour,
    likely,
    rule,
    small_model,
    whole_step,
)
from tests.test_dgl_step import batch, features


def joint_gradients(model, fusion, inputs, label):
    return gradients(model, F.cross_entropy(fused(model, *features(model, inputs), fusion), label))


@pytest.mark.parametrize(("leader", "other"), [("audio", "visual"), ("visual", "audio")])
@pytest.mark.parametrize("fusion", ["concat", "sum", "gated"])
def test_ogm_slows_the_leading_encoder_alone_within_its_window(fusion, leader, other):
    """Check it by own logits as in Peng et al. 2022, eq. 8 to 10; in epochs 2 to 4 here."""
    window = ["--modulation_starts", 2, "--modulation_ends", 4]
    model, method = rule("ogm", "--ogm_alpha", 0.6, *window, fusion=fusion)
    inputs, _ = batch()
    logits = dict(zip(model.modalities, alone(model, *features(model, inputs), fusion), strict=True))
    label = labels_that_favour(logits[leader], logits[other])
    rho = (likely(logits[leader], label).sum() / likely(logits[other], label).sum()).item()
    assert rho > 1
    for method.epoch in range(6):
        model.zero_grad()
        whole_step(model, method, inputs, label)
        expected = joint_gradients(model, fusion, inputs, label)
        assert all(gradient.any() for gradient in expected.values())
        for name, gradient in expected.items():
            if 2 <= method.epoch <= 4 and name.startswith(leader) and gradient.dim() == 4:
                expected[name] = gradient * (1 - math.tanh(0.6 * rho))
        assert_gradients(model, expected)


def test_ge_noise_has_the_gradients_own_deviation():
    (noisy, with_noise), (quiet, without) = (rule(name, "--ogm_alpha", 0.6) for name in ("ogm_ge", "ogm"))
    torch.manual_seed(5)
    whole_step(noisy, with_noise, *batch())
    whole_step(quiet, without, *batch())
    noises, plain = [], joint_gradients(quiet, "concat", *batch())
    for (name, p), q in zip(noisy.named_parameters(), quiet.parameters(), strict=True):
        if p.dim() == 4:
            noise = (p.grad - q.grad) / plain[name].std()
            noises.append(noise.flatten())
            assert noise.std().item() == pytest.approx(1, abs=5 / noise.numel() ** 0.5), name
            assert abs(noise.mean().item()) < 5 / noise.numel() ** 0.5, name
        else:
            torch.testing.assert_close(p.grad, q.grad)
    assert (torch.cat(noises) ** 4).mean().item() == pytest.approx(3, rel=0.02)  # a Gaussian's kurtosis
    assert len({noise[:3].sum().item() for noise in noises}) == len(noises)  # drawn for every gradient


@pytest.mark.parametrize(
    ("flags", "name", "method"),
    [
        ([], "dgl", DGL),
        (["--modulation", "Normal"], "dgl", DGL),
        (["--method", "dgl", "--no_mgt"], "no_mgt", NoMGT),
        (["--no_mgt", "--no_ugt"], "no_mgt+no_ugt", NoMGTNoUGT),
        (["--method", "no_ugt"], "no_ugt", NoUGT),
        (["--method", "joint", "--modulation", "OGM_GE"], "ogm_ge", OGM_GE),
        (["--modulation", "OGM"], "ogm", OGM),
        (["--modality", "audio"], "audio", Unimodal),
        (["--method", "visual"], "visual", Unimodal),
    ],
)
def test_flags_choose_the_method(flags, name, method):
    settings = settings_of(*flags)
    assert settings.method == name and settings.modality == (name if name in ("audio", "visual") else "full")
    assert type(build_method(settings, small_model(modality=settings.modality))) is method
    assert complete(vars(settings)) == settings  # as a checkpoint records them


def test_a_method_has_its_own_flags_alone():
    dgl, joint = settings_of("--alpha", 2), vars(settings_of("--method", "joint"))
    assert dgl.alpha == 2 and not hasattr(dgl, "ogm_alpha")
    assert not joint.keys() & {"alpha", "ogm_alpha", "modulation", "no_mgt"}


def test_settings_of_an_older_run_are_completed():
    """Check that a missing setting counts as its default, and that earlier flags name the method."""
    recorded = {"method": "joint", "modulation": "OGM_GE", "modality": "full", "no_mgt": False, "ogm_alpha": 0.4}
    assert complete(recorded | {"alpha": 4.0}) == settings_of("--method", "ogm_ge", "--ogm_alpha", 0.4)

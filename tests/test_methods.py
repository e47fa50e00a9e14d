"""Check the gradients of joint training, OGM and the ablations against the equations, and how flags name methods."""

import pytest
import torch
import torch.nn.functional as F

from engine.settings import complete
from main_dgl import DGL
from methods import build_method
from methods.ablations import Ablation
from tests.conftest import method_of, settings_of
from tests.rules import small_model, whole_step
from tests.test_dgl_step import ALPHA, FORMULAS, assert_equal_gradients, batch, features
from tests.test_dgl_step import build as build_whole


def build(fusion_method):
    return small_model(fusion_method).double().train()


def written_out(model, fusion_method, inputs, label):
    """Return the multimodal and the unimodal loss by the formulas, in one graph, and each modality's logits."""
    fused, audio_alone, video_alone = FORMULAS[fusion_method]
    weights = dict(model.fusion_module.named_parameters())
    a, v = features(model, inputs)
    logits_a, logits_v = audio_alone(weights, a), video_alone(weights, v)
    unimodal = F.cross_entropy(logits_a, label) + F.cross_entropy(logits_v, label)
    return F.cross_entropy(fused(weights, a, v), label), unimodal, logits_a, logits_v


def split_parameters(model):
    """Return names and parameters of (encoders, fusion)."""
    named = list(model.named_parameters())
    encoders = [(name, p) for name, p in named if not name.startswith("fusion_module")]
    return encoders, [(name, p) for name, p in named if name.startswith("fusion_module")]


def gradients(loss, named):
    """Return d(loss) of named parameters, None for those that the loss does not reach."""
    return torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)


@pytest.mark.parametrize("fusion_method", ["concat", "gated"])
def test_joint_gradients(fusion_method):
    model, clips = build(fusion_method), batch()
    outputs = method_of(model, "--method", "joint").step(model, *clips)
    multimodal, unimodal, logits_a, logits_v = written_out(model, fusion_method, *clips)
    assert_equal_gradients(
        model.named_parameters(), torch.autograd.grad(multimodal, list(model.parameters()), retain_graph=True)
    )
    torch.testing.assert_close(outputs["fused"].loss, multimodal)
    torch.testing.assert_close(outputs["audio"].logits, logits_a)
    torch.testing.assert_close(outputs["audio"].loss, F.cross_entropy(logits_a, clips[1]))
    torch.testing.assert_close(outputs["visual"].logits, logits_v)
    torch.testing.assert_close(outputs["audio"].loss + outputs["visual"].loss, unimodal)


@pytest.mark.parametrize("fusion_method", ["concat", "gated"])
@pytest.mark.parametrize(("mgt", "ugt"), [(True, True), (False, True), (True, False), (False, False)])
def test_which_loss_reaches_which_module(fusion_method, mgt, ugt):
    model, clips = build(fusion_method), batch()
    flags = [flag for flag, kept in (("--no_mgt", mgt), ("--no_ugt", ugt)) if not kept]
    method_of(model, "--alpha", ALPHA, *flags).step(model, *clips)
    multimodal, unimodal, _, _ = written_out(model, fusion_method, *clips)
    encoders, fusion = split_parameters(model)
    for named, of_multimodal, of_unimodal in ((encoders, not mgt, True), (fusion, True, not ugt)):
        expected = [torch.zeros_like(p) for _, p in named]
        for reaches, loss in ((of_multimodal, multimodal), (of_unimodal, ALPHA * unimodal)):
            if reaches:
                expected = [e + (0 if g is None else g) for e, g in zip(expected, gradients(loss, named), strict=True)]
        assert_equal_gradients(named, expected)


def test_ablation_of_nothing_is_dgl():
    models, settings = [build("gated"), build("gated")], settings_of("--alpha", ALPHA)
    methods = DGL(settings, models[0]), Ablation(settings, models[1])
    outputs = [method.step(model, *batch()) for method, model in zip(methods, models, strict=True)]
    torch.testing.assert_close(*outputs)
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def own_probabilities(model, fusion_method, clips):
    """Return each modality's softmax probabilities (B, C) of its own logits, as in Peng et al. 2022, eq. 8."""
    _, _, logits_a, logits_v = written_out(model, fusion_method, *clips)
    if fusion_method == "concat":  # W_a a + b / 2
        logits_a, logits_v = (logits - model.fusion_module.fc_out.bias / 2 for logits in (logits_a, logits_v))
    return {"audio": torch.softmax(logits_a, dim=1), "visual": torch.softmax(logits_v, dim=1)}


@pytest.mark.parametrize(("leader", "other"), [("audio", "visual"), ("visual", "audio")])
@pytest.mark.parametrize("fusion_method", ["concat", "sum", "gated"])
def test_ogm_slows_the_leading_encoder_alone(fusion_method, leader, other):
    model, clips = build(fusion_method), batch()
    with torch.no_grad():
        for layer in model.fusion_module.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.bias.normal_()  # so that it matters how a shared bias is counted
    probabilities = own_probabilities(model, fusion_method, clips)
    label = (probabilities[leader] - probabilities[other]).argmax(dim=1)  # labels at which this modality leads
    clips = clips[0], label
    score = {name: sum(rows[i, k] for i, k in enumerate(label)) for name, rows in probabilities.items()}
    rho = (score[leader] / score[other]).detach()
    assert rho > 1
    whole_step(model, method_of(model, "--method", "ogm", "--ogm_alpha", 0.6), *clips)
    named = list(model.named_parameters())
    expected = [
        gradient * (1 - torch.tanh(0.6 * rho)) if name.startswith(leader) and p.dim() == 4 else gradient
        for (name, p), gradient in zip(
            named, gradients(written_out(model, fusion_method, *clips)[0], named), strict=True
        )
    ]
    assert_equal_gradients(named, expected)


def test_ge_noise_has_the_gradients_own_deviation():
    clips, noisy, quiet = batch(), build_whole("concat"), build_whole("concat")
    torch.manual_seed(5)
    whole_step(noisy, method_of(noisy, "--method", "ogm_ge", "--ogm_alpha", 0.6), *clips)
    whole_step(quiet, method_of(quiet, "--method", "ogm", "--ogm_alpha", 0.6), *clips)
    plain = gradients(written_out(quiet, "concat", *clips)[0], list(quiet.named_parameters()))
    noises = []
    for (name, p), (_, q), gradient in zip(noisy.named_parameters(), quiet.named_parameters(), plain, strict=True):
        if p.dim() == 4:
            noise = (p.grad - q.grad) / gradient.std()
            noises.append(noise.flatten())
            assert noise.std().item() == pytest.approx(1, abs=5 / noise.numel() ** 0.5), name
            assert abs(noise.mean().item()) < 5 / noise.numel() ** 0.5, name
        else:
            torch.testing.assert_close(p.grad, q.grad)
    together = torch.cat(noises)
    assert (together**4).mean().item() == pytest.approx(3, rel=0.02)  # a Gaussian's kurtosis
    assert len({noise[:3].sum().item() for noise in noises}) == len(noises)  # drawn anew for every gradient


def test_modulation_window():
    flags = ["--method", "ogm", "--modulation_starts", 2, "--modulation_ends", 4]
    method, model, clips = method_of(build("concat"), *flags), build("concat"), batch()
    plain, norms = method_of(model, "--method", "joint"), []
    for each, epochs in ((plain, [0]), (method, range(6))):
        for each.epoch in epochs:
            model.zero_grad()
            whole_step(model, each, *clips)
            norms.append([p.grad.norm() for p in model.parameters()])
    assert [of_epoch != norms[0] for of_epoch in norms[1:]] == [False, False, True, True, True, False]


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ([], "dgl"),
        (["--modulation", "Normal"], "dgl"),
        (["--method", "dgl", "--no_mgt"], "no_mgt"),
        (["--no_mgt", "--no_ugt"], "no_mgt+no_ugt"),
        (["--method", "no_ugt"], "no_ugt"),
        (["--method", "joint", "--modulation", "OGM_GE"], "ogm_ge"),
        (["--modulation", "OGM"], "ogm"),
        (["--modality", "audio"], "audio"),
        (["--method", "visual"], "visual"),
    ],
)
def test_flags_choose_the_method(flags, name):
    settings = settings_of(*flags)
    assert settings.method == name and settings.modality == (name if name in ("audio", "visual") else "full")
    model = small_model(modality=settings.modality)
    assert type(build_method(settings, model)).__name__.lower() in (
        name.replace("_", "").replace("+", ""),
        "unimodal",
        name,
    )
    assert complete(vars(settings)) == settings  # as a checkpoint records them


def test_a_method_has_its_own_flags_alone():
    assert settings_of("--alpha", 2).alpha == 2 and not hasattr(settings_of("--alpha", 2), "ogm_alpha")
    joint = vars(settings_of("--method", "joint"))
    assert not joint.keys() & {"alpha", "ogm_alpha", "modulation", "no_mgt"}


def test_settings_of_an_older_run_are_completed():
    """Check that a missing setting counts as its default, and that earlier flags name the method."""
    recorded = {"method": "joint", "modulation": "OGM_GE", "modality": "full", "no_mgt": False, "ogm_alpha": 0.4}
    completed = complete(recorded | {"alpha": 4.0})
    assert vars(completed) == vars(settings_of("--method", "ogm_ge", "--ogm_alpha", 0.4))

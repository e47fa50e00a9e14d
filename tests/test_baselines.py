"""The rules beside DGL: their gradients against the equations, and which loss reaches which module."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from main_dgl import choose_step, dgl_step
from models import FUSION_MODULES
from tests.test_dgl_step import ALPHA, FORMULAS, assert_equal_gradients, batch, build, features
from utils import options
from utils.baselines import ablation_step, joint_step


def written_out(model, fusion_method, spectrogram, frames, label):
    """The multimodal and the unimodal loss by DESIGN's formulas, in one graph, and each modality's logits."""
    fused, audio_alone, video_alone = FORMULAS[fusion_method]
    weights = dict(model.fusion_module.named_parameters())
    a, v = features(model, spectrogram, frames)
    logits_a, logits_v = audio_alone(weights, a), video_alone(weights, v)
    unimodal = F.cross_entropy(logits_a, label) + F.cross_entropy(logits_v, label)
    return F.cross_entropy(fused(weights, a, v), label), unimodal, logits_a, logits_v


def split_parameters(model):
    """Names and parameters of (encoders, fusion)."""
    named = list(model.named_parameters())
    encoders = [(name, p) for name, p in named if not name.startswith("fusion_module")]
    return encoders, [(name, p) for name, p in named if name.startswith("fusion_module")]


def gradients(loss, named):
    """d(loss) of named parameters, None of those that it does not reach."""
    return torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)


@pytest.mark.parametrize("fusion_method", ["concat", "gated"])
def test_joint_gradients(fusion_method):
    model, clips = build(fusion_method), batch()
    losses = joint_step(model, *clips)
    multimodal, unimodal, logits_a, _ = written_out(model, fusion_method, *clips)
    assert_equal_gradients(
        model.named_parameters(), torch.autograd.grad(multimodal, list(model.parameters()), retain_graph=True)
    )
    torch.testing.assert_close(losses[0], multimodal.detach())
    torch.testing.assert_close(losses[1], F.cross_entropy(logits_a, clips[2]).detach())
    torch.testing.assert_close(losses[1] + losses[2], unimodal.detach())


@pytest.mark.parametrize("fusion_method", ["concat", "gated"])
@pytest.mark.parametrize(("mgt", "ugt"), [(True, True), (False, True), (True, False), (False, False)])
def test_which_loss_reaches_which_module(fusion_method, mgt, ugt):
    model, clips = build(fusion_method), batch()
    ablation_step(model, *clips, ALPHA, mgt=mgt, ugt=ugt)
    multimodal, unimodal, _, _ = written_out(model, fusion_method, *clips)
    encoders, fusion = split_parameters(model)
    for named, of_multimodal, of_unimodal in ((encoders, not mgt, True), (fusion, True, not ugt)):
        expected = [torch.zeros_like(p) for _, p in named]
        for reaches, loss in ((of_multimodal, multimodal), (of_unimodal, ALPHA * unimodal)):
            if reaches:
                expected = [e + (0 if g is None else g) for e, g in zip(expected, gradients(loss, named), strict=True)]
        assert_equal_gradients(named, expected)


def test_ablation_of_nothing_is_dgl():
    models = [build("gated"), build("gated")]
    losses = [step(model, *batch(), ALPHA) for step, model in zip((dgl_step, ablation_step), models, strict=True)]
    torch.testing.assert_close(*losses)
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def own_probabilities(model, fusion_method, clips):
    """Each modality's softmax probabilities (B, C) of its own logits, as Peng et al. 2022, eq. 8 takes them."""
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
    clips = *clips[:2], label
    score = {name: sum(rows[i, k] for i, k in enumerate(label)) for name, rows in probabilities.items()}
    rho = (score[leader] / score[other]).detach()
    assert rho > 1
    joint_step(model, *clips, modulation="OGM", ogm_alpha=0.6)
    named = list(model.named_parameters())
    expected = [
        gradient * (1 - torch.tanh(0.6 * rho)) if name.startswith(leader) and p.dim() == 4 else gradient
        for (name, p), gradient in zip(
            named, gradients(written_out(model, fusion_method, *clips)[0], named), strict=True
        )
    ]
    assert_equal_gradients(named, expected)


def test_ge_noise_has_the_gradients_own_deviation():
    clips, noisy, quiet = batch(), build("concat"), build("concat")
    torch.manual_seed(5)
    joint_step(noisy, *clips, modulation="OGM_GE", ogm_alpha=0.6)
    joint_step(quiet, *clips, modulation="OGM", ogm_alpha=0.6)
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


def settings(*flags):
    parser = options.training_parser(("CREMAD",), tuple(FUSION_MODULES), ("full", "audio", "visual"))
    return parser.parse_args(list(flags))


def test_modulation_window():
    args = settings("--method", "joint", "--modulation", "OGM", "--modulation_starts", "2", "--modulation_ends", "4")
    used = [choose_step(args, epoch).keywords["modulation"] for epoch in range(6)]
    assert used == ["Normal", "Normal", "OGM", "OGM", "OGM", "Normal"]


def test_flags_choose_the_step():
    assert choose_step(settings(), 0).func is dgl_step
    step = choose_step(settings("--no_mgt", "--alpha", "2"), 0)
    assert isinstance(step, partial) and step.func is ablation_step
    assert step.keywords == {"alpha": 2.0, "mgt": False, "ugt": True}
    assert choose_step(settings("--no_ugt"), 0).keywords["ugt"] is False

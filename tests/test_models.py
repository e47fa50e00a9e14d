"""Contracts of the model: shapes, names in the state dict, initial weights, unimodal variants."""

import math

import pytest
import torch
import torchvision

from models.basic_model import AVClassifier
from models.fusion_modules import BilinearFusion_AUXI
from utils.training.batchnorm import refresh_batchnorm


@pytest.mark.parametrize("fusion_method", ["concat", "sum", "gated", "film"])
def test_shapes_and_names(fusion_method):
    model = AVClassifier(7, fusion_method).eval()
    outputs = model(torch.randn(2, 1, 64, 50), torch.randn(2, 3, 3, 48, 64))
    assert [tuple(x.shape) for x in outputs] == [(2, 7)] * 3
    names = set(model.state_dict())
    resnet = {name for name in torchvision.models.resnet18().state_dict() if not name.startswith("fc.")}
    layers = {
        "concat": ["fc_out"],
        "sum": ["fc_x", "fc_y"],
        "gated": ["fc_x", "fc_y", "fc_out"],
        "film": ["fc", "fc_out"],
    }
    assert names == {f"{net}.{name}" for net in ("audio_net", "visual_net") for name in resnet} | {
        f"fusion_module.{layer}.{kind}" for layer in layers[fusion_method] for kind in ("weight", "bias")
    }
    assert tuple(model.audio_net.conv1.weight.shape) == (64, 1, 7, 7)
    assert tuple(model.audio_net(torch.randn(1, 1, 257, 188)).shape) == (1, 512, 9, 6)


def test_bilinear_weights_have_their_size():
    assert tuple(BilinearFusion_AUXI(6, 512).fc.weight.shape) == (512, 512 * 512)


def test_initial_weights():
    torch.manual_seed(0)
    model = AVClassifier(6, "gated")
    conv, linear = model.audio_net.conv1.weight, model.fusion_module.fc_x
    assert conv.std().item() == pytest.approx(math.sqrt(2 / (64 * 49)), rel=0.05)  # Kaiming-normal, fan-out
    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / 1024), rel=0.05)  # Xavier-normal
    assert not linear.bias.any() and not model.visual_net.bn1.bias.any() and (model.visual_net.bn1.weight == 1).all()


@pytest.mark.parametrize("modality", ["audio", "visual"])
def test_one_modality_has_one_encoder(modality):
    model = AVClassifier(4, modality=modality).eval()
    logits, logits_a, logits_v = model(torch.randn(2, 1, 64, 50), torch.randn(2, 3, 1, 48, 48))
    assert logits.shape == (2, 4)
    assert hasattr(model, "audio_net") == (logits_a is not None) == (modality == "audio")
    assert hasattr(model, "visual_net") == (logits_v is not None) == (modality == "visual")


@pytest.mark.parametrize("arguments", [{"fusion_method": "mean"}, {"modality": "smell"}])
def test_unknown_choice_is_a_value_error(arguments):
    with pytest.raises(ValueError, match="is none of"):
        AVClassifier(4, **arguments)


def test_refreshed_batchnorm_holds_the_statistics_of_its_input():
    torch.manual_seed(0)
    model = AVClassifier(3).train()
    batches = [(torch.randn(4, 1, 64, 64) - 10, torch.randn(4, 3, 1, 64, 64)) for _ in range(3)]
    refresh_batchnorm(model, batches)
    images = [model.audio_net.conv1(spectrogram) for spectrogram, _ in batches]
    mean = torch.stack([x.mean(dim=(0, 2, 3)) for x in images]).mean(0)
    variance = torch.stack([x.transpose(0, 1).flatten(1).var(dim=1) for x in images]).mean(0)
    torch.testing.assert_close(model.audio_net.bn1.running_mean, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.audio_net.bn1.running_var, variance, rtol=1e-4, atol=1e-4)
    assert model.audio_net.bn1.momentum == 0.1 and model.training
    before = model.audio_net.bn1.running_mean.clone()
    refresh_batchnorm(model, [])
    assert torch.equal(model.audio_net.bn1.running_mean, before)

"""Check the contracts of the model: shapes, names in the state dict, initial weights, unimodal variants."""

import math

import pytest
import torch
import torchvision

from engine.batchnorm import refresh_batchnorm
from models.basic_model import AVClassifier
from models.fusion_modules import BilinearFusion_AUXI


def random_inputs(size=2, frames=1):
    return {"audio": torch.randn(size, 1, 64, 50), "visual": torch.randn(size, 3, frames, 48, 64)}


@pytest.mark.parametrize("fusion_method", ["concat", "sum", "gated", "film"])
def test_shapes_and_names(fusion_method):
    model = AVClassifier(7, fusion_method).eval()
    outputs = model(random_inputs(frames=3))
    assert {name: tuple(x.shape) for name, x in outputs.items()} == dict.fromkeys(("fused", "audio", "visual"), (2, 7))
    assert list(outputs) == list(model.branches) and model.modalities == ("audio", "visual")
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
    inputs = random_inputs()
    outputs = model(inputs)
    assert list(outputs) == ["fused", modality] == list(model.branches) and model.modalities == (modality,)
    assert outputs["fused"].shape == (2, 4) and torch.equal(outputs["fused"], outputs[modality])
    torch.testing.assert_close(model({modality: inputs[modality]}), outputs)  # the other input is not needed
    assert [name for name in ("audio", "visual") if hasattr(model, f"{name}_net")] == [modality]
    assert model.encoder(modality) is getattr(model, f"{modality}_net")


@pytest.mark.parametrize("modality", ["audio", "visual"])
def test_an_encoder_starts_with_the_same_weights_alone_and_in_the_whole_model(modality):
    models = []
    for trained in (modality, "full"):
        torch.manual_seed(3)
        models.append(AVClassifier(4, modality=trained))
    for alone, whole in zip(*(model.encoder_parameters(modality) for model in models), strict=True):
        assert torch.equal(alone, whole)


@pytest.mark.parametrize("arguments", [{"fusion_method": "mean"}, {"modality": "smell"}, {"backbone": "resnet19"}])
def test_unknown_choice_is_a_value_error(arguments):
    with pytest.raises(ValueError, match="is none of"):
        AVClassifier(4, **arguments)


def test_refreshed_batchnorm_holds_the_statistics_of_its_input():
    torch.manual_seed(0)
    model = AVClassifier(3).train()
    batches = [random_inputs(4) for _ in range(3)]
    for inputs in batches:
        inputs["audio"] -= 10
    refresh_batchnorm(model, batches)
    images = [model.audio_net.conv1(inputs["audio"]) for inputs in batches]
    mean = torch.stack([x.mean(dim=(0, 2, 3)) for x in images]).mean(0)
    variance = torch.stack([x.transpose(0, 1).flatten(1).var(dim=1) for x in images]).mean(0)
    torch.testing.assert_close(model.audio_net.bn1.running_mean, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.audio_net.bn1.running_var, variance, rtol=1e-4, atol=1e-4)
    assert model.audio_net.bn1.momentum == 0.1 and model.training

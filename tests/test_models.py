"""Check the model: shapes, names, initial and given weights, one modality, encoders of other depths, BatchNorm."""

import math
import os
import pickle
import urllib.request
from functools import partial
from urllib.error import URLError

import pytest
import torch
import torchvision

import main_dgl
from engine.build import build_model
from engine.checkpoint import save
from models.backbone import BACKBONES
from models.basic_model import AVClassifier
from models.fusion_modules import BilinearFusion_AUXI
from models.pretrained import load_initial_weights
from tests.conftest import SMALL, data_flags, settings_of
from tests.rules import small_model
from tests.test_methods import NarrowResNet


def random_inputs(size=2, frames=1):
    return {"audio": torch.randn(size, 1, 64, 50), "visual": torch.randn(size, 3, frames, 48, 64)}


@pytest.mark.parametrize(
    ("fusion", "layers"),
    [
        ("concat", ["fc_out"]),
        ("sum", ["fc_x", "fc_y"]),
        ("gated", ["fc_x", "fc_y", "fc_out"]),
        ("film", ["fc", "fc_out"]),
    ],
)
def test_shapes_names_and_initial_weights(fusion, layers):
    torch.manual_seed(0)
    model = AVClassifier(7, fusion).eval()
    outputs = model(random_inputs(frames=3))
    assert {name: tuple(x.shape) for name, x in outputs.items()} == dict.fromkeys(("fused", "audio", "visual"), (2, 7))
    assert list(outputs) == list(model.branches) and model.modalities == ("audio", "visual")
    resnet = {name for name in torchvision.models.resnet18().state_dict() if not name.startswith("fc.")}
    expected = {f"{net}.{name}" for net in ("audio_net", "visual_net") for name in resnet}
    expected |= {f"fusion_module.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert set(model.state_dict()) == expected
    assert tuple(model.audio_net.conv1.weight.shape) == (64, 1, 7, 7)
    assert tuple(model.audio_net(torch.randn(1, 1, 257, 188)).shape) == (1, 512, 9, 6)
    deviation = model.audio_net.conv1.weight.std().item()
    assert deviation == pytest.approx(math.sqrt(2 / (64 * 49)), rel=0.05)  # Kaiming-normal, fan-out
    for linear in (getattr(model.fusion_module, layer) for layer in layers):
        deviation = math.sqrt(2 / (linear.in_features + linear.out_features))  # Xavier-normal
        assert linear.weight.std().item() == pytest.approx(deviation, rel=0.05) and not linear.bias.any()
    assert not model.visual_net.bn1.bias.any() and (model.visual_net.bn1.weight == 1).all()


def test_bilinear_weights_have_their_size():
    with torch.device("meta"):
        assert tuple(BilinearFusion_AUXI(6, 512).fc.weight.shape) == (512, 512 * 512)


@pytest.mark.parametrize("modality", ["audio", "visual"])
@pytest.mark.parametrize("fusion", ["concat", "mmtm"])
def test_one_modality_has_one_whole_encoder(fusion, modality):
    """Check that it starts with the same weights as in the whole model, and that the other input is not needed."""
    model, whole, inputs = small_model(fusion, modality).eval(), small_model(), random_inputs()
    outputs = model(inputs)
    assert list(outputs) == ["fused", modality] == list(model.branches) and model.modalities == (modality,)
    assert not model.takes_maps and outputs["fused"].shape == (2, 5)
    assert torch.equal(outputs["fused"], outputs[modality])
    torch.testing.assert_close(model({modality: inputs[modality]}), outputs)
    assert [name for name in ("audio", "visual") if hasattr(model, f"{name}_net")] == [modality]
    assert model.encoder(modality) is getattr(model, f"{modality}_net")
    pairs = zip(model.encoder_parameters(modality), whole.encoder_parameters(modality), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("arguments", [{"fusion_method": "mean"}, {"modality": "smell"}, {"backbone": "resnet19"}])
def test_unknown_choice_is_a_value_error(arguments):
    with pytest.raises(ValueError, match="is not one of"):
        AVClassifier(4, **arguments)


# Given weights


def published(name):
    """Return torchvision's network, in evaluation, with random weights and statistics."""
    torch.manual_seed(1)
    network = torchvision.models.get_model(name, weights=None).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    return network


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "mlp"])
def test_weights_of_torchvision_give_its_features(name, tmp_path, capsys):
    """Check the features of images, and by the summed stem those of grey images with one channel."""
    network = published(name)
    torch.save(network.state_dict(), tmp_path / "network.pth")
    model = AVClassifier(4, backbone=name).eval()
    load_initial_weights(model, str(tmp_path / "network.pth"), name)
    assert "loaded into the audio and visual encoder" in capsys.readouterr().out
    network = torch.nn.Sequential(*[*network.children()][:-1], torch.nn.Flatten())
    grey, colours = torch.rand(2, 1, 65, 70), torch.rand(2, 3, 1, 64, 64)
    with torch.no_grad():
        expected = network(grey.repeat(1, 3, 1, 1)), network(colours.squeeze(2))
        found = model.encode("audio", grey), model.encode("visual", colours)
    assert model.dim == expected[0].shape[1] == {"resnet50": 2048}.get(name, 512)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def rejected_weights(few, tmp_path, rejected):
    """Return a function of flags from --weights on: the line with which main_dgl.py rejects them."""
    return partial(
        rejected, main_dgl, "--train", *data_flags(few), *SMALL, "--ckpt_path", tmp_path / "run", "--weights"
    )


def test_imagenet_weights_are_those_of_torchvisions_folder(tmp_path, monkeypatch, rejected_weights):
    """Check that weights found there need no network, and the errors without them and with half of a file."""

    def nowhere(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(urllib.request, "urlopen", nowhere)
    monkeypatch.setattr(torch.hub, "urlopen", nowhere)
    path = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    error = rejected_weights("imagenet")
    assert "no route to host" in error and f"put {path.name} into {path.parent}" in error
    network, model = published("resnet18"), AVClassifier(4)
    torch.save(network.state_dict(), path)
    load_initial_weights(model, "imagenet", "resnet18")
    assert torch.equal(model.visual_net.conv1.weight, network.conv1.weight)
    assert torch.equal(model.audio_net.layer4[1].bn2.running_var, network.layer4[1].bn2.running_var)
    os.truncate(path, 10**6)
    assert str(path) in rejected_weights("imagenet")


def test_weights_that_do_not_fit_are_one_line(tmp_path, rejected_weights):
    path, network = tmp_path / "weights.pth", published("resnet18").state_dict()
    assert "no such file" in rejected_weights(path)
    path.write_bytes(pickle.dumps(print))
    assert "run code" in rejected_weights(path)
    for tensors, flags, message in (
        ({"epoch": 3}, [], "contains no named weights"),
        (
            {f"audio_net.{name}": x for name, x in network.items()},
            ["--method", "visual"],
            "contains no weights for an encoder of this model",
        ),
        (
            published("resnet34").state_dict(),
            [],
            "layer1.2.conv1.weight has shape (64, 64, 3, 3) in the file and none in the model",
        ),
    ):
        torch.save(tensors, path)
        assert message in rejected_weights(path, *flags)


def model_of(flags, seed):
    torch.manual_seed(seed)
    return build_model(settings_of("--method", *flags.split()))[0]


def networks(model):
    """Return {modality: state dict} of whole networks, of which mmtm has layer3 and layer4 in its streams."""
    streams = getattr(getattr(model.fusion_module, "joint", model.fusion_module), "streams", None)
    found = {name: model.encoder(name).state_dict() for name in model.modalities}
    return {name: each | (streams[name].state_dict() if streams else {}) for name, each in found.items()}


FULL = ["dgl", "dgl --fusion_method mmtm", "joint_uni --fusion_method mmtm"]  # the last has heads of its own


@pytest.mark.parametrize("sources", [["network"], ["audio"], ["audio", "visual"], *([each] for each in FULL)])
@pytest.mark.parametrize("target", FULL)
def test_each_encoder_is_taken_from_its_own(target, sources, tmp_path, capsys, monkeypatch):
    """Check the encoders of checkpoints, next to which others stay, and one network for all encoders."""
    monkeypatch.setitem(BACKBONES, "resnet18", NarrowResNet)
    model, expected = model_of(target, 0), networks(model_of(target, 0))
    paths = [str(tmp_path / f"{number}.pth") for number in range(len(sources))]
    for number, source in enumerate(sources):
        if source == "network":
            tensors = NarrowResNet(3).state_dict()
            torch.save(tensors, paths[number])
            grey = tensors | {"conv1.weight": tensors["conv1.weight"].sum(dim=1, keepdim=True)}
            loaded = {"audio": grey, "visual": tensors}
        else:
            saved = model_of(source, number + 1)
            save(paths[number], saved, {}, epoch=1, classes=[])
            loaded = networks(saved)
        expected |= loaded
    load_initial_weights(model, ",".join(paths), "resnet18")
    torch.testing.assert_close(networks(model), expected, rtol=0, atol=0)
    assert f"loaded into the {' and '.join(loaded)} encoder" in capsys.readouterr().out

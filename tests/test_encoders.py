"""Check encoders other than a ResNet-18 with random weights: other ResNets, given weights, frozen, compiled."""

import os
import pickle
import urllib.request
from functools import partialmethod
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
import torchvision

import main_dgl
import valid
from engine.checkpoint import save
from main_dgl import dgl_step
from models.backbone import BACKBONES
from models.basic_model import AVClassifier
from models.pretrained import load_initial_weights
from models.weights import load_checkpoint
from tests.conftest import SMALL, SmallEncoder, data_flags, run_here
from tests.rules import small_model
from tests.test_methods_runs import interrupt_in_epoch
from tests.torture import assert_same_run


def published(name, seed=1):
    """Return torchvision's network, in evaluation, with random weights and statistics."""
    torch.manual_seed(seed)
    network = torchvision.models.get_model(name, weights=None).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    return network


def features(network, images):
    """Return torchvision's features before its classifier, (B, D)."""
    return torch.nn.Sequential(*[*network.children()][:-1])(images).flatten(1)


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "mlp"])
def test_weights_of_torchvision_give_its_features(name, tmp_path, capsys):
    """Check the features of images, and by the summed stem those of grey images with one channel."""
    network = published(name)
    torch.save(network.state_dict(), tmp_path / "network.pth")
    model = AVClassifier(4, backbone=name).eval()
    load_initial_weights(model, str(tmp_path / "network.pth"), name)
    assert "loaded into the audio and visual encoder" in capsys.readouterr().out
    grey, colours = torch.rand(2, 1, 65, 70), torch.rand(2, 3, 1, 64, 64)
    with torch.no_grad():
        expected = features(network, grey.repeat(1, 3, 1, 1)), features(network, colours.squeeze(2))
        found = model.encode("audio", grey), model.encode("visual", colours)
    assert model.dim == expected[0].shape[1] == {"resnet50": 2048}.get(name, 512)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_gradients_of_a_step(name):
    """Check alpha d(L_a + L_v) in the encoders and d(L_m) in the fusion module, by autograd of the whole."""
    torch.manual_seed(0)
    model = AVClassifier(4, backbone=name).double().train()
    inputs = {"audio": torch.randn(3, 1, 40, 40).double(), "visual": torch.randn(3, 3, 1, 40, 40).double()}
    label = torch.tensor([0, 2, 3])
    dgl_step(model, inputs, label, alpha=3.0)
    a, v = (model.encode(name, x) for name, x in inputs.items())
    weight, bias = model.fusion_module.fc_out.weight, model.fusion_module.fc_out.bias
    half = model.dim
    unimodal = sum(
        F.cross_entropy(feature @ part.T + bias, label)
        for feature, part in ((a, weight[:, :half]), (v, weight[:, half:]))
    )
    fused = F.cross_entropy(torch.hstack([a, v]) @ weight.T + bias, label)
    for parameters, loss in (
        ([*model.audio_net.parameters(), *model.visual_net.parameters()], 3.0 * unimodal),
        ([*model.fusion_module.parameters()], fused),
    ):
        for parameter, expected in zip(
            parameters, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=1e-9)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return the folder where PyTorch keeps what it has downloaded, empty, and leave no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)

    def nowhere(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", nowhere)
    monkeypatch.setattr(torch.hub, "urlopen", nowhere)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_imagenet_weights_are_those_of_torchvisions_folder(home):
    """Check that weights found there need no network."""
    network = published("resnet18")
    torch.save(network.state_dict(), home / "resnet18-f37072fd.pth")
    model = AVClassifier(4)
    load_initial_weights(model, "imagenet", "resnet18")
    assert torch.equal(model.visual_net.conv1.weight, network.conv1.weight)
    assert torch.equal(model.audio_net.layer4[1].bn2.running_var, network.layer4[1].bn2.running_var)


def rejected(capsys, few, *flags):
    with pytest.raises(SystemExit) as end:
        run_here(main_dgl, "--train", *data_flags(few), *SMALL, *flags)
    error = capsys.readouterr().err
    assert end.value.code == 2 and len(error.splitlines()) == 1, error
    return error


def test_what_cannot_be_fetched_or_read_is_one_line(few, tmp_path, home, capsys):
    run = ["--ckpt_path", tmp_path / "run", "--weights"]
    error = rejected(capsys, few, *run, "imagenet")
    assert "no route to host" in error and f"put resnet18-f37072fd.pth into {home}" in error
    torch.save(published("resnet18").state_dict(), home / "resnet18-f37072fd.pth")
    os.truncate(home / "resnet18-f37072fd.pth", 10**6)
    assert str(home / "resnet18-f37072fd.pth") in rejected(capsys, few, *run, "imagenet")


def test_weights_that_do_not_fit_are_one_line(few, tmp_path, capsys):
    run, path = ["--ckpt_path", tmp_path / "run", "--weights"], tmp_path / "weights.pth"
    assert "no such file" in rejected(capsys, few, *run, path)
    torch.save(published("resnet34").state_dict(), path)
    error = rejected(capsys, few, *run, path)
    assert "does not fit --backbone resnet18: layer1.2.conv1.weight is (64, 64, 3, 3) there, none here" in error
    path.write_bytes(pickle.dumps(print))
    assert "run code" in rejected(capsys, few, *run, path)
    torch.save({"epoch": 3}, path)
    assert "no weights by name" in rejected(capsys, few, *run, path)
    torch.save({f"audio_net.{name}": value for name, value in published("resnet18").state_dict().items()}, path)
    assert "no encoder that this model has" in rejected(capsys, few, *run, path, "--method", "visual")
    assert "--method relearn changes" in rejected(
        capsys, few, "--freeze", "both", "--method", "relearn", "--val_ratio", 0.3
    )
    assert "no such encoder" in rejected(capsys, few, "--freeze", "audio", "--method", "visual")
    assert "34 GB" in rejected(capsys, few, "--fusion_method", "bilinear", "--backbone", "resnet50")


def test_encoders_of_runs_are_taken_each_from_its_own(tmp_path, capsys):
    """Check that a checkpoint of one modality is loaded into that encoder alone, and two of them into both."""
    alone = {modality: small_model(modality=modality, seed=k + 5) for k, modality in enumerate(("audio", "visual"))}
    for modality, model in alone.items():
        save(tmp_path / f"{modality}.pth", model, {"modality": modality}, epoch=1, classes=[])
    model, first = small_model(), small_model()
    load_initial_weights(model, str(tmp_path / "audio.pth"), "resnet18")
    assert "loaded into the audio encoder" in capsys.readouterr().out
    for net, expected in (("audio_net", alone["audio"]), ("visual_net", first)):
        assert all(
            map(torch.equal, getattr(model, net).state_dict().values(), getattr(expected, net).state_dict().values())
        )
    load_initial_weights(model, ",".join(str(tmp_path / f"{modality}.pth") for modality in alone), "resnet18")
    assert torch.equal(model.visual_net[0].weight, alone["visual"].visual_net[0].weight)


@pytest.mark.parametrize("method", ["dgl", "joint", "mmpareto", "mla", "visual"])
def test_a_frozen_encoder_is_left_to_the_bit(few, tmp_path, small, method):
    """Check weights and statistics of the frozen encoder, while the other modules learn."""
    torch.manual_seed(0)
    initial = small_model(modality="visual" if method == "visual" else "full", n_classes=6)
    save(tmp_path / "initial.pth", initial, {}, epoch=None, classes=[])
    flags = ["--method", method, "--freeze", "visual", "--weights", tmp_path / "initial.pth", "--epochs", 2]
    run_here(main_dgl, "--train", *data_flags(few), *SMALL, "--num_workers", 0, *flags, "--ckpt_path", tmp_path / "run")
    trained = load_checkpoint(tmp_path / "run" / "last.pth")["model"]
    for name, value in initial.state_dict().items():
        if name.startswith("visual_net."):
            assert torch.equal(trained[name], value), name
        elif name.startswith("audio_net.") and name.endswith("weight"):
            assert not torch.equal(trained[name], value), name


FLAGS = {
    "backbone": ["--backbone", "resnet34"],
    "weights": ["--weights", "WEIGHTS", "--freeze", "audio"],
    "compile": ["--compile"],
}


@pytest.mark.parametrize("name", FLAGS)
def test_interrupted_resumed_and_validated(few, tmp_path, small, monkeypatch, capsys, name):
    """Check it to the bit, and rebuilt from the checkpoint alone; without the flag the run is rejected."""
    monkeypatch.setitem(BACKBONES, "resnet34", SmallEncoder)
    compiled = partialmethod(torch.nn.Module.compile, backend="aot_eager")  # spares a minute of C++
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    save(tmp_path / "initial.pth", small_model(seed=3, n_classes=6), {}, epoch=None, classes=[])
    own = [str(tmp_path / "initial.pth") if word == "WEIGHTS" else word for word in FLAGS[name]]
    common = ["--train", *data_flags(few), *SMALL, "--batch_size", 2, "--num_workers", 0, "--epochs", 2]
    run_here(main_dgl, *common, *own, "--ckpt_path", tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt_in_epoch(1, patch)
        run_here(main_dgl, *common, *own, "--ckpt_path", tmp_path / "parts")
    assert load_checkpoint(tmp_path / "parts" / "last.pth")["epoch"] == 0
    with pytest.raises(SystemExit):
        run_here(main_dgl, *common, "--ckpt_path", tmp_path / "parts")
    error = capsys.readouterr().err
    assert any(f"error: {word} " in error for word in own if word.startswith("--"))
    run_here(main_dgl, *common, *own, "--ckpt_path", tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "initial.pth").unlink()
    capsys.readouterr()
    run_here(valid, tmp_path / "whole" / "best.pth", "--num_workers", 0)
    assert "test: 2 clips" in capsys.readouterr().out


def test_without_a_compiler_a_line_says_so(few, tmp_path, small, capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda _: lambda _: (_ for _ in ()).throw(RuntimeError("no C++ compiler")))
    error = rejected(capsys, few, "--compile", "--ckpt_path", tmp_path)
    assert "--compile: does not run here (no C++ compiler); leave it out" in error

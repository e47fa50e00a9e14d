"""Check mmtm: its widths, as concat, BatchNorm's statistics. Its formulas and gradients are in test_methods.py."""

import copy

import pytest
import torch

from engine.batchnorm import refresh_batchnorm
from engine.build import build_model
from main_dgl import dgl_step
from methods import build_method
from models.backbone import BACKBONES, Encoder
from models.basic_model import AVClassifier
from models.fusion_modules import MMTMFusion_AUXI
from tests.conftest import SmallEncoder, settings_of
from tests.rules import CLASSES, batch
from tests.test_methods import NarrowResNet
from utils.errors import InputError

ALPHA, NAMES = 3.0, ("audio", "visual")


class ResNet14(Encoder):
    """With bottleneck blocks, so with 2048 channels."""

    block, layers = BACKBONES["resnet50"].block, (1, 1, 1, 1)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setitem(BACKBONES, "resnet18", NarrowResNet)


def build(fusion="mmtm", seed=0):
    torch.manual_seed(seed)
    return AVClassifier(CLASSES, fusion).double().train()


def statistics(model):
    """Return BatchNorm's running statistics under the names that they have without heads of a method."""
    named = {name.replace("joint.", ""): value for name, value in model.state_dict().items()}
    return {name: value for name, value in named.items() if "running" in name or "tracked" in name}


@pytest.mark.parametrize(("encoder", "width"), [(BACKBONES["resnet18"], 512), (ResNet14, 2048)])
def test_widths(monkeypatch, encoder, width):
    monkeypatch.setitem(BACKBONES, "resnet18", encoder)
    model = AVClassifier(CLASSES, "mmtm")
    assert model.dim == width and model.fusion_module.fc_out.in_features == 2 * width
    for k, channels in ((2, width // 4), (3, width // 2), (4, width)):
        block = getattr(model.fusion_module, f"mmtm{k}")
        assert tuple(block.squeeze.weight.shape) == (2 * channels, 2 * channels)  # ratio 2
        assert all(tuple(block.excite[name].weight.shape) == (channels, 2 * channels) for name in NAMES)


def test_with_gates_of_1_it_is_concat_of_whole_networks():
    """Check that own logits without `shared_bias` add up to the fused ones, and that evaluation changes nothing."""
    model, concat = build().eval(), build("concat").eval()
    fusion = model.fusion_module
    with torch.no_grad():
        fusion.fc_out.bias.normal_()
        for excite in (*fusion.mmtm2.excite.values(), *fusion.mmtm3.excite.values(), *fusion.mmtm4.excite.values()):
            excite.weight.zero_()
            excite.bias.fill_(40)  # whose sigmoid is 1
    concat.fusion_module.fc_out.load_state_dict(fusion.fc_out.state_dict())
    inputs, before = batch()[0], copy.deepcopy(model.state_dict())
    found = model(inputs)
    torch.testing.assert_close(found, concat(inputs), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sum(found[name] - fusion.shared_bias for name in NAMES), found["fused"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("way", ["dgl", "joint", "joint_uni", "no_mgt", "agm", "mmpareto", "refreshed"])
def test_running_statistics_are_those_of_fused_passes(way):
    """Check that a step moves them as one fused pass does; and that refreshed ones are the plain average of two."""
    model, batches = build(), [batch()]
    expected, layers = copy.deepcopy(model), []
    if way == "refreshed":
        dgl_step(model, *batch(), ALPHA)  # which leaves other statistics
        batches = [batch(4), batch(6)]
        refresh_batchnorm(model, [inputs for inputs, _ in batches])
        layers = [layer for layer in expected.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    else:
        build_method(settings_of("--method", way), model).step(model.double(), *batch())
        assert statistics(model)["fusion_module.streams.audio.layer3.0.bn1.num_batches_tracked"] == 1
    for number, (inputs, _) in enumerate(batches, start=1):
        for layer in layers:
            layer.momentum = 1 / number
        expected.fusion_module.fuse({name: expected.encode(name, x) for name, x in inputs.items()})
    found, expected = statistics(model), statistics(expected)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert model.training and model.audio_net.bn1.momentum == 0.1


def test_other_encoders_and_numbers_of_modalities_are_rejected(monkeypatch):
    monkeypatch.setitem(BACKBONES, "resnet18", SmallEncoder)
    with pytest.raises(InputError, match="_method mmtm: needs a ResNet, not backbone resnet18; use concat"):
        build_model(settings_of("--fusion_method", "mmtm"))
    with pytest.raises(ValueError, match="takes 2 modalities, not 3"):
        MMTMFusion_AUXI(CLASSES, 512, "avt", {})

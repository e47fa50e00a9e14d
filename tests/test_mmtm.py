"""Check the mmtm fusion: its block, DGL's gradients, BatchNorm's statistics, and initial weights."""

import copy

import pytest
import torch
import torch.nn.functional as F

from engine.batchnorm import refresh_batchnorm
from engine.build import build_model
from engine.checkpoint import save
from main_dgl import dgl_step
from methods import build_method
from models.backbone import BACKBONES, Encoder
from models.basic_model import AVClassifier
from models.fusion_modules import MMTMFusion_AUXI
from models.mmtm import MMTM
from models.pretrained import load_initial_weights
from tests.conftest import SmallEncoder, settings_of
from tests.rules import assert_gradients, gradients
from tests.test_dgl_step import CLASSES, batch
from utils.errors import InputError

ALPHA, NAMES = 3.0, ("audio", "visual")


class ResNet10(Encoder):
    layers = (1, 1, 1, 1)


class ResNet14(Encoder):
    """With bottleneck blocks, so with 512 channels after layer2."""

    block, layers = BACKBONES["resnet50"].block, (1, 1, 1, 1)


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    monkeypatch.setitem(BACKBONES, "resnet18", ResNet10)
    monkeypatch.setitem(BACKBONES, "resnet50", ResNet14)


def build(fusion="mmtm", seed=0, **arguments):
    """Return a model in float64, in training, with biases other than 0."""
    torch.manual_seed(seed)
    model = AVClassifier(CLASSES, fusion, **arguments).double().train()
    with torch.no_grad():
        for name, parameter in model.fusion_module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model


def written_out(model, inputs):
    """Return the logits of every branch by the formulas, and what each stream ends in alone; BatchNorm by batches."""
    fusion = getattr(model.fusion_module, "joint", model.fusion_module)  # next to heads of a method
    p, maps, size = dict(fusion.named_parameters()), {}, len(inputs["audio"])
    for name, x in inputs.items():
        net, clips = model.encoder(name), x if x.dim() == 5 else x.unsqueeze(2)
        images = torch.cat([clip.transpose(0, 1) for clip in clips])
        layers = net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2
        maps[name] = torch.nn.Sequential(*layers)(images)

    def gated(k, present):
        mean = {name: x.unflatten(0, (size, -1)).mean((1, 3, 4)) for name, x in present.items()}
        squeezed = [mean.get(name, torch.zeros_like(next(iter(mean.values())))) for name in NAMES]
        z = F.linear(torch.hstack(squeezed), p[f"mmtm{k}.squeeze.weight"], p[f"mmtm{k}.squeeze.bias"]).clamp(min=0)
        result = {}
        for name, x in present.items():
            gate = 1 / (1 + (-F.linear(z, p[f"mmtm{k}.excite.{name}.weight"], p[f"mmtm{k}.excite.{name}.bias"])).exp())
            result[name] = x * gate.repeat_interleave(len(x) // len(gate), dim=0)[:, :, None, None]
        return result

    def streams(present):
        present = gated(2, present)
        for k in (3, 4):
            layers = {name: fusion.streams[name][f"layer{k}"] for name in present}
            present = gated(k, {name: layers[name](x) for name, x in present.items()})
        return {name: x.unflatten(0, (size, -1)).mean((1, 3, 4)) for name, x in present.items()}

    both, alone = streams(maps), {name: streams({name: x})[name] for name, x in maps.items()}
    parts = dict(zip(NAMES, p["fc_out.weight"].chunk(2, dim=1), strict=True))
    logits = {"fused": sum(x @ parts[name].T for name, x in both.items()) + p["fc_out.bias"]}
    return logits | {name: x @ parts[name].T + p["fc_out.bias"] for name, x in alone.items()}, alone


# The block and the network


def test_the_block_in_numbers():
    block = MMTM(NAMES, 1, ratio=4).double()
    with torch.no_grad():
        for layer, weight in ((block.squeeze, [[0.5, -0.5]]), (block.excite.audio, [[1.0]])):
            layer.weight.copy_(torch.tensor(weight))
        block.excite.visual.weight.fill_(-1)
        for name, parameter in block.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    offsets = torch.tensor([-1.0, 0.5, 0.5, 0]).double().view(1, 2, 1, 1, 2)  # two frames, of two positions each
    maps = {"audio": 2 + offsets, "visual": 1 - offsets}
    gated = block(maps)
    torch.testing.assert_close(gated["audio"], 0.622459 * maps["audio"], rtol=1e-5, atol=0)
    torch.testing.assert_close(gated["visual"], 0.377541 * maps["visual"], rtol=1e-5, atol=0)
    alone = block({"audio": maps["audio"]})
    assert list(alone) == ["audio"]
    torch.testing.assert_close(alone["audio"], 0.731059 * maps["audio"], rtol=1e-5, atol=0)


def test_widths_and_layers_of_its_own():
    for backbone, width in (("resnet18", 512), ("resnet50", 2048)):
        model = AVClassifier(CLASSES, "mmtm", backbone=backbone).eval()
        fusion = model.fusion_module
        assert model.dim == width and fusion.fc_out.in_features == 2 * width
        for block, channels in ((fusion.mmtm2, width // 4), (fusion.mmtm3, width // 2), (fusion.mmtm4, width)):
            assert tuple(block.squeeze.weight.shape) == (2 * channels, 2 * channels)  # ratio 2
            assert all(tuple(block.excite[name].weight.shape) == (channels, 2 * channels) for name in NAMES)
        pairs = zip(*(fusion.streams[name].parameters() for name in NAMES), strict=True)
        assert all(a is not v for a, v in pairs)
        assert not any("layer3" in name or "layer4" in name for name, _ in model.audio_net.named_parameters())
        with torch.no_grad():
            outputs = model({name: x[:1].float() for name, x in batch(1)[0].items()})
        assert all(tuple(logits.shape) == (1, CLASSES) for logits in outputs.values())


@pytest.mark.parametrize("training", [True, False])
def test_with_gates_of_1_it_is_concat(training):
    """Check all branches, and that own logits without `shared_bias` add up to the fused ones."""
    model, concat = build().train(training), build("concat").train(training)
    state, inputs = model.state_dict(), batch()[0]
    for name in NAMES:
        for k in (2, 3, 4):
            excite = getattr(model.fusion_module, f"mmtm{k}").excite[name]
            with torch.no_grad():
                excite.weight.zero_(), excite.bias.fill_(40)  # whose sigmoid is 1
    names = {name: name for name in concat.state_dict()}
    for name in names:
        net, _, rest = name.partition(".")
        if rest.startswith(("layer3", "layer4")):
            names[name] = f"fusion_module.streams.{net.removesuffix('_net')}.{rest}"
    concat.load_state_dict({name: state[source] for name, source in names.items()})
    expected, found = concat(inputs), model(inputs)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    parts = [found[name] - model.fusion_module.shared_bias for name in NAMES]
    torch.testing.assert_close(sum(parts), found["fused"])


@pytest.mark.parametrize("modality", NAMES)
def test_one_modality_has_the_whole_network(modality):
    model, concat = (AVClassifier(CLASSES, fusion, modality=modality) for fusion in ("mmtm", "concat"))
    assert not model.takes_maps and model.state_dict().keys() == concat.state_dict().keys()
    assert f"{modality}_net.layer4.0.conv1.weight" in model.state_dict()


def test_initial_weights_are_those_of_the_whole_networks():
    model, concat = build(), build("concat")
    for name in NAMES:
        stage = model.fusion_module.streams[name].layer4[0].conv1.weight
        assert torch.equal(stage, concat.encoder(name).layer4[0].conv1.weight)
        assert torch.equal(model.encoder(name).conv1.weight, concat.encoder(name).conv1.weight)


# Gradients


def test_dgl():
    """Check that encoders have alpha dL_u alone, and every layer of the fusion module dL_m alone."""
    model, (inputs, label) = build(), batch()
    outputs = dgl_step(model, inputs, label, ALPHA)
    logits, _ = written_out(model, inputs)
    losses = {branch: F.cross_entropy(each, label) for branch, each in logits.items()}
    for branch, output in outputs.items():
        torch.testing.assert_close(output.logits, logits[branch], rtol=1e-9, atol=1e-9)
    of_joint = gradients(model, losses["fused"])
    of_alone = gradients(model, ALPHA * (losses["audio"] + losses["visual"]))
    expected = {name: (of_joint if "fusion" in name else of_alone)[name] for name in of_joint}
    assert all(gradient.norm() > 0 for gradient in expected.values())
    assert_gradients(model, expected)


def test_one_modality_alone_runs_its_own_stream(monkeypatch):
    """Check that the other stream does not run, and that the other modality's gates are in nothing."""
    model, (inputs, _) = build(), batch()
    for layer in (*model.fusion_module.streams.visual.values(), model.fusion_module.mmtm3.excite.visual):
        monkeypatch.setattr(layer, "forward", lambda *_: pytest.fail("the other stream was run"))
    model.fusion_module.alone("audio", model.encode("audio", inputs["audio"]))


@pytest.mark.parametrize("method", ["joint", "joint_uni", "no_mgt", "no_ugt"])
def test_gradients_of_other_methods(method):
    """Check that with own heads the unimodal losses reach the modality's own stream and a head behind it."""
    model, (inputs, label) = build(), batch()
    flags = ["--alpha", ALPHA] if method.startswith("no") else []
    build_method(settings_of("--method", method, *flags), model).step(model.double(), inputs, label)
    logits, vectors = written_out(model, inputs)
    if method == "joint_uni":
        heads = {name: getattr(model.fusion_module, f"{name}_head") for name in NAMES}
        logits |= {name: vectors[name] @ head.weight.T + head.bias for name, head in heads.items()}
    of_joint = gradients(model, F.cross_entropy(logits["fused"], label))
    of_alone = gradients(model, sum(F.cross_entropy(logits[name], label) for name in NAMES))
    to_encoders, to_fusion = {
        "joint": ((1, 0), (1, 0)),
        "joint_uni": ((1, 1), (1, 1)),
        "no_mgt": ((1, ALPHA), (1, 0)),
        "no_ugt": ((0, ALPHA), (1, ALPHA)),
    }[method]
    expected = {}
    for name, gradient in of_joint.items():
        m, u = to_fusion if "fusion" in name else to_encoders
        expected[name] = m * gradient + u * of_alone[name]
    assert_gradients(model, expected)


def test_in_bfloat16_the_fusion_module_is_in_float32():
    model, (inputs, label) = AVClassifier(CLASSES, "mmtm").train(), batch()
    model.amp, inputs = True, {name: x.float() for name, x in inputs.items()}
    seen = []
    for stage in model.fusion_module.streams.audio.values():
        stage.register_forward_hook(lambda _, images, maps: seen.extend((images[0].dtype, maps.dtype)))
    dgl_step(model, inputs, label, ALPHA)
    assert set(seen) == {torch.float32} and len(seen) == 8  # of audio alone and fused
    exact = copy.deepcopy(model)
    exact.amp = False
    with torch.no_grad():
        maps, others = (each.encode("audio", inputs["audio"]) for each in (model, exact))
    assert 1e-4 < (maps - others).norm() / others.norm() < 0.05


# BatchNorm


def statistics(model):
    return {name: value for name, value in model.state_dict().items() if "running" in name or "tracked" in name}


@pytest.mark.parametrize("method", ["dgl", "joint", "joint_uni", "no_mgt", "agm", "mmpareto"])
def test_running_statistics_are_those_of_the_fused_pass(method):
    """Check that a step moves them as one fused pass does, and a pass of one modality alone not at all."""
    model, (inputs, label) = build(), batch()
    expected = copy.deepcopy(model)
    build_method(settings_of("--method", method), model).step(model.double(), inputs, label)
    expected.fusion_module.fuse({name: expected.encode(name, x) for name, x in inputs.items()})
    found = {name.replace("joint.", ""): value for name, value in statistics(model).items()}
    torch.testing.assert_close(found, statistics(expected), rtol=1e-12, atol=1e-12)
    assert model.fusion_module.training and found["fusion_module.streams.audio.layer3.0.bn1.num_batches_tracked"] == 1


def test_refreshed_statistics_are_those_of_fused_passes():
    model, batches = build(), [batch(size)[0] for size in (4, 6)]
    expected = copy.deepcopy(model)
    dgl_step(model, *batch(), ALPHA)  # which leaves other statistics
    refresh_batchnorm(model, batches)
    found, parts = statistics(model), []
    for inputs in batches:
        once = copy.deepcopy(expected)
        for layer in once.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 1.0
        once.fusion_module.fuse({name: once.encode(name, x) for name, x in inputs.items()})
        parts.append(statistics(once))
    for name, value in found.items():
        if "tracked" not in name:
            torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2)


def test_evaluation_uses_the_running_statistics():
    """Check that in evaluation no branch depends on the other clips, and that in training every one does."""
    model, (inputs, _) = build(), batch()
    refresh_batchnorm(model, [inputs])
    first = {name: x[:1] for name, x in inputs.items()}
    trained, alone = model(inputs), model(first)
    assert all(not torch.allclose(trained[branch][:1], alone[branch]) for branch in trained)
    model.eval()
    before = copy.deepcopy(model.state_dict())
    evaluated = model(inputs)
    torch.testing.assert_close({b: x[:1] for b, x in evaluated.items()}, model(first), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Initial weights, and what is rejected


def test_given_weights_reach_the_streams(tmp_path, capsys):
    """Check whole networks, checkpoints of one modality, and of mmtm with and without heads of a method."""
    model, whole = build(seed=1).float(), ResNet10(3)
    torch.save(whole.state_dict(), tmp_path / "network.pth")
    load_initial_weights(model, str(tmp_path / "network.pth"), "resnet18")
    assert "loaded into the audio and visual encoder" in capsys.readouterr().out
    images = torch.rand(4, 3, 1, 64, 64)
    with torch.no_grad():
        maps = model.eval().encode("visual", images).flatten(0, 1)
        for stage in model.fusion_module.streams.visual.values():
            maps = stage(maps)
    torch.testing.assert_close(maps, whole.eval()(images.squeeze(2)))
    alone = AVClassifier(CLASSES, modality="audio")
    save(tmp_path / "audio.pth", alone, {"modality": "audio"}, epoch=1, classes=[])
    load_initial_weights(model, str(tmp_path / "audio.pth"), "resnet18")
    assert torch.equal(model.fusion_module.streams.audio.layer4[0].bn2.weight, alone.audio_net.layer4[0].bn2.weight)
    heads = build(seed=2).float()
    build_method(settings_of("--method", "joint_uni"), heads)
    save(tmp_path / "mmtm.pth", heads, {}, epoch=1, classes=[])
    for target in (model, build("concat").float()):
        load_initial_weights(target, str(tmp_path / "mmtm.pth"), "resnet18")
        stage = target.fusion_module.streams.visual if target.takes_maps else target.visual_net
        assert torch.equal(
            stage.layer3[0].conv1.weight, heads.fusion_module.joint.streams.visual.layer3[0].conv1.weight
        )
    load_initial_weights(heads, str(tmp_path / "audio.pth"), "resnet18")
    loaded = heads.fusion_module.joint.streams.audio.layer3[0].conv1.weight
    assert torch.equal(loaded, alone.audio_net.layer3[0].conv1.weight)


def test_other_encoders_and_numbers_of_modalities_are_rejected(monkeypatch):
    monkeypatch.setitem(BACKBONES, "resnet18", SmallEncoder)
    with pytest.raises(
        InputError, match="--fusion_method mmtm: takes ResNets, which backbone resnet18 is not; use con"
    ):
        build_model(settings_of("--fusion_method", "mmtm"))
    with pytest.raises(ValueError, match="takes 2 modalities, not 3"):
        MMTMFusion_AUXI(CLASSES, 512, "avt", {})

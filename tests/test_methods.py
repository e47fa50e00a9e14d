"""Check which losses reach which module, for every fusion and method; checkpoints; and how flags name methods."""

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.build import build_model
from engine.checkpoint import load_model, save
from engine.settings import complete
from main_dgl import DGL
from methods import Output, build_method
from methods.ablations import NoMGT, NoMGTNoUGT, NoUGT
from methods.ogm import OGM, OGM_GE
from methods.unimodal import Unimodal
from models.backbone import BACKBONES, Encoder
from models.fusion_modules import FUSION_MODULES
from tests.conftest import NarrowEncoder, settings_of
from tests.rules import (
    assert_gradients,
    assert_outputs,
    batch,
    draw_biases,
    encoder_names,
    features_of,
    rule,
    small_model,
    toy_batch,
    toy_rule,
    weighted,
    whole_step,
    written_out,
)


class NarrowResNet(Encoder):
    """A ResNet of four blocks with 16, 32, 64 and 128 channels."""

    layers = (1, 1, 1, 1)

    def __init__(self, in_channels):
        super().__init__(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 16, 7, stride=2, padding=3, bias=False)
        self.bn1, self.inplanes, self.dim = nn.BatchNorm2d(16), 16, 128
        for k in range(4):
            setattr(self, f"layer{k + 1}", self._make_layer(self.block, 16 << k, 1, stride=2 if k else 1))


def ready(name, *flags, fusion="concat", n=3, **arguments):
    """Return a model of n modalities with biases other than 0, a method ready to step, and a batch of random clips.

    Of two modalities it is an AVClassifier, with ResNets for mmtm, of three a Toy, to which `arguments` go. `fusion`
    may be "sum zeros", "gated zeros", .. The mixer is without dropout.
    """
    module, _, zeros = fusion.partition(" ")
    if n == 2:
        encoder = NarrowResNet if fusion == "mmtm" else NarrowEncoder
        model, method = rule(name, *flags, fusion=module, encoder=encoder, alone=zeros or "own")
    else:
        model, method = toy_rule(name, *flags, fusion=module, **arguments)
        draw_biases(model)
        with torch.no_grad():
            for parameter in (p for each, p in model.fusion_module.named_parameters() if "bias" not in each):
                parameter *= 3
        if zeros:
            model.fusion_module.use_zeros()
    model.fusion_module.train(fusion != "mixer")
    inputs, label = batch() if n == 2 else toy_batch()
    return model, method, inputs, label


# Fusions, with "zeros" if one modality alone is scored with 0 in place of the others; and numbers of modalities.
FEW = [("concat", 2), ("gated", 2), ("concat", 3), ("sum", 3)]
ZEROS = [(f"{fusion} zeros", 2) for fusion in ("sum", "gated", "film", "bilinear")]
EVERY = [*FEW, *product(["sum", "film", "bilinear", "mixer", "mmtm"], [2]), ("mixer", 3), *ZEROS, ("sum zeros", 3)]
JOINT, ALL = (1, 0, 0, 0), (1, 3, 3, 3)
STUDENTS = ["--umt_lambda", 10]  # with the students as teachers
# Method, flags, epoch, weights of L_m and each L_u in the gradients of encoders, and of the fusion module.
WEIGHTED_IN_EVERY = [
    ("dgl", ["--alpha", 3], 0, (0, 3, 3, 3), JOINT),
    ("no_mgt", ["--alpha", 3], 0, ALL, JOINT),
    ("no_ugt", ["--alpha", 3], 0, (0, 3, 3, 3), ALL),
    ("no_mgt+no_ugt", ["--alpha", 3], 0, ALL, ALL),
    ("joint", [], 0, JOINT, JOINT),
    ("joint_uni", ["--joint_uni_weight", 2.5], 0, (1, 2.5, 2.5, 2.5), None),  # each modality with a head of its own
]
WEIGHTED_IN_FEW = [
    ("relearn", [], 0, JOINT, JOINT),
    ("ogm", ["--ogm_alpha", 0], 0, JOINT, JOINT),
    ("ogm", ["--ogm_alpha", 0, "--ogm_rule", "journal"], 0, JOINT, JOINT),
    ("ogm", ["--ogm_alpha", 0.8, "--modulation_starts", 3], 2, JOINT, JOINT),
    ("ogm", ["--ogm_rule", "journal", "--modulation_ends", 3], 4, JOINT, JOINT),
    ("ogm_ge", ["--modulation_ends", 3], 4, JOINT, JOINT),
    ("agm", ["--agm_alpha", 0], 0, JOINT, JOINT),
    ("agm", ["--agm_alpha", 0, "--agm_mask", "passes"], 0, JOINT, JOINT),
    ("agm", ["--agm_alpha", 2, "--agm_ends", 3], 4, JOINT, JOINT),
    ("agm", ["--agm_mask", "passes", "--agm_ends", 3], 4, JOINT, JOINT),
    ("pmr", ["--pmr_alpha", 0, "--pmr_mu", 0], 0, JOINT, JOINT),
    ("pmr", ["--pmr_ends", 3], 4, JOINT, JOINT),
    ("umt", ["--umt_lambda", 0], 0, JOINT, JOINT),
    ("umt", STUDENTS, 0, JOINT, JOINT),
    ("inforeg", [], 0, JOINT, JOINT),
    # each modality with a head of its own
    ("joint_uni", [], 0, (1, 1, 1, 1), None),
    ("joint_uni", ["--joint_uni_weight", 0], 0, JOINT, None),
    ("gblend", ["--gblend_weights"], 0, (0.4, 0.3, 0.2, 0.1), None),
    ("gblend", ["--gblend_weights"], 0, JOINT, None),
    ("relearn", ["--relearn_unimodal", 0.7], 0, (1, 0.7, 0.7, 0.7), None),
    ("inforeg", ["--inforeg_unimodal", 0.7], 0, (1, 0.7, 0.7, 0.7), None),
]
CASES = [*product(EVERY, WEIGHTED_IN_EVERY), *product(FEW, WEIGHTED_IN_FEW)]
CASES = [(*way, *row) for way, row in CASES if "zeros" not in way[0] or row[0] != "joint_uni"]


def test_every_fusion_is_checked():
    assert {fusion.split()[0] for fusion, _ in EVERY} == FUSION_MODULES.keys()


@pytest.mark.parametrize(("fusion", "n", "name", "flags", "epoch", "of_encoders", "of_fusion"), CASES)
def test_weighted_losses(fusion, n, name, flags, epoch, of_encoders, of_fusion):
    """Check all logits, losses and gradients; with bilinear fusion an encoder alone, next to zeros, learns nothing."""
    if name == "gblend":
        flags = [*flags, ",".join(map(str, of_encoders[: n + 1]))]
    model, method, inputs, label = ready(name, *flags, fusion=fusion, n=n)
    method.epoch = epoch
    if name == "agm":
        method.means = torch.tensor([1.0, 1.3, 1.6][:n])
    elif flags == STUDENTS:
        method.teachers = dict.fromkeys(model.modalities, copy.deepcopy(model.eval()))
    outputs = whole_step(model, method, inputs, label)
    _, logits, losses = written_out(model, fusion, inputs, label)
    expected = weighted(model, losses, of_encoders, of_fusion or of_encoders)
    for each in (each for modality in model.modalities for each in encoder_names(model, modality)):
        learns = fusion != "bilinear zeros" or of_encoders[0] > 0
        assert (expected[each].abs().max() > 1e-6) == learns
    assert_gradients(model, expected, tolerance=1e-10)
    torch.testing.assert_close(model(inputs), logits, rtol=1e-10, atol=1e-10)
    if name == "agm":  # its unimodal logits are not those of the heads
        assert method.batches == 1
        outputs |= {each: Output(losses[each], logits[each]) for each in model.modalities}
    assert_outputs(model, outputs, logits, losses)


@pytest.mark.parametrize(("fusion", "n"), [way for way in EVERY if way != ("mmtm", 2)])  # tests/test_mmtm.py
def test_own_logits_without_the_shared_bias_add_up_to_the_fused_ones(fusion, n):
    """Check it of fusions that are a sum over the modalities; of others the shared bias is 0."""
    model, _, inputs, _ = ready("dgl", fusion=fusion, n=n)
    logits, shared = model(inputs), model.fusion_module.shared_bias
    if fusion.split()[0] in ("concat", "sum"):
        torch.testing.assert_close(sum(logits[name] - shared for name in model.modalities), logits["fused"])
    else:
        assert shared == 0


@pytest.mark.parametrize("n", [2, 3])
def test_dropout_draws_a_mask_for_each_pass_in_training_and_none_in_evaluation(n):
    model, method, inputs, label = ready("dgl", "--alpha", 3, fusion="mixer", n=n)
    fusion = model.fusion_module.train()
    assert [layer.p for layer in fusion.modules() if isinstance(layer, nn.Dropout)] == [0.1] * 4
    torch.manual_seed(5)
    outputs = whole_step(model, method, inputs, label)
    torch.manual_seed(5)
    z = features_of(model, inputs)
    logits = {name: fusion.alone(name, each) for name, each in z.items()}
    logits = {"fused": fusion.fuse(z), **logits}  # the last pass
    losses = {branch: F.cross_entropy(each, label) for branch, each in logits.items()}
    assert_outputs(model, outputs, logits, losses)
    assert_gradients(model, weighted(model, losses, (0, 3, 3, 3), JOINT), tolerance=1e-10)
    assert not torch.equal(fusion.fuse(z), fusion.fuse(z))
    model.eval()
    assert torch.equal(fusion.fuse(z), fusion.fuse(z))


@pytest.mark.parametrize("fusion", [fusion for fusion, _ in ZEROS])
def test_a_checkpoint_is_evaluated_as_it_was_trained(fusion, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "resnet18", NarrowEncoder)
    settings, (inputs, label) = settings_of("--fusion_method", fusion.split()[0], "--alone", "zeros"), batch()
    torch.manual_seed(0)
    (model, _), found = build_model(settings), {}
    draw_biases(model)
    inputs = {name: x.float() for name, x in inputs.items()}
    _, expected, _ = written_out(model.eval(), fusion, inputs, label)
    for alone in ("zeros", "own"):
        save(tmp_path / "best.pth", model, vars(settings) | {"alone": alone}, classes=[])
        loaded, _ = load_model(str(tmp_path / "best.pth"), {})
        found[alone] = loaded.eval()(inputs)
    torch.testing.assert_close(found["zeros"], expected)
    assert not torch.allclose(found["own"]["audio"], expected["audio"])


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

"""Train every method for four optimiser steps in float64 and record the results, which no change of layout may change.

    python tests/golden_runs.py NAME ...     # regenerates tests/golden/NAME.json; without names, all files

Each file holds the losses of every step and two figures of every tensor of the model at the end: its L2 norm, and its
product with a fixed wave, which tells apart what a norm does not. The runs three-<method> are of a small model of three
modalities, the others of the audio-visual classifier.
"""

import json
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import main_dgl  # noqa: F401 - puts DGL into the table of methods
from engine.build import build_optimizer
from methods import METHODS, build_method
from models.backbone import BACKBONES
from models.basic_model import AVClassifier
from models.fusion_modules import FUSION_MODULES
from tests.conftest import NarrowEncoder, settings_of
from tests.rules import loaders_of, toy_batch, toy_rule, write_teachers
from utils.seeds import derived_seed

FOLDER = Path(__file__).with_name("golden")
CLASSES, STEPS = 5, 4
LAST = 2  # epoch: three of them, of one, one and two steps
THREE = "three-"  # start of the names of runs with three modalities

RUNS = {f"dgl-{fusion}": ["--fusion_method", fusion] for fusion in FUSION_MODULES}
RUNS |= {
    "joint": ["--method", "joint"],
    "ogm": ["--method", "joint", "--modulation", "OGM", "--ogm_alpha", "0.8"],
    "ogm_ge": ["--method", "joint", "--modulation", "OGM_GE", "--ogm_alpha", "0.8"],
    "no_mgt": ["--no_mgt"],
    "no_ugt": ["--no_ugt"],
    "no_mgt+no_ugt": ["--no_mgt", "--no_ugt"],
    "audio": ["--modality", "audio"],
    "visual": ["--modality", "visual"],
    "joint_uni": ["--method", "joint_uni", "--fusion_method", "gated"],
    "gblend": ["--method", "gblend", "--gblend_weights", "0.2,0.5,0.3"],
    "agm": ["--method", "agm"],
    "pmr": ["--method", "pmr", "--pmr_mu", "0.1"],
    "mmpareto": ["--method", "mmpareto"],
    "mla": ["--method", "mla"],
    "lfm": ["--method", "lfm"],
    "lfm-code": ["--method", "lfm", "--lfm_match", "code"],
    "relearn": ["--method", "relearn", "--val_ratio", "0.5", "--relearn_every", "1", "--relearn_times", "1"],
    "umt": ["--method", "umt"],
    "inforeg": ["--method", "inforeg", "--inforeg_k=-1e9"],  # always in its window, from the third epoch on
}
FLAGS_OF_THREE = {
    "ogm": ["--ogm_alpha", "0.8"],
    "ogm_ge": ["--ogm_alpha", "0.8", "--ogm_rule", "journal"],
    "joint_uni": ["--joint_uni_weight", "2"],
    "pmr": ["--pmr_mu", "0.1"],
    "relearn": [*RUNS["relearn"][2:], "--relearn_unimodal", "1"],
    "inforeg": RUNS["inforeg"][2:],
}
RUNS |= {
    f"{THREE}{name}": ["--method", name, *FLAGS_OF_THREE.get(name, [])]
    for name, entry in METHODS.items()
    if entry.modality == "full"
}


def clips(step):
    """Return a batch of random clips: {"audio": (4, 1, 36, 36), "visual": (4, 3, 2, 36, 36)}, label (4,)."""
    generator = torch.Generator().manual_seed(step)
    audio = torch.randn(4, 1, 36, 36, generator=generator, dtype=torch.float64)
    visual = torch.randn(4, 3, 2, 36, 36, generator=generator, dtype=torch.float64)
    return {"audio": audio, "visual": visual}, torch.randint(CLASSES, (4,), generator=generator)


def joined(*batches):
    """Return several batches as one."""
    inputs = {name: torch.cat([batch[0][name] for batch in batches]) for name in batches[0][0]}
    return inputs, torch.cat([label for _, label in batches])


def figures(tensor):
    """[L2 norm, product with a wave] of a tensor."""
    flat = tensor.detach().flatten().double()
    return [flat.norm().item(), (flat @ wave(2 ** len(flat).bit_length())[: len(flat)]).item()]


@cache
def wave(length):
    return torch.arange(length, dtype=torch.float64).cos()


def built(settings):
    """Return the audio-visual classifier and the method of a run, with initial weights."""
    with pytest.MonkeyPatch.context() as patch:
        if settings.fusion_method == "bilinear":
            patch.setitem(BACKBONES, "resnet18", NarrowEncoder)
        model = AVClassifier(CLASSES, settings.fusion_method, settings.modality)
        method = build_method(settings, model)
        method.prepare(model)
    return model.double().train(), method


def golden_run(name):
    """Train a run of RUNS -> {"losses": (STEPS, branches), "tensors": {name: figures}}; None for a missing branch."""
    flags, rest = RUNS[name], ["--learning_rate", "0.01", "--alpha", "3"]
    if three := name.startswith(THREE):
        model, method = toy_rule(flags[1], *flags[2:], *rest)
        settings, draw = method.settings, toy_batch
    else:
        with tempfile.TemporaryDirectory() as folder:
            teachers = write_teachers(Path(folder), small=False) if "umt" in flags else []
            settings, draw = settings_of(*flags, *teachers, *rest), clips
            torch.manual_seed(settings.random_seed)
            model, method = built(settings)
    optimizer, _ = build_optimizer(model, settings)
    branches = model.branches if three else ("fused", "audio", "visual")
    losses, loaders = [], loaders_of(*joined(draw(100), draw(101)))
    loaders |= {"val": loaders_of(*draw(102))["val"]}
    for number in range(STEPS):
        if number <= LAST:
            method.epoch = number
            method.begin_epoch(number, model, loaders, torch.device("cpu"))
            model.train()
        torch.manual_seed(derived_seed(settings.random_seed, 0, "noise", number))
        inputs, label = draw(number)
        for outputs in method.steps(model, inputs, label):
            method.adjust_gradients(model, outputs, label)
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=40)
            optimizer.step()
            optimizer.zero_grad()
        losses.append([outputs[branch].loss.item() if branch in outputs else None for branch in branches])
    tensors = {name: figures(value) for name, value in model.state_dict().items() if value.is_floating_point()}
    return {"losses": losses, "tensors": tensors}


def main():
    for name in sys.argv[1:] or RUNS:
        rows = golden_run(name)
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in rows["tensors"].items())
        text = f'{{"losses": {json.dumps(rows["losses"])},\n "tensors": {{\n{lines}\n}}}}\n'
        (FOLDER / f"{name}.json").write_text(text)
        print(name, rows["losses"][-1])


if __name__ == "__main__":
    main()

"""Four optimiser steps of every training rule in float64, told in figures: what no change of layout may change.

    python tests/golden_runs.py            # writes tests/golden/*.json anew; on purpose only, README says then why

Each file holds the losses of every step and two figures of every tensor of the model at the end: its L2 norm, and its
product with a fixed wave, which tells apart what a norm does not.
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
from methods import build_method
from models.backbone import BACKBONES
from models.basic_model import AVClassifier
from models.fusion_modules import FUSION_MODULES
from tests.conftest import NarrowEncoder, settings_of
from tests.rules import loaders_of, write_teachers
from utils.seeds import derived_seed

FOLDER = Path(__file__).with_name("golden")
CLASSES, STEPS = 5, 4
LAST = 2  # epoch: three of them, of one, one and two steps

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
    "relearn": ["--method", "relearn", "--val_ratio", "0.5", "--relearn_every", "1", "--relearn_times", "1"],
    "umt": ["--method", "umt"],
    "inforeg": ["--method", "inforeg", "--inforeg_k=-1e9"],  # always in its window, from the third epoch on
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


def golden_run(flags):
    """Train with these flags of main_dgl.py -> {"losses": (STEPS, 3), "tensors": {name: figures}}; None for NaN."""
    with tempfile.TemporaryDirectory() as folder:
        teachers = write_teachers(Path(folder), small=False) if "umt" in flags else []
        settings = settings_of(*flags, *teachers, "--learning_rate", "0.01", "--alpha", "3")
        torch.manual_seed(settings.random_seed)
        with pytest.MonkeyPatch.context() as patch:
            if settings.fusion_method == "bilinear":
                patch.setitem(BACKBONES, "resnet18", NarrowEncoder)
            model = AVClassifier(CLASSES, settings.fusion_method, settings.modality)
            method = build_method(settings, model)
            method.prepare(model)
    model.double().train()
    optimizer, _ = build_optimizer(model, settings)
    losses, loaders = [], loaders_of(*joined(clips(100), clips(101)))
    loaders |= {"val": loaders_of(*clips(102))["val"]}
    for number in range(STEPS):
        if number <= LAST:
            method.epoch = number
            method.begin_epoch(number, model, loaders, torch.device("cpu"))
            model.train()
        torch.manual_seed(derived_seed(settings.random_seed, 0, "noise", number))
        inputs, label = clips(number)
        for outputs in method.steps(model, inputs, label):
            method.adjust_gradients(model, outputs, label)
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=40)
            optimizer.step()
            optimizer.zero_grad()
        branches = ("fused", "audio", "visual")
        losses.append([outputs[branch].loss.item() if branch in outputs else None for branch in branches])
    tensors = {name: figures(value) for name, value in model.state_dict().items() if value.is_floating_point()}
    return {"losses": losses, "tensors": tensors}


def main():
    for name in sys.argv[1:] or RUNS:
        rows = golden_run(RUNS[name])
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in rows["tensors"].items())
        text = f'{{"losses": {json.dumps(rows["losses"])},\n "tensors": {{\n{lines}\n}}}}\n'
        (FOLDER / f"{name}.json").write_text(text)
        print(name, rows["losses"][-1])


if __name__ == "__main__":
    main()

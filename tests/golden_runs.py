"""Train every method for four optimiser steps in float64 and record the results, which no change of layout may change.

    python tests/golden_runs.py NAME ...     # regenerates tests/golden/NAME.json; without names, all files

Each file holds the losses of every step and two values of every tensor of the model at the end: its L2 norm, and its
product with a fixed wave, which distinguishes tensors of equal norm. The runs three-<method> are of a small model of
three modalities, the others of the audio-visual classifier: WHOLE with ResNet-18, the rest with small encoders.
"""

import json
import sys
import tempfile
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
from tests.conftest import NarrowEncoder, SmallEncoder, settings_of
from tests.rules import NEEDS, loaders_of, toy_batch, toy_rule, write_teachers
from utils.seeds import derived_seed

FOLDER = Path(__file__).with_name("golden")
CLASSES, STEPS = 5, 4
LAST = 2  # epoch: three of them, of one, one and two steps
WAVE = torch.arange(2**22, dtype=torch.float64).cos()  # as long as the largest tensor
FLAGS = {
    "ogm": ["--ogm_alpha", 0.8],
    "ogm_ge": ["--ogm_alpha", 0.8],
    "joint_uni": ["--fusion_method", "gated"],
    "gblend": NEEDS["gblend"],
    "pmr": ["--pmr_mu", 0.1],
    "relearn": ["--val_ratio", 0.5, "--relearn_every", 1, "--relearn_times", 1],
    "inforeg": ["--inforeg_k=-1e9"],  # always in its window, from the third epoch on
}
FLAGS_OF_THREE = FLAGS | {
    "ogm_ge": ["--ogm_alpha", 0.8, "--ogm_rule", "journal"],
    "joint_uni": ["--joint_uni_weight", 2],
    "gblend": [],  # toy_rule has its weights
    "relearn": [*FLAGS["relearn"], "--relearn_unimodal", 1],
}
WHOLE = ("dgl-concat", "dgl-mmtm", "joint", "ogm_ge")
THREE = "three-"  # start of the names of runs with three modalities
RUNS = {f"dgl-{fusion}": ["dgl", "--fusion_method", fusion] for fusion in FUSION_MODULES}
RUNS |= {name: [name, *FLAGS.get(name, [])] for name in METHODS if name not in ("dgl", "text")}
RUNS |= {"lfm-code": ["lfm", "--lfm_match", "code"]}
FULL = [name for name, entry in METHODS.items() if entry.modality == "full"]
RUNS |= {f"{THREE}{name}": [name, *FLAGS_OF_THREE.get(name, [])] for name in FULL}


def clips(step):
    """Return a batch of random clips: {"audio": (4, 1, 36, 36), "visual": (4, 3, 2, 36, 36)}, label (4,)."""
    generator = torch.Generator().manual_seed(step)
    audio = torch.randn(4, 1, 36, 36, generator=generator, dtype=torch.float64)
    visual = torch.randn(4, 3, 2, 36, 36, generator=generator, dtype=torch.float64)
    return {"audio": audio, "visual": visual}, torch.randint(CLASSES, (4,), generator=generator)


def figures(tensor):
    """Return [L2 norm, product with a wave] of a tensor."""
    flat = tensor.detach().flatten().double()
    return [flat.norm().item(), (flat @ WAVE[: len(flat)]).item()]


def built(name, *flags):
    """Return the audio-visual classifier and the method of a run of RUNS, with initial weights."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        teachers = write_teachers(Path(folder)) if name == "umt" else []
        settings = settings_of("--method", *flags, *teachers)
        if name not in WHOLE:
            patch.setitem(BACKBONES, "resnet18", NarrowEncoder if name == "dgl-bilinear" else SmallEncoder)
        torch.manual_seed(settings.random_seed)
        model = AVClassifier(CLASSES, settings.fusion_method, settings.modality)
        method = build_method(settings, model)
        method.prepare(model)
    return model.double().train(), method


def golden_run(name):
    """Train a run of RUNS -> {"losses": (STEPS, branches), "tensors": {name: figures}}; None for a missing branch."""
    three, flags = name.startswith(THREE), [*RUNS[name], "--learning_rate", 0.01, "--alpha", 3]
    model, method = toy_rule(*flags) if three else built(name, *flags)
    draw, branches = (toy_batch, model.branches) if three else (clips, ("fused", "audio", "visual"))
    optimizer, _ = build_optimizer(model, method.settings)
    (first, label), (second, other) = draw(100), draw(101)
    train = {each: torch.cat([x, second[each]]) for each, x in first.items()}
    loaders = loaders_of(train, torch.cat([label, other])) | {"val": loaders_of(*draw(102))["val"]}
    losses = []
    for number in range(STEPS):
        if number <= LAST:
            method.epoch = number
            method.begin_epoch(number, model, loaders, torch.device("cpu"))
            model.train()
        torch.manual_seed(derived_seed(method.settings.random_seed, 0, "noise", number))
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

"""Gradient blending, offline (Wang, Tran, Feiszli, CVPR 2020, arXiv 1905.12681, eq. 3, 6, 7, Algorithms 1 and 2).

    of a run of joint and one of each modality, from untrained to the last epoch: losses L^T in training, L^V held out
    O = change of L^V - L^T, G = fall of L^V; w = (G / O^2) / sum of these;  L = w_m L_m + sum of w_u L_u

Gradients are those of joint_uni, weighted. --gblend_runs names the runs, with --val_ratio and the same seed, or
--gblend_weights gives w. Saved: w. G below 0 counts as 0, O^2 as 1e-12 at least; all 0: equal weights.
The paper's online form, which measures again by training copies, is left out. No code of the authors is known.
"""

import json
from pathlib import Path

from methods.joint_uni import JointUni
from utils.errors import InputError


class GBlend(JointUni):
    remembers = ("weights",)

    def __init__(self, settings, model):
        super().__init__(settings, model)
        self.runs = ("joint", *model.modalities)
        self.weights = settings.gblend_weights or self.weights
        if len(self.weights) != len(self.runs):
            raise InputError(f"--gblend_weights: give {len(self.runs)} numbers, for {', '.join(self.runs)}")

    def prepare(self, model):
        if self.settings.gblend_runs and self.settings.gblend_weights:
            raise InputError("--gblend_weights: --gblend_runs measures the weights; leave one of the two out")
        if self.settings.gblend_runs:
            self.weights = blended(measured(self.settings, self.runs))
        print(f"G-Blending: weights {', '.join(f'{w:.4f}' for w in self.weights)} of {', '.join(self.runs)}")

    def row(self):
        return {f"gblend_{name}": weight for name, weight in zip(self.runs, self.weights, strict=True)}

    def load_state_dict(self, state):
        if state["weights"] != self.weights:
            raise ValueError("it had other weights of the losses")


def measured(settings, runs):
    """Read the losses of finished runs -> {method: (start, end)}, each (L^T, L^V), mean per clip, in order of `runs`.

    Raises:
        InputError: a run is missing, not finished, without --val_ratio, of other data, or there are two of a method.
    """
    found = {}
    for folder in map(Path, settings.gblend_runs.split(",")):
        try:
            recorded = json.loads((folder / "result.json").read_text())["settings"]
            rows = [json.loads((folder / "start.json").read_text())]
            rows.append(json.loads((folder / "log.jsonl").read_text().splitlines()[-1]))
            found[recorded["method"]] = tuple((row["loss"], row["val_loss"]) for row in rows)
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            raise InputError(f"--gblend_runs {folder}: no finished run with --val_ratio in it; make it first") from None
        for name in ("dataset", "random_seed"):
            was, here = recorded.get(name), getattr(settings, name)
            if was != here:
                raise InputError(f"--gblend_runs {folder}: --{name} was {was}, here {here}; give runs of the same")
    if found.keys() != set(runs):
        raise InputError(f"--gblend_runs {settings.gblend_runs}: of {', '.join(found)}; give runs of {', '.join(runs)}")
    return {name: found[name] for name in runs}


def blended(found):
    """Compute the weights of the losses from what `measured` found, in its order; their sum is 1."""
    raw = []
    for (train_start, val_start), (train_end, val_end) in found.values():
        overfitting = (val_end - train_end) - (val_start - train_start)
        raw.append(max(val_start - val_end, 0) / max(overfitting**2, 1e-12))
    return [each / sum(raw) if sum(raw) else 1 / len(raw) for each in raw]

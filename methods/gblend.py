"""Gradient blending, offline (Wang, Tran, Feiszli, CVPR 2020, arXiv 1905.12681, eq. 3, 6, 7, Algorithms 1 and 2).

    for a run of joint and one of each modality, from initial model to last epoch: L^T training loss, L^V held-out loss
    O = change of L^V - L^T, G = decrease of L^V; w = (G / O^2) / sum of these;  L = w_m L_m + sum of w_u L_u

The gradients are those of joint_uni, weighted by w. --gblend_runs names the runs, trained with --val_ratio and the same
seed; or --gblend_weights sets w. State: w. A negative G counts as 0, and O^2 is at least 1e-12. If every G is 0, all
weights are equal. The paper's online form, which trains copies to measure again, is left out. The authors published no
code that we know of.
"""

import json
from pathlib import Path

from methods.joint_uni import JointUni
from utils.errors import InputError
from utils.files import read_json, read_text


class GBlend(JointUni):
    saved_attributes = ("weights",)

    def __init__(self, settings, model):
        super().__init__(settings, model)
        self.runs = ("joint", *model.modalities)
        self.weights = settings.gblend_weights or self.weights
        if len(self.weights) != len(self.runs):
            raise InputError(f"--gblend_weights: needs {len(self.runs)} numbers, one each for {', '.join(self.runs)}")

    def prepare(self, model):
        if self.settings.gblend_runs and self.settings.gblend_weights:
            raise InputError("--gblend_weights: --gblend_runs sets the weights too; leave out one of the two flags")
        if self.settings.gblend_runs:
            self.weights = blending_weights(read_losses(self.settings, self.runs))
        print(f"G-Blending: weights {', '.join(f'{w:.4f}' for w in self.weights)} of {', '.join(self.runs)}")

    def row(self):
        return {f"gblend_{name}": weight for name, weight in zip(self.runs, self.weights, strict=True)}

    def load_state_dict(self, state):
        if state["weights"] != self.weights:
            raise ValueError("the run had other weights of the losses")


def read_losses(settings, runs):
    """Read the losses of finished runs.

    Returns:
        {method: (start, end)} in the order of `runs`; start and end are (L^T, L^V), means per clip.

    Raises:
        InputError: a run is missing, is not finished, had no --val_ratio, or had another dataset or seed.
    """
    found = []
    for folder in map(Path, settings.gblend_runs.split(",")):
        try:
            recorded = read_json(folder / "result.json")["settings"]
            rows = [read_json(folder / "start.json"), json.loads(read_text(folder / "log.jsonl").splitlines()[-1])]
            found.append((recorded["method"], tuple((row["loss"], row["val_loss"]) for row in rows)))
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            raise InputError(
                f"--gblend_runs {folder}: no finished run with --val_ratio in it; train it first"
            ) from None
        for name in ("dataset", "random_seed"):
            theirs, ours = recorded.get(name), getattr(settings, name)
            if theirs != ours:
                raise InputError(f"--gblend_runs {folder}: --{name} was {theirs}, here {ours}; give runs with the same")
    names = [name for name, _ in found]
    if sorted(names) != sorted(runs):
        raise InputError(
            f"--gblend_runs {settings.gblend_runs}: runs of {', '.join(names)}; give one run each of {', '.join(runs)}"
        )
    return {name: dict(found)[name] for name in runs}


def blending_weights(losses):
    """Return the weights of the losses, whose sum is 1, from the losses that `read_losses` returns, in their order."""
    raw = []
    for (train_start, val_start), (train_end, val_end) in losses.values():
        overfitting = (val_end - train_end) - (val_start - train_start)
        raw.append(max(val_start - val_end, 0) / max(overfitting**2, 1e-12))
    return [each / sum(raw) if sum(raw) else 1 / len(raw) for each in raw]

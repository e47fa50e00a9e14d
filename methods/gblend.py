"""Gradient blending, offline (Wang, Tran, Feiszli, CVPR 2020, arXiv 1905.12681): weights from three separate runs.

    of the runs of joint, audio, visual, from untrained to their last epoch: losses L^T in training, L^V held out
    O = change of L^V - L^T, G = fall of L^V; w = (G / O^2) / sum of these;  L = w_m L_m + w_a L_a + w_v L_v

Gradients are those of joint_uni, weighted. --gblend_runs names the three, with --val_ratio and the same seed, or
--gblend_weights says w, which the settings record. G below 0 counts as 0, O^2 as 1e-12 at least; all 0: equal weights.
The paper's online form, which measures anew by training copies, is left out. No code of the authors is known.
"""

import json
from pathlib import Path

from methods import resolve
from methods.joint_uni import JointUni
from utils.errors import InputError
from utils.training import distributed

RUNS = ("joint", "audio", "visual")


class GBlend(JointUni):
    def __init__(self, args, model):
        super().__init__(args, model)
        self.weights = args.gblend_weights

    def prepare(self, model):
        if self.args.gblend_runs and self.args.gblend_weights:
            raise InputError("--gblend_weights: not beside --gblend_runs, which measures them; leave one of them out")
        if self.args.gblend_runs:
            with distributed.first_alone():  # of several processes one tells what does not fit
                self.weights = self.args.gblend_weights = blended(measured(self.args))
        print(f"G-Blending: weights {', '.join(f'{weight:.4f}' for weight in self.weights)} of joint, audio, visual")


def measured(args):
    """The losses of the three runs -> {method: (start, end)}, each (L^T, L^V), mean per clip.

    Raises:
        InputError: one is missing, not finished, without --val_ratio, of other data, or there are two of a method.
    """
    found = {}
    for folder in map(Path, args.gblend_runs.split(",")):
        try:
            settings = resolve(json.loads((folder / "result.json").read_text())["settings"])
            rows = [json.loads((folder / "start.json").read_text())]
            rows.append(json.loads((folder / "log.jsonl").read_text().splitlines()[-1]))
            found[settings["method"]] = tuple((row["loss"], row["val_loss"]) for row in rows)
        except (OSError, ValueError, KeyError, IndexError, TypeError, InputError):
            raise InputError(f"--gblend_runs {folder}: no finished run with --val_ratio in it; make it first") from None
        for name in ("dataset", "random_seed"):
            was, here = settings.get(name), getattr(args, name)
            if was != here:
                raise InputError(f"--gblend_runs {folder}: --{name} was {was}, here {here}; give runs of the same")
    if found.keys() != set(RUNS):
        raise InputError(f"--gblend_runs {args.gblend_runs}: of {', '.join(found)}; give runs of {', '.join(RUNS)}")
    return found


def blended(found):
    """Weights of joint, audio and visual loss from what `measured` found; their sum is 1."""
    raw = []
    for method in RUNS:
        (train_start, val_start), (train_end, val_end) = found[method]
        overfitting = (val_end - train_end) - (val_start - train_start)
        raw.append(max(val_start - val_end, 0) / max(overfitting**2, 1e-12))
    return [each / sum(raw) if sum(raw) else 1 / len(raw) for each in raw]

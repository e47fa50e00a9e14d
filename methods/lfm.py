"""LFM (heuristic): Yang et al., NeurIPS 2024, classification and matching of the modalities' outputs in one loss.

    fused = mean of o_u, heads of their own; L = (1 - w) CE(fused) + w match, w = 1 - exp(-1/t), t from 1 by epoch
    match = mean over pairs and clips of (KL(m | p) + KL(m | q)) / 2, p, q the softmax of two outputs, m their mean

L reaches everything by its path; the unimodal losses are watched. Nothing is saved, w follows the epoch. match is that
of the published code, without the factor 2 of its whole loss; the paper is said to match against other clips.
`--lfm_weights fitted` is that code's curve for CREMA-D, from which follows that it is match whose weight falls. Learned
weights are left out: the code's step is along another direction than the stated derivative.
"""

import math
from itertools import combinations

import numpy as np
import torch

from methods.base import MeanOfHeads, Method, encode_all, score

EPOCHS = (0, 20, 40, 60, 80, 100, 140, 160, 180)
FITTED = (0.205, 0.301, 0.400, 0.464, 0.500, 0.539, 0.743, 0.901, 1.0)  # 1 - w in these epochs, straight in between


class LFM(Method):
    linear = False

    def __init__(self, settings, model):
        super().__init__(settings, model)
        model.fusion_module = MeanOfHeads(model)

    def step(self, model, inputs, label):
        fusion = model.fusion_module
        logits = {name: fusion.alone(name, feature) for name, feature in encode_all(model, inputs).items()}
        fused, pairs = score(sum(logits.values()) / len(logits), label), [*combinations(logits.values(), 2)]
        matching, weight = sum(match(*pair) for pair in pairs) / len(pairs), self.weight()
        ((1 - weight) * fused.loss + weight * matching).backward()
        with torch.no_grad():
            return {"fused": fused} | {name: score(each, label) for name, each in logits.items()}

    def weight(self):
        """Return the weight of match in the current epoch, 0 to 1."""
        if self.settings.lfm_weights == "fitted":
            return 1 - float(np.interp(self.epoch, EPOCHS, FITTED))
        return 1 - math.exp(-1 / (self.epoch + 1))


def match(logits, others):
    """Return how far two modalities' outputs are apart: (B, C) twice -> (), 0 if they are alike."""
    log_p, log_q = logits.log_softmax(dim=1), others.log_softmax(dim=1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_m.exp() * (log_m - (log_p + log_q) / 2)).sum(dim=1).mean()

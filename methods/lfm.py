"""LFM (heuristic): Yang et al., NeurIPS 2024, classification and matching of the modalities in one loss.

    fused = mean of o_u, separate heads; L = (1 - w) CE(fused) + w match, w = 1 - exp(-1/t), t the epoch from 1 (eq. 1)
    match = mean over pairs (u, v) of InfoNCE of the features: s(i, k) = cos(z_u,i, z_v,k) / tau,
            - 1/(2B) sum over i of (log softmax over k of s(i, k) at k = i, and the same of s transposed) (section 3.2)

The matching loss trains the encoders but no head; CE trains the whole model. The unimodal losses are measured only. No
state is saved, because w depends on the epoch only. The paper has one pair only; the mean over pairs is our extension.
It states no tau. Its classifier is one linear layer on the fused features; half the sum of two heads, as in the code,
is the same family of functions.
The published code has another match, `--lfm_match code`: the mean over clips of (KL(m | p) + KL(m | q)) / 2, where p
and q are the softmax of two outputs and m is their mean. Ours does not have the code's factor 2 for the whole loss.
`--lfm_weights fitted` is that code's curve for CREMA-D. Learned weights (eq. 2, 3) are left out: the step in the code
has another direction than the paper states.
"""

import math
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F

from methods.base import MeanOfHeads, Method, encode_all, score
from utils.processes import gather_rows, size

EPOCHS = (0, 20, 40, 60, 80, 100, 140, 160, 180)
FITTED = (0.205, 0.301, 0.400, 0.464, 0.500, 0.539, 0.743, 0.901, 1.0)  # 1 - w in these epochs, interpolated linearly


class LFM(Method):
    linear = False

    def __init__(self, settings, model):
        super().__init__(settings, model)
        model.fusion_module = MeanOfHeads(model)

    def step(self, model, inputs, label):
        fusion, features = model.fusion_module, encode_all(model, inputs)
        logits = {name: fusion.alone(name, feature) for name, feature in features.items()}
        fused, weight = score(sum(logits.values()) / len(logits), label), self.weight()
        if self.settings.lfm_match == "code":
            pairs = [divergence(*pair) for pair in combinations(logits.values(), 2)]
        else:
            pairs = [infonce(*pair, self.settings.lfm_tau) for pair in combinations(features.values(), 2)]
        ((1 - weight) * fused.loss + weight * sum(pairs) / len(pairs)).backward()
        with torch.no_grad():
            return {"fused": fused} | {name: score(each, label) for name, each in logits.items()}

    def weight(self):
        """Return the weight w of the matching loss in the current epoch, 0 to 1."""
        if self.settings.lfm_weights == "fitted":
            return 1 - float(np.interp(self.epoch, EPOCHS, FITTED))
        return 1 - math.exp(-1 / (self.epoch + 1))


def infonce(features, others, tau):
    """Return the symmetric InfoNCE of two modalities' features over the whole batch: (B, D) twice -> ()."""
    x, y = (gather_rows(F.normalize(each, dim=1)) for each in (features, others))
    similarity, same = x @ y.T / tau, torch.arange(len(x), device=x.device)
    # gradients flow to this process's clips only, and are then averaged over processes: size() makes them a sum
    return size() * (F.cross_entropy(similarity, same) + F.cross_entropy(similarity.T, same)) / 2


def divergence(logits, others):
    """Return the mean divergence of two modalities' outputs: (B, C) twice -> (), 0 if they are equal."""
    log_p, log_q = logits.log_softmax(dim=1), others.log_softmax(dim=1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_m.exp() * (log_m - (log_p + log_q) / 2)).sum(dim=1).mean()

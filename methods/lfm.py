"""LFM (heuristic): Yang et al., NeurIPS 2024, classification and matching of two modalities' outputs in one loss.

    fused = (o_a + o_v) / 2, heads of their own; L = (1 - w) CE(fused) + w match, w = 1 - exp(-1/t), t from 1 by epoch
    match = mean of (KL(m | p) + KL(m | q)) / 2, p, q the softmax of o_a, o_v and m their mean

L reaches everything by its path; the unimodal losses are watched. Nothing is saved, w follows the epoch. match is that
of the published code, without the factor 2 of its whole loss; the paper is said to match against other clips.
`--lfm_weights fitted` is that code's curve for CREMA-D, from which follows that it is match whose weight falls. Learned
weights are left out: the code's step is along another direction than the stated derivative.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from methods.base import MeanOfHeads, Method

EPOCHS = (0, 20, 40, 60, 80, 100, 140, 160, 180)
FITTED = (0.205, 0.301, 0.400, 0.464, 0.500, 0.539, 0.743, 0.901, 1.0)  # 1 - w in these epochs, straight in between


class LFM(Method):
    linear = False

    def __init__(self, args, model):
        super().__init__(args, model)
        model.fusion_module = MeanOfHeads(model)

    def step(self, model, spectrogram, frames, label):
        fusion = model.fusion_module
        logits_a = fusion.audio_alone(model.encode_audio(spectrogram))
        logits_v = fusion.visual_alone(model.encode_video(frames))
        loss, weight = F.cross_entropy((logits_a + logits_v) / 2, label), self.weight()
        ((1 - weight) * loss + weight * match(logits_a, logits_v)).backward()
        with torch.no_grad():
            return loss.detach(), F.cross_entropy(logits_a, label), F.cross_entropy(logits_v, label)

    def weight(self):
        """Of match in the epoch in hand, 0 to 1."""
        if self.args.lfm_weights == "fitted":
            return 1 - float(np.interp(self.epoch, EPOCHS, FITTED))
        return 1 - math.exp(-1 / (self.epoch + 1))


def match(logits_a, logits_v):
    """How far two modalities' outputs are apart: (B, C) twice -> (), 0 where they are alike."""
    log_p, log_q = logits_a.log_softmax(dim=1), logits_v.log_softmax(dim=1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_m.exp() * (log_m - (log_p + log_q) / 2)).sum(dim=1).mean()

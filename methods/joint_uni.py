"""Joint training with unimodal losses, the "uniform baseline" of Wei and Hu, ICML 2024, arXiv 2405.17730.

    L = L_m + L_a + L_v, each unimodal loss with a linear head of its own

Each encoder gets the gradient of L_m and of its own loss, each head that of its loss. Nothing is saved. Huang et al.,
CVPR 2025, arXiv 2503.18595, take parts of the joint head for L_a, L_v; ours has own heads, as G-Blending and MMPareto.
"""

import torch
import torch.nn.functional as F

from methods.base import Method, OwnHeads


class JointUni(Method):
    weights = 1, 1, 1  # of L_m, L_a, L_v

    def __init__(self, args, model):
        super().__init__(args, model)
        model.fusion_module = OwnHeads(model)

    def step(self, model, spectrogram, frames, label):
        return weighted_step(model, spectrogram, frames, label, self.weights)


def weighted_step(model, spectrogram, frames, label, weights, modulate=None):
    """One step of a weighted sum of the three losses, as Method.step; `weights` are those of L_m, L_a and L_v.

    A weight of 0 leaves gradients of 0, so that every parameter has one. `modulate` as in `joint_step`.
    """
    fusion = model.fusion_module
    a, v = model.encode_audio(spectrogram), model.encode_video(frames)  # (B, 512) each
    logits_a, logits_v = fusion.audio_alone(a), fusion.visual_alone(v)
    losses = [F.cross_entropy(logits, label) for logits in (fusion.fuse(a, v), logits_a, logits_v)]
    sum(weight * loss for weight, loss in zip(weights, losses, strict=True)).backward()
    if modulate:
        with torch.no_grad():
            modulate(model, logits_a, logits_v, label)
    return tuple(loss.detach() for loss in losses)

"""DGL with a truncation left out: what each of the two is worth (paper section 3, and its ablation study).

-MGT: without multimodal gradient truncation, L_m reaches the encoders too
-UGT: without unimodal gradient truncation, alpha * (L_a + L_v) reaches fusion too
both: the plain sum L_m + alpha * (L_a + L_v), with heads that share fusion's weights
"""

import torch
import torch.nn.functional as F

from methods.base import Method


class Ablation(Method):
    """Both truncations: without `mgt` L_m reaches the encoders, without `ugt` alpha * (L_a + L_v) reaches fusion."""

    mgt = ugt = True

    def step(self, model, spectrogram, frames, label):
        fusion = model.fusion_module
        theta = list(fusion.parameters())
        features = model.encode_audio(spectrogram), model.encode_video(frames)
        # the border between encoders and fusion: each loss is led to the sides that it may reach
        border = [feature.detach().requires_grad_() for feature in features]
        loss_a = F.cross_entropy(fusion.audio_alone(border[0]), label)
        loss_v = F.cross_entropy(fusion.visual_alone(border[1]), label)
        (self.args.alpha * (loss_a + loss_v)).backward(inputs=border if self.ugt else border + theta)
        loss = F.cross_entropy(fusion.fuse(*border), label)
        loss.backward(inputs=theta if self.mgt else border + theta)
        torch.autograd.backward(features, [feature.grad for feature in border])
        return loss.detach(), loss_a.detach(), loss_v.detach()


class NoMGT(Ablation):
    mgt = False


class NoUGT(Ablation):
    ugt = False


class NoMGTNoUGT(Ablation):
    mgt = ugt = False

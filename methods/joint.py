"""Joint training, the ordinary way and every method's baseline: the multimodal loss reaches everything.

    L = CE(F(a, v))

Encoders and fusion get its gradient; the unimodal logits are watched, and teach nothing.
"""

import torch
import torch.nn.functional as F

from methods.base import Method


class Joint(Method):
    def step(self, model, spectrogram, frames, label):
        return joint_step(model, spectrogram, frames, label)


def joint_step(model, spectrogram, frames, label, modulate=None, extra=None):
    """One step of joint training, as Method.step.

    Args:
        modulate: a function of (model, logits_a, logits_v, label) that changes the gradients; the logits are each
            modality's own, (B, C).
        extra: a function of the features a, v, (B, 512) each, that gives what is added to the loss.
    """
    fusion = model.fusion_module
    a, v = model.encode_audio(spectrogram), model.encode_video(frames)  # (B, 512) each
    loss = F.cross_entropy(fusion.fuse(a, v), label)
    (loss + extra(a, v) if extra else loss).backward()
    with torch.no_grad():
        logits_a, logits_v = fusion.audio_alone(a), fusion.visual_alone(v)
        if modulate:
            modulate(model, logits_a, logits_v, label)
        return loss.detach(), F.cross_entropy(logits_a, label), F.cross_entropy(logits_v, label)

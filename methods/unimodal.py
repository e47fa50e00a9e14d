"""One encoder alone with a linear classifier: the unimodal yardstick, what a modality comes to without the other."""

import torch
import torch.nn.functional as F

from methods.base import Method


class Unimodal(Method):
    def step(self, model, spectrogram, frames, label):
        return unimodal_step(model, spectrogram, frames, label)


def unimodal_step(model, spectrogram, frames, label):
    """One step of one encoder with its linear classifier. The loss of the modality that the model lacks is NaN."""
    logits, logits_a, _ = model(spectrogram, frames)
    loss = F.cross_entropy(logits, label)
    loss.backward()
    loss, missing = loss.detach(), torch.full_like(loss, float("nan"))
    return (loss, missing, loss) if logits_a is None else (loss, loss, missing)

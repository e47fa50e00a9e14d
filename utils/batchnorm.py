"""BatchNorm statistics that belong to the weights that are evaluated."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from utils import distributed


@torch.no_grad()
def refresh_batchnorm(model, batches):
    """Set the running statistics of every BatchNorm to their plain average over `batches`, with the weights of now.

    Running averages lag about ten steps behind the weights, which at the learning rates of early training costs tens
    of points of accuracy in evaluation ("precise BatchNorm", Wu and Johnson 2021, arXiv 2105.07576, section 3).

    Args:
        model: AVClassifier; left in training mode, with its momenta as they were. Weights and gradients stay.
        batches: pairs of spectrogram (B, 1, F, T) and frames (B, 3, N, H, W) of equal B; with none nothing changes.
            Several processes average what they find.
    """
    if not batches:
        return
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's way to say: a plain average of all batches
    model.train()
    for spectrogram, frames in batches:
        model(spectrogram, frames)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        for statistics in (layer.running_mean, layer.running_var):
            distributed.total(statistics).div_(distributed.size())

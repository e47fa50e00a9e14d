"""The block of the mmtm fusion, and a context that protects BatchNorm's running statistics."""

from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.backbone import pooled


class MMTM(nn.Module):
    """Multimodal transfer module (Joze et al., CVPR 2020): all modalities together gate the channels of each one.

        S_u = maps of u averaged over positions and frames; Z = relu(squeeze([S_1; S_2; ...]))
        maps of u times sigmoid(excite_u(Z)), channel by channel; no factor 2, as in every published code

    Args:
        modalities: names of the modalities, in the order of the weights.
        channels: number of channels C of each modality's maps.
        ratio: squeeze has int(2 n C / ratio) outputs; 2 as in DGL's release (4 in Joze's and PMR's code).
    """

    def __init__(self, modalities, channels, ratio=2):
        super().__init__()
        self.modalities = tuple(modalities)
        together = len(self.modalities) * channels
        width = int(2 * together / ratio)
        self.squeeze = nn.Linear(together, width)
        self.excite = nn.ModuleDict({name: nn.Linear(width, channels) for name in self.modalities})

    def forward(self, maps):
        """Return the gated maps: {modality: (B, N, C, h, w)}; a missing modality's squeezed vector is 0."""
        present = {name: pooled(each) for name, each in maps.items()}
        zeros = torch.zeros_like(next(iter(present.values())))
        hidden = self.squeeze(torch.cat([present.get(name, zeros) for name in self.modalities], dim=1)).relu()
        gates = {name: self.excite[name](hidden).sigmoid() for name in maps}  # (B, C)
        return {name: each * gates[name][:, None, :, None, None] for name, each in maps.items()}


@contextmanager
def keep_running_statistics(module):
    """Leave the running statistics of a module's BatchNorm layers unchanged while the block lasts.

    As always, the layers normalise by the statistics of the batch in training, and by the running ones in evaluation.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True

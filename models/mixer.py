"""The block of the mixer fusion, after CubeMLP (Sun et al., ACM MM 2022), without its time axis."""

from torch import nn


class MixerBlock(nn.Module):
    """Mix n tokens over modalities, then over channels, each time with a residual: (B, n, dim) -> (B, n, dim).

    CubeMLP mixes over time first; here each modality is one vector. CubeMLP's widths shrink from block to block; here
    they stay the same.
    """

    def __init__(self, n, dim):
        super().__init__()
        self.over_modalities, self.over_channels = perceptron(n), perceptron(dim)

    def forward(self, tokens):
        tokens = tokens + self.over_modalities(tokens.mT).mT
        return tokens + self.over_channels(tokens)


def perceptron(width):
    """Return CubeMLP's layers for the last axis, whose size is `width`."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.Dropout(0.1)
    )

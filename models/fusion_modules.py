"""Fusion modules with shared-weight unimodal heads (`_AUXI`), paper section 3; formulas in docs/design.md.

Each module says how to fuse two features, and how to score one modality alone with the very same weights. That no
gradient of the fused logits reaches an encoder is said once, in the base class.
"""

import torch
from torch import nn


class Fusion_AUXI(nn.Module):
    """Base of the fusion modules. x is the audio and y the visual feature, both (B, dim); logits are (B, n_classes).

    A new fusion module defines `fuse`, where the feature in both places would not do also `audio_alone` and
    `visual_alone`, and takes its place in models/__init__.py.

    Attributes:
        shared_bias: half of the bias that both modalities' own logits hold; 0 where each has its own.
    """

    shared_bias = 0

    def forward(self, x, y):
        """Fused logits of the detached features: multimodal gradient truncation (paper section 3)."""
        return self.fuse(x.detach(), y.detach())  # DGL (2): every layer of fusion learns, no encoder does

    def fuse(self, x, y):
        """Fused logits of both features, (B, dim) each -> (B, n_classes)."""
        raise NotImplementedError

    def audio_alone(self, x):
        """Unimodal logits of the audio feature, (B, dim) -> (B, n_classes)."""
        return self.fuse(x, x)

    def visual_alone(self, y):
        """Unimodal logits of the visual feature, (B, dim) -> (B, n_classes)."""
        return self.fuse(y, y)


class ConcatFusion_AUXI(Fusion_AUXI):
    """fc_out([x; y]); one modality alone has zeros in place of the other."""

    def __init__(self, n_classes, dim=512):
        super().__init__()
        self.fc_out = nn.Linear(2 * dim, n_classes)

    @property
    def shared_bias(self):
        return self.fc_out.bias / 2

    def fuse(self, x, y):
        return self.fc_out(torch.cat([x, y], dim=1))

    def audio_alone(self, x):
        return self.fuse(x, torch.zeros_like(x))

    def visual_alone(self, y):
        return self.fuse(torch.zeros_like(y), y)


class SumFusion_AUXI(Fusion_AUXI):
    """fc_x(x) + fc_y(y); one modality alone is its own term."""

    def __init__(self, n_classes, dim=512):
        super().__init__()
        self.fc_x = nn.Linear(dim, n_classes)
        self.fc_y = nn.Linear(dim, n_classes)

    def fuse(self, x, y):
        return self.fc_x(x) + self.fc_y(y)

    def audio_alone(self, x):
        return self.fc_x(x)

    def visual_alone(self, y):
        return self.fc_y(y)


class GatedFusion_AUXI(Fusion_AUXI):
    """fc_out(sigmoid(fc_x(x)) * fc_y(y)), audio gates video; one modality alone gates itself with its own layer."""

    def __init__(self, n_classes, dim=512):
        super().__init__()
        self.fc_x = nn.Linear(dim, dim)
        self.fc_y = nn.Linear(dim, dim)
        self.fc_out = nn.Linear(dim, n_classes)

    def gated(self, gate, value):
        return self.fc_out(torch.sigmoid(gate) * value)

    def fuse(self, x, y):
        return self.gated(self.fc_x(x), self.fc_y(y))

    def audio_alone(self, x):
        hidden = self.fc_x(x)
        return self.gated(hidden, hidden)

    def visual_alone(self, y):
        hidden = self.fc_y(y)
        return self.gated(hidden, hidden)


class FiLM_AUXI(Fusion_AUXI):
    """fc_out(gamma * y + beta) with gamma, beta = fc(x) (Perez et al., AAAI 2018): audio modulates video."""

    def __init__(self, n_classes, dim=512):
        super().__init__()
        self.fc = nn.Linear(dim, 2 * dim)
        self.fc_out = nn.Linear(dim, n_classes)

    def fuse(self, x, y):
        gamma, beta = self.fc(x).chunk(2, dim=1)
        return self.fc_out(gamma * y + beta)


class BilinearFusion_AUXI(Fusion_AUXI):
    """fc_out(fc(vec(x y^T))); the authors' code calls this form `film`. Holds 134 million weights at dim 512."""

    def __init__(self, n_classes, dim=512):
        super().__init__()
        self.fc = nn.Linear(dim * dim, dim)
        self.fc_out = nn.Linear(dim, n_classes)

    def fuse(self, x, y):
        return self.fc_out(self.fc((x.unsqueeze(2) * y.unsqueeze(1)).flatten(1)))  # x y^T is (B, dim, dim)

"""Fusion modules with shared-weight unimodal heads (`_AUXI`), paper section 3.2; formulas in docs/design.md.

Each module defines how to fuse the features of all modalities, and how to score one modality alone with the same
weights. The base class detaches the features, so that no gradient of the fused logits reaches an encoder.
"""

import torch
from torch import nn

from models.backbone import pooled
from models.mixer import MixerBlock
from models.mmtm import MMTM, keep_running_statistics


class Fusion_AUXI(nn.Module):
    """Base class of the fusion modules.

    A feature is (B, dim), or with `takes_maps` (B, N, C, h, w). Logits are (B, n_classes). A new fusion module defines
    `fuse`, and `alone` if one modality alone is not scored with its feature in place of every other. Add it to
    FUSION_MODULES below.

    Args:
        n_classes: number of classes.
        dim: width of every feature.
        modalities: names of the modalities, in the order of the weights.

    Attributes:
        n_modalities: number of modalities that the module fuses; None for any number.
        takes_maps: True if a feature is the last maps of an encoder, False if it is their average.
        zeros: True if one modality alone is scored with 0 in place of the others.
        shared_bias: the part of the bias in one modality's logits that belongs to the other modalities, with the bias
            split evenly. It is 0 if one modality's logits have only its own bias, or if the fused logits are not
            a sum over the modalities.

    Raises:
        ValueError: the module does not take this number of modalities.
    """

    n_modalities = None
    takes_maps = False
    zeros = False
    shared_bias = 0

    def __init__(self, n_classes, dim=512, modalities=("audio", "visual")):
        super().__init__()
        if self.n_modalities not in (None, len(modalities)):
            raise ValueError(f"takes {self.n_modalities} modalities, not {len(modalities)}")
        self.modalities = tuple(modalities)

    def forward(self, features):
        """Return the fused logits of the detached features: multimodal gradient truncation (paper eq. 9 and 10)."""
        features = {name: feature.detach() for name, feature in features.items()}
        return self.fuse(features)  # DGL (2): every layer of the fusion module learns, no encoder does

    def fuse(self, features):
        """Return the fused logits of {modality: feature}, without detaching."""
        raise NotImplementedError

    def alone(self, name, feature):
        """Return the logits of one modality alone, here with its feature in every place, as in the authors' code.

        The paper has 0 in place of the others (eq. 12 and 14): `alone_with_zeros`.
        """
        return self.fuse(dict.fromkeys(self.modalities, feature))

    def vector(self, name, feature):
        """Return the input (B, dim) for another linear head that scores one modality, here the feature itself."""
        return feature

    def use_zeros(self):
        """From now on, score one modality alone with 0 in place of the others; no effect if `zeros` is True already."""
        if not self.zeros:
            self.zeros, self.alone = True, self.alone_with_zeros

    def alone_with_zeros(self, name, feature):
        """Return the logits of one modality alone with 0 in place of the others (paper eq. 12 and 14)."""
        return self.fuse(dict.fromkeys(self.modalities, torch.zeros_like(feature)) | {name: feature})


class ConcatFusion_AUXI(Fusion_AUXI):
    """fc_out of the concatenated features; one modality alone has zeros in place of the others."""

    zeros = True

    def __init__(self, n_classes, dim=512, modalities=("audio", "visual")):
        super().__init__(n_classes, dim, modalities)
        self.fc_out = nn.Linear(len(modalities) * dim, n_classes)

    @property
    def shared_bias(self):
        return self.fc_out.bias * (1 - 1 / len(self.modalities))

    def fuse(self, features):
        return self.fc_out(torch.cat([features[name] for name in self.modalities], dim=1))

    def alone(self, name, feature):
        return self.alone_with_zeros(name, feature)


class SumFusion_AUXI(Fusion_AUXI):
    """The sum of one linear layer per modality: fc_x, fc_y, fc_z, fc_3, ...; one modality alone is its own term."""

    def __init__(self, n_classes, dim=512, modalities=("audio", "visual")):
        super().__init__(n_classes, dim, modalities)
        for k in range(len(modalities)):
            setattr(self, self.layer(k), nn.Linear(dim, n_classes))

    @staticmethod
    def layer(k):
        """Return the name of the k-th modality's layer."""
        return f"fc_{'xyz'[k] if k < 3 else k}"

    @property
    def shared_bias(self):
        if not self.zeros:
            return 0
        biases = [getattr(self, self.layer(k)).bias for k in range(len(self.modalities))]
        return sum(biases) * (1 - 1 / len(biases))

    def fuse(self, features):
        return sum(self.term(name, features[name]) for name in self.modalities)

    def alone(self, name, feature):
        return self.term(name, feature)

    def term(self, name, feature):
        """Return the logits of a modality's own layer."""
        return getattr(self, self.layer(self.modalities.index(name)))(feature)


class GatedFusion_AUXI(Fusion_AUXI):
    """fc_out(sigmoid(fc_x(x)) * fc_y(y)): the first modality gates the second; alone, each gates itself."""

    n_modalities = 2

    def __init__(self, n_classes, dim=512, modalities=("audio", "visual")):
        super().__init__(n_classes, dim, modalities)
        self.fc_x = nn.Linear(dim, dim)
        self.fc_y = nn.Linear(dim, dim)
        self.fc_out = nn.Linear(dim, n_classes)

    def gated(self, gate, value):
        """Return the logits of two hidden vectors, (B, dim) each."""
        return self.fc_out(torch.sigmoid(gate) * value)

    def fuse(self, features):
        x, y = (features[name] for name in self.modalities)
        return self.gated(self.fc_x(x), self.fc_y(y))

    def alone(self, name, feature):
        hidden = (self.fc_x, self.fc_y)[self.modalities.index(name)](feature)
        return self.gated(hidden, hidden)


class FiLM_AUXI(Fusion_AUXI):
    """fc_out(gamma * y + beta), gamma, beta = fc(x) (Perez et al., AAAI 2018): the first modality modulates."""

    n_modalities = 2

    def __init__(self, n_classes, dim=512, modalities=("audio", "visual")):
        super().__init__(n_classes, dim, modalities)
        self.fc = nn.Linear(dim, 2 * dim)
        self.fc_out = nn.Linear(dim, n_classes)

    def fuse(self, features):
        x, y = (features[name] for name in self.modalities)
        gamma, beta = self.fc(x).chunk(2, dim=1)
        return self.fc_out(gamma * y + beta)


class BilinearFusion_AUXI(Fusion_AUXI):
    """fc_out(fc(vec(x y^T))); the authors' code calls this form `film`. It has 134 million weights at dim 512."""

    n_modalities = 2

    def __init__(self, n_classes, dim=512, modalities=("audio", "visual")):
        super().__init__(n_classes, dim, modalities)
        self.fc = nn.Linear(dim * dim, dim)
        self.fc_out = nn.Linear(dim, n_classes)

    def fuse(self, features):
        x, y = (features[name] for name in self.modalities)
        return self.fc_out(self.fc((x.unsqueeze(2) * y.unsqueeze(1)).flatten(1)))  # x y^T is (B, dim, dim)


class MixerFusion_AUXI(Fusion_AUXI):
    """fc_out of the concatenated mixed tokens, after CubeMLP (Sun et al., ACM MM 2022) without its time axis.

    The features are n tokens (B, n, dim), which two blocks of models/mixer.py mix. The two blocks, their layers and
    dropout 0.1 are CubeMLP's. One vector per modality, and hidden widths equal to n and dim, are ours. One modality
    alone has zeros in place of the other tokens before the first block; inside the blocks they do not stay 0.
    """

    zeros = True

    def __init__(self, n_classes, dim=512, modalities=("audio", "visual")):
        super().__init__(n_classes, dim, modalities)
        self.blocks = nn.Sequential(*(MixerBlock(len(modalities), dim) for _ in range(2)))
        self.fc_out = nn.Linear(len(modalities) * dim, n_classes)

    def fuse(self, features):
        tokens = torch.stack([features[name] for name in self.modalities], dim=1)
        return self.fc_out(self.blocks(tokens).flatten(1))

    def alone(self, name, feature):
        return self.alone_with_zeros(name, feature)


class MMTMFusion_AUXI(Fusion_AUXI):
    """Dense interaction of two ResNets by MMTM (Joze et al., CVPR 2020): the encoders end at layer2.

    The order is mmtm2, layer3 of each stream, mmtm3, layer4 of each stream, mmtm4, then fc_out of both pooled maps.
    Each stream has its own layers. Squeezed vectors and pooled maps are averages over a clip's frames, so all frames
    have the same gates. One modality alone runs only its own stream, with 0 in place of the squeezed vectors and pooled
    maps of the other.

    BatchNorm's running statistics come from the fused pass only, because one modality alone has other gates and so
    other statistics. In training, a pass of one modality alone normalises by the statistics of its batch and leaves the
    running ones unchanged. In evaluation, every pass uses the running ones. `refresh_batchnorm` follows the same rule.

    Args:
        stages: {modality: {"layer3": module, "layer4": module}}, the layers that `Encoder.cut` returns.
    """

    n_modalities = 2
    takes_maps = True
    zeros = True

    def __init__(self, n_classes, dim, modalities, stages):
        super().__init__(n_classes, dim, modalities)
        self.streams = nn.ModuleDict({name: nn.ModuleDict(stages[name]) for name in modalities})
        self.mmtm2, self.mmtm3, self.mmtm4 = (MMTM(modalities, dim // part) for part in (4, 2, 1))
        self.fc_out = nn.Linear(len(modalities) * dim, n_classes)

    @property
    def shared_bias(self):
        return self.fc_out.bias * (1 - 1 / len(self.modalities))

    def fuse(self, features):
        return self.classify(self.vectors(features))

    def alone(self, name, feature):
        return self.classify({name: self.vector(name, feature)})

    def vector(self, name, feature):
        """Return the pooled maps of a modality's stream, which runs alone: (B, N, C, h, w) -> (B, dim)."""
        with keep_running_statistics(self):
            return self.vectors({name: feature})[name]

    def vectors(self, maps):
        """Run the streams of the given modalities: {modality: maps (B, N, C, h, w)} -> {modality: (B, dim)}."""
        maps = self.mmtm2(maps)
        for stage, mmtm in (("layer3", self.mmtm3), ("layer4", self.mmtm4)):
            images = {name: self.streams[name][stage](each.flatten(0, 1)) for name, each in maps.items()}
            maps = mmtm({name: each.unflatten(0, maps[name].shape[:2]) for name, each in images.items()})
        return {name: pooled(each) for name, each in maps.items()}

    def classify(self, vectors):
        """Return the logits of {modality: (B, dim)}; a missing modality counts as 0."""
        zeros = torch.zeros_like(next(iter(vectors.values())))
        return self.fc_out(torch.cat([vectors.get(name, zeros) for name in self.modalities], dim=1))


class LinearClassifier(Fusion_AUXI):
    """A linear classifier in place of the fusion module, for a model with one modality."""

    n_modalities = 1

    def __init__(self, n_classes, dim, modalities):
        super().__init__(n_classes, dim, modalities)
        linear = nn.Linear(dim, n_classes)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.weight, self.bias = linear.weight, linear.bias

    def fuse(self, features):
        return nn.functional.linear(*features.values(), self.weight, self.bias)


FUSION_MODULES = {
    "concat": ConcatFusion_AUXI,
    "sum": SumFusion_AUXI,
    "gated": GatedFusion_AUXI,
    "film": FiLM_AUXI,
    "bilinear": BilinearFusion_AUXI,
    "mixer": MixerFusion_AUXI,
    "mmtm": MMTMFusion_AUXI,
}

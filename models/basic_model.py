"""AVClassifier: an encoder for each modality and a fusion module."""

import torch
from torch import nn

from models.backbone import BACKBONES, Encoder, pooled
from models.fusion_modules import FUSION_MODULES, LinearClassifier

MODALITIES = ("full", "audio", "visual", "text")
CHANNELS = {"audio": 1, "visual": 3}  # of spectrograms and frames


class AVClassifier(nn.Module):
    """The audio-visual classifier of the paper, section 3.

    An encoder has the layers that read one modality only. All layers from the first cross-modal one on are in the
    fusion module. The encoder of a modality is the attribute `<modality>_net`. With mmtm it ends at layer2, and the
    fusion module has the later layers.

    Args:
        n_classes: number of classes C.
        fusion_method: a key of `FUSION_MODULES`; no effect with one modality.
        modality: "full" for all encoders and the fusion module. The name of a modality for the unimodal baseline: one
            encoder, and a linear classifier in place of the fusion module.
        backbone: a key of `BACKBONES`, the architecture of the encoders.
        alone: "own" or "zeros", how the fusion module scores one modality alone; no effect with concat, mixer and mmtm.
        inputs: {modality: size of the encoder's input}: channels of images, or width of feature vectors for "mlp".

    Attributes:
        modalities: names of the modalities, in order.
        branches: "fused" and the modalities, the keys of the logits that `forward` returns.
        dim: width D of a feature, 512 with ResNet-18; with mmtm the number of channels after layer4.
        takes_maps: True if features are maps (B, N, C, h, w), False if they are vectors (B, D).
        frozen: modalities whose encoders are not trained; their BatchNorm uses its running statistics.
        amp: train the encoders in bfloat16 (autocast). Features, fusion and evaluation are always float32.

    Raises:
        ValueError: fusion_method, modality or backbone is unknown, or the module does not fit the backbone.
    """

    amp, frozen = False, ()

    def __init__(
        self, n_classes, fusion_method="concat", modality="full", backbone="resnet18", alone="own", inputs=None
    ):
        super().__init__()
        if modality not in MODALITIES:
            raise ValueError(f"modality {modality!r} is not one of {', '.join(MODALITIES)}")
        if fusion_method not in FUSION_MODULES:
            raise ValueError(f"fusion_method {fusion_method!r} is not one of {', '.join(FUSION_MODULES)}")
        if backbone not in BACKBONES:
            raise ValueError(f"backbone {backbone!r} is not one of {', '.join(BACKBONES)}")
        self.modality, self.n_classes, self.inputs = modality, n_classes, inputs or CHANNELS
        self.modalities = tuple(self.inputs) if modality == "full" else (modality,)
        self.branches = ("fused", *self.modalities)
        # create all encoders, so that an encoder has the same initial weights alone and in the full model
        encoders = {name: BACKBONES[backbone](size) for name, size in self.inputs.items()}
        for name in self.modalities:
            setattr(self, f"{name}_net", encoders[name])
        self.dim = encoders[self.modalities[0]].dim
        fusion = FUSION_MODULES[fusion_method] if modality == "full" else LinearClassifier
        self.takes_maps = fusion.takes_maps
        if self.takes_maps and not issubclass(BACKBONES[backbone], Encoder):
            raise ValueError(f"needs a ResNet, not backbone {backbone}")
        stages = [{name: encoders[name].cut() for name in self.modalities}] if self.takes_maps else []
        self.fusion_module = fusion(n_classes, self.dim, self.modalities, *stages)
        if alone == "zeros":
            self.fusion_module.use_zeros()
        for layer in self.fusion_module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def train(self, mode=True):
        super().train(mode)
        for name in self.frozen:
            self.encoder(name).eval()
        return self

    def encoder(self, name):
        """Return the encoder of a modality."""
        return getattr(self, f"{name}_net")

    def encoder_parameters(self, name):
        """Return the parameters of a modality's encoder, a list."""
        return list(self.encoder(name).parameters())

    def encode(self, name, x):
        """Return the feature of a modality: the encoder's maps if `takes_maps`, else their average.

        Args:
            name: name of the modality.
            x: spectrograms (B, 1, F, T), frames (B, 3, N, H, W), or feature vectors (B, width).

        Returns:
            The average over positions and frames (B, D), or maps (B, N, C, h, w), with N = 1 for a spectrogram; at
            least float32.
        """
        images = x.transpose(1, 2).flatten(0, 1) if x.dim() == 5 else x  # (B * N, channels, H, W)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp and self.training):
            maps = self.encoder(name)(images)
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        if x.dim() == 2:
            return maps
        maps = maps.unflatten(0, (len(x), -1))
        return maps if self.takes_maps else pooled(maps)

    def forward(self, inputs):
        """Return the logits of every branch.

        Args:
            inputs: {modality: tensor} as `encode` takes them.

        Returns:
            {"fused": (B, C), <modality>: (B, C)}; with one modality both are equal.
        """
        features = {name: self.encode(name, inputs[name]) for name in self.modalities}
        alone = {name: self.fusion_module.alone(name, feature) for name, feature in features.items()}
        return {"fused": self.fusion_module(features), **alone}

"""AVClassifier: an encoder for each modality and a fusion module."""

import torch
from torch import nn

from models.backbone import BACKBONES
from models.fusion_modules import FUSION_MODULES, LinearClassifier

MODALITIES = ("full", "audio", "visual")
CHANNELS = {"audio": 1, "visual": 3}  # of each encoder's input


class AVClassifier(nn.Module):
    """The audio-visual classifier of the paper, section 3.

    An encoder is what sees its modality alone; everything from the first cross-modal layer on is the fusion module. The
    encoder of a modality is the attribute `<modality>_net`.

    Args:
        n_classes: number of classes C.
        fusion_method: a key of `FUSION_MODULES`; without effect for one modality.
        modality: "full" for both encoders and the fusion module; "audio" or "visual" for that encoder and a linear
            classifier in the fusion module's place, the unimodal baseline.
        backbone: a key of `BACKBONES`, the architecture of both encoders.
        alone: "own" or "zeros", how the fusion module scores one modality; without effect for concat.

    Attributes:
        modalities: names of the modalities, in order.
        branches: "fused" and the modalities: what `forward` gives logits of.
        dim: width D of a feature, 512 with ResNet-18.
        frozen: modalities whose encoders are not trained; their BatchNorm evaluates.
        amp: train the encoders in bfloat16 (autocast); features, fusion and evaluation are always float32.

    Raises:
        ValueError: unknown fusion_method, modality or backbone.
    """

    amp, frozen = False, ()

    def __init__(self, n_classes, fusion_method="concat", modality="full", backbone="resnet18", alone="own"):
        super().__init__()
        if modality not in MODALITIES:
            raise ValueError(f"modality {modality!r} is none of {', '.join(MODALITIES)}")
        if fusion_method not in FUSION_MODULES:
            raise ValueError(f"fusion_method {fusion_method!r} is none of {', '.join(FUSION_MODULES)}")
        if backbone not in BACKBONES:
            raise ValueError(f"backbone {backbone!r} is none of {', '.join(BACKBONES)}")
        self.modality, self.n_classes = modality, n_classes
        self.modalities = tuple(CHANNELS) if modality == "full" else (modality,)
        self.branches = ("fused", *self.modalities)
        # both are created in any case, so that an encoder has the same initial weights alone and in the whole model
        encoders = {name: BACKBONES[backbone](channels) for name, channels in CHANNELS.items()}
        for name in self.modalities:
            setattr(self, f"{name}_net", encoders[name])
        self.dim = encoders["audio"].dim
        fusion = FUSION_MODULES[fusion_method] if modality == "full" else LinearClassifier
        self.fusion_module = fusion(n_classes, self.dim, self.modalities)
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
        """Return a modality's feature (B, D).

        Args:
            name: of the modality.
            x: a spectrogram (B, 1, F, T), or frames (B, 3, N, H, W), which are averaged over frames, height and width.
        """
        if x.dim() == 4:
            return self.pooled(name, x)
        images = x.transpose(1, 2).flatten(0, 1)  # (B * N, 3, H, W)
        return self.pooled(name, images).unflatten(0, (len(x), -1)).mean(dim=1)

    def pooled(self, name, images):
        """Return the global average pool of an encoder's maps, in float32 at least: (B, C, H, W) -> (B, D)."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp and self.training):
            maps = self.encoder(name)(images)
        return maps.to(torch.promote_types(maps.dtype, torch.float32)).mean(dim=(2, 3))

    def forward(self, inputs):
        """Return the logits of every branch.

        Args:
            inputs: {modality: tensor} as `encode` takes them.

        Returns:
            {"fused": (B, C), and each modality: (B, C)}; with one modality both are the same.
        """
        features = {name: self.encode(name, inputs[name]) for name in self.modalities}
        alone = {name: self.fusion_module.alone(name, feature) for name, feature in features.items()}
        return {"fused": self.fusion_module(features), **alone}

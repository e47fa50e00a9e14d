"""AVClassifier: two encoders and a fusion module, or one encoder and a linear classifier."""

import torch
from torch import nn

from models import BACKBONES, FUSION_MODULES, MODALITIES, fusion_modules
from models import backbone as encoders


class AVClassifier(nn.Module):
    """The audio-visual classifier of the paper, section 3.

    Args:
        n_classes: number of classes C.
        fusion_method: a key of `FUSION_MODULES`; of no meaning for one modality.
        modality: "full" for both encoders and the fusion module; "audio" or "visual" for that encoder and a linear
            classifier in the fusion module's place, the unimodal yardstick.
        backbone: a key of `BACKBONES`, what both encoders are.

    Attributes:
        dim: width D of a feature, 512 with ResNet-18.
        frozen: names of encoders that training leaves as they are, their BatchNorm evaluating.
        amp: train the encoders in bfloat16 (autocast); features, fusion and evaluation are always float32.
        share: in several processes, this one's part of the batch in hand, 0 to 1; see utils/distributed.py.

    Raises:
        ValueError: unknown fusion_method, modality or backbone.
    """

    amp, share, frozen = False, 1.0, ()

    def __init__(self, n_classes, fusion_method="concat", modality="full", backbone="resnet18"):
        super().__init__()
        if modality not in MODALITIES:
            raise ValueError(f"modality {modality!r} is none of {', '.join(MODALITIES)}")
        if fusion_method not in FUSION_MODULES:
            raise ValueError(f"fusion_method {fusion_method!r} is none of {', '.join(FUSION_MODULES)}")
        if backbone not in BACKBONES:
            raise ValueError(f"backbone {backbone!r} is none of {', '.join(BACKBONES)}")
        encoder = getattr(encoders, BACKBONES[backbone])
        audio_net, visual_net = encoder(in_channels=1), encoder(in_channels=3)  # one that is kept alone begins alike
        self.modality, self.n_classes, self.dim = modality, n_classes, audio_net.dim
        if modality != "visual":
            self.audio_net = audio_net
        if modality != "audio":
            self.visual_net = visual_net
        if modality == "full":
            self.fusion_module = getattr(fusion_modules, FUSION_MODULES[fusion_method])(n_classes, self.dim)
        else:
            self.fusion_module = nn.Linear(self.dim, n_classes)
        for layer in self.fusion_module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def train(self, mode=True):
        super().train(mode)
        for name in self.frozen:
            getattr(self, name).eval()
        return self

    def encode_audio(self, spectrogram):
        """Audio features a: (B, 1, F, T) -> (B, D)."""
        return self.pooled(self.audio_net, spectrogram)

    def encode_video(self, frames):
        """Visual features v: (B, 3, N, H, W) -> (B, D), averaged over frames, height and width."""
        images = frames.transpose(1, 2).flatten(0, 1)  # (B * N, 3, H, W)
        return self.pooled(self.visual_net, images).unflatten(0, (len(frames), -1)).mean(dim=1)

    def pooled(self, encoder, images):
        """Global average pool of an encoder's feature maps, in float32 at least: (B, C, H, W) -> (B, D)."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp and self.training):
            maps = encoder(images)
        return maps.to(torch.promote_types(maps.dtype, torch.float32)).mean(dim=(2, 3))

    def forward(self, spectrogram, frames):
        """(B, 1, F, T), (B, 3, N, H, W) -> (logits, logits_a, logits_v), (B, C) each.

        With one modality, logits are that modality's and those of the other are None.
        """
        if self.modality == "audio":
            logits = self.fusion_module(self.encode_audio(spectrogram))
            return logits, logits, None
        if self.modality == "visual":
            logits = self.fusion_module(self.encode_video(frames))
            return logits, None, logits
        a, v = self.encode_audio(spectrogram), self.encode_video(frames)
        return self.fusion_module(a, v), self.fusion_module.audio_alone(a), self.fusion_module.visual_alone(v)

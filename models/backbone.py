"""Encoders: torchvision's ResNets without their classifier, with a stem of 1 or 3 channels."""

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet


class Encoder(ResNet):
    """A ResNet without its classifier, which returns its last feature maps.

    Shapes: (B, in_channels, H, W) -> (B, D, ceil(H / 32), ceil(W / 32)). Initial weights are random, as in torchvision:
    convolutions Kaiming-normal (fan-out, ReLU), BatchNorm 1 and 0.

    Args:
        in_channels: 1 for spectrograms, 3 for RGB frames.

    Attributes:
        dim: number of channels D after layer4: 512, or 2048 with bottleneck blocks. layer3 has D / 2, layer2 D / 4.
    """

    block, layers = BasicBlock, (2, 2, 2, 2)

    def __init__(self, in_channels):
        super().__init__(self.block, self.layers)
        self.dim = self.fc.in_features
        del self.avgpool, self.fc
        if in_channels != 3:
            self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def cut(self):
        """Remove layer3 and layer4 from the encoder, which then ends at layer2, and return them: {name: module}."""
        stages = {"layer3": self.layer3, "layer4": self.layer4}
        self.layer3, self.layer4 = nn.Identity(), nn.Identity()
        return stages


class ResNet18(Encoder):
    """The paper's encoder."""


class ResNet34(Encoder):
    layers = (3, 4, 6, 3)


class ResNet50(Encoder):
    block, layers = Bottleneck, (3, 4, 6, 3)


class MLP(nn.Sequential):
    """A perceptron with two layers for feature vectors: (B, in_features) -> (B, 128)."""

    dim = 128

    def __init__(self, in_features):
        super().__init__(nn.Linear(in_features, self.dim), nn.ReLU(), nn.Linear(self.dim, self.dim), nn.ReLU())


BACKBONES = {
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "mlp": MLP,
}


def pooled(maps):
    """Average maps over positions and frames: (B, N, C, h, w) -> (B, C)."""
    return maps.mean(dim=(3, 4)).mean(dim=1)

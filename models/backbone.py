"""ResNet-18 encoders: torchvision's network without its classifier, with a stem of 1 or 3 channels."""

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

FEATURE_DIM = 512


class ResNet18(ResNet):
    """ResNet-18 trained from scratch that returns its last feature maps.

    Args:
        in_channels: 1 for spectrograms, 3 for RGB frames.

    Shapes: (B, in_channels, H, W) -> (B, 512, ceil(H / 32), ceil(W / 32)). Convolutions are Kaiming-normal (fan-out,
    ReLU), BatchNorm 1 and 0, as torchvision initialises them.
    """

    def __init__(self, in_channels):
        super().__init__(BasicBlock, [2, 2, 2, 2])
        del self.avgpool, self.fc
        if in_channels != 3:
            self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

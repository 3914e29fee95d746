"""Define the residual blocks of He et al. 2016, for the networks that are built here.

timm's blocks of the same names have the same layers, names, first weights and arithmetic. They are repeated here
because importing timm takes seconds and some 200 MB, which only its own networks need.
"""

from __future__ import annotations

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """A block of two 3 x 3 convolutions with a shortcut; ``(B, inputs, H, W)`` to ``(B, width, H', W')``.

    Args:
        stride: of the first convolution.
        shortcut: layers that the input goes through; None: nothing.
    """

    expansion = 1
    """Output channels per channel of ``width``."""

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample = shortcut

    def start_as_shortcut(self) -> None:
        """Let the block start as its shortcut alone."""
        nn.init.zeros_(self.bn2.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Map a feature map to the next one."""
        found = self.act1(self.bn1(self.conv1(images)))
        found = self.bn2(self.conv2(found))
        found += images if self.downsample is None else self.downsample(images)
        result: Tensor = self.act2(found)
        return result


class Bottleneck(nn.Module):
    """A block of a 3 x 3 convolution between two of 1 x 1; ``(B, inputs, H, W)`` to ``(B, 4 width, H', W')``.

    Args:
        stride: of the 3 x 3 convolution.
        shortcut: layers that the input goes through; None: nothing.
    """

    expansion = 4
    """Output channels per channel of ``width``."""

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.act3 = nn.ReLU(inplace=True)
        self.downsample = shortcut

    def start_as_shortcut(self) -> None:
        """Let the block start as its shortcut alone."""
        nn.init.zeros_(self.bn3.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Map a feature map to the next one."""
        found = self.act1(self.bn1(self.conv1(images)))
        found = self.act2(self.bn2(self.conv2(found)))
        found = self.bn3(self.conv3(found))
        found += images if self.downsample is None else self.downsample(images)
        result: Tensor = self.act3(found)
        return result

"""SRGAN: a generator that makes HR from LR (Ledig et al. 2017), and a classifier that reads what it made.

Departures:

* The generator adds to the bilinear enlargement and starts as just that; it has no batch norm, so that it does the same
  in training as afterwards (after Lim et al. 2017), and 3 x 3 convolutions throughout.
* One pixel shuffle for each prime factor of HR / LR (the paper: two of 2). If HR is no whole multiple of LR, the
  image is made at the next larger multiple and averaged over area.
* The feature loss compares the last feature map of the frozen HR-CNN (the paper: of a VGG trained on ImageNet), divided
  by the mean square of the real image's, so that its weight does not depend on the network.
* The game is the minimax one of Goodfellow et al. 2014, in one loss: the gradient is reversed between discriminator and
  generator. The paper's generator minimises ``-log D(G(x))`` instead, which is steeper while the discriminator wins.
* The discriminator is small, without batch norm, and averages its logits over the image.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchdrop.classify.masked_cnn import MaskedCNN
from patchdrop.networks.build import Normalise, channels_last, feature_map

PEAK = 255.0
PSNR_CAP = 100.0
"""Decibels of a perfect image, whose PSNR is infinite."""


class Generator(nn.Module):
    """A generator: maps LR ``(B, C, h, w)``, pixels 0..255, to ``(B, C, H, W)`` float, about 0..255 (not clamped).

    Args:
        size: HR (height, width) in pixels, at least LR's.
        low_size: LR (height, width).
        normalise: of LR.
        width: channels of the residual blocks (the paper: 64).
        blocks: residual blocks (the paper: 16).
    """

    def __init__(
        self,
        size: tuple[int, int],
        low_size: tuple[int, int],
        normalise: Normalise,
        *,
        channels: int = 3,
        width: int = 32,
        blocks: int = 8,
    ) -> None:
        super().__init__()
        self.size = size
        self.normalise = normalise
        factors = prime_factors(max(math.ceil(big / small) for big, small in zip(size, low_size, strict=True)))
        self.entry = nn.Sequential(_conv(channels, width), nn.PReLU())
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)), _conv(width, width))
        self.enlarge = nn.Sequential(
            *(m for f in factors for m in (_conv(width, width * f**2), nn.PixelShuffle(f), nn.PReLU()))
        )
        self.exit = _conv(width, channels)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)  # type: ignore[arg-type]

    def forward(self, low: Tensor) -> Tensor:
        """Make HR from LR."""
        entered = self.entry(channels_last(self.normalise(low)))
        added = self.exit(self.enlarge(entered + self.blocks(entered)))
        if added.shape[-2:] != self.size:
            added = F.adaptive_avg_pool2d(added, self.size)
        image: Tensor = bilinear(low, self.size) + added * self.normalise.std
        return image


class ResidualBlock(nn.Module):
    """A block of two convolutions whose output is added to the input, ``(B, width, h, w)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_conv(width, width), nn.PReLU(), _conv(width, width))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        moved: Tensor = features + self.layers(features)
        return moved


class Discriminator(nn.Module):
    """A discriminator: maps normalised ``(B, C, H, W)`` to one logit an image ``(B,)``; above 0 it counts as real."""

    def __init__(self, channels: int = 3, width: int = 32) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 4 * width)
        halvings = [m for i, o in pairwise(widths) for m in (_conv(i, o, stride=2), nn.LeakyReLU(0.2))]
        self.layers = nn.Sequential(*halvings, _conv(widths[-1], 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean logit over all places."""
        verdicts: Tensor = self.layers(channels_last(images))
        return verdicts.mean((1, 2, 3))


class SuperResolution(nn.Module):
    """A generator with its discriminator: the model of the generator's stage."""

    def __init__(self, generator: Generator, discriminator: Discriminator) -> None:
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator

    def forward(self, low: Tensor) -> Tensor:
        """Return the generator's image."""
        image: Tensor = self.generator(low)
        return image


class SuperResolved(nn.Module):
    """An HR classifier on the generator's image: maps LR ``(B, C, h, w)``, pixels 0..255, to class logits ``(B, K)``.

    Args:
        generator: frozen here.
        classifier: HR-CNN, trained on; all its patches are generated, none is read.
    """

    def __init__(self, generator: Generator, classifier: MaskedCNN) -> None:
        super().__init__()
        self.generator = generator.requires_grad_(False)
        self.normalise, self.network = classifier.normalise, classifier.network

    def forward(self, low: Tensor) -> Tensor:
        """Return class logits ``(B, K)``."""
        image = self.generator(low).clamp(0, PEAK)
        logits: Tensor = self.network(channels_last(self.normalise(image)))
        return logits


class GeneratorLosses(NamedTuple):
    """Means over the batch; their weighted sum is the generator's and the discriminator's loss in one."""

    pixel: Tensor
    """Mean square difference of normalised pixels."""
    feature: Tensor
    """Mean square difference of HR-CNN's features, as a share of the real image's mean square."""
    adversarial: Tensor
    """Cross-entropy of the discriminator on real and made images; reversed for the generator."""


def generator_losses(
    made: Tensor, real: Tensor, discriminator: nn.Module, teacher: MaskedCNN, adversarial_weight: float
) -> GeneratorLosses:
    """Return the three losses of images ``(B, C, H, W)`` in 0..255; ``teacher``'s weights take no gradient if frozen.

    Args:
        adversarial_weight: the generator's weight in the game. The discriminator learns at full weight.
    """
    made, real = channels_last(teacher.normalise(made)), channels_last(teacher.normalise(real))
    with torch.no_grad():
        wanted = feature_map(teacher.network, real)
    feature = F.mse_loss(feature_map(teacher.network, made), wanted) / wanted.square().mean().clamp(min=1e-12)
    verdict_real, verdict_made = discriminator(real), discriminator(reverse_gradient(made, adversarial_weight))
    adversarial = F.softplus(-verdict_real).mean() + F.softplus(verdict_made).mean()
    return GeneratorLosses(F.mse_loss(made, real), feature, adversarial)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None


def reverse_gradient(values: Tensor, scale: float = 1.0) -> Tensor:
    """Return the same values; their gradient comes back times ``-scale`` (Ganin and Lempitsky 2015)."""
    reversed_: Tensor = _Reverse.apply(values, scale)
    return reversed_


def psnr(made: Tensor, real: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in decibels, ``(B,)``, at most `PSNR_CAP`.

    Args:
        made: ``(B, C, H, W)``, rounded to whole pixel values 0..255 first.
        real: ``(B, C, H, W)`` pixels 0..255.
    """
    error = (made.clamp(0, PEAK).round() - real.to(made.dtype)).square().mean((1, 2, 3))
    return (10 * torch.log10(PEAK**2 / error)).clamp(max=PSNR_CAP)


def bilinear(low: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge LR pixels to ``size``, float: the baseline that a generator has to beat."""
    return F.interpolate(low.float(), size, mode="bilinear", align_corners=False)


def prime_factors(number: int) -> list[int]:
    """Return the prime factors in rising order; none for 1."""
    factor = next((f for f in range(2, number + 1) if number % f == 0), 0)
    return [factor, *prime_factors(number // factor)] if factor else []


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)

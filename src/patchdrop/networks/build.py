"""Build backbones by name: ResNets in the paper's sizes, each with a free width, or any timm network.

``resnet8``, ``-14``, ``-20``, ``-32``, ... (6n + 2 layers) have the form of He et al. 2016 for 32 px images,
``resnet10``, ``-18``, ``-34``, ``-50`` the form for 224 px. Suffixes, in this order, change them:

* ``-w32``: 32 channels in the first stage, not 16 (small form) or 64 (large form);
* ``-s2``: the small form's first convolution has a stride of 2, for images of about 64 px;
* ``-d``: the first stage halves the image as every other stage does, in place of a max pool or a first stage at full
  size; the large form's first convolution is 3 x 3, and shortcuts average what they skip (after He et al. 2019,
  ResNet-D). Cheaper, and in our trials better, on small data sets;
* ``-max``: the last feature map is pooled by its maximum, not by its mean, which finds small objects.

``vit4-w192-p8`` is a vision transformer (Dosovitskiy et al. 2021) of 4 layers and 192 channels, with tokens of 8 px;
only ``classifier: vit`` takes it.

timm is imported for its own networks and for transformers only: it takes seconds and some 200 MB.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from copy import deepcopy
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from patchdrop.errors import UsageError, first_line
from patchdrop.networks.residual import BasicBlock, Bottleneck
from patchdrop.settings.flat import nearest

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

_LARGE: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}
_TIMM_STAGES = (("conv1", "bn1", "act1", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
_HEAD = 64
"""Channels of an attention head."""
_SMALL = tuple(6 * n + 2 for n in range(1, 19) if 6 * n + 2 not in _LARGE)


_OURS = re.compile(r"resnet(\d+)(?:-w([1-9]\d*))?(?:-s([1-9]))?(-d)?(-max)?")
_OUR_VIT = re.compile(r"vit([1-9]\d*)-w([1-9]\d*)-p([1-9]\d*)")


class ResNet(nn.Module):
    """A residual network (He et al. 2016) with a stem, blocks whose width doubles from stage to stage, and a head.

    Args:
        block: the class of the stages' blocks.
        layers: blocks in each stage.
        width: channels of the first stage.
        classes: outputs; 0 leaves the head out.
        stem: maps the image to ``width`` channels.
        pool: ``mean`` or ``max`` over the last feature map.
        halving: whether the first stage halves too, and shortcuts average (``-d``).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, ...],
        width: int,
        stem: nn.Module,
        classes: int,
        pool: str = "mean",
        halving: bool = False,
    ) -> None:
        super().__init__()
        expansion = int(block.expansion)
        self.stem = stem
        self.pool = pool
        self.layers = layers
        stages: list[nn.Module] = []
        inputs = width
        for stage, blocks in enumerate(layers):
            for index in range(blocks):
                stride = 2 if (stage > 0 or halving) and index == 0 else 1
                stages.append(_block(block, inputs, width * 2**stage, stride, halving))
                inputs = width * 2**stage * expansion
        self.stages = nn.Sequential(*stages)
        self.num_features = inputs
        self.fc = nn.Linear(inputs, classes) if classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if halving:
            for stage_block in self.stages:
                stage_block.start_as_shortcut()  # type: ignore[operator]

    def forward_features(self, images: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to the last feature map ``(B, num_features, h, w)``."""
        features: Tensor = self.stages(self.stem(images))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to logits ``(B, classes)``."""
        return self.forward_head(self.forward_features(images))

    def forward_head(self, features: Tensor) -> Tensor:
        """Map the last feature map to logits ``(B, classes)``."""
        pooled = features.amax((2, 3)) if self.pool == "max" else features.mean((2, 3))
        logits: Tensor = self.fc(pooled)
        return logits


def _block(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, stride: int, average: bool
) -> nn.Module:
    outputs = width * int(block.expansion)
    shortcut = None
    if stride != 1 or inputs != outputs:
        # A stride of its own, not the convolution's: torch 2.15's backward pass of a strided 1 x 1 convolution in
        # channels_last order on CPU writes out of bounds for fewer than 16 channels. The arithmetic is the same.
        pick = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if average else nn.MaxPool2d(1, stride)
        skip = [pick] if stride > 1 else []
        shortcut = nn.Sequential(*skip, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
    return block(inputs, width, stride, shortcut)


def _stem(channels: int, width: int, kernel: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]


def check_pretrained(names: Iterable[str]) -> None:
    """Raise UsageError if ``--pretrained`` could not apply to any of these networks."""
    if all(_OURS.fullmatch(name) or _OUR_VIT.fullmatch(name) for name in names):
        raise UsageError(
            "--pretrained: the networks named resnet8 to resnet50 are built here and have no published weights; "
            "name one of timm's, such as --hr-network resnet34.a1_in1k"
        )


def build(name: str, classes: int, channels: int = 3, pretrained: bool = False) -> nn.Module:
    """Build a network ``(B, channels, H, W)`` float -> logits ``(B, classes)``.

    Args:
        name: see the top of this file.
        classes: outputs; 0 leaves the head out, for a network of which only feature maps are used.
        pretrained: start timm's networks from their published weights; those built here have none.

    Raises:
        UsageError: no such name (the nearest is offered), or its weights cannot be had.
    """
    match = _OURS.fullmatch(name)
    if match:
        depth, width, stride = int(match[1]), int(match[2] or 0), int(match[3] or 1)
        halving, pool = bool(match[4]), "max" if match[5] else "mean"
        if depth in _SMALL:
            width = width or 16
            stem = nn.Sequential(*_stem(channels, width, 3, stride))
            return ResNet(BasicBlock, 3 * ((depth - 2) // 6,), width, stem, classes, pool, halving)
        if depth in _LARGE and not match[3]:
            width = width or 64
            layers = _stem(channels, width, 3, 2) if halving else _stem(channels, width, 7, 2)
            stem = nn.Sequential(*layers, *([] if halving else [nn.MaxPool2d(3, stride=2, padding=1)]))
            return ResNet(*_LARGE[depth], width, stem, classes, pool, halving)
    import timm

    if not timm.is_model(name):
        ours = [f"resnet{d}" for d in (*_SMALL, *_LARGE)]
        raise UsageError(f"network {name!r} does not exist{nearest(name, [*ours, *timm.list_models()])}")
    return _of_timm(name, pretrained, num_classes=classes, in_chans=channels)


def _of_timm(name: str, pretrained: bool, **options: Any) -> nn.Module:
    import timm

    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:
        if not pretrained:
            raise UsageError(f"network {name!r} cannot be built: {first_line(error)}") from error
        raise UsageError(
            f"network {name!r}: its published weights cannot be had ({type(error).__name__}); "
            "check the connection, or train without --pretrained"
        ) from error
    return network


def is_residual_block(module: nn.Module) -> bool:
    """Check for a residual block, ours or timm's."""
    return isinstance(module, (BasicBlock, Bottleneck)) or _of_timms_resnets(module, "BasicBlock", "Bottleneck")


def _of_timms_resnets(module: nn.Module, *names: str) -> bool:
    """Check for one of these classes of ``timm.models.resnet``; False if timm was never imported."""
    resnet = sys.modules.get("timm.models.resnet")
    return resnet is not None and isinstance(module, tuple(getattr(resnet, name) for name in names))


def stages_of(network: nn.Module) -> list[list[nn.Module]]:
    """Return a ResNet's stem and stages, each as layers to run one after the other; empty for another network.

    What remains after them is ``network.forward_head``.
    """
    if _of_timms_resnets(network, "ResNet"):
        return [[getattr(network, name) for name in names] for names in _TIMM_STAGES]
    if not isinstance(network, ResNet):
        return []
    blocks = iter(network.stages)
    return [[network.stem], *([next(blocks) for _ in range(count)] for count in network.layers)]


def vit_token(name: str) -> tuple[int, int]:
    """Return height and width in pixels of a vision transformer's tokens.

    Raises:
        UsageError: no plain vision transformer has that name.
    """
    match = _OUR_VIT.fullmatch(name)
    if match:
        return int(match[3]), int(match[3])
    import timm
    from timm.models.vision_transformer import VisionTransformer

    if timm.is_model(name):
        with torch.device("meta"):
            network = _of_timm(name, False)
        if isinstance(network, VisionTransformer):
            height, width = network.patch_embed.patch_size
            return int(height), int(width)
    close = nearest(name, timm.list_models("vit_*")) if name.startswith("vit") else ""
    raise UsageError(
        f"network {name!r} is no plain vision transformer{close}; use one such as vit4-w192-p8 or vit_tiny_patch16_224"
    )


def build_vit(name: str, size: tuple[int, int], classes: int, channels: int, pretrained: bool) -> VisionTransformer:
    """Build a vision transformer ``(B, channels, *size)`` float -> logits ``(B, classes)``.

    Args:
        name: one that `vit_token` knows.
        size: (height, width) in pixels, a multiple of its tokens; published positions are interpolated to it.

    Raises:
        UsageError: it cannot be built for that size, or its weights cannot be had.
    """
    match = _OUR_VIT.fullmatch(name)
    if match is None:
        return _of_timm(name, pretrained, num_classes=classes, in_chans=channels, img_size=size)  # type: ignore[return-value]
    depth, width, token = (int(group) for group in match.groups())
    heads = max(1, width // _HEAD)
    if width % heads:
        raise UsageError(
            f"network {name!r}: its width is no multiple of {_HEAD}; use vit{depth}-w{heads * _HEAD}-p{token}"
        )
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(size, token, channels, classes, embed_dim=width, depth=depth, num_heads=heads)


def takes(name: str, size: tuple[int, int], channels: int = 3) -> bool:
    """Check whether a network can take images of a size, by trying: each backbone raises an error of its own."""
    network = build(name, 0, channels).eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, channels, *size))
    except Exception:
        return False
    return True


def feature_map(network: nn.Module, images: Tensor) -> Tensor:
    """Map ``(B, C, H, W)`` to the last feature map ``(B, F, h, w)``.

    Raises:
        UsageError: the network has none, a plain vision transformer for example.
    """
    return _map_of(network, network.forward_features(images))  # type: ignore[operator]


def feature_maps(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Map ``(B, C, H, W)`` to the maps ``(B, F, h, w)`` after each stage, finest first; the last is `feature_map`'s.

    If a network does not show its stages, the last map is the only one.

    Raises:
        UsageError: as `feature_map`.
    """
    stages = stages_of(network)
    if stages:
        maps = []
        for layers in stages:
            for layer in layers:
                images = layer(images)
            maps.append(images)
        return maps
    if hasattr(network, "forward_intermediates"):
        last, maps = network.forward_intermediates(images)  # type: ignore[operator]
        return [*maps[:-1], _map_of(network, last)]
    return [feature_map(network, images)]


def _map_of(network: nn.Module, features: Tensor) -> Tensor:
    if features.ndim != 4 or features.shape[1] != network.num_features:
        raise UsageError(f"{type(network).__name__} gives no feature map: use --policy-head global")
    return features


def folded(model: nn.Module) -> nn.Module:
    """Return a frozen copy in evaluation mode, with ResNets' batch norms folded into the convolutions before them.

    It is the same function up to rounding, with a third less memory to move. Other networks are copied as they are.
    """
    copy = deepcopy(model).eval()
    for module in list(copy.modules()):
        names = [name for name, _ in module.named_children()]
        if is_residual_block(module) or _of_timms_resnets(module, "ResNet"):
            pairs = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3) if f"conv{i}" in names]
        elif isinstance(module, nn.Sequential):
            pairs = list(pairwise(names))
        else:
            continue
        for first, second in pairs:
            convolution, norm = getattr(module, first), getattr(module, second)
            if type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                setattr(module, first, fuse_conv_bn_eval(convolution, norm))
                setattr(module, second, nn.Identity())
    return copy.requires_grad_(False)


class Normalise(nn.Module):
    """A layer that normalises by channel statistics of the training images, kept with the weights trained on them."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float().view(-1, 1, 1).clone())
        self.register_buffer("std", std.float().view(-1, 1, 1).clone())

    def forward(self, pixels: Tensor) -> Tensor:
        """Map ``(..., C, H, W)`` of 0..255 to float with mean 0 and deviation 1 a channel."""
        return (pixels.to(self.mean.dtype) - self.mean) / self.std


def channels_last(images: Tensor) -> Tensor:
    """Return the same images in the memory order in which convolutions are fastest."""
    return images.contiguous(memory_format=torch.channels_last)

"""The sparse canvas: runs the HR network's early stages on each chosen patch, the late ones on a canvas of features.

Saves reads and multiply-adds: the early stages cost what was chosen, the late ones are dense over images that have a
patch. Most of a ResNet's multiply-adds are in its early stages if patches are large enough for several of them.

* Early layers look across a patch's border if the neighbour was read (`classify.borders`), so with every patch read
  this is the plain HR network: HR-CNN's weights and batch-norm statistics hold here. In evaluation mode an image of
  which every patch is read runs through the plain network itself, which is faster.
* Unread places of the canvas hold 0, or features made from LR (``fill="low"``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patchdrop.classify.borders import Neighbours, across_borders, see_across
from patchdrop.classify.high import SparseClassifier, Spec, check_patches, is_full
from patchdrop.classify.low_entry import LowEntry
from patchdrop.errors import UsageError
from patchdrop.grid import Grid
from patchdrop.networks.build import channels_last, is_residual_block, stages_of
from patchdrop.packed import Packed

_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Identity)
_PROBE = 64


class CanvasCNN(SparseClassifier):
    """A sparse canvas: maps packed HR patches, and with ``fill="low"`` LR, to class logits ``(B, K)``.

    Args:
        spec: its network is a ResNet, ours or timm's.
        stages: how many of the network's stages run on patches, with the stem before them; 0 takes as many as the
            patch's size allows, but leaves the last one to the canvas.

    Raises:
        UsageError: no such ResNet, or patches that its early stages do not divide.
    """

    def __init__(self, spec: Spec, *, stages: int = 0) -> None:
        super().__init__(spec)
        size, _, grid, channels = spec.shape
        self.network = spec.backbone(spec.classes)
        self.stages = _split(spec.network, self.network, grid, size, stages, channels)
        see_across(self.network, self._early())
        features, stride = _reach(self._early(), channels)
        self.size = (size[0] // stride, size[1] // stride)
        self.features = features
        self.entry = LowEntry(channels, features, self.size) if spec.fill == "low" else None

    def whole(self, high: Tensor, low: Tensor) -> Tensor:
        """Run the plain HR network."""
        logits: Tensor = self.network(channels_last(self.normalise(high)))
        return logits

    def classify(self, packed: Packed, low: Tensor) -> Tensor:
        """Return class logits of images each of which has a patch."""
        whole = packed.counts == self.grid.patches
        if self.training or packed.weight is not None or not bool(whole.any()):
            return self._sparse(packed, low)
        dense = self.whole(_images(packed.of_images(whole), self.grid), low[whole])
        if bool(whole.all()):
            return dense
        partly = self._sparse(packed.of_images(~whole), low[~whole])
        logits = dense.new_empty(packed.batch, dense.shape[1])
        return logits.index_put((whole,), dense).index_put((~whole,), partly)

    def in_a_graph(self, packed: Packed, low: Tensor, unread: Tensor) -> Tensor:
        """Classify for `torch.export`: run the plain network if all images are whole."""
        whole, some = (packed.counts == self.grid.patches).all(), (packed.counts > 0).any()
        with across_borders(Neighbours(packed, self.grid)):
            sparse = torch.cond(some & ~whole, lambda: self._layers(packed, low), lambda: unread.clone())
        found: Tensor = torch.cond(whole, lambda: self.whole(_images(packed, self.grid), low), lambda: sparse.clone())
        return found

    def _sparse(self, packed: Packed, low: Tensor) -> Tensor:
        with across_borders(Neighbours(packed, self.grid)):
            return self._layers(packed, low)

    def _layers(self, packed: Packed, low: Tensor) -> Tensor:
        features = channels_last(self.normalise(packed.pixels))
        for layer in self._early():
            features = layer(features)
        canvas = self.canvas(packed, features, low)
        for stage in stages_of(self.network)[1 + self.stages :]:
            for layer in stage:
                canvas = layer(canvas)
        logits: Tensor = self.network.forward_head(canvas)  # type: ignore[operator]
        return logits

    def canvas(self, packed: Packed, features: Tensor, low: Tensor) -> Tensor:
        """Lay features ``(N, F, p, q)`` of patches on a canvas ``(B, F, *self.size)``, in channels_last order."""
        (height, width), (p, q) = self.size, features.shape[-2:]
        row, col = packed.patch // self.grid.cols, packed.patch % self.grid.cols
        first = packed.image * (height * width) + row * (p * width) + col * q
        within = torch.arange(p, device=first.device)[:, None] * width + torch.arange(q, device=first.device)
        target = (first[:, None] + within.flatten()).flatten()
        laid = features.permute(0, 2, 3, 1).reshape(-1, self.features)
        if self.entry is None or is_full(packed, self.grid):
            rows = laid.new_zeros(packed.batch * height * width, self.features)
        else:
            rows = self.entry(self.normalise(low)).permute(0, 2, 3, 1).reshape(-1, self.features)
        if packed.weight is not None:
            unread = rows[target]
            laid = unread + packed.weight.repeat_interleave(p * q)[:, None] * (laid - unread)
        return rows.index_copy(0, target, laid.to(rows.dtype)).view(packed.batch, height, width, -1).permute(0, 3, 1, 2)

    def _early(self) -> list[nn.Module]:
        return [layer for stage in stages_of(self.network)[: 1 + self.stages] for layer in stage]


def _images(packed: Packed, grid: Grid) -> Tensor:
    """Rebuild images ``(B, C, H, W)`` of which every patch is packed."""
    _, channels, p, q = packed.pixels.shape
    laid = packed.pixels.new_zeros(packed.batch * grid.patches, channels, p, q)
    laid = laid.index_copy(0, packed.image * grid.patches + packed.patch, packed.pixels)
    blocks = laid.view(packed.batch, grid.rows, grid.cols, channels, p, q)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, grid.rows * p, grid.cols * q)


def _split(name: str, network: nn.Module, grid: Grid, size: tuple[int, int], wanted: int, channels: int) -> int:
    """Return how many stages run on patches."""
    parts = stages_of(network)
    last = len(parts) - 2
    if last < 1:
        raise UsageError(f"classifier canvas: network {name!r} is no ResNet; use resnet8 to resnet50 or one of timm's")
    odd = next((m for part in parts[:-1] for layer in part for m in layer.modules() if not _local(m)), None)
    if odd is not None:
        raise UsageError(
            f"classifier canvas: network {name!r} has a layer {type(odd).__name__} that cannot run on single patches; "
            "use resnet8 to resnet50, or a plain ResNet of timm's such as resnet18"
        )
    if wanted > last:
        raise UsageError(f"patch_stages: {wanted} leaves no stage of {name!r} for the canvas; use 1 to {last}, or 0")
    for stages in range(wanted or last, (wanted or 1) - 1, -1):
        _, stride = _reach([layer for part in parts[: 1 + stages] for layer in part], channels)
        try:
            check_patches("canvas", grid, size, (stride, stride), f"the stride of {name}'s first {stages} stage(s)")
        except UsageError:
            if stages == (wanted or 1):
                raise
        else:
            return stages
    raise AssertionError


def _local(layer: nn.Module) -> bool:
    """Check that a layer gives for a patch and its border what it gives for the image."""
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and layer.padding == tuple(
            d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
        )
    if isinstance(layer, nn.AvgPool2d):
        return layer.kernel_size == layer.stride and layer.padding == 0
    return isinstance(layer, (*_LAYERS, nn.Sequential)) or is_residual_block(layer)


def _reach(layers: list[nn.Module], channels: int) -> tuple[int, int]:
    """Return the channels that layers end with, and how many input pixels one output spans along a side."""
    images = torch.zeros(1, channels, _PROBE, _PROBE)
    modes = [layer.training for layer in layers]
    with torch.no_grad():
        for layer in layers:
            images = layer.eval()(images)
    for layer, mode in zip(layers, modes, strict=True):
        layer.train(mode)
    return images.shape[1], _PROBE // images.shape[-1]

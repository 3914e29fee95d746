"""The common interface of all HR classifiers: packed patches and LR in, class logits out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchdrop.errors import UsageError
from patchdrop.grid import Grid, Shape
from patchdrop.networks.build import Normalise, build
from patchdrop.packed import Packed, gather


@dataclass(frozen=True)
class Spec:
    """What every HR classifier is built from.

    Attributes:
        network: name of its backbone, see `patchdrop.networks.build`.
        classes: K.
        shape: sizes of HR and LR, grid and channels.
        normalise: of HR pixels.
        fill: what stands for unread patches: ``mean``, nothing or the mean colour, or ``low``, LR.
        pretrained: whether a timm network starts from its published weights.
    """

    network: str
    classes: int
    shape: Shape
    normalise: Normalise
    fill: str = "mean"
    pretrained: bool = False

    def backbone(self, classes: int) -> nn.Module:
        """Build the backbone with a head of ``classes``, or of features alone where they are 0."""
        return build(self.network, classes, self.shape.channels, self.pretrained)


class HighClassifier(nn.Module):
    """An HR classifier ``model(packed, low)``: packed patches and LR ``(B, C, h, w)`` 0..255 to logits ``(B, K)``."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.grid = spec.shape.grid
        self.normalise = spec.normalise
        self.fill = spec.fill

    def whole(self, high: Tensor, low: Tensor) -> Tensor:
        """Return class logits of whole images ``(B, C, H, W)`` 0..255, by the plain network or from all patches."""
        every = torch.ones(len(high), self.grid.patches, dtype=torch.bool, device=high.device)
        logits: Tensor = self(gather(high, every, self.grid), low)
        return logits

    def empty(self, low: Tensor, size: tuple[int, int]) -> Tensor:
        """Make an image of which no patch is read, for a network or for display: ``(B, C, H, W)``, normalised."""
        if self.fill == "low":
            return F.interpolate(self.normalise(low), size, mode="bilinear", align_corners=False)
        return self.normalise.mean.new_zeros(len(low), low.shape[1], *size)


class SparseClassifier(HighClassifier):
    """An HR classifier that computes on what was read: for an image without a patch no layer runs.

    Such an image has logits of its own, one vector for all of them, learnt where training meets one.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.unread = nn.Parameter(torch.zeros(spec.classes))

    def forward(self, packed: Packed, low: Tensor) -> Tensor:
        """Return class logits ``(B, K)``."""
        logits = self.unread.repeat(packed.batch, 1)
        zoomed = packed.counts > 0
        if torch.compiler.is_exporting():
            return torch.where(zoomed[:, None], self.in_a_graph(packed, low, logits), logits)
        if not bool(zoomed.any()):
            return logits
        if bool(zoomed.all()):
            found = self.classify(packed, low)
            if packed.weight is None:
                return found
            return logits + read_at_all(packed, self.grid.patches)[:, None] * (found - logits)
        found = self.classify(packed.of_images(zoomed), low[zoomed])
        return logits.to(found.dtype).index_put((zoomed.nonzero(as_tuple=True)[0],), found)

    def in_a_graph(self, packed: Packed, low: Tensor, unread: Tensor) -> Tensor:
        """For `torch.export`, which cannot leave images out: `classify` of all, or ``unread`` if none has a patch."""
        some = (packed.counts > 0).any()
        found: Tensor = torch.cond(some, lambda: self.classify(packed, low), lambda: unread.clone())
        return found

    def classify(self, packed: Packed, low: Tensor) -> Tensor:
        """Return class logits of images that have at least one patch each; in a graph also anything for others."""
        raise NotImplementedError


def is_full(packed: Packed, grid: Grid) -> bool:
    """Check whether every patch of every image is read; always False in a graph, which must hold for any choice."""
    if packed.weight is not None or torch.compiler.is_exporting():
        return False
    return len(packed.patch) == packed.batch * grid.patches


def read_at_all(packed: Packed, patches: int) -> Tensor:
    """Return each image's ``1 - prod(1 - w)`` over its patches' weights ``(B,)``: 0 if all are 0, 1 if one is 1."""
    assert packed.weight is not None
    unread = packed.weight.new_ones(packed.batch, patches)
    return 1 - unread.index_put((packed.image, packed.patch), 1 - packed.weight).prod(1)


def check_patches(classifier: str, grid: Grid, size: tuple[int, int], unit: tuple[int, int], why: str) -> None:
    """Refuse patches that are no whole multiple of ``unit``.

    Args:
        size: HR (height, width) in pixels.
        unit: (height, width) in pixels.
        why: what the unit is, for the error.

    Raises:
        UsageError: names sizes near ``size`` that work.
    """
    steps = (grid.rows * unit[0], grid.cols * unit[1])
    if all(length % step == 0 for length, step in zip(size, steps, strict=True)):
        return
    above = [-(-length // step) * step for length, step in zip(size, steps, strict=True)]
    below = [length // step * step for length, step in zip(size, steps, strict=True)]
    near = [sides for sides in (below, above) if min(sides) > 0]
    named = " or ".join(dict.fromkeys(str(h) if h == w else f"{h}x{w}" for h, w in near))
    raise UsageError(
        f"classifier {classifier}: a {grid} grid over {size[0]} x {size[1]} px has patches that are no multiple of "
        f"{unit[0]} x {unit[1]} px, {why}; use --high {named}, or another --grid"
    )

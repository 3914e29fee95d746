"""Score patches by LR itself, without a policy: LR-CNN's class activation map, and detail."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchdrop.grid import Grid, boxes
from patchdrop.networks.build import Normalise, feature_map
from patchdrop.policy.network import enlarged


class LooksAtLow(Protocol):
    """The attributes of LR-CNN that are used here."""

    network: nn.Module
    normalise: Normalise
    enlarge: int


def activation_maps(low_cnn: LooksAtLow, low: Tensor, grid: Grid) -> Tensor:
    """Compute a class activation map, where LR-CNN sees its best class, averaged over each patch's place.

    At each place: the gradient of the best class' logit with respect to the last feature map, times the map, where that
    is above 0, summed over the features. Grad-CAM (Selvaraju et al. 2017) takes the gradient's mean over all places and
    what is above 0 after the sum; under a mean pool the gradient is the same everywhere. Under a max pool only the
    places where a feature peaks have a score. A map coarser than the grid gives neighbours the same score.

    It may be called in inference mode, and leaves no gradients behind.

    Args:
        low_cnn: in evaluation mode; its weights must not have been made in inference mode.
        low: LR ``(B, C, h, w)``, pixels 0..255.

    Returns:
        ``(B, P)`` float32, 0 or more, in units of the logit.

    Raises:
        UsageError: the network has no feature map, a plain vision transformer for example.
    """
    with torch.no_grad():
        maps = feature_map(low_cnn.network, enlarged(low_cnn.normalise(low), low_cnn.enlarge))
    spoken = (maps * _slope(low_cnn.network, maps)).clamp(min=0).sum(1, keepdim=True)
    return F.adaptive_avg_pool2d(spoken, (grid.rows, grid.cols)).flatten(1).float()


def _slope(network: nn.Module, maps: Tensor) -> Tensor:
    """Return the gradient of the best class' logit with respect to the last feature map ``(B, F, h, w)``."""
    with torch.inference_mode(False), torch.enable_grad():
        # A copy, because autograd refuses tensors that were made in inference mode.
        maps = maps.detach().clone().requires_grad_()
        best = network.forward_head(maps).max(1).values  # type: ignore[operator]
        (slope,) = torch.autograd.grad(best.sum(), maps)
    return slope


def detail(low: Tensor, grid: Grid) -> Tensor:
    """Measure how much LR varies at the place of each patch: the variance of its pixels, averaged over the channels.

    A side of LR with fewer than two pixels a patch, which could not vary, is first enlarged to two (bilinear).

    Args:
        low: ``(B, C, h, w)``, pixels 0..255.

    Returns:
        ``(B, P)`` float32, 0 or more, in squared pixel values.
    """
    height, width = low.shape[2:]
    size = (max(height, 2 * grid.rows), max(width, 2 * grid.cols))
    images = low.float()
    if size != (height, width):
        images = F.interpolate(images, size, mode="bilinear", align_corners=False)
    places = (images[:, :, top:bottom, left:right] for top, left, bottom, right in boxes(grid, *size))
    return torch.stack([place.var((2, 3), correction=0).mean(1) for place in places], 1)

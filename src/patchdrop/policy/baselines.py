"""Selectors that do not look at the image: their patch logits are the same for every image.

Each is a module with the policy's signature, ``(B, C, h, w)`` LR to ``(B, P)`` logits, so it can replace the policy in
an episode without any other change. `fixed_rows` and `fixed_columns` are used with `greedy`, `stochastic` with
`sampled`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from patchdrop.errors import UsageError
from patchdrop.grid import Grid

SURE = 30.0
"""Logit of a patch that is always kept; its probability is 1 in float32."""


class FixedScores(nn.Module):
    """A selector with the same logits ``(P,)`` for every image."""

    logits: Tensor

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits.float())

    def forward(self, low: Tensor) -> Tensor:
        """Map ``(B, C, h, w)`` to ``(B, P)``."""
        return self.logits.expand(len(low), -1)


def fixed_rows(grid: Grid, count: int) -> FixedScores:
    """Build Fixed-H: keep ``count`` patches row by row, rows and the patches in a row from the centre out.

    The paper does not say where it starts; the centre is the strongest reading, since objects lie there.
    """
    order = [row * grid.cols + col for row in centre_first(grid.rows) for col in centre_first(grid.cols)]
    return _keep(grid, order[: _checked(grid, count)])


def fixed_columns(grid: Grid, count: int) -> FixedScores:
    """Build Fixed-V: as `fixed_rows`, but column by column."""
    order = [row * grid.cols + col for col in centre_first(grid.cols) for row in centre_first(grid.rows)]
    return _keep(grid, order[: _checked(grid, count)])


def stochastic(grid: Grid, mean_patches: float) -> FixedScores:
    """Build Stochastic: keep a patch with a probability that falls with its distance from the image's centre.

    Probabilities are ``min(1, c exp(-d^2 / 2))`` with d the distance in quarters of the image's side and c such that
    ``mean_patches`` are kept on average.
    """
    _checked(grid, mean_patches)
    fall = torch.exp(-_distances(grid).square() / 2)
    low, high = 0.0, 1 / float(fall.min())
    for _ in range(100):  # bisection: the mean rises with c
        c = (low + high) / 2
        low, high = (c, high) if float((c * fall).clamp(max=1).sum()) < mean_patches else (low, c)
    return FixedScores(torch.logit((high * fall).clamp(max=1).float(), eps=1e-12).clamp(-SURE, SURE))


def centre_first(length: int) -> list[int]:
    """Sort ``0..length-1`` by distance from the middle; in a tie the smaller number comes first: 1, 2, 0, 3."""
    middle = (length - 1) / 2
    return sorted(range(length), key=lambda i: (abs(i - middle), i))


def _distances(grid: Grid) -> Tensor:
    """Return the distance of each patch's centre from the image's, in quarters of a side: ``(P,)`` float64."""
    ys = 4 * ((torch.arange(grid.rows, dtype=torch.float64) + 0.5) / grid.rows - 0.5)
    xs = 4 * ((torch.arange(grid.cols, dtype=torch.float64) + 0.5) / grid.cols - 0.5)
    return torch.hypot(ys[:, None].expand(-1, grid.cols), xs[None, :].expand(grid.rows, -1)).flatten()


def _keep(grid: Grid, patches: list[int]) -> FixedScores:
    logits = torch.full((grid.patches,), -SURE)
    logits[patches] = SURE
    return FixedScores(logits)


def _checked(grid: Grid, count: float) -> int:
    if not 0 <= count <= grid.patches:
        raise UsageError(f"{count:g} patches cannot be kept of {grid.patches}: use 0 to {grid.patches}")
    return math.floor(count)

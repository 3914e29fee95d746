"""Turn patch logits into a choice: pure functions ``(B, P)`` logits -> ``(B, P)`` bool.

A baseline has the same signature as the policy's own choice, so that either can replace the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Choose = Callable[[Tensor], Tensor]


def greedy(logits: Tensor) -> Tensor:
    """Choose every patch whose probability is at least 0.5 (paper, section 4: the action at test time)."""
    return logits >= 0


def mixed(logits: Tensor, alpha: float) -> Tensor:
    """Return patch probabilities moved towards 0.5 for exploration: ``alpha s + (1 - alpha)(1 - s)``."""
    probabilities = torch.sigmoid(logits)
    return alpha * probabilities + (1 - alpha) * (1 - probabilities)


def sampled(logits: Tensor, alpha: float = 1.0) -> Tensor:
    """Draw independent Bernoulli patches from the mixed probabilities."""
    probabilities = mixed(logits, alpha)
    return torch.rand_like(probabilities) < probabilities


def keep_all(logits: Tensor) -> Tensor:
    """Choose every patch of every image, as for the HR classifier."""
    return torch.ones_like(logits, dtype=torch.bool)


def random_patches(logits: Tensor, mean_patches: float, generator: torch.Generator) -> Tensor:
    """Choose random patches, floor or ceil of ``mean_patches`` per image, so that the mean is matched."""
    order = torch.rand(logits.shape, generator=generator).argsort(1).argsort(1)
    return (order < whole_counts(len(logits), mean_patches, generator)).to(logits.device)


def top(logits: Tensor, mean_patches: float, generator: torch.Generator | None = None) -> Tensor:
    """Choose the patches with the highest logits: exactly ``mean_patches`` per image if that is a whole number.

    Otherwise each image keeps floor or ceil of it, drawn by ``generator`` (torch's own if None) so that the mean is
    matched. Of equal logits the patch with the smaller number comes first.
    """
    rank = logits.argsort(dim=1, descending=True, stable=True).argsort(1)
    return rank < whole_counts(len(logits), mean_patches, generator).to(logits.device)


def whole_counts(images: int, mean_patches: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw floor or ceil of ``mean_patches`` for each image, whose mean is ``mean_patches``: ``(images, 1)`` int64."""
    whole = int(mean_patches)
    return whole + (torch.rand(images, 1, generator=generator) < mean_patches - whole).long()


def shuffled(choice: Tensor, generator: torch.Generator) -> Tensor:
    """Deal the same masks to other images: ``(n, P)`` rolled along a random order, so that none keeps its own.

    A single image has no other to deal to and gets its own mask back.
    """
    order = torch.randperm(len(choice), generator=generator).to(choice.device)
    dealt = torch.empty_like(choice)
    dealt[order] = choice[order.roll(1)]
    return dealt

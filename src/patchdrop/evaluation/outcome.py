"""Run a model with a way of choosing on every image of a split, and keep the results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from patchdrop.classify.high import HighClassifier
from patchdrop.data.sets import Split, low_of
from patchdrop.episode import PatchDrop
from patchdrop.grid import Shape
from patchdrop.policy.choice import keep_all
from patchdrop.read.source import from_memory

BATCH = 64


@dataclass(frozen=True)
class Outcome:
    """The results of one way of choosing on every image of a split."""

    scores: Tensor
    """Patch logits ``(n, P)``."""
    choice: Tensor
    """Patches read, ``(n, P)`` bool."""
    logits: Tensor
    """Class logits ``(n, K)``."""
    target: Tensor
    """Classes ``(n,)``."""
    chances: Tensor | None = None
    """Chance of being right after the first k patches, ``(n, P + 1)``; None if the policy predicts none."""

    @property
    def right(self) -> Tensor:
        """Whether each image's class is right, ``(n,)`` bool."""
        return self.logits.argmax(1) == self.target


def outcome_of(
    model: nn.Module,
    shape: Shape,
    split: Split,
    choose: Callable[[Tensor, int], Tensor],
    device: torch.device,
) -> Outcome:
    """Run a model on every image of a split.

    Args:
        model: PatchDrop, an HR classifier, which reads every patch, or else a classifier of LR alone.
        choose: maps a batch's patch logits and the position of its first image to its choice ``(B, P)`` bool.
    """
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    foreseen: list[Tensor] = []
    start = 0
    with torch.inference_mode():
        for batch in split.in_order(BATCH):
            low = low_of(batch, shape.low).to(device)
            high = batch.high.to(device)
            if isinstance(model, PatchDrop):
                here = start
                episode = model(low, lambda s: choose(s, here).to(device), from_memory(high, shape.grid))  # noqa: B023
                scores, choice, logits = episode.scores, episode.choice, episode.logits
                if episode.chances is not None:
                    foreseen.append(episode.chances.cpu())
            else:
                scores = torch.zeros(len(low), shape.grid.patches, device=device)
                choice = keep_all(scores)
                is_low = not isinstance(model, HighClassifier)
                logits = model(low) if is_low else model(from_memory(high, shape.grid)(choice), low)
                choice = torch.zeros_like(choice) if is_low else choice
            start += len(low)
            parts.append((scores.cpu(), choice.cpu(), logits.float().cpu(), batch.target))
    scores, choice, logits, target = (torch.cat(column) for column in zip(*parts, strict=True))
    return Outcome(scores, choice, logits, target, torch.cat(foreseen) if foreseen else None)

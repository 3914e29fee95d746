"""Run a model with a way of choosing on every image of a split, and keep the results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from patchdrop.classify.high import HighClassifier
from patchdrop.data.sets import Split, low_of
from patchdrop.episode import PatchDrop, play
from patchdrop.grid import Shape
from patchdrop.models.compute import Compute
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
    compute: Compute,
) -> Outcome:
    """Run a model on every image of a split.

    Args:
        model: PatchDrop, an HR classifier, which reads every patch, or else a classifier of LR alone; on the machine's
            device.
        choose: maps a batch's patch logits and the position of its first image to its choice ``(B, P)`` bool.
    """
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    foreseen: list[Tensor] = []
    start = 0
    with torch.inference_mode():
        for batch in split.in_order(BATCH):
            low = low_of(batch, shape.low).to(compute.device)
            read = from_memory(batch.high.to(compute.device), shape.grid)
            if isinstance(model, PatchDrop):
                here = start
                look = partial(compute.look, model)
                episode = play(look, lambda s: choose(s, here).to(s.device), read, low)  # noqa: B023
                scores, choice, logits = episode.scores, episode.choice, episode.logits
                if episode.chances is not None:
                    foreseen.append(episode.chances.cpu())
            else:
                scores = torch.zeros(len(low), shape.grid.patches, device=compute.device)
                choice = keep_all(scores)
                if isinstance(model, HighClassifier):
                    logits = compute.classify(model, read(choice), low)
                else:
                    choice = torch.zeros_like(choice)
                    with compute.exact():
                        logits = model(low)
            start += len(low)
            parts.append((scores.cpu(), choice.cpu(), logits.float().cpu(), batch.target))
    scores, choice, logits, target = (torch.cat(column) for column in zip(*parts, strict=True))
    return Outcome(scores, choice, logits, target, torch.cat(foreseen) if foreseen else None)

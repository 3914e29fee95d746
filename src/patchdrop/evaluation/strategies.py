"""Run a policy's baselines on a split: controls that read as much as it does, and plain strategies without a policy.

All use the classifier of the policy's stage, at the policy's mean S; only the cascade uses HR-CNN itself, because it
reads whole images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from patchdrop.data.sets import Split
from patchdrop.episode import PatchDrop
from patchdrop.errors import UsageError
from patchdrop.evaluation.outcome import Outcome, outcome_of
from patchdrop.evaluation.plain import (
    activation_choice,
    candidates,
    cascade,
    cascade_outcome,
    fixed_best,
    given,
    scores_on,
    top_of,
)
from patchdrop.grid import Grid
from patchdrop.models.build import ModelConfig
from patchdrop.models.compute import Compute
from patchdrop.models.shared_pass import SharedPass
from patchdrop.policy.choice import random_patches, shuffled, top
from patchdrop.policy.ranking import first
from patchdrop.policy.saliency import activation_maps, detail

RANDOM, SHUFFLED, PLACES = "random", "shuffled", "random places"
FIXED, ACTIVATION, DETAIL, CASCADE = "fixed mask", "activation map", "detail", "cascade"


@dataclass(frozen=True)
class Plain:
    """The settings of plain strategies, found on validation images.

    Attributes:
        fixed: patches in the order of their worth.
        each: patches that the activation map's choice reads of an image that it reads.
    """

    fixed: tuple[int, ...]
    each: int

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plain:
        """Read them from a stage's ``config.json``."""
        return cls(tuple(int(patch) for patch in values["fixed"]), int(values["each"]))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "fixed": list(self.fixed)}


@dataclass(frozen=True)
class Evaluated:
    """A policy's outcome on a split, with LR-CNN's and HR-CNN's, for baselines to be run beside it."""

    model: PatchDrop
    config: ModelConfig
    split: Split
    ours: Outcome
    low: Outcome | None
    """None if LR-CNN is not at hand; then only the controls can be run."""
    high: Outcome | None
    seed: int
    compute: Compute

    @property
    def grid(self) -> Grid:
        """The grid of its patches."""
        return self.config.shape.grid

    @property
    def mean_patches(self) -> float:
        """The policy's mean S."""
        return float(self.ours.choice.sum(1).double().mean())

    @property
    def low_logits(self) -> Tensor:
        """LR-CNN's class logits ``(n, K)``."""
        assert self.low is not None
        return self.low.logits

    def generator(self) -> torch.Generator:
        """Return a generator in the same state for each strategy."""
        return torch.Generator().manual_seed(self.seed)

    def with_choice(self, choice: Tensor) -> Outcome:
        """Run the stage's classifier with another choice ``(n, P)`` bool."""
        return outcome_of(self.model, self.config.shape, self.split, given(choice), self.compute)


def controls(evaluated: Evaluated) -> dict[str, Outcome]:
    """Run two controls: as many patches at random, and the policy's own masks dealt to other images."""
    generator = evaluated.generator()
    ours = evaluated.ours.choice
    at_random = random_patches(ours.float(), evaluated.mean_patches, generator)
    return {
        RANDOM: evaluated.with_choice(at_random),
        SHUFFLED: evaluated.with_choice(shuffled(ours, generator)),
    }


def random_places(evaluated: Evaluated) -> Outcome:
    """Read as many patches of each image as the policy, at random places: shows what *where* is worth."""
    ours = evaluated.ours.choice
    order = torch.rand(ours.shape, generator=evaluated.generator()).argsort(1)
    return evaluated.with_choice(first(order, ours.sum(1)))


def chosen_on(evaluated: Evaluated) -> tuple[Plain, dict[str, Outcome]]:
    """Find the settings of plain strategies on a validation split, and the outcomes there of those that need them."""
    order = fixed_best(
        evaluated.model,
        evaluated.config.shape,
        evaluated.split,
        evaluated.mean_patches,
        evaluated.generator(),
        evaluated.compute,
    )
    found = {
        FIXED: evaluated.with_choice(top_of(order, evaluated.mean_patches, len(evaluated.split), evaluated.generator()))
    }
    each, maps = evaluated.grid.patches, _maps(evaluated)
    if maps is not None:
        tried = {
            count: evaluated.with_choice(activation_choice(maps, evaluated.low_logits, evaluated.mean_patches, count))
            for count in candidates(evaluated.grid.patches, evaluated.mean_patches)
        }
        each = max(tried, key=lambda count: (int(tried[count].right.sum()), -count))
        found[ACTIVATION] = tried[each]
    return Plain(tuple(order.tolist()), each), found


def plain_outcomes(evaluated: Evaluated, plain: Plain) -> dict[str, Outcome]:
    """Run the strategies that need settings from validation images, on another split."""
    order = torch.tensor(plain.fixed)
    found = {
        FIXED: evaluated.with_choice(top_of(order, evaluated.mean_patches, len(evaluated.split), evaluated.generator()))
    }
    maps = _maps(evaluated)
    if maps is not None:
        each = max(plain.each, *candidates(evaluated.grid.patches, evaluated.mean_patches)[:1])
        found[ACTIVATION] = evaluated.with_choice(
            activation_choice(maps, evaluated.low_logits, evaluated.mean_patches, each)
        )
    return found


def from_low_alone(evaluated: Evaluated) -> dict[str, Outcome]:
    """Run the strategies that need no settings from validation images: where LR varies most, and a cascade."""
    spread = scores_on(
        evaluated.split, evaluated.config.shape.low, lambda low: detail(low, evaluated.grid), evaluated.compute
    )
    found = {DETAIL: evaluated.with_choice(top(spread, evaluated.mean_patches, evaluated.generator()))}
    if evaluated.low is not None and evaluated.high is not None:
        whole = cascade(evaluated.low_logits, evaluated.mean_patches, evaluated.grid.patches)
        found[CASCADE] = cascade_outcome(evaluated.low, evaluated.high, whole)
    return found


def _maps(evaluated: Evaluated) -> Tensor | None:
    """Return LR-CNN's activation maps; None if it has no feature map, or is not at hand."""
    if not isinstance(evaluated.model, SharedPass):
        return None
    low_cnn = evaluated.model.classifier.low
    try:
        return scores_on(
            evaluated.split,
            evaluated.config.shape.low,
            lambda low: activation_maps(low_cnn, low, evaluated.grid),
            evaluated.compute,
        )
    except UsageError:
        return None

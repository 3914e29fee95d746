"""After a stage of a ranking policy is trained: its outlook is set right, and its operating point found.

Both on validation images, which no network was trained on. A classifier that remembers its training images is right on
them after fewer patches than it will be on others, so what a policy learns there of *how many* is too hopeful.

The operating point is a price of HR in wrong answers. By default it is the highest one at which the policy is as often
right, within a tolerance, as the best of LR-CNN, HR-CNN and its own classifier on all of HR.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from patchdrop.data.sets import Split, low_of
from patchdrop.evaluation.calibrate import cuts_on, measure
from patchdrop.evaluation.metrics import calibration_error
from patchdrop.models import ModelConfig
from patchdrop.one_look import Advised
from patchdrop.packed import gather
from patchdrop.policy.budget import cut_for_mean
from patchdrop.policy.ranking import first, in_order

BATCH = 64
TRIED = 17
"""Numbers of patches, from none to all, after which the class is looked at."""
FOLDS = 5


@dataclass(frozen=True)
class Goal:
    """What an operating point is to reach; the first that is set.

    Attributes:
        target_patches: patches an image on average.
        mistake: what a wrong answer costs, in prices of all of an image's HR.
        tolerance: points of accuracy below the best that reading everything, or nothing, reaches.
    """

    target_patches: float = 0.0
    mistake: float = 0.0
    tolerance: float = 0.5


@dataclass(frozen=True)
class Heard:
    """What a policy hears of every image of a split, and whether the class was right after so many patches."""

    utilities: Tensor
    """``(n, P)``."""
    opinion: Tensor
    """LR-CNN's class logits ``(n, K)``."""
    counts: Tensor
    """Numbers of patches that were tried, from 0 to P: ``(M,)`` int64."""
    right: Tensor
    """``(n, M)`` bool."""


def tried_counts(patches: int) -> Tensor:
    """Up to `TRIED` numbers of patches from 0 to P, closer to one another where they are few: ``(M,)`` int64."""
    if patches < TRIED:
        return torch.arange(patches + 1)
    return torch.tensor(sorted({round(patches * (step / (TRIED - 1)) ** 2) for step in range(TRIED)}))


@torch.inference_mode()
def hear(model: Advised, config: ModelConfig, split: Split, device: torch.device) -> Heard:
    """A ranking policy on a split: its ranking as it is used, followed from no patch to all of them."""
    counts = tried_counts(model.policy.utility.grid.patches)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in split.in_order(BATCH):
        low, high = low_of(batch, config.low_size).to(device), batch.high.to(device)
        utilities, opinion = model.hear(low)
        order = in_order(utilities)
        found = []
        for count in counts.tolist():
            choice = first(order, torch.full((len(low),), count, device=device))
            logits = model.classifier.join(opinion, gather(high, choice, model.policy.utility.grid), low)
            found.append(logits.argmax(1).cpu() == batch.target)
        parts.append((utilities.float().cpu(), opinion.float().cpu(), torch.stack(found, 1)))
    utilities, opinion, right = (torch.cat(column) for column in zip(*parts, strict=True))
    return Heard(utilities, opinion, counts, right)


@torch.no_grad()
def set_outlook_right(model: Advised, heard: Heard) -> float:
    """Fit the outlook to validation images; returns its calibration error on images it was not fitted to.

    That error is the mean distance between what was said and how often it came true (`calibration_error`), over
    `FOLDS` parts of the images, each judged by a fit to the others.
    """
    outlook = model.policy.outlook
    device = outlook.offset.device
    odds = outlook.raw(heard.utilities.to(device), heard.opinion.to(device)).cpu()
    fold = torch.arange(len(odds)) % FOLDS
    said = torch.zeros(heard.right.shape, dtype=torch.float64)
    for part in range(min(FOLDS, len(odds))):
        outlook.fit(odds[fold != part], heard.counts, heard.right[fold != part])
        inside = fold == part
        found = outlook(heard.utilities[inside].to(device), heard.opinion[inside].to(device)).sigmoid().cpu()
        said[inside] = found[:, heard.counts]
    outlook.fit(odds, heard.counts, heard.right)
    return calibration_error(said.flatten(), heard.right.flatten())


def find_price(
    model: Advised,
    config: ModelConfig,
    split: Split,
    scores: Tensor,
    goal: Goal,
    best: float,
    device: torch.device,
    advance: Callable[[int], None] = lambda images: None,
) -> None:
    """Set the policy's price so that its greedy choice meets a goal on a split.

    Args:
        scores: the policy's patch logits on the split ``(n, P)``, at the price that it has.
        best: accuracy that the goal's tolerance is counted from, 0 to 1.
    """
    price = model.policy.log_price
    if goal.target_patches:
        price += cut_for_mean(scores, goal.target_patches)
    elif goal.mistake:
        price.fill_(-math.log(goal.mistake))
    else:
        cuts = cuts_on(scores)
        measured = measure(model, config, split, cuts, device, advance)
        price += cuts[cheapest_within(measured.accuracy, best, goal.tolerance / 100)]
    price.clamp_(-20, 20)


def cheapest_within(accuracy: Sequence[float], best: float, tolerance: float) -> int:
    """The cheapest of points from cheap to dear whose accuracy is at least ``best - tolerance``.

    Where none comes up to ``best``, the best of them takes its place. Some hundred images are up or down by chance, so
    the points are compared by the rising curve nearest to them.

    Args:
        accuracy: of each point, 0 to 1, as ``best`` and ``tolerance``.
    """
    rising = isotonic_regression(np.asarray(accuracy, dtype=np.float64))
    return int(np.searchsorted(rising, min(best, rising[-1]) - tolerance - 1e-9))

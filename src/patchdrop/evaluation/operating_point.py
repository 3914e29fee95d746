"""After a stage of a ranking policy is trained, fit its fusion and critic, and find its operating point.

All on validation images, which no network was trained on. Classifiers that remember their training images are right on
them after fewer patches than they will be on others, so *how many* patches is learnt too hopefully there, and LR-CNN's
logits seem worth more than they are.

The operating point is a price of HR in wrong answers. By default it is the highest price at which the policy is right
as often, within a tolerance, as it ever is, however much it reads.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.isotonic import isotonic_regression
from torch import Tensor
from torch.func import functional_call, stack_module_state

from patchdrop.classify.two_stream import TwoStream
from patchdrop.data.sets import Split, low_of
from patchdrop.evaluation.calibrate import cuts_on
from patchdrop.evaluation.metrics import calibration_error
from patchdrop.grid import Size
from patchdrop.models.shared_pass import RankingModel
from patchdrop.packed import gather
from patchdrop.policy.budget import cut_for_mean
from patchdrop.policy.ranking import Critic, first, in_order

BATCH = 64
TRIED = 17
"""Numbers of patches, from none to all, after which the class is checked."""
FOLDS = 5
STEPS = (0, 5, 10, 20, 40, 80, 160)
"""Numbers of steps for which a critic may learn on; cross-validation picks one."""
RATE = 1e-2
ROWS = 8192
"""Patches per step that a critic learns from, over all of the step's images."""


@dataclass(frozen=True)
class Goal:
    """A goal for the operating point; the first attribute that is set counts.

    Attributes:
        target_patches: patches per image on average.
        mistake: cost of a wrong answer, in prices of all of an image's HR.
        tolerance: points of accuracy below the best that the policy reaches, whatever it reads.
    """

    target_patches: float = 0.0
    mistake: float = 0.0
    tolerance: float = 0.5


@dataclass(frozen=True)
class Outputs:
    """The outputs of policy and classifier on every image of a split, after several numbers of patches."""

    utilities: Tensor
    """Utilities ``(n, P)``."""
    low_logits: Tensor
    """LR-CNN's class logits ``(n, K)``."""
    counts: Tensor
    """Numbers of patches tried, rising: ``(M,)`` int64."""
    high: Tensor
    """Class logits of the HR stream after so many patches ``(n, M, K)``; 0 after none."""
    target: Tensor
    """Classes ``(n,)``."""

    def right(self, streams: TwoStream) -> Tensor:
        """Return whether the fused class is right after each number of patches: ``(n, M)`` bool."""
        weight = streams.weight_at(self.counts / streams.high.grid.patches).detach().cpu().unsqueeze(1)
        fused = weight * self.high + (1 - weight) * self.low_logits.unsqueeze(1)
        return fused.argmax(2) == self.target.unsqueeze(1)


def tried_counts(patches: int) -> Tensor:
    """Return up to `TRIED` numbers of patches from 0 to P, closer together where they are few: ``(M,)`` int64."""
    if patches < TRIED:
        return torch.arange(patches + 1)
    return torch.tensor(sorted({round(patches * (step / (TRIED - 1)) ** 2) for step in range(TRIED)}))


def few_counts(patches: int) -> Tensor:
    """Return P, and from there down to 1 a quarter each time: ``(M,)`` int64, rising."""
    return torch.tensor(sorted({max(1, patches >> shift) for shift in range(0, patches.bit_length() + 1, 2)}))


@torch.no_grad()
def outputs_on(model: RankingModel, low_size: Size, split: Split, device: torch.device, counts: Tensor) -> Outputs:
    """Run a ranking policy on a split, and classify after each of ``counts (M,)`` patches of its ranking, rising."""
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for batch in split.in_order(BATCH):
        low, high = low_of(batch, low_size).to(device), batch.high.to(device)
        utilities, low_logits = model.outputs(low)
        order = in_order(utilities)
        found = []
        for count in counts.tolist():
            choice = first(order, torch.full((len(low),), count, device=device))
            packed = gather(high, choice, model.policy.utility.grid)
            found.append(model.classifier.high(packed, low) if count else torch.zeros_like(low_logits))
        logits = torch.stack(found, 1).float().cpu()
        parts.append((utilities.float().cpu(), low_logits.float().cpu(), logits, batch.target))
    utilities, low_logits, logits, target = (torch.cat(column) for column in zip(*parts, strict=True))
    return Outputs(utilities, low_logits, counts, logits, target)


def fit_fusion(streams: TwoStream, outputs: Outputs) -> None:
    """Fit the weights of the two streams to validation images (`TwoStream.fit`)."""
    read = outputs.counts > 0
    share = outputs.counts[read] / streams.high.grid.patches
    device = next(streams.parameters()).device
    streams.fit(
        share.to(device), outputs.high[:, read].to(device), outputs.low_logits.to(device), outputs.target.to(device)
    )


def calibrate_critic(model: RankingModel, outputs: Outputs) -> float:
    """Fit the critic to validation images; return its calibration error on images it was not fitted to.

    `Critic.fit`, then some steps of all weights from where training left them; cross-validation decides how many. The
    error is the mean distance between the chances that a fit to the other folds predicts and how often they came true
    (`calibration_error`).
    """
    critic = model.policy.critic
    device = critic.offset.device
    right = outputs.right(model.classifier)
    part = torch.arange(len(right)) % FOLDS
    learns = torch.stack([*(part != fold for fold in range(min(FOLDS, len(right)))), part >= 0])
    unseen = ~learns[:-1]
    fits = [_fitted(critic, outputs, right, images) for images in learns]
    weights, buffers = stack_module_state(fits)
    utilities, low_logits = outputs.utilities.to(device), outputs.low_logits.to(device)
    counts, truth, learns = outputs.counts.to(device), right.double().to(device), learns.to(device)

    def wrong(images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log odds of some images by each fit ``(folds + 1, n, M)``, and their cross-entropy."""
        inputs = (utilities[images], low_logits[images])
        odds = torch.vmap(lambda w, b: functional_call(critic, (w, b), inputs))(weights, buffers)[:, :, counts]
        came_true = truth[images].expand(len(fits), -1, -1)
        return odds, F.binary_cross_entropy_with_logits(odds, came_true, reduction="none")

    every = torch.arange(len(right), device=device)
    order = torch.randperm(len(right), generator=torch.Generator().manual_seed(0)).to(device)
    batches = torch.split(order, max(1, ROWS // utilities.shape[1]))
    optimizer = torch.optim.Adam(list(weights.values()), RATE)
    least, error, best = math.inf, 0.0, {}
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            with torch.no_grad():
                odds, loss = wrong(every)
            if (judged := float(loss[:-1][unseen].mean())) < least:
                least, best = judged, {name: weight[-1].detach().clone() for name, weight in weights.items()}
                said = odds[:-1][unseen].sigmoid().cpu().flatten()
                error = calibration_error(said, right.expand(len(unseen), -1, -1)[unseen].flatten())
        images = batches[step % len(batches)]
        with torch.enable_grad():
            loss = (wrong(images)[1] * learns[:, images].unsqueeze(2)).sum() / (len(images) * right.shape[1])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    critic.load_state_dict({**fits[-1].state_dict(), **best})
    return error


@torch.no_grad()
def _fitted(critic: Critic, outputs: Outputs, right: Tensor, images: Tensor) -> Critic:
    """Copy a critic, and fit the copy's offset and scale to some of the images."""
    device = critic.offset.device
    found = copy.deepcopy(critic)
    odds = critic.raw(outputs.utilities[images].to(device), outputs.low_logits[images].to(device))
    found.fit(odds.cpu(), outputs.counts, right[images])
    return found


def find_price(model: RankingModel, scores: Tensor, chances: Tensor, outputs: Outputs, goal: Goal) -> None:
    """Set the policy's price so that its greedy choice meets a goal on a split.

    Args:
        scores: the policy's patch logits on the split ``(n, P)``, at its current price.
        chances: its chances of being right ``(n, P + 1)``.
    """
    price = model.policy.log_price
    if goal.target_patches:
        price += cut_for_mean(scores, goal.target_patches)
    elif goal.mistake:
        price.fill_(-math.log(goal.mistake))
    else:
        cuts = cuts_on(scores)
        counts = [(scores >= cut).sum(1) for cut in cuts]
        found = likely_accuracy(counts, chances, outputs.counts, outputs.right(model.classifier))
        price += cuts[cheapest_within(found, goal.tolerance / 100)]
    price.clamp_(-20, 20)


def likely_accuracy(counts: Sequence[Tensor], chances: Tensor, tried: Tensor, right: Tensor) -> list[float]:
    """Estimate the accuracy, 0 to 1, of points from cheap to dear: the mean of the expected and the measured one.

    Among some hundred images half a point is a few, which are right or wrong by chance, so the measured accuracies are
    replaced by the nearest rising curve. The expected accuracy hardly depends on chance, but may be wrong.

    Args:
        counts: patches that each image has at a point, ``(n,)`` int64 for each.
        chances: of being right ``(n, P + 1)``.
        tried: numbers of patches ``(M,)`` that `right` was measured at; the nearest one stands for others.
        right: ``(n, M)`` bool.
    """
    patches = torch.arange(chances.shape[1])
    nearest = (patches.unsqueeze(1) - tried).abs().argmin(1)
    expected = [float(chances.double().gather(1, k.unsqueeze(1)).mean()) for k in counts]
    seen = [float(right.gather(1, nearest[k].unsqueeze(1)).double().mean()) for k in counts]
    return [(e + float(s)) / 2 for e, s in zip(expected, isotonic_regression(np.array(seen)), strict=True)]


def cheapest_within(accuracy: Sequence[float], tolerance: float) -> int:
    """Return the first of points from cheap to dear whose accuracy is within ``tolerance`` of the best one's."""
    wanted = max(accuracy) - tolerance - 1e-9
    return next(point for point, found in enumerate(accuracy) if found >= wanted)

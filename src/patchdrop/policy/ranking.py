"""Rank the patches, predict the chance of being right after the first k of them, and read what is worth its price.

Beyond the paper, whose policy decides each patch by itself (`patchdrop.policy.network`). Two parts look at LR:

* **which**: a utility for each patch. In training patches are drawn without replacement, each in proportion to
  ``exp(utility)`` (Plackett 1975, Luce 1959); at use they are sorted by their utilities.
* **how many**: `Critic`, the chance that the class is right after the first k patches of that order, k = 0..P.

A patch is read if its gain in that chance is worth its price; the price of all patches is counted in wrong answers. A
patch may be worth something only together with those after it, so its gain is the best average gain of a run of
patches: the slope of the least concave majorant of the chances. So the patch logits, ``log(P slope / price)``,
fall along the ranking, and one threshold on all images' logits spends a mean budget where it brings most.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchdrop.policy.network import Policy, uncertainty

BEST_CLASSES = 5
"""Number of LR-CNN's best classes whose log-probabilities are the critic's inputs."""
HIDDEN = 32
REACH = 8.0
"""Log odds that all patches add in an untrained critic, times ``softplus(0)``."""
BELIEF = 4.0
"""Weight, in images, of a critic as it was trained."""
LEAST_SLOPE = 1e-8
"""Above the lowest price, e^-20, so that even a single patch without any gain is read at that price."""
TIE = 1e-5
"""Gap between neighbours of the ranking with equal slopes, so that no threshold splits them against their order."""


def in_order(utilities: Tensor) -> Tensor:
    """Sort patches from the highest utility to the lowest: ``(B, P)`` to ``(B, P)`` int64, stably."""
    return _sorted(utilities)[1]


def _sorted(utilities: Tensor) -> tuple[Tensor, Tensor]:
    """Return utilities from the highest to the lowest, and their patches."""
    if torch.compiler.is_exporting():  # ONNX has no sort but TopK, which also puts the first of equal values first
        values, order = utilities.topk(utilities.shape[1], 1)
    else:
        values, order = utilities.sort(dim=1, descending=True, stable=True)
    return values, order


def drawn_order(utilities: Tensor) -> Tensor:
    """Draw the order in which patches are taken: the order of the utilities with Gumbel noise added."""
    noise = -torch.empty_like(utilities).exponential_().clamp(min=1e-20).log()
    return in_order(utilities + noise)


def first(order: Tensor, counts: Tensor) -> Tensor:
    """Choose the first ``counts (B,)`` patches of each order ``(B, P)``: ``(B, P)`` bool."""
    return order.argsort(1) < counts.unsqueeze(1)


class Forecast(NamedTuple):
    """The predicted chance of being right on each image, ``(B,)``, 0 to 1."""

    now: Tensor
    """Without HR, from LR alone."""
    after: Tensor
    """After the chosen patches; not a number if these are not the first of the ranking."""
    everything: Tensor
    """After all patches."""


def forecast(scores: Tensor, chances: Tensor, choice: Tensor) -> Forecast:
    """Predict the chance of being right with a choice.

    Args:
        scores: patch logits ``(B, P)``, whose order is the ranking.
        chances: of being right after the first k patches, ``(B, P + 1)``.
        choice: ``(B, P)`` bool.
    """
    counts = choice.sum(1)
    after = chances.gather(1, counts.unsqueeze(1)).squeeze(1)
    ranked = (first(in_order(scores), counts) == choice).all(1)
    return Forecast(chances[:, 0], after.where(ranked, after.new_tensor(math.nan)), chances[:, -1])


def log_probability(utilities: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    """Return the log chance that the first ``counts`` patches are drawn in this order: ``(B,)``; 0 where none is."""
    ranked = utilities.gather(1, order)
    left = ranked.flip(1).logcumsumexp(1).flip(1)
    taken = torch.arange(order.shape[1], device=order.device) < counts.unsqueeze(1)
    return torch.where(taken, ranked - left, torch.zeros_like(ranked)).sum(1)


def slopes(chances: Tensor) -> Tensor:
    """Return slopes of the least concave majorant of ``chances (B, P + 1)``: ``(B, P)``, falling, 0 or more on a rise.

    The slope at rank j is the least, over all starts before it, of the best average gain from that start to an end at
    or behind it. Scans by doubling, which `torch.export` can follow.
    """
    patches = chances.shape[1] - 1
    k = torch.arange(patches + 1, device=chances.device, dtype=chances.dtype)
    length = k[None, :] - k[:, None]
    ahead = length > 0
    gain = (chances[:, None, :] - chances[:, :, None]) / torch.where(ahead, length, torch.ones_like(length))
    best = _running_max(torch.where(ahead, gain, torch.full_like(gain, -math.inf)).flip(2)).flip(2)
    ends = torch.where(ahead, best, torch.full_like(best, math.inf))
    # `diagonal` will not do: in ONNX it is a product with a mask, and 0 times infinity is not a number.
    rank = torch.arange(patches, device=chances.device)
    return -_running_max(-ends.transpose(1, 2))[:, rank + 1, rank]


def _running_max(values: Tensor) -> Tensor:
    """Return the largest value so far along the last dimension."""
    shift, length = 1, values.shape[-1]
    while shift < length:
        values = torch.cat([values[..., :shift], torch.maximum(values[..., shift:], values[..., :-shift])], -1)
        shift *= 2
    return values


class Critic(nn.Module):
    """The critic: predicts the log odds of being right after the first k patches of a ranking, k = 0..P.

    Its only inputs are LR-CNN's log-probabilities of its best classes and the sorted utilities, so that it cannot tell
    one training image from another. As trained it never falls in k. `fit` corrects it on images that no network was
    trained on, as a few patches may be worse than none there; then its weights learn on
    (`patchdrop.evaluation.operating_point`).

    Attributes:
        offset: added to the log odds after k patches, ``(P + 1,)``.
        scale: logs of the factors of the log odds before any patch, and of what patches add to them, ``(2,)``.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, classes: int, patches: int) -> None:
        super().__init__()
        self.best_classes = min(BEST_CLASSES, classes)
        inputs = self.best_classes + 1
        self.start = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, 1))
        self.gain = nn.Sequential(nn.Linear(inputs + 3, HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, 1))
        self.register_buffer("offset", torch.zeros(patches + 1))
        self.register_buffer("scale", torch.zeros(2))

    def forward(self, utilities: Tensor, low_logits: Tensor) -> Tensor:
        """Map utilities ``(B, P)`` and LR-CNN's class logits ``(B, K)`` to corrected log odds ``(B, P + 1)``.

        They are float64, because one patch may add no more than the last digits of a float32.
        """
        return _corrected(self._odds(utilities, low_logits), self.offset, self.scale)

    def raw(self, utilities: Tensor, low_logits: Tensor) -> Tensor:
        """Return the log odds without offset and scale, as in training, in the type of the utilities."""
        return self._odds(utilities, low_logits).to(utilities.dtype)

    def _odds(self, utilities: Tensor, low_logits: Tensor) -> Tensor:
        best = low_logits.log_softmax(1).topk(self.best_classes, 1).values
        certainty = torch.cat([best, -uncertainty(low_logits)], 1) / 4
        ranked = _sorted(utilities)[0].log_softmax(1)
        patches = ranked.shape[1]
        taken = ranked.exp().cumsum(1) - ranked.exp()
        place = torch.arange(patches, device=ranked.device, dtype=ranked.dtype).expand_as(ranked) / patches
        of_rank = torch.stack([(ranked + math.log(patches)) / 4, taken, place], 2)
        gains = self.gain(torch.cat([certainty.unsqueeze(1).expand(-1, patches, -1), of_rank], 2)).squeeze(2)
        start = self.start(certainty).double()
        return torch.cat([start, start + (F.softplus(gains) * (REACH / patches)).double().cumsum(1)], 1)

    @torch.no_grad()
    def fit(self, odds: Tensor, counts: Tensor, right: Tensor) -> None:
        """Set `offset` and `scale` by how often the class was right.

        By the largest penalised likelihood. The penalty is worth `BELIEF` images that agree with the critic as it was
        trained, so that a handful of images hardly moves it.

        Args:
            odds: ``(n, P + 1)``, as trained.
            counts: ``(M,)`` int64, the numbers of patches that were tried, rising.
            right: ``(n, M)`` bool.
        """
        tried, truth = odds.double()[:, torch.cat([counts.new_zeros(1), counts])], right.double()
        offset = torch.zeros(len(counts), dtype=torch.float64, requires_grad=True)
        scale = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        search = torch.optim.LBFGS([offset, scale], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            search.zero_grad()
            found = _corrected(tried, F.pad(offset, (1, 0)), scale)[:, 1:]
            wrong = F.binary_cross_entropy_with_logits(found, truth, reduction="sum") / len(counts)
            value = wrong + BELIEF * (offset.square().mean() + scale.square().sum()) / 2
            value.backward()  # type: ignore[no-untyped-call]
            return value

        with torch.enable_grad():
            search.step(loss)  # type: ignore[no-untyped-call]
        patches = torch.arange(odds.shape[1])
        between = np.interp(patches.numpy(), counts.cpu().numpy(), offset.detach().numpy())
        self.offset.copy_(torch.from_numpy(between))
        self.scale.copy_(scale.detach())


def _corrected(odds: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
    start = odds[:, :1]
    return offset + scale[0].exp() * start + scale[1].exp() * (odds - start)


class RankingOutput(NamedTuple):
    """The outputs of a ranking policy for LR images."""

    scores: Tensor
    """Patch logits ``(B, P)``; a patch is worth its price if its logit is 0 or more."""
    chances: Tensor
    """Chance of being right after the first k patches of the ranking, ``(B, P + 1)``."""


class Ranking(nn.Module):
    """A ranking policy: maps LR and LR-CNN's logits to patch logits.

    Attributes:
        utility: a policy network whose patch logits are the utilities.
        log_price: log price of all of an image's patches, in wrong answers: the operating point.
    """

    log_price: Tensor

    def __init__(self, utility: Policy, classes: int) -> None:
        super().__init__()
        self.utility = utility
        self.critic = Critic(classes, utility.grid.patches)
        self.register_buffer("log_price", torch.tensor(-3.0))

    def forward(self, low: Tensor, low_logits: Tensor) -> RankingOutput:
        """Map LR ``(B, C, h, w)`` and LR-CNN's class logits ``(B, K)`` to patch logits and chances."""
        return self.weigh(self.utility(low), low_logits)

    def weigh(self, utilities: Tensor, low_logits: Tensor) -> RankingOutput:
        """Do the same from utilities ``(B, P)``."""
        chances = self.critic(utilities, low_logits.float()).sigmoid()
        worth = (slopes(chances).clamp(min=LEAST_SLOPE) * utilities.shape[1]).log()
        falling = worth - TIE * torch.arange(worth.shape[1], device=worth.device, dtype=worth.dtype)
        rank = in_order(utilities).argsort(1)
        return RankingOutput((falling.gather(1, rank) - self.log_price).float(), chances.float())

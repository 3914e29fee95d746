"""Gradient estimators of the expected reward over the 2^P choices of an image.

Each one proposes K choices for a batch, is paid the reward of each, and gives a loss whose gradient estimates
``-d E[R] / d logits``. In all of them the loss is a sum over patches and a mean over images.

* ``self-critical`` (the paper, after Rennie et al. 2017): one sample; the baseline is the greedy choice's reward.
* ``rloo`` (Kool et al. 2019): K samples; each one's baseline is the mean reward of the others.
* ``exact``: all 2^P choices, each weighted by its probability; no variance, for a small P only.
* ``straight-through`` (Bengio et al. 2013): one sample whose gradient passes as if it were its probability;
  it needs a reward that is differentiable in the choice, and reads all of HR while training. Biased.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from patchdrop.policy.choice import greedy, mixed, sampled


class Estimator(Protocol):
    """Proposes choices, and turns their rewards into a loss."""

    @property
    def relaxed(self) -> bool:
        """Whether rewards must be differentiable in the choice."""

    def propose(self, logits: Tensor, alpha: float) -> Tensor:
        """``(B, P)`` logits to choices ``(K, B, P)``; the first one is a sample."""

    def loss(self, logits: Tensor, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
        """Scalar loss from rewards ``(K, B)``."""


def log_probability(logits: Tensor, choice: Tensor, alpha: float) -> Tensor:
    """``log pi(choice)`` of independent Bernoulli patches after mixing: ``(..., P)`` to ``(...)``."""
    # At alpha = 1 a sure patch has log 0 on the side it never takes; the clamp keeps that finite.
    tiny = torch.finfo(logits.dtype).tiny
    probabilities = mixed(logits, alpha)
    taken = torch.where(choice, probabilities, 1 - probabilities)
    return taken.clamp(min=tiny).log().sum(-1)


def policy_gradient_loss(logits: Tensor, choices: Tensor, advantages: Tensor, alpha: float) -> Tensor:
    """``-mean(A log pi)`` (REINFORCE): choices ``(K, B, P)``, advantages ``(K, B)``, no gradient through A."""
    return -(advantages.detach() * log_probability(logits, choices, alpha)).mean()


@dataclass(frozen=True)
class SelfCritical:
    """One sample against the greedy choice."""

    relaxed: bool = False

    def propose(self, logits: Tensor, alpha: float) -> Tensor:
        """``(2, B, P)``: a sample and the greedy choice."""
        return torch.stack([sampled(logits.detach(), alpha), greedy(logits)])

    def loss(self, logits: Tensor, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
        """Advantage ``R(sample) - R(greedy)``."""
        return policy_gradient_loss(logits, choices[:1], rewards[:1] - rewards[1:], alpha)


@dataclass(frozen=True)
class LeaveOneOut:
    """K samples, each against the mean of the others."""

    samples: int = 2
    relaxed: bool = False

    def propose(self, logits: Tensor, alpha: float) -> Tensor:
        """``(K, B, P)`` independent samples."""
        return torch.stack([sampled(logits.detach(), alpha) for _ in range(self.samples)])

    def loss(self, logits: Tensor, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
        """Advantage ``R_k - mean of R_j, j != k``."""
        others = (rewards.sum(0, keepdim=True) - rewards) / (self.samples - 1)
        return policy_gradient_loss(logits, choices, rewards - others, alpha)


@dataclass(frozen=True)
class StraightThrough:
    """One sample, passed back as if it were its probability."""

    relaxed: bool = True

    def propose(self, logits: Tensor, alpha: float) -> Tensor:
        """``(1, B, P)`` float: 0 or 1 forward, the mixed probability's gradient backward."""
        probabilities = mixed(logits, alpha)
        hard = (torch.rand_like(probabilities) < probabilities).to(probabilities.dtype)
        return (hard + (probabilities - probabilities.detach())).unsqueeze(0)

    def loss(self, logits: Tensor, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
        """The negative mean reward itself."""
        return -rewards.mean()


@dataclass(frozen=True)
class Exact:
    """Every choice there is; a sample comes first, for the classifier to learn from, and is not paid."""

    relaxed: bool = False

    def propose(self, logits: Tensor, alpha: float) -> Tensor:
        """``(1 + 2^P, B, P)``."""
        images, patches = logits.shape
        numbers = torch.arange(2**patches, device=logits.device)
        every = (numbers[:, None] >> torch.arange(patches, device=logits.device)) & 1 == 1
        return torch.cat([sampled(logits.detach(), alpha)[None], every[:, None].expand(-1, images, -1)])

    def loss(self, logits: Tensor, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
        """The negative expected reward itself."""
        chance = log_probability(logits, choices[1:], alpha).exp()
        return -(chance * rewards[1:].detach()).sum(0).mean()


def estimator(name: str, samples: int) -> Estimator:
    """The estimator of that name (see the top of this file)."""
    estimators: dict[str, Estimator] = {
        "self-critical": SelfCritical(),
        "rloo": LeaveOneOut(samples),
        "straight-through": StraightThrough(),
        "exact": Exact(),
    }
    return estimators[name]

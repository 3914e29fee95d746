"""Estimate the gradient of the expected reward over the 2^P choices of an image.

Each estimator proposes K choices for a batch, is given the reward of each, and returns a loss whose gradient estimates
``-d E[R] / d logits``. The loss is always a sum over patches and a mean over images.

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
    """An estimator that proposes choices and turns their rewards into a loss."""

    @property
    def relaxed(self) -> bool:
        """Whether rewards must be differentiable in the choice."""

    def propose(self, logits: Tensor, alpha: float) -> Tensor:
        """Propose choices ``(K, B, P)`` for logits ``(B, P)``; the first one is a sample."""

    def loss(self, logits: Tensor, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
        """Compute the scalar loss from rewards ``(K, B)``."""


def log_probability(logits: Tensor, choice: Tensor, alpha: float) -> Tensor:
    """Return ``log pi(choice)`` of independent Bernoulli patches after mixing: ``(..., P)`` to ``(...)``."""
    # At alpha = 1 the outcome that a sure patch never takes has probability 0; the clamp keeps its log finite.
    tiny = torch.finfo(logits.dtype).tiny
    probabilities = mixed(logits, alpha)
    taken = torch.where(choice, probabilities, 1 - probabilities)
    return taken.clamp(min=tiny).log().sum(-1)


def policy_gradient_loss(logits: Tensor, choices: Tensor, advantages: Tensor, alpha: float) -> Tensor:
    """Return ``-mean(A log pi)`` (REINFORCE) of choices ``(K, B, P)``; advantages A ``(K, B)`` get no gradient."""
    return -(advantages.detach() * log_probability(logits, choices, alpha)).mean()


@dataclass(frozen=True)
class SelfCritical:
    """An estimator with one sample; the greedy choice's reward is the baseline."""

    relaxed: bool = False

    def propose(self, logits: Tensor, alpha: float) -> Tensor:
        """Return a sample and the greedy choice: ``(2, B, P)``."""
        return torch.stack([sampled(logits.detach(), alpha), greedy(logits)])

    def loss(self, logits: Tensor, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
        """Use the advantage ``R(sample) - R(greedy)``."""
        return policy_gradient_loss(logits, choices[:1], rewards[:1] - rewards[1:], alpha)


@dataclass(frozen=True)
class LeaveOneOut:
    """An estimator with K samples; each one's baseline is the mean reward of the others."""

    samples: int = 2
    relaxed: bool = False

    def propose(self, logits: Tensor, alpha: float) -> Tensor:
        """Draw K independent samples: ``(K, B, P)``."""
        return torch.stack([sampled(logits.detach(), alpha) for _ in range(self.samples)])

    def loss(self, logits: Tensor, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
        """Use the advantage ``R_k - mean of R_j, j != k``."""
        others = (rewards.sum(0, keepdim=True) - rewards) / (self.samples - 1)
        return policy_gradient_loss(logits, choices, rewards - others, alpha)


@dataclass(frozen=True)
class StraightThrough:
    """An estimator with one sample, whose gradient passes as if it were its probability."""

    relaxed: bool = True

    def propose(self, logits: Tensor, alpha: float) -> Tensor:
        """Return ``(1, B, P)`` float: 0 or 1 forward, with the mixed probability's gradient backward."""
        probabilities = mixed(logits, alpha)
        hard = (torch.rand_like(probabilities) < probabilities).to(probabilities.dtype)
        return (hard + (probabilities - probabilities.detach())).unsqueeze(0)

    def loss(self, logits: Tensor, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
        """Return the negative mean reward."""
        return -rewards.mean()


@dataclass(frozen=True)
class Exact:
    """An estimator over all 2^P choices; a sample comes first, for the classifier to learn from, without a reward."""

    relaxed: bool = False

    def propose(self, logits: Tensor, alpha: float) -> Tensor:
        """Return a sample and all 2^P choices: ``(1 + 2^P, B, P)``."""
        images, patches = logits.shape
        numbers = torch.arange(2**patches, device=logits.device)
        every = (numbers[:, None] >> torch.arange(patches, device=logits.device)) & 1 == 1
        return torch.cat([sampled(logits.detach(), alpha)[None], every[:, None].expand(-1, images, -1)])

    def loss(self, logits: Tensor, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
        """Return the negative expected reward."""
        chance = log_probability(logits, choices[1:], alpha).exp()
        return -(chance * rewards[1:].detach()).sum(0).mean()


def estimator(name: str, samples: int) -> Estimator:
    """Return the estimator with that name (see the top of this file)."""
    estimators: dict[str, Estimator] = {
        "self-critical": SelfCritical(),
        "rloo": LeaveOneOut(samples),
        "straight-through": StraightThrough(),
        "exact": Exact(),
    }
    return estimators[name]

"""Compute the reward of one episode: a right class earns more with fewer patches, a wrong one is penalised."""

from __future__ import annotations

import torch
from torch import Tensor


def reward(choice: Tensor, class_logits: Tensor, target: Tensor, sigma: float) -> Tensor:
    """Return ``1 - (S/P)^2`` where the best class is right, ``-sigma`` where it is wrong (paper, section 4).

    Args:
        choice: ``(B, P)`` bool.
        class_logits: ``(B, K)``.
        target: ``(B,)`` int64.

    Returns:
        ``(B,)`` float, in ``{-sigma} or [0, 1]``.
    """
    right = class_logits.argmax(1) == target
    return torch.where(right, gain(choice), torch.full_like(target, -sigma, dtype=torch.float32))


def soft_reward(choice: Tensor, class_logits: Tensor, target: Tensor, sigma: float) -> Tensor:
    """Return the expectation of `reward` when the class is drawn from the classifier's probabilities.

    Beyond the paper: the second action's randomness is integrated out instead of sampled or maximised, so that a mask
    which makes the right class merely likelier already earns more. ``choice`` may be float; then the result is
    differentiable in it.
    """
    right = right_probability(class_logits, target)
    return right * gain(choice) - (1 - right) * sigma


def right_probability(class_logits: Tensor, target: Tensor) -> Tensor:
    """Return the right class' probability: ``(B, K)`` and ``(B,)`` to ``(B,)``."""
    return class_logits.float().softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)


def gain(choice: Tensor) -> Tensor:
    """Return ``1 - (S/P)^2``: ``(B, P)`` to ``(B,)``."""
    return 1 - choice.float().mean(1) ** 2

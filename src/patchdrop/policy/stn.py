"""STN, a differentiable saliency selector: the S patches with the highest scores, learnt through a relaxation.

A baseline after Jaderberg et al. 2015 (spatial transformer networks) and Recasens et al. 2018 (saliency sampler).
Departures: both warp the image, so that every pixel is still read and S has no meaning; here a policy network's
scores pick whole patches of the grid. There is no reward and no penalty for patches, S is given.

Forward the choice is hard. Backward it is ``sigmoid(score - threshold)``, the threshold halfway between the lowest
score that was chosen and the highest that was not: patches near the border between in and out learn the most. The
gradient also reaches patches that were not chosen, so training needs no exploration, but reads all of HR, as the
straight-through estimator does. The threshold takes no gradient: moving all scores of an image alike changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchdrop.policy.choice import top


def relaxed_top(scores: Tensor, mean_patches: float, generator: torch.Generator | None = None) -> Tensor:
    """Make `top`'s choice with a gradient: ``(B, P)`` scores to ``(B, P)`` float, exactly 0 or 1."""
    choice = top(scores.detach(), mean_patches, generator)
    soft = torch.sigmoid(scores - threshold(scores.detach(), choice))
    return choice.to(soft.dtype) + (soft - soft.detach())


def threshold(scores: Tensor, choice: Tensor) -> Tensor:
    """Return the value halfway between the lowest chosen score and the highest other one: ``(B, 1)``.

    If all or no patches are chosen, return the score next to the missing border.
    """
    chosen = scores.masked_fill(~choice, torch.inf).amin(1, keepdim=True)
    other = scores.masked_fill(choice, -torch.inf).amax(1, keepdim=True)
    chosen, other = torch.where(chosen.isinf(), other, chosen), torch.where(other.isinf(), chosen, other)
    return (chosen + other) / 2

"""Plain strategies: choose patches without a learnt policy, at the mean S of one.

| strategy | when | where |
|---|---|---|
| `cascade` | LR-CNN is least certain | everywhere |
| `fixed_best` | always | the patches that help most on validation images, the same in every image |
| `activation_choice` | LR-CNN is least certain | where LR-CNN sees its class: `activation_maps` |
| `detail`, with `patchdrop.policy.choice.top` | always | where LR varies most |

Beyond the paper. Choices are made for a whole split at once, so that the mean S can be matched; `given` hands them to
`patchdrop.evaluation.outcome.outcome_of`. In a tie the image, or the patch, with the lower number comes first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from patchdrop.data.sets import Split, low_of
from patchdrop.episode import PatchDrop
from patchdrop.errors import UsageError
from patchdrop.evaluation.outcome import BATCH, Outcome, outcome_of
from patchdrop.grid import Shape, Size
from patchdrop.models.compute import Compute
from patchdrop.policy.choice import random_patches, whole_counts
from patchdrop.policy.network import uncertainty
from patchdrop.policy.ranking import first, in_order
from patchdrop.policy.reward import right_probability

ROUNDS = 6
"""Random masks that `fixed_best` tries on each image."""
LEAST_SHARE = 1e-9
"""Share of the largest eigenvalue below which `patch_worth` treats a combination of patches as never tried."""


def least_certain_first(low_logits: Tensor) -> Tensor:
    """Sort images from the one that LR-CNN is least certain of to the one it is most certain of.

    They are compared by the log odds of its best class, which still differ where probabilities all round to 1.

    Args:
        low_logits: LR-CNN's class logits ``(n, K)``.

    Returns:
        ``(n,)`` int64.
    """
    return uncertainty(low_logits.double()).squeeze(1).argsort(descending=True, stable=True)


def cascade(low_logits: Tensor, mean_patches: float, patches: int) -> Tensor:
    """Choose all patches of the images that LR-CNN is least certain of, and none of the others.

    Args:
        low_logits: LR-CNN's class logits ``(n, K)``.
        mean_patches: mean S to match, 0 to ``patches``.
        patches: P.

    Returns:
        ``(n, P)`` bool, whose mean S is as near as whole images allow: within ``P / 2n``.

    Raises:
        UsageError: a mean S out of its range.
    """
    return (_counts(low_logits, mean_patches, patches, patches) > 0).unsqueeze(1).expand(-1, patches).clone()


def cascade_outcome(low: Outcome, high: Outcome, choice: Tensor) -> Outcome:
    """Combine outcomes into that of a cascade: HR-CNN's logits for the images that were read, LR-CNN's for the others.

    Args:
        low: LR-CNN's outcome on a split.
        high: HR-CNN's on the same split.
        choice: ``(n, P)`` bool, all or none of each image's patches.

    Returns:
        The outcome; its scores are LR-CNN's uncertainty, the same for every patch of an image.

    Raises:
        UsageError: an image of which only some patches were read, or outcomes on different splits.
    """
    read = choice.all(1)
    if not torch.equal(read, choice.any(1)):
        raise UsageError("a cascade reads all patches of an image or none: HR-CNN cannot classify some of them")
    if not torch.equal(low.target, high.target):
        raise UsageError("a cascade of LR-CNN and HR-CNN needs the outcomes of both on the same split")
    logits = torch.where(read.unsqueeze(1), high.logits, low.logits)
    return Outcome(uncertainty(low.logits).expand(-1, choice.shape[1]), choice, logits, low.target)


def patch_worth(masks: Tensor, probability: Tensor) -> Tensor:
    """Estimate what each patch adds, on average, to the right class' probability beside the other patches read.

    By least squares on the masks' bits, with an intercept for each image, as images differ more than masks do. If all
    masks read equally many patches, worths are known up to a constant; then their mean is 0.

    Args:
        masks: R masks for each image, ``(R, n, P)`` bool. An image tells nothing about a patch that is in all or none
            of its masks.
        probability: of the right class, with each mask, ``(R, n)``.

    Returns:
        Worths in units of probability, ``(P,)`` float64; 0 for a patch that no image tells anything about.
    """
    bits, gained = masks.double(), probability.double()
    bits = (bits - bits.mean(0)).flatten(0, 1)
    gained = (gained - gained.mean(0)).flatten()
    # The pseudo-inverse, because the sum of all bits does not vary where masks are of one size.
    inverse: Tensor = torch.linalg.pinv(bits.T @ bits, rtol=LEAST_SHARE, hermitian=True)
    return inverse @ (bits.T @ gained)


def fixed_best(
    model: PatchDrop,
    shape: Shape,
    split: Split,
    mean_patches: float,
    generator: torch.Generator,
    compute: Compute,
) -> Tensor:
    """Sort the patches by their worth among random ones: `patch_worth` with this model's classifier.

    Args:
        model: its classifier is used, in evaluation mode, on the machine's device.
        split: validation images; `ROUNDS` passes over them.
        mean_patches: how many random patches each mask has, 0 to P; floor or ceil of it.
        generator: draws the masks; the same one in the same state gives the same order.

    Returns:
        ``(P,)`` int64, best first.

    Raises:
        UsageError: ``mean_patches`` out of its range.
    """
    patches = shape.grid.patches
    _check(mean_patches, patches)
    masks, probabilities = [], []
    for _ in range(ROUNDS):
        choice = random_patches(torch.zeros(len(split), patches), mean_patches, generator)
        outcome = outcome_of(model, shape, split, given(choice), compute)
        masks.append(choice)
        probabilities.append(right_probability(outcome.logits, outcome.target))
    return patch_worth(torch.stack(masks), torch.stack(probabilities)).argsort(descending=True, stable=True)


def top_of(order: Tensor, mean_patches: float, images: int, generator: torch.Generator) -> Tensor:
    """Choose the first patches of one order in every image, floor or ceil of ``mean_patches``.

    Args:
        order: ``(P,)`` int64, each patch once.
        mean_patches: 0 to P.
        images: n.
        generator: draws which images get one more, see `patchdrop.policy.choice.whole_counts`.

    Returns:
        ``(n, P)`` bool.

    Raises:
        UsageError: ``mean_patches`` out of its range.
    """
    _check(mean_patches, len(order))
    return first(order.expand(images, -1), whole_counts(images, mean_patches, generator).squeeze(1))


def activation_choice(maps: Tensor, low_logits: Tensor, mean_patches: float, each: int) -> Tensor:
    """Choose the highest patches of the images that LR-CNN is least certain of, and none of the others.

    Published for the tokens of vision transformers as TinyDrop (Wang et al. 2025, arXiv 2509.03379): the confidence of
    a small network says whether more is needed, its class activation map where. There a threshold on the confidence
    decides, here the mean S.

    Args:
        maps: scores ``(n, P)``, as of `activation_maps`.
        low_logits: LR-CNN's class logits ``(n, K)``.
        mean_patches: mean S to match, 0 to ``each``.
        each: patches of an image that is read, 1 to P; see `candidates`.

    Returns:
        ``(n, P)`` bool, whose mean S is as near as whole images allow: within ``each / 2n``.

    Raises:
        UsageError: a mean S or a number of patches out of its range.
    """
    return first(in_order(maps), _counts(low_logits, mean_patches, each, maps.shape[1]))


def candidates(patches: int, mean_patches: float) -> tuple[int, ...]:
    """Return the patches per image to try in `activation_choice`: P/4, P/2 and P, rounded up, rising, each once.

    Those below ``mean_patches`` are left out, because the mean could not be met with them.
    """
    return tuple(sorted({each for each in (-(-patches // 4), -(-patches // 2), patches) if each >= mean_patches}))


def scores_on(split: Split, low_size: Size, score: Callable[[Tensor], Tensor], compute: Compute) -> Tensor:
    """Compute scores of every image of a split, from LR alone.

    Args:
        score: LR ``(B, C, h, w)``, pixels 0..255, to ``(B, P)``; called in inference mode, in float32.

    Returns:
        ``(n, P)`` in the split's order.
    """
    with torch.inference_mode(), compute.exact():
        lows = (low_of(batch, low_size).to(compute.device) for batch in split.in_order(BATCH))
        return torch.cat([score(low).cpu() for low in lows])


def given(choice: Tensor) -> Callable[[Tensor, int], Tensor]:
    """Return the function that passes a finished choice ``(n, P)`` to `patchdrop.evaluation.outcome.outcome_of`."""
    return lambda scores, start: choice[start : start + len(scores)]


def _counts(low_logits: Tensor, mean_patches: float, each: int, patches: int) -> Tensor:
    """Return ``each`` for as many of the least certain images as match the mean, 0 for the others: ``(n,)`` int64."""
    _check(mean_patches, patches)
    if not 1 <= each <= patches or each < mean_patches:
        raise UsageError(
            f"{each} patches of an image that is read do not give a mean of {mean_patches:g} of {patches}: "
            f"use {max(1.0, mean_patches):g} to {patches}"
        )
    counts = torch.zeros(len(low_logits), dtype=torch.int64, device=low_logits.device)
    counts[least_certain_first(low_logits)[: round(len(low_logits) * mean_patches / each)]] = each
    return counts


def _check(mean_patches: float, patches: int) -> None:
    if not 0 <= mean_patches <= patches:
        raise UsageError(f"a mean of {mean_patches:g} patches cannot be read of {patches}: use 0 to {patches}")

"""Measure the curve of a trained policy's operating points, and pick the point that meets a target.

The points are thresholds on the policy's logits, fixed on the validation split; what each is worth is measured on
calibration images that neither training nor validation saw.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchdrop.data.sets import Split, low_of
from patchdrop.episode import PatchDrop
from patchdrop.errors import DataError, RunError, UsageError
from patchdrop.evaluation.dial import policy_scores
from patchdrop.evaluation.guarantee import p_values, proved, towards_cheaper
from patchdrop.evaluation.metrics import wilson
from patchdrop.grid import boxes
from patchdrop.models.build import ModelConfig
from patchdrop.models.compute import Compute
from patchdrop.policy.budget import cut_for_mean, probability_of
from patchdrop.policy.reward import gain
from patchdrop.read.source import from_memory
from patchdrop.settings.dial import Target
from patchdrop.tariffs.masks import MaskPrice
from patchdrop.tariffs.tariff import read_tariff

BATCH = 64
STEPS = 32
"""Steps of the curve from no patch to all patches, in equal parts of the mean number of patches."""


@dataclass(frozen=True)
class Measured:
    """The choices and results of each of M operating points on n images; points are sorted from cheap to dear."""

    choice: Tensor
    """Patches read, ``(M, n, P)`` bool."""
    right: Tensor
    """Whether the class was right, ``(M, n)`` bool."""

    @property
    def accuracy(self) -> list[float]:
        """Accuracy of each point, 0 to 1."""
        found: list[float] = self.right.double().mean(1).tolist()
        return found

    def mean(self, costs: Tensor) -> list[float]:
        """Return the mean cost per image of each point, from the cost ``(P + 1,)`` of reading 0 to P patches."""
        found: list[float] = costs[self.choice.sum(2)].double().mean(1).tolist()
        return found


def drawn(images: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split positions into those that stay and those drawn for calibration, both sorted.

    They are drawn at random, not by class: the bound supposes images that are drawn independently of one another.
    Python's own generator gives the same numbers on every machine and version.

    Raises:
        UsageError: ``fraction`` is out of range, or draws no image.
    """
    if not 0 < fraction <= 1 or round(fraction * images) == 0:
        raise UsageError(
            f"fraction: {fraction:g} of {images} images cannot be drawn, use {1 / max(1, images):.2g} (an image) to 1"
        )
    taken = set(random.Random(seed).sample(range(images), round(fraction * images)))
    return [i for i in range(images) if i not in taken], sorted(taken)


def without_calibration(calibration: Mapping[str, Any], split: Split) -> Split:
    """Remove from a split the images that a ``calibration.json`` was made with.

    Raises:
        DataError: nothing is left.
    """
    images = calibration["images"]
    if split.sha256 != images["sha256"]:
        return split
    left, _ = drawn(len(split), images["fraction"], images["seed"])
    if not left:
        raise DataError("every image of this split was used to calibrate; evaluate on others with --data")
    return Split(split.source, split.index[left])


def cuts_on(scores: Tensor, mean_budget: float | None = None) -> list[float]:
    """Return thresholds on logits from no patch to all, evenly spaced in mean S on the images of ``scores (n, P)``.

    They include the policy's own threshold, 0, and that of ``mean_budget``.
    """
    patches = scores.shape[1]
    budgets = [patches * step / STEPS for step in range(STEPS + 1)] + ([] if mean_budget is None else [mean_budget])
    return sorted({0.0, *(cut_for_mean(scores, budget) for budget in budgets)}, reverse=True)


def measure(
    model: PatchDrop,
    config: ModelConfig,
    split: Split,
    cuts: Sequence[float],
    compute: Compute,
    advance: Callable[[int], None],
) -> Measured:
    """Run every operating point on every image of a split.

    Args:
        cuts: thresholds on logits, falling, so that each point reads what the one before it read, and more. An image
            is classified again only where a point reads more of it.
        advance: called with the number of images done.
    """
    grid = config.shape.grid
    choices: list[Tensor] = []
    rights: list[Tensor] = []
    with torch.inference_mode():
        for batch in split.in_order(BATCH):
            low, high, target = (
                low_of(batch, config.shape.low).to(compute.device),
                batch.high.to(compute.device),
                batch.target.to(compute.device),
            )
            scores = compute.look(model, low).scores
            choice = torch.stack([scores >= cut for cut in cuts])
            right = torch.zeros(len(cuts), len(low), dtype=torch.bool, device=compute.device)
            for point in range(len(cuts)):
                new = torch.ones_like(right[0]) if point == 0 else (choice[point] != choice[point - 1]).any(1)
                right[point] = right[max(0, point - 1)]
                if bool(new.any()):
                    packed = from_memory(high[new], grid)(choice[point][new])
                    logits = compute.classify(model.classifier, packed, low[new])
                    right[point, new] = logits.argmax(1) == target[new]
            choices.append(choice.cpu())
            rights.append(right.cpu())
            advance(len(low))
    return Measured(torch.cat(choices, 1), torch.cat(rights, 1))


# --- cost


def bytes_read(choice: Tensor, config: ModelConfig) -> list[float]:
    """Return the mean bytes per image of ``choice (M, n, P)``: the chosen pixels, one byte a channel, uncompressed."""
    areas = [
        (bottom - top) * (right - left) for top, left, bottom, right in boxes(config.shape.grid, *config.shape.high)
    ]
    sizes = config.shape.channels * torch.tensor(areas, dtype=torch.float64)
    found: list[float] = (choice.double() @ sizes).mean(1).tolist()
    return found


def milliseconds(bench: Mapping[str, Any], stage: str, patches: int) -> Tensor:
    """Return the milliseconds of one image that reads 0 to P patches, ``(P + 1,)``, from a ``bench.json``.

    The times are those of the largest batch timed; they are interpolated linearly between the patch counts timed.

    Raises:
        RunError: the stage was not timed.
    """
    timed = [row for row in bench.get("rows", []) if row["stage"] == stage and row["patches"] is not None]
    if not timed:
        raise RunError(f"stage {stage} has not been timed; run `patchdrop bench` first, with that stage")
    largest = max(row["batch"] for row in timed)
    at = sorted((row["patches"], row["ms_image"]) for row in timed if row["batch"] == largest)
    known, times = np.array(at, dtype=np.float64).T
    return torch.from_numpy(np.interp(np.arange(patches + 1), known, times))


def mask_price(target: Target, config: ModelConfig) -> MaskPrice | None:
    """Return prices by the target's tariff; None if it has none.

    Raises:
        UsageError: the tariff cannot be read, or needs what is not given.
    """
    if target.tariff is None:
        return None
    grid = config.shape.grid
    return MaskPrice(read_tariff(target.tariff), grid, config.shape.high, config.shape.channels, target.pixel_metres)


def cost(
    measured: Measured, target: Target, config: ModelConfig, times: Tensor | None, prices: MaskPrice | None = None
) -> list[float]:
    """Return each point's mean cost per image in the target's unit, from `milliseconds` or a tariff's prices."""
    if target.unit == "bytes":
        return bytes_read(measured.choice, config)
    if prices is not None:
        return [float(prices.money(choice).mean()) for choice in measured.choice]
    if target.unit == "money":
        patches = measured.choice.shape[2]
        return measured.mean((target.price or 0.0) * torch.arange(patches + 1, dtype=torch.float64) / patches)
    assert times is not None
    return measured.mean(times)


# --- which point


def pick(
    target: Target,
    cuts: Sequence[float],
    scores: Tensor,
    validation: Measured,
    calibration: Measured,
    costs: Sequence[float],
) -> dict[str, Any] | None:
    """Pick the point that meets the target, and say why; None if no target is set.

    Args:
        scores: patch logits of the validation split, on which the threshold of ``mean_budget`` is found.
        costs: cost of each point on the validation split, in the target's unit.

    Raises:
        DataError: no point qualifies; the message shows the best one.
    """
    if target.mean_budget is not None:
        return {"kind": "mean-budget", "point": cuts.index(cut_for_mean(scores, target.mean_budget))}
    if target.target_accuracy is not None:
        return guaranteed(target.target_accuracy, target.confidence, validation.accuracy, calibration.right)
    if target.target_cost is None:
        return None
    within = [point for point in range(len(cuts)) if costs[point] <= target.target_cost]
    if not within:
        cheapest = min(range(len(cuts)), key=lambda point: costs[point])
        raise DataError(
            f"no operating point costs {target.target_cost:g} {target.unit} an image or less; the cheapest costs "
            f"{costs[cheapest]:.4g} with {float(validation.choice[cheapest].sum(1).double().mean()):.2f} patches"
        )
    return {"kind": "target-cost", "point": max(within, key=lambda point: (validation.accuracy[point], -costs[point]))}


def guaranteed(wanted: float, confidence: float, order_by: Sequence[float], right: Tensor) -> dict[str, Any]:
    """Find the cheapest point whose accuracy on new images is at least ``wanted``, with probability ``confidence``.

    Fixed-sequence testing with exact binomial p-values; see `patchdrop.evaluation.guarantee` for the source. The
    probability is over the draw of the calibration images, and holds for new images from the same source.

    Args:
        order_by: accuracy of each point on other images, which sets the order of the tests.
        right: ``(M, n)`` bool, of the calibration images.

    Raises:
        DataError: no point qualifies; the message shows the best one.
    """
    n = right.shape[1]
    correct = right.sum(1)
    p = p_values(correct, n, wanted)
    order = towards_cheaper(order_by)
    found = proved(p, order, confidence)
    if not found:
        best = int(correct.argmax())
        raise DataError(
            f"no operating point is known to be right on {wanted:g} of new images with confidence {confidence:g}; the "
            f"best one on the {n} calibration images is right on {float(correct[best]) / n:.4f} of them "
            f"(p = {float(p[best]):.2g}), the first one tested on {float(correct[order[0]]) / n:.4f} "
            f"(p = {float(p[order[0]]):.2g}); ask for less, or calibrate on more images"
        )
    tested = order[: len(found) + 1]
    return {"kind": "target-accuracy", "point": found[-1], "p_value": float(p[found[-1]]), "tested": tested}


def curve(
    cuts: Sequence[float],
    validation: Measured,
    calibration: Measured,
    config: ModelConfig,
    sigma: float,
    costs: Sequence[float],
) -> list[dict[str, Any]]:
    """Return every point as plain values, from cheap to dear.

    Args:
        sigma: penalty for a wrong class in the reward.
        costs: cost of each point on the validation split.
    """
    n = calibration.right.shape[1]
    patches = calibration.choice.shape[2]
    read, bytes_image = calibration.choice.sum(2).double(), bytes_read(calibration.choice, config)
    rewards = torch.where(calibration.right, gain(calibration.choice.flatten(0, 1)).view_as(read), -sigma).mean(1)
    found = []
    for point, cut in enumerate(cuts):
        correct = int(calibration.right[point].sum())
        mean_patches = float(read[point].mean())
        found.append(
            {
                "threshold": probability_of(cut),
                "cut": cut,
                "mean_patches": mean_patches,
                "hr_fraction": mean_patches / patches,
                "accuracy": correct / n,
                "ci95": list(wilson(correct, n)),
                "correct": correct,
                "n": n,
                "bytes": bytes_image[point],
                "reward": float(rewards[point]),
                "validation_mean_patches": float(validation.choice[point].sum(1).double().mean()),
                "validation_accuracy": validation.accuracy[point],
                "validation_cost": costs[point],
            }
        )
    return found


def operating_points(
    model: PatchDrop,
    config: ModelConfig,
    val: Split,
    held: Split,
    target: Target,
    times: Tensor | None,
    prices: MaskPrice | None,
    sigma: float,
    compute: Compute,
    advance: Callable[[str, int], None],
) -> dict[str, Any]:
    """Set thresholds on the validation split, measure them on held-out images, and pick the point to use.

    Args:
        held: calibration images.
        times: `milliseconds`, if the target is in them.
        prices: `mask_price`, if the target is in a tariff's money.
        advance: called with how many images of ``val`` and of ``calibration`` are done.

    Returns:
        ``target``, ``chosen`` and ``points`` of a ``calibration.json``.

    Raises:
        DataError: no point qualifies.
    """
    scores = policy_scores(model, config.shape.low, val, compute)
    cuts = cuts_on(scores, target.mean_budget)
    validation = measure(model, config, val, cuts, compute, lambda count: advance("val", count))
    calibration = measure(model, config, held, cuts, compute, lambda count: advance("calibration", count))
    costs = cost(validation, target, config, times, prices)
    return {
        "target": _wishes(target, prices),
        "chosen": pick(target, cuts, scores, validation, calibration, costs),
        "points": curve(cuts, validation, calibration, config, sigma, costs),
    }


def _wishes(target: Target, prices: MaskPrice | None) -> dict[str, Any]:
    """Return the parts of the target that were asked for."""
    given = {name: value for name, value in asdict(target).items() if value is not None}
    given |= {} if prices is None else {"tariff": prices.tariff.to_mapping()}
    needed = {"confidence": "target_accuracy", "unit": "target_cost"}
    return {name: value for name, value in given.items() if needed.get(name, name) in given}

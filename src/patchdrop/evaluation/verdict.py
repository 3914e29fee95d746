"""Give a verdict in words: what a policy is worth against strategies that need no policy.

All are compared on the same images. A way of choosing is worth its accuracy minus the price of what it reads; the price
is the one that the policy's operating point implies, in wrong answers for all of an image's HR.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from patchdrop.errors import RunError
from patchdrop.evaluation.dial import policy_stages
from patchdrop.evaluation.metrics import mcnemar
from patchdrop.runs.folder import RunFolder

SURE = 2.5
"""Deviations above which a difference is not chance: for nine plain strategies, 5 % in all on one side."""
NEARLY_ALL = 0.9
"""Share of HR above which a policy counts as reading everything."""
FEW_IMAGES = 200
NOTHING, EVERYTHING, CASCADE, PLACES = "nothing", "everything", "cascade", "random places"
FIGURES = ("accuracy", "mean_patches", "reward", "surplus", "p_value")
"""The figures of each plain strategy."""
Kind = Literal["policy", "nothing", "everything", "certainty", "loses"]


@dataclass(frozen=True)
class StrategyResult:
    """The results of a way of choosing on n images."""

    right: Tensor
    """Whether the class was right, ``(n,)`` bool."""
    counts: Tensor
    """Patches read, ``(n,)`` int64."""

    @property
    def accuracy(self) -> float:
        """Accuracy, 0 to 1."""
        return float(self.right.double().mean())

    @property
    def mean_patches(self) -> float:
        """Mean S."""
        return float(self.counts.double().mean())

    def worth(self, price: float, patches: int) -> Tensor:
        """Return ``right - price S / P`` of each image: ``(n,)`` float64."""
        return self.right.double() - price * self.counts.double() / patches


def surplus(theirs: Tensor, ours: Tensor) -> float:
    """Return how far their sum lies above ours on the same images, in standard deviations of that sum.

    Two more images are supposed, one in favour of each side, so that three images against none are no certainty.
    """
    difference = theirs - ours
    variance = float((difference - difference.mean()).square().sum()) + 2
    return float(difference.sum()) / math.sqrt(variance)


def verdict(
    ours: StrategyResult, plain: Mapping[str, StrategyResult], price: float, patches: int, tolerance: float
) -> dict[str, Any]:
    """Compare a policy with plain strategies, and return plain values.

    Args:
        ours: the policy at its operating point.
        plain: name -> results; includes `NOTHING` (LR-CNN), `EVERYTHING` (HR-CNN) and `PLACES` (as many patches of each
            image as the policy reads, elsewhere).
        price: of all of an image's HR, in wrong answers.
        tolerance: points of accuracy that make no difference.

    Returns:
        ``kind``, ``sentence``, ``better`` (a plain strategy that wins beyond chance, or None), ``price``, ``images``,
        ``reward`` and the figures of each strategy in ``plain``.
    """
    worth = ours.worth(price, patches)
    rows = {}
    for name, result in plain.items():
        theirs = result.worth(price, patches)
        rows[name] = {
            "accuracy": result.accuracy,
            "mean_patches": result.mean_patches,
            "reward": float(theirs.mean()),
            "surplus": surplus(theirs, worth),
            "p_value": mcnemar(ours.right, result.right),
        }
    rivals = {name: row for name, row in rows.items() if row["surplus"] > SURE}
    better = max(rivals, key=lambda name: rivals[name]["reward"]) if rivals else None
    kind = _kind(ours, plain, better, patches, tolerance)
    return {
        "kind": kind,
        "sentence": _sentence(kind, ours, plain, better, patches) + _caution(len(ours.right)),
        "better": better,
        "accuracy": ours.accuracy,
        "mean_patches": ours.mean_patches,
        "reward": float(worth.mean()),
        "price": price,
        "images": len(ours.right),
        "plain": rows,
    }


def last_verdict(run: RunFolder) -> dict[str, Any] | None:
    """Return the `verdict` on the last stage that has one, with the name of that ``stage``; None if none has.

    Raises:
        RunError: it is damaged.
    """
    for stage in reversed(policy_stages(run)):
        said = run.stage_config(stage).get("verdict")
        if said is not None:
            if not _well_formed(said):
                raise RunError(f"{run.stage(stage) / 'config.json'}: is damaged; remove its folder and train it again")
            return {"stage": stage, **said}
    return None


def _well_formed(said: Any) -> bool:
    """Check that a verdict has all that is shown of it."""
    try:
        numbers = [said[name] for name in ("accuracy", "mean_patches", "reward", "price", "images")]
        numbers += [row[name] for row in said["plain"].values() for name in FIGURES]
        return said["kind"] in get_args(Kind) and isinstance(said["sentence"], str) and all(map(math.isfinite, numbers))
    except (KeyError, TypeError, AttributeError):
        return False


def low_is_enough(low: Tensor, high: Tensor, tolerance: float) -> bool:
    """Check whether HR-CNN is at most ``tolerance`` points above LR-CNN, so that reading HR gains nothing to speak of.

    Takes right or wrong of both, ``(n,)`` bool each.
    """
    gain = (int(high.sum()) - int(low.sum())) / max(1, len(low))
    return gain <= tolerance / 100 + 1e-9  # 2 of 400 must count as half a point in spite of rounding


def _kind(
    ours: StrategyResult, plain: Mapping[str, StrategyResult], better: str | None, patches: int, tolerance: float
) -> Kind:
    if low_is_enough(plain[NOTHING].right, plain[EVERYTHING].right, tolerance) and ours.mean_patches < 0.5:
        return "nothing"
    if ours.mean_patches > NEARLY_ALL * patches and better in (None, EVERYTHING):
        return "everything"
    if better is not None:
        return "loses"
    places = plain[PLACES]
    if ours.accuracy <= places.accuracy or mcnemar(ours.right, places.right) > 0.05:
        return "certainty"
    return "policy"


def _sentence(
    kind: Kind, ours: StrategyResult, plain: Mapping[str, StrategyResult], better: str | None, patches: int
) -> str:
    low, high = plain[NOTHING], plain[EVERYTHING]
    both = f"LR-CNN alone is right on {_percent(low)}, HR-CNN on {_percent(high)}"
    mine = f"the policy is right on {_percent(ours)} with {_share(ours, patches)} of HR"
    if kind == "nothing":
        return f"LR alone is enough: {both}, so nothing is read."
    if kind == "everything":
        return f"Reading everything is needed: {both}, and {mine}; patches left out cost accuracy."
    if kind == "loses":
        assert better is not None
        rival = plain[better]
        theirs = f"right on {_percent(rival)} with {_share(rival, patches)} of HR"
        # "Nothing is better" would mean the opposite.
        name = f"Reading {better}" if better in (NOTHING, EVERYTHING) else better.capitalize()
        return f"{name} is better than the policy here: {theirs}, while {mine}. {_advice(better)}"
    if kind == "certainty":
        return (
            f"Which patches hardly matters, spend by certainty: {mine}, and on {_percent(plain[PLACES])} with as many "
            f"patches of each image at random places. {both[0].upper()}{both[1:]}."
        )
    return f"The policy pays: {mine}. {both[0].upper()}{both[1:]}."


def _advice(better: str) -> str:
    if better == NOTHING:
        return "Use LR-CNN alone."
    if better == EVERYTHING:
        return "Read everything."
    if better == CASCADE:
        return "Read all of an image where LR-CNN is uncertain, and nothing elsewhere."
    return "Which patches hardly matters: spend by certainty, or on the same patches everywhere."


def _caution(images: int) -> str:
    if images >= FEW_IMAGES:
        return ""
    return (
        f" Judged by {images} validation images, which is few: a difference of less than "
        f"{100 / math.sqrt(max(1, images)):.0f} points may be chance; {FEW_IMAGES - images} more would do better."
    )


def _percent(result: StrategyResult) -> str:
    return f"{100 * result.accuracy:.1f} %"


def _share(result: StrategyResult, patches: int) -> str:
    return f"{100 * result.mean_patches / patches:.0f} %"

"""The dial of a trained policy: what may be asked for at inference, without training again.

Free of torch, so that the command line answers at once. How a wish becomes a choice of patches is in
`patchdrop.policy.budget` and `patchdrop.evaluation.dial`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from patchdrop.errors import UsageError

MOST = 1e12
"""No budget, cost, price or size is above it."""

Unit = Literal["bytes", "milliseconds", "money"]


@dataclass(frozen=True, kw_only=True)
class Dial:
    """How many patches may be read. Nothing set: every patch that the policy finds worth its price."""

    budget: int | None = None
    """At most this many patches an image: of those the policy would choose, the most probable ones."""
    mean_budget: float | None = None
    """This many patches an image on average over the images given, by one threshold on their logits."""
    threshold: float | None = None
    """Patches whose probability is at least this, 0 (all) to 1 (none); may stand beside ``budget``."""
    mistake: float | None = None
    """What a wrong answer costs, in prices of all of an image's HR, for a policy that ranks patches."""
    calibrated: bool = False
    """The operating point that `patchdrop calibrate` has chosen for this run."""

    def __post_init__(self) -> None:
        names = {
            "--mean-budget": self.mean_budget is not None,
            "--mistake": self.mistake is not None,
            "--calibrated": self.calibrated,
            "--budget": self.budget is not None,
            "--threshold": self.threshold is not None,
        }
        asked = [name for name, given in names.items() if given]
        if len(asked) > 1 and asked != ["--budget", "--threshold"]:
            raise UsageError(f"{' and '.join(asked)} contradict each other; give one, or --budget with --threshold")
        for name, value in (("budget", self.budget), ("mean_budget", self.mean_budget)):
            if value is not None and not value >= 0:
                raise UsageError(f"{name}: {value:g} is out of range, a budget is 0 or more patches")
        if self.mistake is not None and not 0 < self.mistake <= MOST:
            raise UsageError(f"mistake: {self.mistake:g} is out of range, use more than 0 and at most {MOST:g}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"threshold: {self.threshold:g} is out of range, a probability is 0 to 1")

    @property
    def turned(self) -> bool:
        """Whether anything but the policy's own choice is asked for."""
        return self != Dial()

    def check(self, patches: int) -> None:
        """Raise UsageError where a budget is more than the grid's ``patches``."""
        for name, value in (("budget", self.budget), ("mean_budget", self.mean_budget)):
            if value is not None and value > patches:
                raise UsageError(
                    f"{name}: {value:g} is out of range, this run's grid has {patches} patches; use 0 to {patches}"
                )

    def __str__(self) -> str:
        """In words, for a table's title."""
        if self.calibrated:
            return "calibrated"
        if self.mean_budget is not None:
            return f"{self.mean_budget:g} patches on average"
        if self.mistake is not None:
            return f"a mistake at the price of {self.mistake:g} images"
        most = "" if self.budget is None else f"at most {self.budget} patches"
        least = "" if self.threshold is None else f"threshold {self.threshold:g}"
        return ", ".join(text for text in (most, least) if text) or "greedy"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an operating point is to reach. Nothing set: only the curve is wanted."""

    mean_budget: float | None = None
    """This many patches an image on average."""
    target_accuracy: float | None = None
    """The cheapest point whose accuracy on new data from the same source is at least this, 0 to 1 ..."""
    confidence: float = 0.95
    """... with this probability over the draw of the calibration images."""
    target_cost: float | None = None
    """The most accurate point (on the validation split) that costs at most this an image."""
    unit: Unit = "bytes"
    """What ``target_cost`` counts: ``bytes`` of raw HR pixels, ``milliseconds`` as `patchdrop bench` measured them, or
    ``money``."""
    price: float | None = None
    """Money for the HR of a whole image; a share of it costs that share."""
    tariff: Path | None = None
    """YAML file with the terms that pixels are sold by, instead of ``price``; an image is an order of its own."""
    pixel_metres: float | None = None
    """Metres on the ground of an HR pixel, for a tariff with a price per km2."""

    def __post_init__(self) -> None:
        names = ("mean_budget", "target_accuracy", "target_cost")
        asked = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]
        if len(asked) > 1:
            raise UsageError(f"{' and '.join(asked)} contradict each other; give one")
        for name in ("target_accuracy", "confidence"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise UsageError(f"{name}: {value:g} is out of range, use more than 0 and less than 1")
        for name in ("mean_budget", "target_cost", "price", "pixel_metres"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MOST:
                raise UsageError(f"{name}: {value:g} is out of range, use 0 to {MOST:g}")
        if self.unit == "money" and (self.price is None) == (self.tariff is None):
            raise UsageError("unit money needs --price, the money for the HR of a whole image, or --tariff; give one")
        for flag, given in (("--price", self.price), ("--tariff", self.tariff)):
            if given is not None and self.unit != "money":
                raise UsageError(f"{flag} needs --unit money")
        if self.pixel_metres is not None and self.tariff is None:
            raise UsageError("--pixel-metres needs --tariff")
        if self.unit != "bytes" and self.target_cost is None:
            raise UsageError(f"unit {self.unit} needs --target-cost, the most that an image may cost")

    def check(self, patches: int) -> None:
        """Raise UsageError where the budget is more than the grid's ``patches``."""
        Dial(mean_budget=self.mean_budget).check(patches)

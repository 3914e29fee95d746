"""Compare a policy's predicted chances of being right with how often it was right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from patchdrop.evaluation.metrics import calibration_error, parts_of, wilson
from patchdrop.evaluation.outcome import Outcome
from patchdrop.policy.ranking import forecast


def forecast_of(outcome: Outcome, low_right: Tensor | None) -> dict[str, Any] | None:
    """Compare a policy's chances of being right with how often it was; None if it predicts none.

    Args:
        outcome: of the policy's own choice.
        low_right: whether LR-CNN is right on the same images, ``(n,)`` bool; None where it is not at hand.

    Returns:
        ``bins``: images sorted by the predicted chance after the chosen patches, in ten equal parts: mean
        ``predicted``, share ``right`` with its interval ``ci95`` (Wilson), ``n``. ``calibration_error`` of
        ``chance_now`` (None without LR-CNN) and ``chance_after``.
    """
    if outcome.chances is None:
        return None
    said = forecast(outcome.scores, outcome.chances, outcome.choice)
    now = None if low_right is None else calibration_error(said.now, low_right)
    return {
        "bins": [bin_of(part, came) for part, came in parts_of(said.after, outcome.right)],
        "calibration_error": {"chance_now": now, "chance_after": calibration_error(said.after, outcome.right)},
    }


def bin_of(said: Tensor, came_true: Tensor) -> dict[str, Any]:
    """Summarise the chances ``(n,)`` and what came true ``(n,)`` bool of some images, n > 0."""
    n, right = len(said), int(came_true.sum())
    return {"predicted": float(said.double().mean()), "right": right / n, "ci95": list(wilson(right, n)), "n": n}


def forecasts(outcomes: Mapping[str, Outcome]) -> dict[str, dict[str, Any]]:
    """Return `forecast_of` each policy stage that predicts chances; outcomes are as `evaluate` returns them."""
    low = outcomes.get("lr")
    found = {
        stage: forecast_of(outcome, None if low is None else low.right)
        for stage, outcome in outcomes.items()
        if "/" not in stage
    }
    return {stage: said for stage, said in found.items() if said is not None}

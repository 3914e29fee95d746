"""Guarantee an operating point's accuracy by exact binomial tests, one after the other.

Learn then Test (Angelopoulos, Bates, Candes, Jordan, Lei 2021, arXiv 2110.01052) turns "which thresholds keep the risk
below a level" into tests of many hypotheses. With 0/1 errors the binomial p-value is exact (Clopper and Pearson 1934),
and fixed-sequence testing keeps the probability of any wrong rejection below ``1 - confidence`` without a correction,
as long as the order of the tests does not depend on the calibration labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.stats import binom
from torch import Tensor


def p_values(correct: Tensor, n: int, accuracy: float) -> Tensor:
    """Return p-values of "the true accuracy is below ``accuracy``": the chance of as many right answers or more.

    Args:
        correct: numbers of right answers among ``n`` independent images, any shape, int64.
        accuracy: more than 0 and less than 1.

    Returns:
        ``P(Binomial(n, accuracy) >= correct)``, float64 of the same shape.
    """
    return torch.from_numpy(binom.sf(correct.numpy() - 1, n, accuracy))


def proved(p: Tensor, order: Sequence[int], confidence: float) -> list[int]:
    """Return the points proved by fixed-sequence testing: those in ``order`` before the first that fails.

    With a probability of at least ``confidence`` every one of them has the accuracy that `p_values` tested, so any of
    them may be picked.

    Args:
        p: ``(M,)`` p-values of all points.
        order: points in the order of their tests, fixed without the calibration labels.
        confidence: more than 0 and less than 1.
    """
    found: list[int] = []
    for point in order:
        if float(p[point]) > 1 - confidence:
            break
        found.append(point)
    return found


def towards_cheaper(accuracy: Sequence[float]) -> list[int]:
    """Order the tests of points sorted from cheap to dear: from the most accurate one to ever cheaper ones.

    Args:
        accuracy: accuracy of each point on images that are not used for calibration. Of equal ones the cheapest starts.
    """
    best = max(range(len(accuracy)), key=lambda point: (accuracy[point], -point))
    return list(range(best, -1, -1))

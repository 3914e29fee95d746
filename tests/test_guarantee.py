"""Guaranteed operating points: exact p-values, and a guarantee that holds where the truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from scipy import stats
from torch import Tensor

from patchdrop.errors import DataError
from patchdrop.evaluation.calibrate import guaranteed
from patchdrop.evaluation.guarantee import p_values, proved, towards_cheaper

SPLITS = 4000


@pytest.mark.parametrize(("n", "accuracy"), [(1, 0.5), (30, 0.85), (400, 0.9), (5000, 0.99)])
def test_p_values_are_the_binomial_tail(n: int, accuracy: float) -> None:
    correct = torch.arange(n + 1)
    expected = stats.binom.sf(correct.numpy() - 1, n, accuracy)
    torch.testing.assert_close(p_values(correct, n, accuracy), torch.from_numpy(expected), rtol=1e-8, atol=1e-300)


def test_a_p_value_by_hand() -> None:
    """Three of three right with a chance of a half each: 1/8; two or more: 1/2."""
    assert p_values(torch.tensor([[3, 2], [1, 0]]), 3, 0.5).flatten().tolist() == pytest.approx([0.125, 0.5, 0.875, 1])


def test_testing_stops_at_the_first_failure_and_passes_at_the_level_itself() -> None:
    p = torch.tensor([0.001, 0.2, 0.25, 0.01])
    assert proved(p, [3, 2, 1, 0], 0.75) == [3, 2, 1, 0]
    assert proved(p, [3, 2, 1, 0], 0.9) == [3]
    assert proved(p, [1, 3], 0.9) == []


def test_tests_start_at_the_most_accurate_point_and_go_on_to_cheaper_ones() -> None:
    assert towards_cheaper([0.5, 0.7, 0.9, 0.8]) == [2, 1, 0]
    assert towards_cheaper([0.5, 0.9, 0.9]) == [1, 0]
    assert towards_cheaper([0.9, 0.5]) == [0]


def split(truth: Tensor, n: int, draw: torch.Generator) -> Tensor:
    """Number of right answers of each point on ``SPLITS`` calibration sets of n images: ``(SPLITS, M)``.

    An image has one difficulty for all points, so that the points' counts go together, as they do in a curve.
    """
    difficulty = torch.rand(SPLITS, n, generator=draw, dtype=torch.float64)
    return torch.stack([(difficulty < accuracy).sum(1) for accuracy in truth], 1)


def broken(passed: Tensor, order: Sequence[int], truth: Tensor, wanted: float) -> float:
    """Share of splits whose cheapest proved point, the last before the first failure, has too low a true accuracy.

    Args:
        passed: ``(SPLITS, M)`` bool.
    """
    count = passed[:, order].long().cumprod(1).sum(1)
    last = torch.tensor(order)[(count - 1).clamp(min=0)]
    return float(((truth[last] < wanted) & (count > 0)).double().mean())


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("rising", torch.linspace(0.7, 0.95, 33, dtype=torch.float64)),
        ("falling where all is read", torch.tensor([0.7, 0.8, 0.8499, 0.9, 0.93, 0.91], dtype=torch.float64)),
        ("a dip among cheap points", torch.tensor([0.86, 0.8499, 0.83, 0.8499, 0.88], dtype=torch.float64)),
        ("just below everywhere", torch.full((9,), 0.8499, dtype=torch.float64)),
    ],
)
@pytest.mark.parametrize("n", [60, 600])
def test_the_guarantee_fails_in_no_more_splits_than_it_may(n: int, name: str, truth: Tensor, confidence: float) -> None:
    wanted = 0.85
    correct = split(truth, n, torch.Generator().manual_seed(n))
    order = towards_cheaper(truth.tolist())
    allowed = 1 - confidence
    chance = 4 * math.sqrt(allowed * confidence / SPLITS)
    assert broken(p_values(correct, n, wanted) <= allowed, order, truth, wanted) <= allowed + chance, name


def test_choosing_by_the_measured_accuracy_instead_would_fail_far_more_often() -> None:
    """So that the simulation can tell a guarantee from none."""
    truth = torch.linspace(0.7, 0.95, 33, dtype=torch.float64)
    correct = split(truth, 600, torch.Generator().manual_seed(0))
    assert broken(correct / 600 >= 0.85, towards_cheaper(truth.tolist()), truth, 0.85) > 0.3


def test_taking_any_point_that_passes_without_an_order_would_fail_more_often() -> None:
    bad = torch.tensor([0.8499], dtype=torch.float64)
    correct = torch.cat([split(bad, 600, torch.Generator().manual_seed(i)) for i in range(9)], 1)
    passed = p_values(correct, 600, 0.85) <= 0.05
    assert float(passed.any(1).double().mean()) > 0.2
    assert broken(passed, range(9), bad.expand(9), 0.85) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / SPLITS)


def test_the_simulation_tests_as_the_command_does() -> None:
    truth = torch.linspace(0.7, 0.95, 33, dtype=torch.float64)
    p = p_values(split(truth, 600, torch.Generator().manual_seed(5)), 600, 0.85)
    order = towards_cheaper(truth.tolist())
    lengths = (p <= 1 - 0.95)[:, order].long().cumprod(1).sum(1)
    assert [len(proved(row, order, 0.95)) for row in p[:50]] == lengths[:50].tolist()


def test_the_guarantee_is_of_use_a_clearly_good_point_is_found_nearly_always() -> None:
    truth = torch.linspace(0.7, 0.95, 33, dtype=torch.float64)
    passed = p_values(split(truth, 600, torch.Generator().manual_seed(3)), 600, 0.85) <= 0.05
    order = towards_cheaper(truth.tolist())
    count = passed[:, order].long().cumprod(1).sum(1)
    cheapest = truth[torch.tensor(order)[(count - 1).clamp(min=0)]]
    assert float((count > 0).double().mean()) > 0.999
    assert float(cheapest.mean()) < 0.885  # about two deviations of a share of 600 images above what was asked for


def test_the_chosen_point_is_the_cheapest_proved_one() -> None:
    difficulty = torch.arange(600) / 600
    right = torch.stack([difficulty < accuracy for accuracy in (0.7, 0.86, 0.885, 0.95)])
    found = guaranteed(0.85, 0.95, [0.7, 0.86, 0.9, 0.95], right)
    assert (found["point"], found["tested"]) == (2, [3, 2, 1])
    assert found["p_value"] == pytest.approx(float(stats.binom.sf(531 - 1, 600, 0.85)))
    with pytest.raises(
        DataError, match=r"0\.97 of new images with confidence 0\.95; the best one on the 600 .*0\.9500"
    ):
        guaranteed(0.97, 0.95, [0.7, 0.86, 0.9, 0.95], right)

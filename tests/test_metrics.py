"""Figures of merit against values from the literature or worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from patchdrop.evaluation.metrics import distinct_masks, entropy, mcnemar, same_mask, spread, wilson


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_has_the_published_values(correct: int, n: int, low: float, high: float) -> None:
    found = wilson(correct, n)
    assert found == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - correct, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilsons_interval_stays_in_0_to_1_and_says_nothing_of_no_images() -> None:
    assert wilson(0, 7)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


def outcomes(both: int, ours: int, theirs: int, neither: int) -> tuple[Tensor, Tensor]:
    """Who was right, from the four cells of a table."""
    cells = [(True, True)] * both + [(True, False)] * ours + [(False, True)] * theirs
    cells += [(False, False)] * neither
    return torch.tensor([a for a, _ in cells]), torch.tensor([b for _, b in cells])


@pytest.mark.parametrize(
    ("ours", "theirs", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (6, 0, 2 / 64),
        (5, 1, 2 * (1 + 6) / 64),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (4, 4, 1.0),
        (3, 4, 1.0),
    ],
)
def test_mcnemar_is_the_two_sided_binomial_tail(ours: int, theirs: int, p: float) -> None:
    assert mcnemar(*outcomes(30, ours, theirs, 5)) == pytest.approx(p, rel=1e-12)
    assert mcnemar(*outcomes(0, theirs, ours, 50)) == pytest.approx(p, rel=1e-12)


def test_mcnemar_of_thousands_of_images_is_exact_to_nine_digits() -> None:
    n, smaller = 2100, 1000
    exact = 2 * sum(math.comb(n, i) for i in range(smaller + 1)) / 2**n
    assert mcnemar(*outcomes(0, 1000, 1100, 0)) == pytest.approx(exact, rel=1e-9)
    assert mcnemar(*outcomes(0, 3000, 0, 0)) == 0.0


def test_the_entropy_of_even_sure_and_quarter_decisions() -> None:
    assert entropy(torch.zeros(3, 4)) == pytest.approx(math.log(2), rel=1e-12)
    assert entropy(torch.full((2, 2), 1e4)) == 0.0
    assert entropy(torch.full((2, 2), -1e4)) == 0.0
    quarter = torch.full((2, 2), math.log(1 / 3), dtype=torch.float64)
    by_hand = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert entropy(quarter) == pytest.approx(by_hand, rel=1e-12)
    mixed = torch.tensor([[0.0, 1e4], [-1e4, 0.0]])
    assert entropy(mixed) == pytest.approx(math.log(2) / 2, rel=1e-12)


def test_the_commonest_mask_is_counted() -> None:
    assert same_mask(torch.tensor([[True, False], [False, False], [True, False], [True, True]])) == 2


def test_distinct_masks_counts_different_rows() -> None:
    rows = torch.tensor([[1, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)
    assert distinct_masks(rows) == 3
    assert distinct_masks(rows[:2]) == 1
    assert distinct_masks(torch.eye(5, dtype=torch.bool)) == 5


def test_the_spread_is_the_mean_and_deviation_of_s() -> None:
    rows = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)
    assert spread(rows) == {"mean_patches": 2.0, "patches_sd": math.sqrt(2), "distinct_masks": 4.0}

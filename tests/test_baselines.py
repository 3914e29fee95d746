"""FixedScores selectors choose what their definition says."""

from __future__ import annotations

import pytest
import torch

from patchdrop.errors import UsageError
from patchdrop.grid import Grid
from patchdrop.policy.baselines import centre_first, fixed_columns, fixed_rows, stochastic
from patchdrop.policy.choice import greedy, sampled

LOW = torch.zeros(3, 3, 8, 8)
FOUR = Grid(4, 4)


@pytest.mark.parametrize(("length", "order"), [(1, [0]), (3, [1, 0, 2]), (4, [1, 2, 0, 3]), (5, [2, 1, 3, 0, 4])])
def test_the_middle_comes_first(length: int, order: list[int]) -> None:
    assert centre_first(length) == order


@pytest.mark.parametrize(
    ("count", "rows", "columns"),
    [
        (0, [], []),
        (1, [5], [5]),
        (4, [4, 5, 6, 7], [1, 5, 9, 13]),
        (5, [4, 5, 6, 7, 9], [1, 5, 6, 9, 13]),
        (6, [4, 5, 6, 7, 9, 10], [1, 5, 6, 9, 10, 13]),
        (16, list(range(16)), list(range(16))),
    ],
)
def test_fixed_choosers_keep_exactly_these_patches(count: int, rows: list[int], columns: list[int]) -> None:
    for policy, expected in ((fixed_rows(FOUR, count), rows), (fixed_columns(FOUR, count), columns)):
        choice = greedy(policy(LOW))
        assert choice.shape == (3, 16)
        assert all(mask.nonzero().flatten().tolist() == expected for mask in choice)


def test_a_fixed_choosers_sample_is_its_greedy_choice() -> None:
    policy = fixed_rows(Grid(3, 5), 7)
    assert torch.equal(sampled(policy(LOW)), greedy(policy(LOW)))


@pytest.mark.parametrize("mean_patches", [0.5, 5.2, 9.0, 15.9])
@pytest.mark.parametrize("grid", [FOUR, Grid(3, 5)])
def test_stochastic_keeps_the_wanted_mean_and_fewer_far_from_the_centre(grid: Grid, mean_patches: float) -> None:
    wanted = min(mean_patches, grid.patches - 0.1)
    policy = stochastic(grid, wanted)
    probabilities = torch.sigmoid(policy(LOW)[0].double())
    assert float(probabilities.sum()) == pytest.approx(wanted, rel=1e-4)
    centre, corner = probabilities[(grid.rows // 2) * grid.cols + grid.cols // 2], probabilities[0]
    assert corner < centre
    torch.manual_seed(0)
    counts = sampled(policy(torch.zeros(20_000, 3, 2, 2))).double().mean(0)
    assert torch.allclose(counts, probabilities, atol=0.02)


def test_more_patches_than_there_are_are_refused() -> None:
    for make in (fixed_rows, fixed_columns, stochastic):
        with pytest.raises(UsageError, match="17 patches cannot be kept of 16"):
            make(FOUR, 17)

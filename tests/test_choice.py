"""From patch logits to a choice, and the baselines of the same signature."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from patchdrop.policy.choice import (
    greedy,
    keep_all,
    mixed,
    random_patches,
    sampled,
    shuffled,
    top,
)


def test_greedy_takes_a_patch_from_a_probability_of_a_half_on() -> None:
    logits = torch.tensor([[-1.0, -1e-30, 0.0, 1e-30, 1.0]])
    assert greedy(logits).tolist() == [[False, False, True, True, True]]


@pytest.mark.parametrize("alpha", [0.5, 0.7, 0.95, 1.0])
def test_mixing_moves_probabilities_towards_a_half(alpha: float) -> None:
    probability = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    by_hand = [alpha * s + (1 - alpha) * (1 - s) for s in probability.tolist()]
    found = mixed(torch.logit(probability), alpha)
    torch.testing.assert_close(found, torch.tensor(by_hand, dtype=torch.float64), rtol=0, atol=1e-15)


def test_without_exploration_the_probability_is_the_sigmoid() -> None:
    logits = torch.linspace(-5, 5, 11)
    assert torch.equal(mixed(logits, 1.0), torch.sigmoid(logits))


@pytest.mark.parametrize("alpha", [1.0, 0.8])
def test_patches_are_sampled_as_often_as_their_mixed_probability_says(alpha: float) -> None:
    torch.manual_seed(0)
    n = 40_000
    logits = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0])
    drawn = sampled(logits.expand(n, 5), alpha)
    assert drawn.dtype == torch.bool
    expected = mixed(logits, alpha)
    deviation = (expected * (1 - expected) / n).sqrt()
    assert bool(((drawn.float().mean(0) - expected).abs() < 4 * deviation).all())


def test_patches_are_sampled_independently_of_each_other_and_anew_for_each_image() -> None:
    torch.manual_seed(0)
    drawn = sampled(torch.zeros(20_000, 4), 1.0).float()
    assert bool((torch.corrcoef(drawn.T) - torch.eye(4)).abs().max() < 0.03)
    assert len(torch.unique(drawn, dim=0)) == 16


def test_a_sure_patch_is_always_or_never_sampled_without_exploration() -> None:
    logits = torch.tensor([[1e4, -1e4]]).expand(1000, 2)
    assert sampled(logits, 1.0).sum(0).tolist() == [1000, 0]


def test_keep_all_has_the_signature_of_a_choice() -> None:
    everything = keep_all(torch.zeros(3, 5))
    assert everything.dtype == torch.bool
    assert everything.shape == (3, 5)
    assert bool(everything.all())


@pytest.mark.parametrize("mean", [0.0, 0.3, 1.0, 4.25, 5.9, 16.0])
def test_random_patches_match_the_mean_and_differ_by_one_patch_at_most(mean: float) -> None:
    n = 20_000
    choice = random_patches(torch.zeros(n, 16), mean, torch.Generator().manual_seed(3))
    counts = choice.sum(1)
    assert set(counts.tolist()) <= {int(mean), min(int(mean) + 1, 16)}
    share = mean - int(mean)
    assert abs(float(counts.double().mean()) - mean) <= 4 * (share * (1 - share) / n) ** 0.5
    frequency = choice.double().mean(0)
    expected = mean / 16
    assert bool(((frequency - expected).abs() <= 4.5 * (expected * (1 - expected) / n) ** 0.5).all())


def test_random_patches_are_whole_numbers_exactly_and_repeat_with_their_generator() -> None:
    first = random_patches(torch.zeros(50, 16), 5.0, torch.Generator().manual_seed(1))
    again = random_patches(torch.zeros(50, 16), 5.0, torch.Generator().manual_seed(1))
    other = random_patches(torch.zeros(50, 16), 5.0, torch.Generator().manual_seed(2))
    assert set(first.sum(1).tolist()) == {5}
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def rows(choice: Tensor) -> Counter[tuple[bool, ...]]:
    return Counter(map(tuple, choice.tolist()))


@pytest.mark.parametrize("n", [1, 2, 3, 10, 65])
def test_shuffling_deals_the_same_masks_again(n: int) -> None:
    choice = torch.rand(n, 16, generator=torch.Generator().manual_seed(n)) < 0.3
    assert rows(shuffled(choice, torch.Generator().manual_seed(0))) == rows(choice)


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_after_shuffling_no_image_keeps_its_own_mask(n: int) -> None:
    own = torch.eye(n, dtype=torch.bool)
    for seed in range(50):
        dealt = shuffled(own, torch.Generator().manual_seed(seed))
        assert not bool((dealt & own).any())


def test_shuffling_depends_on_the_generator() -> None:
    own = torch.eye(12, dtype=torch.bool)
    dealt = {str(shuffled(own, torch.Generator().manual_seed(seed)).tolist()) for seed in range(10)}
    assert len(dealt) > 5


def test_top_keeps_the_highest_logits_and_the_smaller_number_where_they_are_equal() -> None:
    logits = torch.tensor([[0.0, 3.0, -1.0, 2.0], [5.0, 5.0, 5.0, 5.0], [-4.0, -3.0, -2.0, -1.0]])
    assert top(logits, 2).long().tolist() == [[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]]
    assert not bool(top(logits, 0).any())
    assert bool(top(logits, 4).all())


def test_top_of_a_fraction_keeps_floor_or_ceil_of_it_with_that_mean_and_repeats_with_its_generator() -> None:
    n, mean = 20_000, 5.2
    logits = torch.randn(n, 16, generator=torch.Generator().manual_seed(0))
    choice = top(logits, mean, torch.Generator().manual_seed(1))
    counts = choice.sum(1)
    assert set(counts.tolist()) == {5, 6}
    assert abs(float(counts.double().mean()) - mean) <= 4 * (0.16 / n) ** 0.5
    lowest_chosen, highest_other = logits.masked_fill(~choice, 9).amin(1), logits.masked_fill(choice, -9).amax(1)
    assert bool((lowest_chosen > highest_other).all())
    assert torch.equal(choice, top(logits, mean, torch.Generator().manual_seed(1)))
    assert not torch.equal(choice, top(logits, mean, torch.Generator().manual_seed(2)))

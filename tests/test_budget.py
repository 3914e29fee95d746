"""Choices under a budget: nested, exact on average, and equal to the policy's own choice where nothing is asked."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import Tensor

from patchdrop.errors import UsageError
from patchdrop.policy.budget import ALL, NONE, above, at_most, cut_for_mean, logit_of, probability_of
from patchdrop.policy.choice import greedy
from patchdrop.settings.dial import Dial, Target


def logits(n: int = 200, patches: int = 16, seed: int = 0) -> Tensor:
    """Images of very different needs, with some equal logits."""
    draw = torch.Generator().manual_seed(seed)
    found = torch.randn(n, patches, generator=draw) + 2 * torch.randn(n, 1, generator=draw)
    found[::7] = found[::7].round()
    return found


def test_a_threshold_of_a_half_is_the_greedy_choice_to_the_bit() -> None:
    scores = torch.cat([logits(), torch.zeros(1, 16), torch.full((1, 16), -1e-30)])
    assert logit_of(0.5) == 0.0
    assert torch.equal(above(scores, logit_of(0.5)), greedy(scores))
    assert torch.equal(above(scores), greedy(scores))
    assert torch.equal(at_most(scores, 16), greedy(scores))


def test_what_is_chosen_under_a_budget_is_chosen_under_every_larger_one() -> None:
    for cut in (ALL, 0.0, 0.7):
        choices = [at_most(logits(), budget, cut) for budget in range(17)]
        for smaller, larger in itertools.pairwise(choices):
            assert not bool((smaller & ~larger).any())
        assert not bool(choices[0].any())
        assert torch.equal(choices[16], above(logits(), cut))


@pytest.mark.parametrize("budget", [0, 1, 5, 16])
def test_a_budget_keeps_the_best_of_those_the_policy_would_choose_and_no_others(budget: int) -> None:
    scores = logits()
    choice, own = at_most(scores, budget), greedy(scores)
    assert torch.equal(choice.sum(1), own.sum(1).clamp(max=budget))
    assert not bool((choice & ~own).any())
    worst_kept = scores.masked_fill(~choice, 1e9).amin(1)
    best_left = scores.masked_fill(choice | ~own, -1e9).amax(1)
    assert bool((worst_kept >= best_left).all())
    assert torch.equal(at_most(scores, budget, ALL).sum(1), torch.full((200,), budget))


def test_of_equal_logits_the_smaller_number_is_kept() -> None:
    assert at_most(torch.ones(1, 4), 2).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("mean", [0, 0.005, 0.3, 1, 4, 5.37, 15.9, 16])
def test_the_mean_budget_is_met_on_the_images_it_was_found_on(mean: float) -> None:
    scores = torch.randn(1000, 16, generator=torch.Generator().manual_seed(1))
    used = float(above(scores, cut_for_mean(scores, mean)).sum(1).double().mean())
    assert used == pytest.approx(mean, abs=0.5001 / 1000)


@pytest.mark.parametrize("mean", [2, 4, 8])
def test_the_mean_budget_is_met_on_other_images_of_the_same_kind_but_for_chance(mean: float) -> None:
    used = above(logits(4000, seed=2), cut_for_mean(logits(4000, seed=1), mean)).sum(1).double()
    deviation = float(used.std()) * (2 / 4000) ** 0.5  # of the difference of two means
    assert float(used.mean()) == pytest.approx(mean, abs=4 * deviation)


def test_a_mean_budget_is_spent_where_logits_are_high() -> None:
    scores = torch.cat([torch.full((5, 4), -1.0), torch.full((5, 4), 1.0)]) + torch.randn(10, 4) * 0.1
    assert above(scores, cut_for_mean(scores, 2)).sum(1).tolist() == [0] * 5 + [4] * 5


def test_equal_logits_are_all_kept_or_all_left_whichever_is_nearer_to_the_mean() -> None:
    blind = torch.tensor([3.0, 1.0, 1.0, -2.0]).expand(10, 4)
    found = [int(above(blind, cut_for_mean(blind, mean)).sum(1)[0]) for mean in (0, 0.4, 1, 1.9, 2.1, 3, 3.6, 4)]
    assert found == [0, 0, 1, 1, 3, 3, 4, 4]


def test_neighbouring_floats_are_still_told_apart() -> None:
    low = torch.tensor(1.0)
    high = torch.nextafter(low, torch.tensor(2.0))
    scores = torch.stack([high, low]).view(1, 2)
    assert above(scores, cut_for_mean(scores, 1)).tolist() == [[True, False]]


def test_none_and_all_lie_beyond_any_logit_and_survive_json() -> None:
    scores = torch.tensor([[-1e20, 1e20]])
    for cut, kept in ((logit_of(0), True), (logit_of(1), False), (cut_for_mean(scores, 2), True)):
        again = json.loads(json.dumps(cut))
        assert above(scores, again).tolist() == [[kept, kept]]
    assert (probability_of(ALL), probability_of(0.0), probability_of(NONE)) == (0.0, 0.5, 1.0)
    assert logit_of(0.9) == pytest.approx(math.log(9))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"budget": -1}, "budget: -1 is out of range"),
        ({"mean_budget": -0.1}, "mean_budget: -0.1 is out of range"),
        ({"mean_budget": math.nan}, "mean_budget: nan is out of range"),
        ({"threshold": 1.5}, "threshold: 1.5 is out of range, a probability is 0 to 1"),
        ({"budget": 2, "mean_budget": 3}, "--mean-budget and --budget contradict each other"),
        ({"threshold": 0.1, "mean_budget": 3}, "--mean-budget and --threshold contradict each other"),
        ({"calibrated": True, "budget": 3}, "--calibrated and --budget contradict each other"),
    ],
)
def test_a_dial_out_of_range_or_contradicting_itself_is_refused(flags: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Dial(**flags)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"target_accuracy": 1}, "target_accuracy: 1 is out of range"),
        ({"target_accuracy": 0.8, "confidence": 1}, "confidence: 1 is out of range"),
        ({"target_accuracy": 0.8, "mean_budget": 3}, "--mean-budget and --target-accuracy contradict each other"),
        ({"target_cost": -1}, "target_cost: -1 is out of range"),
        ({"target_cost": 3, "unit": "money"}, "unit money needs --price"),
        ({"target_cost": 3, "price": 3}, "--price needs --unit money"),
        ({"unit": "milliseconds"}, "unit milliseconds needs --target-cost"),
    ],
)
def test_a_target_out_of_range_or_contradicting_itself_is_refused(flags: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Target(**flags)  # type: ignore[arg-type]


@pytest.mark.parametrize("dial", [Dial(budget=17), Dial(mean_budget=16.5)])
def test_a_budget_above_the_number_of_patches_is_refused(dial: Dial) -> None:
    with pytest.raises(UsageError, match="this run's grid has 16 patches; use 0 to 16"):
        dial.check(16)


def test_a_dial_says_in_words_what_it_asks_for() -> None:
    said = [str(d) for d in (Dial(), Dial(budget=4), Dial(budget=4, threshold=0.2), Dial(mean_budget=2.5))]
    assert said == ["greedy", "at most 4 patches", "at most 4 patches, threshold 0.2", "2.5 patches on average"]
    assert [Dial().turned, Dial(threshold=0.5).turned] == [False, True]

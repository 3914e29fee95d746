"""The verdict on a policy: each kind, what its sentence says, and that chance alone condemns nobody.

Strategies are played by hand: `result_of` says on how many of n images one is right, and how many patches it reads.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from patchdrop.evaluation.metrics import mcnemar
from patchdrop.evaluation.verdict import (
    CASCADE,
    EVERYTHING,
    FEW_IMAGES,
    NOTHING,
    PLACES,
    SURE,
    StrategyResult,
    low_is_enough,
    surplus,
    verdict,
)

PATCHES = 16
IMAGES = 400


def result_of(right: int, patches: float, images: int = IMAGES) -> StrategyResult:
    """Right on the first ``right`` images; reads ``patches`` of an image on average, floor or ceil of them."""
    counts = torch.full((images,), int(patches))
    counts[: round((patches - int(patches)) * images)] += 1
    return StrategyResult(torch.arange(images) < right, counts)


def others(images: int = IMAGES, **changes: StrategyResult) -> dict[str, StrategyResult]:
    """Plain strategies that all lose to a policy that is right on 9 of 10 with 4 patches at a price of 0.1."""
    tenth = images // 10
    plain = {
        NOTHING: result_of(6 * tenth, 0, images),
        EVERYTHING: result_of(9 * tenth, PATCHES, images),
        CASCADE: result_of(7 * tenth, 4, images),
        PLACES: result_of(7 * tenth, 4, images),
    }
    return {**plain, **{name.replace("_", " "): change for name, change in changes.items()}}


def judged(
    ours: StrategyResult, plain: dict[str, StrategyResult], price: float = 0.1, tolerance: float = 0.5
) -> dict[str, Any]:
    return verdict(ours, plain, price, PATCHES, tolerance)


def random_right(share: float, images: int, seed: int) -> Tensor:
    return torch.rand(images, generator=torch.Generator().manual_seed(seed)) < share


# --- surplus


def test_the_surplus_is_the_difference_over_its_deviation_with_two_images_more() -> None:
    theirs = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    ours = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    # Differences 1, 1, 0, -1: a sum of 1, and squares about their mean of 3 - 4 / 16.
    assert surplus(theirs, ours) == pytest.approx(1 / math.sqrt(2.75 + 2), abs=1e-12)
    assert surplus(ours, theirs) == pytest.approx(-1 / math.sqrt(2.75 + 2), abs=1e-12)


def test_a_surplus_is_0_of_equals_and_finite_where_every_image_differs_alike() -> None:
    ones = torch.ones(9, dtype=torch.float64)
    assert surplus(ones, ones) == 0
    assert surplus(ones, 0 * ones) == pytest.approx(9 / math.sqrt(2), abs=1e-12)
    assert surplus(ones[:3], 0 * ones[:3]) < SURE < surplus(ones[:4], 0 * ones[:4])


def test_what_a_strategy_is_worth_is_its_accuracy_less_the_price_of_what_it_reads() -> None:
    some = StrategyResult(torch.tensor([True, False, True]), torch.tensor([0, 8, 16]))
    assert some.worth(0.25, PATCHES).tolist() == [1.0, -0.125, 0.75]
    assert (some.accuracy, some.mean_patches) == (pytest.approx(2 / 3), 8.0)


# --- kinds


def test_a_policy_that_beats_every_plain_strategy_pays_and_the_sentence_has_the_figures() -> None:
    said = judged(result_of(360, 4), others())
    assert (said["kind"], said["better"], said["images"]) == ("policy", None, IMAGES)
    assert said["sentence"] == (
        "The policy pays: the policy is right on 90.0 % with 25 % of HR. "
        "LR-CNN alone is right on 60.0 %, HR-CNN on 90.0 %."
    )
    assert said["reward"] == pytest.approx(0.9 - 0.1 * 4 / 16)
    assert (said["accuracy"], said["mean_patches"], said["price"]) == (0.9, 4.0, 0.1)


def test_the_figures_of_each_plain_strategy_are_kept() -> None:
    ours, plain = result_of(360, 4), others()
    rows = judged(ours, plain)["plain"]
    assert rows.keys() == plain.keys()
    row = rows[CASCADE]
    assert (row["accuracy"], row["mean_patches"]) == (0.7, 4.0)
    assert row["reward"] == pytest.approx(0.7 - 0.1 * 4 / 16)
    assert row["p_value"] == mcnemar(ours.right, plain[CASCADE].right)
    assert row["surplus"] == surplus(plain[CASCADE].worth(0.1, PATCHES), ours.worth(0.1, PATCHES))
    assert row["surplus"] < 0


def test_where_hr_brings_nothing_and_nothing_is_read_lr_alone_is_enough() -> None:
    plain = others(nothing=result_of(360, 0), everything=result_of(361, PATCHES))
    said = judged(result_of(360, 0), plain)
    assert (said["kind"], said["better"]) == ("nothing", None)
    assert said["sentence"] == (
        "LR alone is enough: LR-CNN alone is right on 90.0 %, HR-CNN on 90.2 %, so nothing is read."
    )


def test_a_policy_that_reads_where_hr_brings_nothing_is_not_said_to_read_nothing() -> None:
    plain = others(nothing=result_of(360, 0), everything=result_of(361, PATCHES))
    assert judged(result_of(360, 0.49), plain)["kind"] == "nothing"
    said = judged(result_of(360, 4), plain, price=1.0)
    assert (said["kind"], said["better"]) == ("loses", NOTHING)


@pytest.mark.parametrize(("patches", "kind"), [(14.3, "policy"), (14.5, "everything"), (16, "everything")])
def test_above_nine_tenths_of_hr_everything_is_needed(patches: float, kind: str) -> None:
    said = judged(result_of(360, patches), others(), price=0.001)
    assert said["kind"] == kind
    if kind == "everything":
        share = f"{100 * patches / 16:.0f} %"
        assert said["sentence"] == (
            "Reading everything is needed: LR-CNN alone is right on 60.0 %, HR-CNN on 90.0 %, and the policy is right "
            f"on 90.0 % with {share} of HR; patches left out cost accuracy."
        )


@pytest.mark.parametrize(
    ("name", "rival", "theirs", "advice"),
    [
        (CASCADE, result_of(390, 4), "97.5 % with 25 % of HR", "Read all of an image where LR-CNN is uncertain"),
        (NOTHING, result_of(380, 0), "95.0 % with 0 % of HR", "Use LR-CNN alone."),
        (EVERYTHING, result_of(400, 16), "100.0 % with 100 % of HR", "Read everything."),
        (PLACES, result_of(390, 4), "97.5 % with 25 % of HR", "Which patches hardly matters"),
        ("detail", result_of(390, 3.2), "97.5 % with 20 % of HR", "Which patches hardly matters"),
    ],
)
def test_a_policy_loses_to_the_plain_strategy_that_is_worth_more_and_is_told_what_to_do(
    name: str, rival: StrategyResult, theirs: str, advice: str
) -> None:
    said = judged(result_of(360, 4), {**others(), name: rival}, price=0.05)
    assert (said["kind"], said["better"]) == ("loses", name)
    named = f"Reading {name}" if name in (NOTHING, EVERYTHING) else name.capitalize()
    start = f"{named} is better than the policy here: right on {theirs}, while "
    assert said["sentence"].startswith(start + "the policy is right on 90.0 % with 25 % of HR. ")
    assert advice in said["sentence"]


def test_of_several_that_win_the_one_worth_most_is_named() -> None:
    plain = {**others(), CASCADE: result_of(385, 4), "detail": result_of(395, 4), PLACES: result_of(390, 4)}
    assert judged(result_of(360, 4), plain)["better"] == "detail"


def test_a_rival_that_is_as_accurate_wins_by_reading_less_at_a_price_that_makes_it_count() -> None:
    cheap = {**others(), CASCADE: result_of(360, 1)}
    assert judged(result_of(360, 4), cheap, price=1e-3)["kind"] == "policy"
    assert judged(result_of(360, 4), cheap, price=1.0)["better"] == CASCADE


def test_where_random_places_do_as_well_certainty_is_to_be_followed() -> None:
    said = judged(result_of(360, 4), others(random_places=result_of(356, 4)))
    assert mcnemar(result_of(360, 4).right, result_of(356, 4).right) > 0.05
    assert (said["kind"], said["better"]) == ("certainty", None)
    assert said["sentence"] == (
        "Which patches hardly matters, spend by certainty: the policy is right on 90.0 % with 25 % of HR, and on "
        "89.0 % with as many patches of each image at random places. LR-CNN alone is right on 60.0 %, HR-CNN on 90.0 %."
    )
    assert mcnemar(result_of(360, 4).right, result_of(354, 4).right) < 0.05
    assert judged(result_of(360, 4), others(random_places=result_of(354, 4)))["kind"] == "policy"


def test_a_policy_that_random_places_beat_does_not_pay_even_where_it_does_not_lose_yet() -> None:
    """Six images more of 400 are sure by McNemar's test, and not among nine strategies."""
    said = judged(result_of(360, 4), others(random_places=result_of(366, 4)))
    assert said["plain"][PLACES]["p_value"] < 0.05
    assert said["plain"][PLACES]["surplus"] < SURE
    assert said["kind"] == "certainty"


# --- chance


def test_few_images_are_said_to_be_few() -> None:
    said = judged(result_of(45, 4, 50), others(50))["sentence"]
    assert said.endswith(
        " Judged by 50 validation images, which is few: a difference of less than 14 points may be chance; "
        "150 more would do better."
    )
    for images, few in ((FEW_IMAGES - 10, True), (FEW_IMAGES, False)):
        sentence = judged(result_of(9 * images // 10, 4, images), others(images))["sentence"]
        assert ("which is few" in sentence) is few


def test_equals_hardly_ever_lose_by_chance_however_few_the_images() -> None:
    """Nine strategies as good as the policy, each on images of its own luck."""
    for images in (10, 40, 400):
        lost = 0
        for seed in range(60):
            draws = [
                StrategyResult(random_right(0.8, images, 10 * seed + i), torch.full((images,), 4)) for i in range(10)
            ]
            names = (NOTHING, EVERYTHING, CASCADE, PLACES, "a", "b", "c", "d", "e")
            lost += judged(draws[0], dict(zip(names, draws[1:], strict=True)))["kind"] == "loses"
        assert lost <= (0 if images == 10 else 4), images


@pytest.mark.parametrize(("more", "loses"), [(3, False), (9, True)])
def test_three_images_more_of_ten_do_not_condemn_a_policy_and_nine_do(more: int, loses: bool) -> None:
    plain = {NOTHING: result_of(0, 0, 10), EVERYTHING: result_of(10, 16, 10), PLACES: result_of(0, 4, 10)}
    said = judged(result_of(1, 4, 10), {**plain, CASCADE: result_of(1 + more, 4, 10)}, price=1.0)
    assert (said["kind"] == "loses") is loses, said["sentence"]


# --- LR is enough


@pytest.mark.parametrize(("low", "enough"), [(398, True), (397, False), (400, True), (399, True), (0, False)])
def test_lr_is_enough_up_to_the_tolerance(low: int, enough: bool) -> None:
    """HR-CNN is right on all 400 images, so that the tolerance of half a point is two of them."""
    assert low_is_enough(torch.arange(400) < low, torch.ones(400, dtype=torch.bool), 0.5) is enough


def test_the_border_is_met_whatever_floats_make_of_it() -> None:
    right = torch.ones(1000, dtype=torch.bool)
    for wrong in range(1, 40):  # tenths of a point
        assert low_is_enough(torch.arange(1000) >= wrong, right, wrong / 10), wrong
        assert not low_is_enough(torch.arange(1000) > wrong, right, wrong / 10), wrong


def test_lr_is_enough_where_it_is_better_or_the_tolerance_is_all() -> None:
    low, high = torch.arange(400) < 300, torch.arange(400) < 200
    assert low_is_enough(low, high, 0.0)
    assert not low_is_enough(high, low, 24.99)
    assert low_is_enough(high, low, 25.0)
    assert low_is_enough(~low & ~high, low | True, 100.0)

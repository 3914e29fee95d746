"""What a policy predicts of itself: of a choice, against what came true, and the verdict that a run shows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from patchdrop.errors import RunError
from patchdrop.evaluation.forecast import forecast_of, forecasts
from patchdrop.evaluation.metrics import calibration_error, parts_of, wilson
from patchdrop.evaluation.outcome import Outcome
from patchdrop.evaluation.verdict import EVERYTHING, NOTHING, PLACES, StrategyResult, last_verdict, verdict
from patchdrop.policy.budget import above, at_most
from patchdrop.policy.choice import greedy
from patchdrop.policy.ranking import forecast
from patchdrop.runs.folder import RunFolder
from patchdrop.serve.predictor import chances_of
from untrained import untrained_run

SCORES = torch.tensor([[0.5, 2.0, -1.0], [-3.0, -2.0, -1.0]])
CHANCES = torch.tensor([[0.1, 0.4, 0.6, 0.7], [0.2, 0.3, 0.5, 0.9]])


def test_a_forecast_is_of_no_patch_of_those_chosen_and_of_all() -> None:
    said = forecast(SCORES, CHANCES, greedy(SCORES))
    assert [chance.tolist() for chance in said] == [
        pytest.approx([0.1, 0.2]),
        pytest.approx([0.6, 0.2]),
        pytest.approx([0.7, 0.9]),
    ]


@pytest.mark.parametrize(
    ("choice", "after"),
    [(above(SCORES, -1.5), [0.7, 0.3]), (above(SCORES, -9), [0.7, 0.9]), (at_most(SCORES, 1, 0.0), [0.4, 0.2])],
)
def test_under_the_dial_a_forecast_is_of_as_many_patches_as_it_leaves(choice: Tensor, after: list[float]) -> None:
    assert forecast(SCORES, CHANCES, choice).after.tolist() == pytest.approx(after)


def test_of_patches_that_are_not_the_first_of_the_ranking_nothing_is_said() -> None:
    choice = torch.tensor([[True, False, False], [False, False, True]])
    assert math.isnan(forecast(SCORES, CHANCES, choice).after[0])
    (now, after, everything), second = chances_of(SCORES, CHANCES, choice)
    assert after is None and (now, everything) == pytest.approx((0.1, 0.7)) and second == pytest.approx((0.2, 0.3, 0.9))


def test_a_policy_that_does_not_say_has_no_chances() -> None:
    assert [list(said) for said in chances_of(SCORES, None, greedy(SCORES))] == [[None] * 3] * 2


# --- predicted against measured


def outcome(chances: Tensor | None, right: Tensor) -> Outcome:
    """Of images of two patches that read none."""
    n = len(right)
    scores = torch.tensor([[-1.0, -2.0]]).expand(n, 2)
    logits = torch.stack([right.float(), 1 - right.float()], 1)
    return Outcome(scores, torch.zeros(n, 2, dtype=torch.bool), logits, torch.zeros(n, dtype=torch.long), chances)


def test_images_are_parted_by_what_was_predicted_of_them() -> None:
    now = torch.tensor([0.9, 0.1, 0.5, 0.3] * 5)
    chances = torch.stack([now, now, now], 1)
    right = torch.tensor([True, False, True, False] * 5)
    found = forecast_of(outcome(chances, right), ~right)
    assert found is not None
    assert [part["n"] for part in found["bins"]] == [2] * 10
    assert found["bins"][0] == {"predicted": pytest.approx(0.1), "right": 0.0, "ci95": list(wilson(0, 2)), "n": 2}
    assert found["bins"][9] == {"predicted": pytest.approx(0.9), "right": 1.0, "ci95": list(wilson(2, 2)), "n": 2}
    assert found["calibration_error"]["chance_after"] == pytest.approx((0.1 + 0.1 + 0.5 + 0.3) / 4, abs=0.05)
    assert found["calibration_error"]["chance_now"] == pytest.approx(calibration_error(now, ~right))


def test_no_part_is_empty_where_images_are_few() -> None:
    said, came = torch.tensor([0.3, 0.1]), torch.tensor([True, False])
    assert [(a.tolist(), b.tolist()) for a, b in parts_of(said, came)] == [
        ([pytest.approx(0.1)], [False]),
        ([pytest.approx(0.3)], [True]),
    ]
    assert calibration_error(said, came) == pytest.approx((0.7 + 0.1) / 2)
    assert calibration_error(said[:0], came[:0]) == 0


def test_a_chance_that_comes_true_as_often_as_it_says_has_no_error() -> None:
    assert calibration_error(torch.full((40,), 0.25), torch.arange(40) % 4 == 0, bins=10) == pytest.approx(0)


def test_only_policies_that_say_have_a_forecast_and_yardsticks_have_none() -> None:
    right = torch.tensor([True, False, True])
    says, mute = outcome(torch.full((3, 3), 0.5), right), outcome(None, right)
    assert list(forecasts({"lr": mute, "pt": mute, "ft1": says, "ft1/random": says})) == ["ft1"]
    assert forecasts({"pt": says})["pt"]["calibration_error"]["chance_now"] is None


# --- the verdict of a run


def said(kind: str = "loses") -> dict[str, Any]:
    """What a stage's config.json holds."""
    figures = {"accuracy": 0.8, "mean_patches": 3.0, "reward": 0.7}
    plain = {"nothing": {**figures, "surplus": 1.0, "p_value": 0.5}}
    return {
        "kind": kind,
        "sentence": "So it is.",
        "price": 0.1,
        "images": 12,
        "better": None,
        **figures,
        "plain": plain,
    }


def with_verdict(path: Path, **stages: Any) -> RunFolder:
    """An untrained run of which some stages were judged."""
    run = RunFolder(untrained_run(path))
    for stage, judged in stages.items():
        file = run.stage(stage) / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "verdict": judged}))
    return run


def test_the_verdict_is_that_of_the_last_stage_that_has_one(tmp_path: Path) -> None:
    assert last_verdict(with_verdict(tmp_path / "none")) is None
    assert last_verdict(with_verdict(tmp_path / "pt", pt=said())) == {"stage": "pt", **said()}
    both = with_verdict(tmp_path / "both", pt=said(), ft2=said("policy"))
    assert last_verdict(both) == {"stage": "ft2", **said("policy")}


@pytest.mark.parametrize(
    "damage", [{"kind": "odd"}, {"sentence": None}, {"plain": {"nothing": {}}}, {"plain": 3}, {"price": "x"}]
)
def test_a_damaged_verdict_is_named(tmp_path: Path, damage: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"pt/config\.json: is damaged"):
        last_verdict(with_verdict(tmp_path / "x", pt={**said(), **damage}))


def result_of(right: int, count: int) -> StrategyResult:
    return StrategyResult(torch.arange(300) < right, torch.full((300,), count))


def test_reading_nothing_is_not_said_to_be_nothing() -> None:
    plain = {NOTHING: result_of(290, 0), EVERYTHING: result_of(298, 16), PLACES: result_of(200, 4)}
    found = verdict(result_of(200, 4), plain, 0.1, 16, 0.5)
    assert found["better"] == NOTHING
    assert found["sentence"].startswith("Reading nothing is better than the policy here: right on 96.7 % with 0 %")

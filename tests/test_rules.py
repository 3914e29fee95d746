"""Rules in the policy's place: what each reads, by hand, and what a policy that lost gives way to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from patchdrop.classify.two_stream import TwoStream
from patchdrop.evaluation.outcome import Outcome, outcome_of
from patchdrop.evaluation.verdict import CASCADE, EVERYTHING, NOTHING
from patchdrop.models.build import ModelConfig, build_stage
from patchdrop.models.compute import Compute
from patchdrop.models.shared_pass import RankingModel, RuleModel
from patchdrop.policy.choice import greedy
from patchdrop.policy.rules import Rule
from patchdrop.training.after_stage import References, fall_back
from rows import CPU, VAL
from tiny import CLASSES, config_of, tiny_settings, unsettle

LOW = torch.zeros(3, 3, 2, 2)
DOUBTFUL_FIRST = torch.tensor([[0.1, 0.0], [3.0, 0.0], [9.0, 0.0]])
"""Class logits of three images, ever surer of the first class; log odds of being wrong -0.1, -3 and -9."""
SETTINGS = tiny_settings(policy="ranking", low_stream="pt", fusion="capped", fill="low")


def unseen(low: Tensor) -> Tensor:
    raise AssertionError("this rule looks at nothing")


def test_a_cascade_reads_all_of_the_images_above_its_cut_and_none_of_the_others() -> None:
    rule = Rule("cascade", 4)
    rule.cut.fill_(-3.5)
    assert greedy(rule(LOW, DOUBTFUL_FIRST, unseen)).tolist() == [[True] * 4, [True] * 4, [False] * 4]


def test_a_fixed_mask_reads_the_same_best_places_in_every_image() -> None:
    rule = Rule("fixed mask", 4)
    rule.each.fill_(2)
    rule.places.copy_(torch.tensor([1.0, 4.0, 2.0, 3.0]))
    assert greedy(rule(LOW, DOUBTFUL_FIRST, unseen)).tolist() == [[False, True, False, True]] * 3


def test_detail_reads_the_highest_places_of_each_image() -> None:
    rule = Rule("detail", 4)
    rule.each.fill_(1)
    seen = torch.tensor([[0.0, 1, 2, 3], [3, 2, 1, 0], [0, 5, 0, 0]])
    assert greedy(rule(LOW, DOUBTFUL_FIRST, lambda low: seen)).int().argmax(1).tolist() == [3, 0, 1]


def test_an_activation_map_is_asked_only_of_uncertain_images() -> None:
    rule = Rule("activation map", 4)
    rule.each.fill_(2)
    rule.cut.fill_(-1.0)
    seen = torch.tensor([[0.0, 1, 2, 3]]).expand(3, -1)
    assert greedy(rule(LOW, DOUBTFUL_FIRST, lambda low: seen)).tolist() == [
        [False, False, True, True],
        [False] * 4,
        [False] * 4,
    ]


def test_a_lower_threshold_reads_what_a_higher_one_reads_and_more() -> None:
    rule = Rule("activation map", 4)
    rule.each.fill_(2)
    scores = rule(LOW, DOUBTFUL_FIRST, lambda low: torch.tensor([[0.0, 1, 2, 3]]).expand(3, -1))
    counts = [int((scores >= cut).sum()) for cut in (0.0, -2.0, -5.0, -20.0, -1e9)]
    assert counts == [0, 2, 4, 6, 12]


# --- giving way


def lost_to(better: str) -> tuple[RankingModel, ModelConfig, object, ModelConfig]:
    config = config_of(SETTINGS)
    torch.manual_seed(0)
    model, high = unsettle(build_stage("pt", config)), unsettle(build_stage("hr", config), 7)
    assert isinstance(model, RankingModel)
    n = len(VAL)
    logits = torch.arange(n * len(CLASSES)).float().view(n, -1).sin() * 4
    low = Outcome(torch.zeros(n, 16), torch.zeros(n, 16).bool(), logits, VAL.targets)
    record = {
        "verdict": {"better": better, "mean_patches": 4.0},
        "plain": {"fixed": list(range(16)), "each": 8},
        "calibration_error": 0.5,
    }
    model.train()  # as one that was not trained in this process
    given, described, _ = fall_back(model, config, record, References(VAL, low, low, CPU, config.shape.low), high)
    if better in (CASCADE, EVERYTHING):
        assert isinstance(given.classifier, TwoStream)
        assert float(given.classifier.weight_at(torch.ones(())).detach()) == 1.0
        weights = given.classifier.high.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in high.state_dict().items())
    return model, config, given, described


def test_a_policy_that_lost_to_nothing_reads_nothing_and_one_that_lost_to_everything_reads_all() -> None:
    low = torch.rand(5, 3, 8, 8) * 255
    for better, count in ((NOTHING, 0), (EVERYTHING, 16)):
        _, config, given, described = lost_to(better)
        assert isinstance(given, RankingModel)
        assert described == config
        with torch.no_grad():
            assert greedy(given.look(low).scores).sum(1).tolist() == [count] * 5


def test_a_run_that_reads_everything_says_how_often_hr_cnn_is_right() -> None:
    _, config, given, _ = lost_to(EVERYTHING)
    assert isinstance(given, RankingModel)
    everything = outcome_of(given, config.shape, VAL, lambda s, _: greedy(s), Compute(CPU))
    assert everything.chances is not None
    measured = float(everything.right.double().mean())
    assert float(everything.chances[:, -1].mean()) == pytest.approx(measured, abs=0.15)


def test_a_policy_that_lost_to_a_cascade_becomes_it_with_hr_cnns_weights_and_its_share_of_images() -> None:
    _, _, given, described = lost_to(CASCADE)
    assert isinstance(given, RuleModel)
    assert described.policy == "cascade"
    low_logits = torch.arange(len(VAL) * len(CLASSES)).float().view(len(VAL), -1).sin() * 4
    read = greedy(given.policy(torch.zeros(len(VAL), 3, 8, 8), low_logits, unseen)).sum(1)
    assert sorted(set(read.tolist())) == [0, 16]
    assert int((read > 0).sum()) == len(VAL) // 4


def test_what_is_beaten_by_chance_alone_reads_the_same_patches_everywhere() -> None:
    _, _, given, described = lost_to("random")
    assert isinstance(given, RuleModel)
    assert described.policy == "fixed mask"
    read = greedy(given.policy(torch.zeros(3, 3, 8, 8), torch.zeros(3, 3), unseen))
    assert read.tolist() == [[i < 4 for i in range(16)]] * 3


def test_a_rule_is_built_and_loaded_by_its_description() -> None:
    for name in ("cascade", "activation map", "detail", "fixed mask"):
        config = config_of(SETTINGS)
        described = ModelConfig.from_json({**config.to_json(), "policy": name}, "here")
        described.check()
        model = build_stage("ft2", described).eval()
        assert isinstance(model, RuleModel)
        with torch.inference_mode():
            assert model.look(torch.rand(2, 3, 8, 8) * 255).scores.shape == (2, 16)

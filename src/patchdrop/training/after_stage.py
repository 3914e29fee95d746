"""Judge a trained ranking policy's stage: set its operating point, give a verdict, and decide on another try.

A stage that loses to a plain strategy beyond chance is trained again, first from another seed, then from a policy that
does not start as LR-CNN; the best of the tries is kept. Each finished try stays in the stage's folder until the stage
is done, so that a run stopped in the middle of a second try goes on there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from patchdrop.data.sets import Split
from patchdrop.evaluation.operating_point import (
    Goal,
    Outputs,
    calibrate_critic,
    few_counts,
    find_price,
    fit_fusion,
    outputs_on,
    tried_counts,
)
from patchdrop.evaluation.outcome import Outcome, outcome_of
from patchdrop.evaluation.strategies import (
    ACTIVATION,
    FIXED,
    Evaluated,
    Plain,
    chosen_on,
    controls,
    from_low_alone,
    random_places,
)
from patchdrop.evaluation.verdict import CASCADE, EVERYTHING, NOTHING, PLACES, StrategyResult, low_is_enough, verdict
from patchdrop.grid import Size
from patchdrop.models.build import ModelConfig, copy_matching
from patchdrop.models.compute import Compute
from patchdrop.models.shared_pass import RankingModel, RuleModel, SharedPass
from patchdrop.policy.budget import cut_for_mean
from patchdrop.policy.choice import greedy
from patchdrop.policy.network import uncertainty
from patchdrop.policy.rules import RULES, Rule
from patchdrop.runs.folder import RunFolder

TRIES = 3
CERTAIN = 30.0
"""Logarithm of a price at which no patch is worth reading; with the other sign every patch is."""
MISTAKE = 10.0
"""Cost of a wrong answer before the last stage, in prices of all of an image's HR."""
JUDGED = 2500
"""Most validation images by which a stage is judged."""


@dataclass(frozen=True)
class References:
    """LR-CNN and HR-CNN on the images by which policies are judged."""

    split: Split
    low: Outcome
    high: Outcome
    device: torch.device

    low_size: Size

    def outputs(self, model: RankingModel, counts: Tensor) -> Outputs:
        """Run the policy on these images, reading each of ``counts`` patches of its ranking."""
        return outputs_on(model, self.low_size, self.split, self.device, counts)

    def low_is_enough(self, tolerance: float) -> bool:
        """Check whether HR-CNN is at most ``tolerance`` points better than LR-CNN."""
        return low_is_enough(self.low.right, self.high.right, tolerance)


def references(run: RunFolder, config: ModelConfig, val: Split, device: torch.device) -> References:
    """Evaluate LR-CNN and HR-CNN on validation images, evenly spread over the split if there are many."""
    step = max(1.0, len(val) / JUDGED)
    positions = (torch.arange(min(len(val), JUDGED)) * step).long()
    split = Split(val.source, val.index[positions])

    def alone(stage: str) -> Outcome:
        model = run.load(stage)[0].to(device)
        return outcome_of(model, config.shape, split, lambda scores, _: scores >= 0, Compute(device))

    return References(split, alone("lr"), alone("hr"), device, config.shape.low)


def before_last(goal: Goal) -> Goal:
    """Return the goal of a stage that another one follows.

    It uses no tolerance: before the last stage the classifier is not fine-tuned, and half a point may cost nearly all
    of HR.
    """
    return goal if goal.target_patches or goal.mistake else replace(goal, mistake=MISTAKE)


def no_more_tries(records: Sequence[Mapping[str, Any]]) -> bool:
    """Check whether no other try is needed, or none is left."""
    return len(records) >= TRIES or any(record["verdict"]["kind"] != "loses" for record in records)


def best_of(records: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of the try to keep: the first that does not lose, else the one with the highest reward."""
    for number, record in enumerate(records):
        if record["verdict"]["kind"] != "loses":
            return number
    return max(range(len(records)), key=lambda number: records[number]["verdict"]["reward"])


def read_nothing(model: RankingModel, run: RunFolder, config: ModelConfig, found: References, seed: int) -> None:
    """Finish Pt without training: its policy reads nothing, so the run predicts as LR-CNN does."""
    said = judge_stage(model, config, found, Goal(tolerance=100.0), seed)
    run.finish("pt", model, config, {"figures": {"mean_patches": 0.0}, "seconds": 0.0, **said, "tries": []})


def weigh_streams(model: RankingModel, found: References) -> None:
    """Set the fusion weights before training, because a policy is trained for the fused prediction of both streams."""
    model.eval()
    counts = few_counts(model.policy.utility.grid.patches)
    fit_fusion(model.classifier, found.outputs(model, counts))


def judge_stage(model: RankingModel, config: ModelConfig, found: References, goal: Goal, seed: int) -> dict[str, Any]:
    """Set fusion, critic and price of a trained policy, and compare it with strategies that need no policy.

    Returns:
        Entries of the stage's ``config.json``: ``calibration_error``, ``verdict``, ``plain`` (what the plain
        strategies need to be run again), and the ``stream_weights``, as `TwoStream.learnable` holds them.
    """
    model.eval()
    model.policy.log_price.fill_(0)
    grid, device, compute = config.shape.grid, found.device, Compute(found.device)
    outputs = found.outputs(model, tried_counts(grid.patches))
    fit_fusion(model.classifier, outputs)
    error = calibrate_critic(model, outputs)
    with torch.inference_mode():
        scores, chances = model.policy.weigh(outputs.utilities.to(device), outputs.low_logits.to(device))
    find_price(model, scores.cpu(), chances.cpu(), outputs, goal)
    ours = outcome_of(model, config.shape, found.split, lambda s, _: greedy(s), compute)
    evaluated = Evaluated(model, config, found.split, ours, found.low, found.high, seed, compute)
    plain, rivals = chosen_on(evaluated)
    rivals |= {NOTHING: found.low, EVERYTHING: found.high, PLACES: random_places(evaluated)}
    rivals |= {**controls(evaluated), **from_low_alone(evaluated)}
    # At any price above P nothing is read: no patch brings more than one right answer.
    price = min(float(model.policy.log_price.double().exp()), grid.patches)
    said = verdict(result_of(ours), {n: result_of(o) for n, o in rivals.items()}, price, grid.patches, goal.tolerance)
    weights = [float(parameter.detach()) for parameter in model.classifier.learnable]
    return {"calibration_error": error, "stream_weights": weights, "verdict": said, "plain": plain.to_json()}


def result_of(outcome: Outcome) -> StrategyResult:
    """Reduce an outcome to right or wrong, and the number of patches, of each image."""
    return StrategyResult(outcome.right, outcome.choice.sum(1))


def fall_back(
    model: RankingModel, config: ModelConfig, record: Mapping[str, Any], found: References, high_cnn: nn.Module
) -> tuple[SharedPass, ModelConfig, float]:
    """Return the model of the plain strategy that beat the policy, for the run to fall back to.

    Args:
        record: what `judge_stage` returned; its verdict names the strategy.
        high_cnn: HR-CNN, which classifies where whole images are read.

    Returns:
        The model, on the device of the given one, its description, and the calibration error of its chances.
    """
    model.eval()
    error = float(record["calibration_error"])
    better = record["verdict"]["better"]
    if better in (CASCADE, EVERYTHING):
        copy_matching(high_cnn, model.classifier.high)
        if model.classifier.cap is not None:
            model.classifier.cap.data.fill_(CERTAIN)  # if every patch is read, HR-CNN alone decides
    if better in (NOTHING, EVERYTHING):
        model.policy.log_price.fill_(CERTAIN if better == NOTHING else -CERTAIN)
        if better == EVERYTHING:  # another classifier has other chances of being right
            counts = tried_counts(config.shape.grid.patches)
            error = calibrate_critic(model, found.outputs(model, counts))
        return model, config, error
    mean_patches = float(record["verdict"]["mean_patches"])
    plain = Plain.from_json(record["plain"])
    patches = len(plain.fixed)
    # If reading at random places beat the policy, places do not matter, so a fixed mask will do.
    rule = Rule(better if better in RULES else FIXED, patches)
    each = {CASCADE: patches, ACTIVATION: plain.each}.get(rule.name, round(mean_patches))
    rule.each.fill_(each)
    rule.places[torch.tensor(plain.fixed)] = torch.arange(patches, 0, -1, dtype=torch.float32)
    if rule.asks_when:
        rule.cut.fill_(cut_for_mean(uncertainty(found.low.logits.float()), min(1.0, mean_patches / each)))
    ruled = RuleModel(rule.to(found.device), model.classifier)
    return ruled.eval(), replace(config, policy=rule.name), error

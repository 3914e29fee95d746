"""What follows the training of a ranking policy's stage: operating point, verdict and, where it fails, another try.

A stage that loses to a plain strategy beyond chance is trained again, from another seed, and then from a policy that
does not start as LR-CNN; the best of the tries is kept. Each finished try lies in the stage's folder until the stage is
done, so that a run that is stopped in the middle of a second try goes on there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from patchdrop.data.sets import Split
from patchdrop.evaluation.outcome import Outcome, outcome_of
from patchdrop.evaluation.settle import (
    Goal,
    Heard,
    few_counts,
    find_price,
    hear,
    set_fusion_right,
    set_outlook_right,
    tried_counts,
)
from patchdrop.evaluation.strategies import (
    ACTIVATION,
    FIXED,
    Plain,
    Stand,
    chosen_on,
    controls,
    from_low_alone,
    random_places,
)
from patchdrop.evaluation.verdict import CASCADE, EVERYTHING, NOTHING, PLACES, Played, low_is_enough, verdict
from patchdrop.grid import Size
from patchdrop.models.build import ModelConfig, copy_matching
from patchdrop.models.one_look import Advised, Ruled, SharedLook
from patchdrop.policy.budget import cut_for_mean
from patchdrop.policy.choice import greedy
from patchdrop.policy.network import doubts
from patchdrop.policy.rules import RULES, Rule
from patchdrop.runs.folder import RunFolder

TRIES = 3
CERTAIN = 30.0
"""Logarithm of a price that no patch is worth; with the other sign every patch is."""
MISTAKE = 10.0
"""What a wrong answer costs, in prices of all of an image's HR, before the last stage."""
JUDGED = 2500
"""Validation images, at most, by which a stage is settled."""


@dataclass(frozen=True)
class References:
    """LR-CNN and HR-CNN on the images by which policies are settled."""

    split: Split
    low: Outcome
    high: Outcome
    device: torch.device

    low_size: Size

    def hear(self, model: Advised, counts: Tensor) -> Heard:
        """The policy on these images, each of ``counts`` patches of its ranking read."""
        return hear(model, self.low_size, self.split, self.device, counts)

    def low_is_enough(self, tolerance: float) -> bool:
        """Whether HR-CNN is at most ``tolerance`` points better than LR-CNN."""
        return low_is_enough(self.low.right, self.high.right, tolerance)


def references(run: RunFolder, config: ModelConfig, val: Split, device: torch.device) -> References:
    """Judge the two classifiers on validation images, evenly spread over the split where there are many."""
    step = max(1.0, len(val) / JUDGED)
    positions = (torch.arange(min(len(val), JUDGED)) * step).long()
    split = Split(val.source, val.index[positions])

    def alone(stage: str) -> Outcome:
        return outcome_of(run.load(stage)[0].to(device), config.shape, split, lambda scores, _: scores >= 0, device)

    return References(split, alone("lr"), alone("hr"), device, config.shape.low)


def before_last(goal: Goal) -> Goal:
    """The operating point of a stage that another one follows.

    It looks for no tolerance: before the last stage the classifier is not fine-tuned, and half a point may cost nearly
    all of HR.
    """
    return goal if goal.target_patches or goal.mistake else replace(goal, mistake=MISTAKE)


def settled(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no other try is needed, or none is left."""
    return len(records) >= TRIES or any(record["verdict"]["kind"] != "loses" for record in records)


def best_of(records: Sequence[Mapping[str, Any]]) -> int:
    """The try to keep: the first that does not lose, else the one with the highest reward."""
    for number, record in enumerate(records):
        if record["verdict"]["kind"] != "loses":
            return number
    return max(range(len(records)), key=lambda number: records[number]["verdict"]["reward"])


def read_nothing(model: Advised, run: RunFolder, config: ModelConfig, found: References, seed: int) -> None:
    """Finish Pt without training: a policy that reads nothing, so that the run predicts as LR-CNN does."""
    said = settle(model, config, found, Goal(tolerance=100.0), seed)
    run.finish("pt", model, config, {"figures": {"mean_patches": 0.0}, "seconds": 0.0, **said, "tries": []})


def weigh_streams(model: Advised, found: References) -> None:
    """Set the fusion before a policy is trained for what both streams say together."""
    model.eval()
    counts = few_counts(model.policy.utility.grid.patches)
    set_fusion_right(model.classifier, found.hear(model, counts))


def settle(model: Advised, config: ModelConfig, found: References, goal: Goal, seed: int) -> dict[str, Any]:
    """Set fusion, outlook and price of a trained policy, and compare it with what needs none.

    Returns:
        What the stage's ``config.json`` says of it: ``calibration_error``, ``verdict``, what the yardsticks need to be
        played again, and the ``stream_weights``, as `TwoStream.learnable` holds them.
    """
    model.eval()
    model.policy.log_price.fill_(0)
    grid, device = config.shape.grid, found.device
    heard = found.hear(model, tried_counts(grid.patches))
    set_fusion_right(model.classifier, heard)
    error = set_outlook_right(model, heard)
    with torch.inference_mode():
        scores, chances = model.policy.weigh(heard.utilities.to(device), heard.opinion.to(device))
    find_price(model, scores.cpu(), chances.cpu(), heard, goal)
    ours = outcome_of(model, config.shape, found.split, lambda s, _: greedy(s), device)
    stand = Stand(model, config, found.split, ours, found.low, found.high, seed, device)
    plain, rivals = chosen_on(stand)
    rivals |= {NOTHING: found.low, EVERYTHING: found.high, PLACES: random_places(stand)}
    rivals |= {**controls(stand), **from_low_alone(stand)}
    # Above P nothing is read, whatever the price: no patch brings more than one right answer.
    price = min(float(model.policy.log_price.double().exp()), grid.patches)
    said = verdict(played(ours), {n: played(o) for n, o in rivals.items()}, price, grid.patches, goal.tolerance)
    weights = [float(parameter.detach()) for parameter in model.classifier.learnable]
    return {"calibration_error": error, "stream_weights": weights, "verdict": said, "plain": plain.to_json()}


def played(outcome: Outcome) -> Played:
    """Right or wrong, and how many patches, of each image."""
    return Played(outcome.right, outcome.choice.sum(1))


def give_way(
    model: Advised, config: ModelConfig, record: Mapping[str, Any], found: References, high_cnn: nn.Module
) -> tuple[SharedLook, ModelConfig, float]:
    """What a run predicts with where its policy lost: the plain strategy that beat it.

    Args:
        record: what `settle` said; its verdict names the strategy.
        high_cnn: HR-CNN, which decides where whole images are read.

    Returns:
        The model, on the device of the one given, its description, and the calibration error of its chances.
    """
    model.eval()
    error = float(record["calibration_error"])
    better = record["verdict"]["better"]
    if better in (CASCADE, EVERYTHING):
        copy_matching(high_cnn, model.classifier.high)
        if model.classifier.cap is not None:
            model.classifier.cap.data.fill_(CERTAIN)  # where every patch is read HR-CNN alone decides
    if better in (NOTHING, EVERYTHING):
        model.policy.log_price.fill_(CERTAIN if better == NOTHING else -CERTAIN)
        if better == EVERYTHING:  # another classifier, other chances
            counts = tried_counts(config.shape.grid.patches)
            error = set_outlook_right(model, found.hear(model, counts))
        return model, config, error
    mean_patches = float(record["verdict"]["mean_patches"])
    plain = Plain.from_json(record["plain"])
    patches = len(plain.fixed)
    # What beats a policy by reading at random has shown that places do not matter.
    rule = Rule(better if better in RULES else FIXED, patches)
    each = {CASCADE: patches, ACTIVATION: plain.each}.get(rule.name, round(mean_patches))
    rule.each.fill_(each)
    rule.places[torch.tensor(plain.fixed)] = torch.arange(patches, 0, -1, dtype=torch.float32)
    if rule.asks_when:
        rule.cut.fill_(cut_for_mean(doubts(found.low.logits.float()), min(1.0, mean_patches / each)))
    ruled = Ruled(rule.to(found.device), model.classifier)
    return ruled.eval(), replace(config, policy=rule.name), error

"""What a step costs, counted by formula, against what torch counts in a real training step."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from patchdrop.costs.flops import forward_costs
from patchdrop.data.load import statistics
from patchdrop.models.build import build_stage
from patchdrop.policy.ranking import HIDDEN
from patchdrop.settings.flat import TrainSettings
from patchdrop.training.loop import make_optimizer, train_step
from patchdrop.training.run import make_task, teacher_of
from patchdrop.training.work import step_flops
from tiny import SIDE, config_of, learning_of, loader_of, tiny_data, tiny_settings

STEM = 2 * 9 * 3 * 4
"""FLOPs a pixel of the first convolution, 3 x 3 from 3 to 4 channels."""
HR_STEM, LR_STEM = SIDE**2 * STEM, (SIDE // 2) ** 2 * STEM
OUTLOOK = 3 * 2 * HIDDEN * (16 * (7 + 1) + 4 + 1) - 2 * HIDDEN * (16 * 7 + 4)
"""FLOPs of training a ranking's critic: two layers for each of 16 patches, two for none, and no gradient to inputs."""
ESTIMATORS = [("self-critical", 2), ("rloo", 2), ("rloo", 3), ("straight-through", 2)]


def counted(stage: str, settings: TrainSettings) -> float:
    """FLOPs that torch counts in one step, for each image of the fit batch."""
    data = tiny_data()
    config = config_of(settings, data.classes)
    model = build_stage(stage, config, statistics(data.splits["fit"], settings.shape.low))
    device = torch.device("cpu")
    teacher = teacher_of(stage, config, lambda name: build_stage(name, config), device)
    task = make_task(stage, model, loader_of(settings, data=data, device=device), learning_of(settings), teacher)
    # Muon multiplies matrices too; what the optimizer does is the same for any batch and not part of the formula.
    optimizer = make_optimizer(task.groups(), "adamw")
    task.train_mode()
    batch = next(task.batches(0, 0))
    torch.manual_seed(0)
    with FlopCounterMode(display=False) as counter:
        train_step(task, optimizer, batch, 0, 1)
    return counter.get_total_flops() / settings.batch


def formula(stage: str, settings: TrainSettings) -> float:
    config = config_of(settings)
    return step_flops(stage, forward_costs(config), config, learning_of(settings))


@pytest.mark.parametrize("policy", ["ranking", "bernoulli"])
@pytest.mark.parametrize(("stage", "stem"), [("lr", LR_STEM), ("hr", HR_STEM), ("patches", HR_STEM)])
def test_a_step_of_a_classifier_costs_what_the_formula_says_but_for_its_first_layer(
    stage: str, stem: int, policy: str
) -> None:
    settings = tiny_settings(policy=policy, low_stream="pt")
    assert formula(stage, settings) == counted(stage, settings) + stem


@pytest.mark.parametrize(("estimator", "samples"), ESTIMATORS)
@pytest.mark.parametrize("stage", ["pt", "ft1", "ft2"])
def test_a_step_of_a_policy_stage_costs_what_the_formula_says_but_for_first_layers(
    stage: str, estimator: str, samples: int
) -> None:
    settings = tiny_settings(estimator=estimator, samples=samples)
    # Only straight-through sends a gradient through the first layer to what was read, where it is judged.
    reaches_pixels = stage == "pt" or estimator == "straight-through"
    stems = LR_STEM + (0 if reaches_pixels else HR_STEM)
    assert formula(stage, settings) == counted(stage, settings) + stems
    assert stems < 0.04 * counted(stage, settings)


@pytest.mark.parametrize("start", ["lr", "shared"])
@pytest.mark.parametrize("stage", ["pt", "ft1", "ft2"])
def test_a_step_of_a_ranking_policys_stage_costs_what_the_formula_says_but_for_heads_and_first_layers(
    stage: str, start: str
) -> None:
    settings = tiny_settings(policy="ranking", low_stream="pt", policy_start=start)
    stems = (0 if start == "shared" else LR_STEM) + (0 if stage == "pt" else HR_STEM)
    # A shared network is not trained, but the head that reads it is, and its class head gives LR-CNN's word.
    heads = 2 * 16 * (8 + 16 + 16) + 2 * 16 * 3 if start == "shared" else 0
    assert formula(stage, settings) == counted(stage, settings) + stems - heads - OUTLOOK


def test_hr_costs_the_same_with_and_without_lr_cnn_beside_it() -> None:
    costs = [forward_costs(config_of(tiny_settings(low_stream=stage))) for stage in ("pt", "ft2")]
    assert costs[0] == costs[1]

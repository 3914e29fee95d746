"""What networks cost: parameters and floating-point operations, counted, not guessed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from patchdrop.grid import Grid
from patchdrop.models.build import ModelConfig, build_stage
from patchdrop.packed import gather
from patchdrop.settings.flat import TrainSettings, two_streams


@dataclass(frozen=True)
class Cost:
    """Of one image through one network."""

    parameters: int
    flops: int
    """Floating-point operations of a forward pass; a multiply-add counts as two."""


def forward_costs(settings: TrainSettings, classes: int) -> dict[str, Cost]:
    """Cost of each network: ``hr`` (with every patch read), ``lr`` and ``policy``."""
    config = ModelConfig.of(settings, [str(i) for i in range(classes)])
    low_model = build_stage("lr", config)
    zoom = build_stage("pt", replace(config, low_stream="ft2"))  # without LR-CNN beside it, which is counted by itself
    low = torch.zeros(1, config.channels, *config.low_size, dtype=torch.uint8)
    high = torch.zeros(1, config.channels, *config.high_size, dtype=torch.uint8)
    grid = Grid.parse(config.grid)
    packed = gather(high, torch.ones(1, grid.patches, dtype=torch.bool), grid)
    return {
        "hr": Cost(_parameters(zoom.classifier), _flops(zoom.classifier, packed, low)),  # type: ignore[arg-type]
        "lr": Cost(_parameters(low_model), _flops(low_model, low)),
        "policy": Cost(_parameters(zoom.policy), _flops(zoom.policy, low)),  # type: ignore[arg-type]
    }


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _flops(module: nn.Module, *inputs: object) -> int:
    module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return int(counter.get_total_flops())


def step_flops(stage: str, costs: dict[str, Cost], settings: TrainSettings) -> float:
    """FLOPs of training on one image for one step of a stage; a backward pass counts as two forward ones.

    A few percent too much: no gradient is needed with respect to an image, so a first layer's backward pass is half of
    that. The optimizer is left out.
    """
    hr, lr, policy = costs["hr"].flops, costs["lr"].flops, costs["policy"].flops
    if stage == "lr":
        return 3 * lr
    taught = hr if settings.policy == "ranking" else 0.0  # what HR-CNN says of the whole image
    if stage == "hr":
        return 3 * hr
    if stage == "patches":
        return 3 * hr + taught
    shared = settings.policy_start == "shared"
    # A policy that stands on LR-CNN trains its head alone, whose cost is nothing beside the network's.
    decide = policy if shared else 3 * policy
    with_low = two_streams(stage, settings.low_stream)
    low = lr if with_low else 0
    if settings.policy == "ranking":  # LR-CNN's word, heard once, serves policy and classifier
        judging = decide + (0 if shared else lr) + hr
        return judging if stage == "pt" else judging + 2 * hr + taught
    patches = Grid.parse(settings.grid).patches
    plays = {
        "self-critical": 2,
        "rloo": settings.samples,
        "straight-through": 1,
        "exact": 1 + (1 << patches),
    }[settings.estimator]
    judging = decide + plays * (low + hr)
    # Backward to the weights costs one more forward pass, backward to the input another.
    to_input = hr if settings.estimator == "straight-through" else 0
    if stage == "pt":
        return judging + to_input
    return judging + 2 * hr

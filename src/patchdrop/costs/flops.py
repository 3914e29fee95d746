"""Count parameters and floating-point operations of networks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from patchdrop.models.build import ModelConfig, build_stage
from patchdrop.packed import gather


@dataclass(frozen=True)
class Cost:
    """The cost of one image through one network."""

    parameters: int
    flops: int
    """Floating-point operations of a forward pass; a multiply-add counts as two."""


def forward_costs(config: ModelConfig) -> dict[str, Cost]:
    """Return the cost of each network: ``hr`` (with every patch read), ``lr`` and ``policy``."""
    low_model = build_stage("lr", config)
    zoom = build_stage("pt", replace(config, low_stream="ft2"))  # without LR-CNN, which is counted by itself
    low = torch.zeros(1, config.shape.channels, *config.shape.low, dtype=torch.uint8)
    high = torch.zeros(1, config.shape.channels, *config.shape.high, dtype=torch.uint8)
    grid = config.shape.grid
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

"""Estimate a stage's work: floating-point operations, counted, and seconds, measured on its first steps."""

from __future__ import annotations

import time
from collections.abc import Mapping

from patchdrop.costs.flops import Cost
from patchdrop.models.build import ModelConfig
from patchdrop.settings.flat import two_streams
from patchdrop.training.loop import Task, make_optimizer, one_step, steps
from patchdrop.training.policy_stages import Learning


def seconds_a_step(task: Task) -> float:
    """Return the seconds of a training step: the fastest of the task's first three batches; 0 if it has no steps."""
    if task.epochs == 0:
        return 0.0
    optimizer = make_optimizer(task.groups(), task.schedule.optimizer)
    times = []
    for batches, _ in zip(steps(task, 0, 0), range(3), strict=False):
        start = time.perf_counter()
        one_step(task, optimizer, batches, 0, 1)
        times.append(time.perf_counter() - start)
    return min(times)


def step_flops(stage: str, costs: Mapping[str, Cost], config: ModelConfig, learning: Learning) -> float:
    """Return the FLOPs of training on one image for one step of a stage; a backward pass counts as two forward ones.

    This is a few percent too much: no gradient is needed with respect to an image, so a first layer's backward pass is
    half of that. The optimizer is left out.
    """
    hr, lr, policy = costs["hr"].flops, costs["lr"].flops, costs["policy"].flops
    if stage == "lr":
        return 3 * lr
    taught = hr if config.policy == "ranking" else 0.0  # HR-CNN on the whole image, as the teacher
    if stage == "hr":
        return 3 * hr
    if stage == "patches":
        return 3 * hr + taught
    shared = config.policy_start == "shared"
    # A policy that shares LR-CNN's network trains only its head, whose cost is negligible beside the network's.
    decide = policy if shared else 3 * policy
    with_low = two_streams(stage, config.low_stream)
    low = lr if with_low else 0
    if config.policy == "ranking":  # LR-CNN's logits are computed once, for policy and classifier
        judging = decide + (0 if shared else lr) + hr
        return judging if stage == "pt" else judging + 2 * hr + taught
    patches = config.shape.grid.patches
    plays = {
        "self-critical": 2,
        "rloo": learning.samples,
        "straight-through": 1,
        "exact": 1 + (1 << patches),
    }[learning.estimator]
    judging = decide + plays * (low + hr)
    # Backward to the weights costs one more forward pass, backward to the input another.
    to_input = hr if learning.estimator == "straight-through" else 0
    if stage == "pt":
        return judging + to_input
    return judging + 2 * hr

"""Find out which flips and turns suit a data set, by how well an LR-CNN recognises flipped and turned images.

A network is trained for a few epochs on images as they are, then tested on validation images that are mirrored, or
turned by a quarter or half. Aerial scenes look the same all ways round, photographs when mirrored, digits neither. If
it is right on nearly as many images as before, the change is an augmentation that training may use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from patchdrop.data.load import statistics
from patchdrop.models.build import ModelConfig, build_stage
from patchdrop.settings.flat import Augmentation
from patchdrop.training.batches import Loader
from patchdrop.training.loop import make_optimizer, train_step
from patchdrop.training.seeds import derived_seed
from patchdrop.training.supervised import ClassifierTask

STEPS = 300
"""Fewest training steps, in whole epochs."""
ENOUGH = 0.9
"""Share of the accuracy on unchanged images that must be left on changed ones."""
LEARNT = 1.5
"""Accuracy, as a multiple of chance, below which the network's result does not count."""
FEWEST = 100
"""Fewest validation images for this test."""
CAREFUL: tuple[Augmentation, ...] = ("flip", "shift")
"""Used when there is no test, or its result does not count."""


def augmentations(loader: Loader, config: ModelConfig) -> tuple[tuple[Augmentation, ...], dict[str, float]]:
    """Return the augmentations that suit a data set, and the accuracies on changed validation images that show it.

    The test is skipped if there are fewer than `FEWEST` of these images.
    """
    if len(loader.val) < FEWEST:
        return CAREFUL, {}
    shown = replace(loader, schedule=replace(loader.schedule, augment=("shift",), shards=1).with_epochs(lr=1))
    seed = shown.schedule.seed
    torch.manual_seed(derived_seed(seed, "orientation"))
    model = build_stage("lr", config, statistics(loader.fit, config.shape.low))
    model.to(loader.device).to(memory_format=torch.channels_last)
    task = ClassifierTask("orientation", model, shown, like="lr")
    optimizer = make_optimizer(task.groups(), shown.schedule.optimizer)
    epochs = -(-STEPS // task.steps_per_epoch)
    total = epochs * task.steps_per_epoch
    for step in range(total):
        epoch, first = divmod(step, task.steps_per_epoch)
        if first == 0:
            batches = task.batches(epoch, 0)
        task.train_mode()
        torch.manual_seed(derived_seed(seed, "orientation", step))
        train_step(task, optimizer, next(batches), step, total)
    accuracy = _accuracies(task)
    plain = accuracy["plain"]
    chosen: list[Augmentation] = []
    if plain * len(config.classes) > LEARNT:
        chosen += ["flip"] if accuracy["mirrored"] >= ENOUGH * plain else []
        chosen += ["turn"] if accuracy["turned"] >= ENOUGH * plain else []
        return (*chosen, "shift"), accuracy
    return CAREFUL, accuracy


def _accuracies(task: ClassifierTask) -> dict[str, float]:
    changes: dict[str, list[Callable[[Tensor], Tensor]]] = {
        "plain": [lambda x: x],
        "mirrored": [lambda x: x.flip(3)],
        "turned": [lambda x: x.flip(2, 3), lambda x: x.rot90(1, (2, 3)), lambda x: x.rot90(3, (2, 3))],
    }
    right = dict.fromkeys(changes, 0.0)
    task.model.eval()
    with torch.inference_mode():
        for views in task.loader.validation_views():
            square = views.low.shape[2] == views.low.shape[3]
            for name, ways in changes.items():
                possible = ways if square else ways[:1]
                for way in possible:
                    hits = task.model(way(views.low)).argmax(1) == views.target
                    right[name] += float(hits.sum()) / len(possible)
    return {name: hits / len(task.loader.val) for name, hits in right.items()}

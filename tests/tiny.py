"""A data set, settings and networks small enough that a stage trains in a fraction of a second.

An image is noise with one coloured patch. The colour is the class, and the colour is fainter in LR only
because a patch is small there; so both classifiers have something to learn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from patchdrop.commands.shared import sized
from patchdrop.data.load import Data
from patchdrop.data.sets import MemorySource, Split
from patchdrop.data.source import DataSource
from patchdrop.grid import Grid, boxes
from patchdrop.models.build import ModelConfig
from patchdrop.settings.flat import TrainSettings
from patchdrop.training.batches import Loader
from patchdrop.training.policy_stages import Learning
from patchdrop.training.recipe import Recipe

CLASSES = ("blue", "green", "red")
COLOURS = np.array([[40, 60, 230], [30, 200, 60], [230, 50, 40]], dtype=np.uint8)
SIDE = 16
NETWORK = "resnet8-w4"
TINY: dict[str, Any] = {
    "high": str(SIDE),
    "low": "8",
    "grid": "4",
    "hr_network": NETWORK,
    "lr_network": NETWORK,
    "policy_network": NETWORK,
    "low_enlarge": 1,
    "policy": "bernoulli",
    "low_stream": "ft2",
    "fill": "mean",
    "fusion": "share",
    "augment": ("flip", "shift"),
    "batch": 8,
    "epochs_lr": 2,
    "epochs_hr": 2,
    "epochs_patches": 2,
    "epochs_pt": 2,
    "epochs_ft1": 2,
    "epochs_ft2": 2,
    "rate_policy": 5e-3,
    "estimator": "self-critical",
    "threads": 1,
    "device": "cpu",
}


def tiny_settings(**changes: Any) -> TrainSettings:
    """Settings of a run that takes about a second a stage."""
    return TrainSettings(**{**TINY, **changes})


def tiny_flags(**changes: Any) -> list[str]:
    """The same as command line flags."""
    tokens: list[str] = []
    for name, value in {**TINY, **changes}.items():
        for item in value if isinstance(value, tuple) else (value,):
            tokens += [f"--{name.replace('_', '-')}", str(item)]
    return tokens


def tiny_images(count: int, seed: int, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """``(count, 3, side, side)`` uint8 and ``(count,)`` int64."""
    draw = np.random.default_rng(seed)
    targets = np.arange(count) % len(CLASSES)
    images = draw.integers(90, 130, (count, side, side, 3), dtype=np.uint8)
    places = boxes(Grid(4, 4), side, side)
    for image, target in zip(images, targets, strict=True):
        top, left, bottom, right = places[draw.integers(16)]
        image[top:bottom, left:right] = COLOURS[target]
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(targets)


def tiny_split(count: int, seed: int) -> Split:
    """Images in memory."""
    high, targets = tiny_images(count, seed)
    return Split(MemorySource(high, None, targets, [str(i) for i in range(count)]), torch.arange(count))


def tiny_data(settings: TrainSettings | None = None) -> Data:
    """Splits of 24 training images (3 steps of 8), 12 for validation; LR as settings have it."""
    return data_of(settings or tiny_settings(), tiny_split(24, 1), tiny_split(12, 2))


def data_of(settings: TrainSettings, fit: Split, val: Split) -> Data:
    """These splits as a data set."""
    return Data("tiny", "markers", CLASSES, settings.shape, {"fit": fit, "val": val}, {})


def with_networks(settings: TrainSettings) -> TrainSettings:
    """Grid, networks and enlargement, where they are not named, from HR and LR size."""
    return replace(sized(replace(settings, data=""))[0], data=settings.data)


def recipe_of(settings: TrainSettings) -> Recipe:
    """Settings as the rooms take them."""
    return Recipe.of(settings)


def config_of(settings: TrainSettings, classes: Iterable[str] = CLASSES) -> ModelConfig:
    """The networks of settings."""
    return recipe_of(settings).with_classes(tuple(classes))


def learning_of(settings: TrainSettings) -> Learning:
    """How a policy learns by settings."""
    return recipe_of(settings).learning


def source_of(settings: TrainSettings) -> DataSource:
    """The data set of settings."""
    return recipe_of(settings).source


def loader_of(
    settings: TrainSettings,
    fit: Split | None = None,
    val: Split | None = None,
    device: torch.device | None = None,
    data: Data | None = None,
) -> Loader:
    """What a stage trains on: two splits, or a data set."""
    if data is None:
        assert fit is not None
        assert val is not None
        data = data_of(settings, fit, val)
    return Loader(data, recipe_of(settings).schedule, device or torch.device("cpu"))


def write_folder(root: Path, train: int = 24, test: int = 12, side: int = SIDE) -> Path:
    """The same images as an image folder of PNG files."""
    for split, count, seed in (("train", train, 1), ("test", test, 2)):
        images, targets = tiny_images(count, seed, side)
        for index, (image, target) in enumerate(zip(images, targets.tolist(), strict=True)):
            folder = root / split / CLASSES[target]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:03d}.png")
    return root


def unsettle(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch-norm statistics, scales and biases: a fresh network's zeros and ones would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3, generator=generator)
            part.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.normal_(part.weight, 0.9, 0.3, generator=generator)
            nn.init.normal_(part.bias, 0, 0.3, generator=generator)
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0, 0.5, generator=generator)
            nn.init.normal_(part.bias, 0, 0.5, generator=generator)
    return module.eval()

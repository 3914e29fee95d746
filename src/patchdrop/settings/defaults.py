"""The one recipe for all data sets: what follows from image sizes and from the number of training images.

Whatever a user names stays; the rest is filled in here, and a run's ``settings.yaml`` holds the outcome.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from patchdrop.settings.flat import STAGES, TrainSettings, size_of

IMAGES = 7200
"""Training images for which `EPOCHS` are."""
EPOCHS = {"lr": 16, "hr": 20, "patches": 6, "pt": 4, "ft1": 6, "ft2": 8}
EXPONENT = 0.45
"""Twice the images take ``2 ** -0.45`` times the epochs: more steps in all, each image seen less often."""
FEWEST, MOST = 2, 200
HIGH_NETWORKS = ((48, "resnet8-w48-d"), (96, "resnet8-w40-d"))
"""HR-CNN by the longer side of HR: the first whose number of pixels is above it ..."""
LARGE_NETWORK = "resnet10-w32-d"
"""... and that of larger images; all take about as long."""
COARSE = 24
"""LR sides below this are enlarged twofold before a network sees them."""


UNNAMED: dict[str, Any] = {
    **dict.fromkeys(("high", "low", "grid", "hr_network", "lr_network", "policy_network"), ""),
    **dict.fromkeys(("batch", "low_enlarge"), 0),
    **{f"epochs_{stage}": -1 for stage in STAGES},
    "augment": ("auto",),
}
"""Settings that are filled in, and their values until then."""


def as_recorded(settings: TrainSettings, recorded: TrainSettings) -> TrainSettings:
    """What is not named as a run has it on record."""
    unnamed = [name for name, value in UNNAMED.items() if getattr(settings, name) == value]
    return replace(settings, **{name: getattr(recorded, name) for name in unnamed})


def with_networks(settings: TrainSettings) -> TrainSettings:
    """Grid, networks and enlargement, where they are not named, from HR and LR size."""
    low = min(size_of(settings.low, "low"))
    enlarge = settings.low_enlarge or (2 if low < COARSE else 1)
    longer = max(size_of(settings.high, "high"))
    high_network = next((name for side, name in HIGH_NETWORKS if longer < side), LARGE_NETWORK)
    low_network = settings.lr_network or ("resnet8-w32" if low * enlarge < COARSE else "resnet8-w48-d")
    return replace(
        settings,
        grid=settings.grid or "4",
        hr_network=settings.hr_network or high_network,
        lr_network=low_network,
        policy_network=settings.policy_network or low_network,
        low_enlarge=enlarge,
    )


def with_schedule(settings: TrainSettings, images: int) -> TrainSettings:
    """Batch and epochs, where they are not named, from the number of images that classifiers train on."""
    asked = {f"epochs_{stage}": getattr(settings, f"epochs_{stage}") for stage in STAGES}
    factor = (IMAGES / max(1, images)) ** EXPONENT
    found: dict[str, Any] = {
        name: min(max(round(EPOCHS[name.removeprefix("epochs_")] * factor), FEWEST), MOST) if epochs < 0 else epochs
        for name, epochs in asked.items()
    }
    return replace(settings, batch=settings.batch or batch_for(images), **found)


def batch_for(images: int) -> int:
    """Images a step: 64, more of very many, fewer of few, so that an epoch has some ten steps."""
    if images >= 20_000:
        return 128
    return max(8, min(64, 2 ** ((images // 8).bit_length() - 1))) if images >= 8 else 8

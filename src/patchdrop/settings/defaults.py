"""Derive settings from image sizes and from the number of training images: one recipe for all data sets.

What a user gives stays; the rest is filled in from here, and a run's ``settings.yaml`` holds the result.
"""

from __future__ import annotations

from typing import Any

from patchdrop.grid import Size

IMAGES = 7200
"""Number of training images that `EPOCHS` are meant for."""
EPOCHS = {"lr": 16, "hr": 20, "patches": 6, "pt": 4, "ft1": 6, "ft2": 8}
EXPONENT = 0.45
"""Twice the images take ``2 ** -0.45`` times the epochs: more steps in all, each image seen less often."""
FEWEST, MOST = 2, 200
HIGH_NETWORKS = ((48, "resnet8-w48-d"), (96, "resnet8-w40-d"))
"""HR-CNN by the longer side of HR: the first entry whose number of pixels is above it ..."""
LARGE_NETWORK = "resnet10-w32-d"
"""... and HR-CNN for larger images; all take about as long."""
GRID = "4"
"""Grid if there are no images to propose one from."""
COARSE = 24
"""LR sides below this are enlarged twofold before a network sees them."""


def networks_for(high: Size, low: Size, low_enlarge: int, lr_network: str) -> dict[str, Any]:
    """Return networks and enlargement for images of these sizes.

    Args:
        low_enlarge, lr_network: what a user gave, 0 and empty if nothing; the policy's network is LR-CNN's.
    """
    enlarge = low_enlarge or (2 if min(low) < COARSE else 1)
    low_network = lr_network or ("resnet8-w32" if min(low) * enlarge < COARSE else "resnet8-w48-d")
    return {
        "hr_network": next((name for side, name in HIGH_NETWORKS if max(high) < side), LARGE_NETWORK),
        "lr_network": low_network,
        "policy_network": low_network,
        "low_enlarge": enlarge,
    }


def schedule_for(images: int) -> dict[str, int]:
    """Return batch and epochs for the number of images that classifiers train on."""
    factor = (IMAGES / max(1, images)) ** EXPONENT
    epochs = {f"epochs_{stage}": min(max(round(count * factor), FEWEST), MOST) for stage, count in EPOCHS.items()}
    return {"batch": batch_for(images), **epochs}


def batch_for(images: int) -> int:
    """Return the images per step: 64, more of very many, fewer of few, so that an epoch has some ten steps."""
    if images >= 20_000:
        return 128
    return max(8, min(64, 2 ** ((images // 8).bit_length() - 1))) if images >= 8 else 8

"""A short trial finds which ways round images may lie: classes that a mirror or a turn would swap forbid it."""

from __future__ import annotations

import pytest
import torch

from patchdrop.data.sets import MemorySource, Split
from patchdrop.training import augmentation_trial
from patchdrop.training.augmentation_trial import CAREFUL, augmentations
from tiny import config_of, loader_of, tiny_settings


def bright(kind: str, count: int, seed: int) -> Split:
    """Noise, brighter in the whole image, in one of its sides, or at its top or bottom, by the class."""
    generator = torch.Generator().manual_seed(seed)
    high = torch.randint(60, 120, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    targets = torch.arange(count) % 2
    for image, target in zip(high, targets.tolist(), strict=True):
        if kind == "colour":
            image[target] += 60
        elif kind == "side":
            image[:, :, 8 * target : 8 * target + 8] += 60
        else:
            image[:, 8 * target : 8 * target + 8] += 60
    return Split(MemorySource(high, None, targets, [str(i) for i in range(count)]), torch.arange(count))


def on_trial(kind: str, val: int = 120) -> tuple[tuple[str, ...], dict[str, float]]:
    settings = tiny_settings(batch=16, augment=("auto",))
    loader = loader_of(settings, bright(kind, 160, 1), bright(kind, val, 2))
    return augmentations(loader, config_of(settings, ("a", "b")))


def found(kind: str, val: int = 120) -> tuple[str, ...]:
    return on_trial(kind, val)[0]


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [("colour", ("flip", "turn", "shift")), ("top", ("flip", "shift")), ("side", ("shift",))],
)
def test_images_may_lie_the_ways_that_leave_their_classes_alone(
    monkeypatch: pytest.MonkeyPatch, kind: str, chosen: tuple[str, ...]
) -> None:
    monkeypatch.setattr(augmentation_trial, "STEPS", 40)
    assert found(kind) == chosen


def test_a_few_images_are_not_asked() -> None:
    assert found("side", val=99) == CAREFUL


def test_a_network_that_has_learnt_nothing_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation_trial, "LEARNT", 2.5)
    monkeypatch.setattr(augmentation_trial, "STEPS", 10)
    assert found("side") == CAREFUL


def test_the_trial_is_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation_trial, "STEPS", 10)
    assert on_trial("side") == on_trial("side")

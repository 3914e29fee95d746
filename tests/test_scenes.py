"""The embedded data set: what `patchdrop.data.markers` promises about its images, labels and splits."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor

from patchdrop.data import markers as scenes
from patchdrop.data.markers import CLASSES, NONE, Bytes, Drawn, Floats, draw_images, make_images, split_digits
from patchdrop.errors import UsageError

LOW = 16
"""Side of the LR view in pixels."""


def digest(images: Tensor, labels: Tensor) -> str:
    """SHA-256 of a set's bytes."""
    return hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()


def low_resolution(images: Bytes) -> Floats:
    """(n, size, size, 3) area-averaged to (n, 16, 16, 3)."""
    count, size = images.shape[:2]
    factor = size // LOW
    low: Floats = images.reshape(count, LOW, factor, LOW, factor, 3).mean(axis=(2, 4), dtype=np.float32)
    return low


def with_and_without_markers(monkeypatch: pytest.MonkeyPatch, count: int, size: int) -> tuple[Drawn, Drawn]:
    """The same scenes drawn twice, the second time without painting the markers."""
    painted = draw_images("train", count, size, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(scenes, "_paint_markers", lambda images, rows, markers: None)
        return painted, draw_images("train", count, size, seed=0)


@pytest.mark.parametrize("size", [64, 96, 128])
def test_images_are_bytes_of_the_size_asked_for_and_labels_are_class_indices(size: int) -> None:
    images, labels = make_images("train", 40, size)
    assert images.shape == (40, 3, size, size) and images.dtype == torch.uint8
    assert labels.shape == (40,) and labels.dtype == torch.int64
    assert set(labels.tolist()) == set(range(len(CLASSES)))


def test_same_arguments_give_the_same_bytes_and_another_seed_or_split_gives_others() -> None:
    first = digest(*make_images("train", 32, seed=1))
    assert first == digest(*make_images("train", 32, seed=1))
    assert first != digest(*make_images("train", 32, seed=2))
    assert first != digest(*make_images("test", 32, seed=1))


def test_train_and_test_share_no_digit_and_together_hold_all() -> None:
    train, test = split_digits()
    assert sorted([*train, *test]) == list(range(1797))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_draws_only_its_own_digits_and_each_of_its_label(split: scenes.Split) -> None:
    labels = np.arange(2000) % 10
    drawn = scenes._draw_digits(np.random.default_rng(0), labels, split)
    own = split_digits()[int(split == "test")]
    assert set(drawn) <= set(own)
    assert np.array_equal(scenes._load_digits()[1][drawn], labels)


def test_one_scene_in_eight_has_no_marker_and_digits_are_even() -> None:
    labels = draw_images("test", 800, 64, seed=0).labels
    assert np.bincount(labels, minlength=11).tolist() == [70] * 10 + [100]


@pytest.mark.parametrize("size", [64, 128])
def test_a_marker_changes_pixels_within_its_disc_and_nowhere_else(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    painted, bare = with_and_without_markers(monkeypatch, 200, size)
    changed = (painted.images != bare.images).any(axis=3)
    assert not changed[painted.labels == NONE].any()
    marked = painted.labels != NONE
    rows, columns = np.mgrid[:size, :size] + 0.5
    centres = painted.centres[marked, :, None, None]
    distance = np.hypot(rows - centres[:, 0], columns - centres[:, 1]) * 64 / size
    largest, smallest = scenes.DIAMETER[1] / 2, scenes.DIAMETER[0] / 2
    assert distance[changed[marked]].max() < largest + 0.75
    assert changed[marked][distance < smallest - 1].mean() > 0.98


def test_markers_lie_wholly_inside_the_image_in_all_sixteen_patches() -> None:
    drawn = draw_images("train", 600, 64, seed=0)
    centres = drawn.centres[drawn.labels != NONE]
    radius = scenes.DIAMETER[0] / 2
    assert centres.min() >= radius and centres.max() <= 64 - radius
    assert len(np.unique(centres // 16, axis=0)) == 16
    assert np.isnan(drawn.centres[drawn.labels == NONE]).all()


def test_the_marker_is_found_in_the_low_resolution_view_by_its_colour_alone() -> None:
    """The LR pixel of the most yellow or lime hue, or else the whitest, lies in the marker."""
    drawn = draw_images("test", 400, 64, seed=0)
    marked = drawn.labels != NONE
    low = low_resolution(drawn.images[marked])
    red, green, blue = np.moveaxis(low, 3, 0)
    saturated = green - blue - np.maximum(red - green, 0)
    white = np.minimum(np.minimum(red, green), blue) - np.median(low, axis=(1, 2)).mean(axis=1)[:, None, None]
    found = np.maximum(saturated, white).reshape(len(low), -1).argmax(axis=1)
    places = (np.stack([found // LOW, found % LOW], axis=1) + 0.5) * 64 / LOW
    distance = np.linalg.norm(places - drawn.centres[marked], axis=1)
    assert (distance < scenes.DIAMETER[1] / 2).mean() > 0.9


def test_a_marker_stands_out_of_its_background_in_the_low_resolution_view(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    painted, bare = with_and_without_markers(monkeypatch, 400, 64)
    marked = painted.labels != NONE
    change = np.abs(low_resolution(painted.images[marked]) - low_resolution(bare.images[marked]))
    strongest = change.max(axis=3).reshape(len(change), -1)
    assert np.median(strongest.max(axis=1)) > 80
    assert (strongest.max(axis=1) > 40).all()


def test_the_colour_of_the_disc_tells_nothing_about_the_digit() -> None:
    labels = np.arange(5000) % 10
    markers = scenes._draw_markers(np.random.default_rng(0), labels, "train", 64)
    means = np.stack([markers.colours[labels == label].mean(axis=0) for label in range(10)])
    standard_error = markers.colours.std(axis=0) / np.sqrt(500)
    assert (np.abs(means - markers.colours.mean(axis=0)) < 5 * standard_error).all()


@pytest.mark.parametrize(("split", "count", "size"), [("val", 8, 64), ("train", 0, 64), ("train", 8, 16)])
def test_arguments_that_cannot_be_drawn_are_refused(split: scenes.Split, count: int, size: int) -> None:
    with pytest.raises(UsageError):
        make_images(split, count, size)

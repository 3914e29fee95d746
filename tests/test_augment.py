"""Augmentations: HR and LR stay aligned, values stay those of the image, and the seed decides."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from patchdrop.data.augment import augment
from patchdrop.data.low import area_average
from patchdrop.settings.flat import Augmentation

NAMES: tuple[str, ...] = tuple(name for name in get_args(Augmentation) if name != "auto")


def images(count: int = 24, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def augmented(name: str | tuple[str, ...], high: Tensor, low: Tensor | None = None, seed: int = 1) -> tuple:
    torch.manual_seed(seed)
    return augment(high, low, (name,) if isinstance(name, str) else name)


@pytest.mark.parametrize("name", NAMES)
def test_an_augmentation_changes_some_images_keeps_shape_and_type_and_leaves_its_input_alone(name: str) -> None:
    high = images()
    before = high.clone()
    changed, low = augmented(name, high)
    assert low is None
    assert changed.shape == high.shape
    assert changed.dtype == torch.uint8
    assert torch.equal(high, before)
    different = (changed != high).flatten(1).any(1)
    assert bool(different.any())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_images_and_another_seed_others(name: str) -> None:
    first, again, other = (augmented(name, images(), seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_augmentation_is_the_identity() -> None:
    high, low = augmented((), images(), images(height=8, width=8))
    assert torch.equal(high, images())
    assert torch.equal(low, images(height=8, width=8))


@pytest.mark.parametrize("name", ["flip", "upside-down", "turn"])
@pytest.mark.parametrize("width", [32, 24])
def test_lr_turns_with_hr_to_the_bit(name: str, width: int) -> None:
    """On images that are not square, a turn is by half a circle."""
    high = images(width=width)
    turned, low = augmented(name, high, area_average(high, (8, width // 4)))
    assert torch.equal(low, area_average(turned, (8, width // 4)))


def test_lr_shifts_with_hr_by_whole_lr_pixels() -> None:
    blocks = images(height=8, width=8)
    high = blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)
    shifted, low = augmented("shift", high, blocks)
    inner = slice(2, -2)  # mirroring at the edge goes by pixels, so HR and LR differ there
    assert torch.equal(area_average(shifted, (8, 8))[..., inner, inner], low[..., inner, inner])
    assert not torch.equal(low, blocks)


def test_a_shift_keeps_the_size_where_hr_is_no_multiple_of_lr_or_of_eight() -> None:
    # An eighth of LR, scaled to HR, is then rounded to more than an eighth of HR.
    for height, width in ((60, 15), (15, 60)):
        high, low = images(64, height, width), images(64, 16, 16)
        shifted, shifted_low = augmented("shift", high, low)
        assert shifted.shape == high.shape
        assert shifted_low.shape == low.shape


def test_a_shift_is_by_an_eighth_of_a_side_at_most_and_mirrored_at_the_edge() -> None:
    ramp = torch.arange(32, dtype=torch.uint8).expand(200, 1, 32, 32).contiguous()
    shifted, _ = augmented("shift", ramp)
    offsets = shifted[:, 0, 16, 16].int() - 16
    assert set(offsets.tolist()) == set(range(-4, 5))
    row = shifted[offsets.eq(-3).nonzero()[0, 0], 0, 0].tolist()
    assert row == [3, 2, 1, *range(29)]


@pytest.mark.parametrize(
    ("name", "operation"), [("flip", lambda x: x.flip(3)), ("upside-down", lambda x: x.flip(2))], ids=["flip", "ud"]
)
def test_about_half_of_the_images_are_mirrored_and_the_others_kept(name: str, operation) -> None:
    high = images(200, 8, 8)
    changed, _ = augmented(name, high)
    kept = (changed == high).flatten(1).all(1)
    mirrored = (changed == operation(high)).flatten(1).all(1)
    assert bool((kept | mirrored).all())
    assert 60 < int(kept.sum()) < 140


def test_turns_are_by_0_1_2_or_3_quarters_equally_often() -> None:
    high = images(400, 8, 8)
    changed, _ = augmented("turn", high)
    counts = [int((changed == high.rot90(k, (2, 3))).flatten(1).all(1).sum()) for k in range(4)]
    assert sum(counts) == 400
    assert min(counts) > 60


def test_colour_moves_hr_and_lr_alike() -> None:
    grey = torch.full((50, 3, 16, 16), 120, dtype=torch.uint8)
    high, low = augmented("colour", grey, grey[:, :, :4, :4])
    assert torch.equal(high[:, :, :4, :4], low)
    brightness = high[:, 0, 0, 0].float()
    assert float(brightness.min()) >= 120 - 26
    assert float(brightness.max()) <= 120 + 26
    assert len(brightness.unique()) > 10


def test_erasing_paints_one_square_of_hr_in_half_of_the_images_and_leaves_lr_alone() -> None:
    high = images(200)
    low = area_average(high, (8, 8))
    erased, kept = augmented("erase", high, low)
    assert torch.equal(kept, low)
    share = (erased != high).any(1).float().mean((1, 2))
    assert 60 < int((share > 0).sum()) < 130
    assert float(share.max()) <= 0.25 + 0.05
    for image in range(200):
        hole = (erased[image] != high[image]).any(0)
        if bool(hole.any()):
            rows, cols = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
            box = erased[image, :, rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].flatten(1)
            mean = high[image].float().mean((1, 2)).round()
            assert torch.equal(box.float(), mean.unsqueeze(1).expand_as(box))


def test_a_zoom_shows_a_part_of_the_image_enlarged() -> None:
    ramp = (torch.arange(64) * 4).to(torch.uint8).expand(100, 1, 64, 64).contiguous()
    zoomed, _ = augmented("zoom", ramp)
    span = (zoomed[:, 0, 32, 60].float() - zoomed[:, 0, 32, 4].float()) / (4 * 56)
    assert float(span.min()) > 0.59
    assert float(span.max()) < 1.01
    assert float(span.max() - span.min()) > 0.3

"""Packed patches: the chosen ones and nothing else, there and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from masks import pixel_mask
from patchdrop.errors import UsageError
from patchdrop.grid import Grid, boxes, patch_size
from patchdrop.packed import Packed, gather, scatter

CASES = [
    (Grid(4, 4), 16, 16),
    (Grid(4, 4), 18, 21),
    (Grid(3, 5), 7, 5),
    (Grid(2, 3), 9, 13),
    (Grid(1, 1), 6, 5),
]
cases = pytest.mark.parametrize(("grid", "height", "width"), CASES, ids=str)


def drawn(grid: Grid, height: int, width: int, images: int = 4) -> tuple[Tensor, Tensor]:
    """Random images, and choices of which the first is empty and the last is everything."""
    generator = torch.Generator().manual_seed(height * width)
    pixels = torch.randint(0, 256, (images, 3, height, width), generator=generator, dtype=torch.uint8)
    choice = torch.rand(images, grid.patches, generator=generator) < 0.5
    choice[0], choice[-1] = False, True
    return pixels, choice


@cases
def test_each_packed_patch_is_its_box_and_zeros_where_the_box_is_smaller(grid: Grid, height: int, width: int) -> None:
    images, choice = drawn(grid, height, width)
    packed = gather(images, choice, grid)
    size = patch_size(grid, height, width)
    assert packed.pixels.shape[1:] == (3, *size)
    assert packed.pixels.dtype == torch.uint8
    for pixels, image, patch in zip(packed.pixels, packed.image, packed.patch, strict=True):
        top, left, bottom, right = boxes(grid, height, width)[int(patch)]
        expected = torch.zeros(3, *size, dtype=torch.uint8)
        expected[:, : bottom - top, : right - left] = images[int(image), :, top:bottom, left:right]
        assert torch.equal(pixels, expected)


@cases
def test_patches_come_in_the_order_of_nonzero(grid: Grid, height: int, width: int) -> None:
    images, choice = drawn(grid, height, width)
    packed = gather(images, choice, grid)
    assert torch.equal(torch.stack([packed.image, packed.patch], 1), choice.nonzero())


@cases
def test_the_batch_carries_the_sum_of_s_patches(grid: Grid, height: int, width: int) -> None:
    images, choice = drawn(grid, height, width)
    packed = gather(images, choice, grid)
    assert len(packed.pixels) == int(choice.sum())
    assert torch.equal(packed.counts, choice.sum(1))


def test_images_that_keep_0_3_and_11_patches_carry_14() -> None:
    choice = torch.zeros(3, 16, dtype=torch.bool)
    choice[1, :3] = True
    choice[2, 5:] = True
    packed = gather(torch.zeros(3, 3, 64, 64), choice, Grid(4, 4))
    assert packed.pixels.shape == (14, 3, 16, 16)
    assert packed.counts.tolist() == [0, 3, 11]


@cases
def test_gather_then_scatter_lays_the_chosen_pixels_and_keeps_the_rest_of_the_canvas(
    grid: Grid, height: int, width: int
) -> None:
    images, choice = drawn(grid, height, width)
    canvas = torch.randn(4, 3, height, width)
    before = canvas.clone()
    packed = gather(images.float(), choice, grid)
    laid = scatter(packed, packed.pixels, canvas, grid)
    mask = pixel_mask(choice, grid, height, width).unsqueeze(1)
    assert torch.equal(laid, torch.where(mask, images.float(), canvas))
    assert torch.equal(canvas, before)


@cases
def test_nothing_of_an_unchosen_pixel_is_carried(grid: Grid, height: int, width: int) -> None:
    images, choice = drawn(grid, height, width)
    mask = pixel_mask(choice, grid, height, width).unsqueeze(1)
    holes = torch.where(mask, images.float(), torch.nan)
    assert torch.equal(gather(holes, choice, grid).pixels, gather(images.float(), choice, grid).pixels)


@cases
def test_the_memory_order_of_the_images_does_not_matter(grid: Grid, height: int, width: int) -> None:
    images, choice = drawn(grid, height, width)
    plain = gather(images, choice, grid)
    other = gather(images.contiguous(memory_format=torch.channels_last), choice, grid)
    assert torch.equal(plain.pixels, other.pixels)
    canvas = torch.randn(4, 3, height, width)
    turned = canvas.contiguous(memory_format=torch.channels_last)
    assert torch.equal(
        scatter(plain, plain.pixels.float(), canvas, grid), scatter(plain, plain.pixels.float(), turned, grid)
    )


@cases
def test_of_images_is_what_those_images_alone_would_pack(grid: Grid, height: int, width: int) -> None:
    images, choice = drawn(grid, height, width, images=5)
    keep = torch.tensor([False, True, False, True, True])
    part = gather(images, choice, grid).of_images(keep)
    alone = gather(images[keep], choice[keep], grid)
    assert part.batch == alone.batch == 3
    for ours, theirs in zip(
        (part.pixels, part.image, part.patch), (alone.pixels, alone.image, alone.patch), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_of_images_and_to_take_the_weights_along() -> None:
    images, choice = drawn(Grid(2, 2), 4, 4)
    packed = gather(images, choice, Grid(2, 2))
    weighted = Packed(packed.pixels, packed.image, packed.patch, 4, torch.arange(float(len(packed.pixels))))
    keep = torch.tensor([True, False, False, True])
    part = weighted.of_images(keep)
    assert part.weight is not None
    assert weighted.weight is not None
    assert torch.equal(part.weight, weighted.weight[keep[packed.image]])
    moved = weighted.to("cpu")
    assert moved.weight is not None
    assert torch.equal(moved.weight, weighted.weight)


def test_no_patch_at_all_is_a_batch_of_none() -> None:
    grid = Grid(2, 2)
    packed = gather(torch.ones(3, 1, 4, 4), torch.zeros(3, 4, dtype=torch.bool), grid)
    assert packed.pixels.shape == (0, 1, 2, 2)
    assert packed.counts.tolist() == [0, 0, 0]
    canvas = torch.randn(3, 1, 4, 4)
    assert torch.equal(scatter(packed, packed.pixels, canvas, grid), canvas)


def test_an_image_too_small_for_the_grid_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot hold"):
        gather(torch.zeros(1, 3, 3, 8), torch.ones(1, 16, dtype=torch.bool), Grid(4, 4))


@cases
def test_a_gradient_reaches_chosen_pixels_and_the_unchosen_canvas(grid: Grid, height: int, width: int) -> None:
    images, choice = drawn(grid, height, width)
    source = images.double().requires_grad_()
    canvas = torch.randn(4, 3, height, width, dtype=torch.float64, requires_grad=True)
    factor = torch.randn(4, 3, height, width, dtype=torch.float64)
    packed = gather(source, choice, grid)
    (scatter(packed, packed.pixels, canvas, grid) * factor).sum().backward()
    mask = pixel_mask(choice, grid, height, width).unsqueeze(1)
    assert source.grad is not None
    assert canvas.grad is not None
    assert torch.equal(source.grad, factor * mask)
    assert torch.equal(canvas.grad, factor * ~mask)

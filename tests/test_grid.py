"""Where a patch lies: exactly once everywhere, whatever the image and the grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masks import choice_of_mask, owner, pixel_mask
from patchdrop.errors import UsageError
from patchdrop.grid import Grid, boxes, edges, patch_size


@st.composite
def grids_and_sizes(draw: st.DrawFn) -> tuple[Grid, int, int]:
    """A grid, and an image that can hold it, divisible or not."""
    grid = Grid(draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    return grid, draw(st.integers(grid.rows, 45)), draw(st.integers(grid.cols, 45))


@given(grids_and_sizes())
def test_boxes_tile_the_image_exactly_once(case: tuple[Grid, int, int]) -> None:
    grid, height, width = case
    times = np.zeros((height, width), dtype=int)
    for top, left, bottom, right in boxes(grid, height, width):
        times[top:bottom, left:right] += 1
    assert (times == 1).all()


@given(grids_and_sizes())
def test_boxes_are_row_by_row_and_none_is_empty(case: tuple[Grid, int, int]) -> None:
    grid, height, width = case
    found = boxes(grid, height, width)
    assert len(found) == grid.patches
    for number, (top, left, bottom, right) in enumerate(found):
        row, col = divmod(number, grid.cols)
        assert (top, left) == (edges(height, grid.rows)[row], edges(width, grid.cols)[col])
        assert bottom > top
        assert right > left


@given(grids_and_sizes())
def test_patches_differ_by_a_pixel_at_most_and_the_largest_is_the_patch_size(
    case: tuple[Grid, int, int],
) -> None:
    grid, height, width = case
    found = boxes(grid, height, width)
    heights = {bottom - top for top, _, bottom, _ in found}
    widths = {right - left for _, left, _, right in found}
    assert max(heights) - min(heights) <= 1
    assert max(widths) - min(widths) <= 1
    assert (max(heights), max(widths)) == patch_size(grid, height, width)


def test_the_boxes_of_a_divisible_and_of_an_odd_image() -> None:
    assert boxes(Grid(2, 2), 4, 6) == [(0, 0, 2, 3), (0, 3, 2, 6), (2, 0, 4, 3), (2, 3, 4, 6)]
    assert boxes(Grid(1, 3), 2, 5) == [(0, 0, 2, 1), (0, 1, 2, 3), (0, 3, 2, 5)]


@given(grids_and_sizes(), st.integers(0, 2**32 - 1))
def test_choice_to_mask_to_choice_is_the_identity(case: tuple[Grid, int, int], seed: int) -> None:
    grid, height, width = case
    choice = torch.from_numpy(np.random.default_rng(seed).random((3, grid.patches)) < 0.5)
    mask = pixel_mask(choice, grid, height, width)
    assert mask.shape == (3, height, width)
    assert torch.equal(choice_of_mask(mask, grid), choice)


@given(grids_and_sizes(), st.integers(0, 2**32 - 1))
def test_the_mask_is_true_exactly_in_the_chosen_boxes(case: tuple[Grid, int, int], seed: int) -> None:
    grid, height, width = case
    choice = torch.from_numpy(np.random.default_rng(seed).random((2, grid.patches)) < 0.5)
    expected = torch.zeros(2, height, width, dtype=torch.bool)
    for image, patch in choice.nonzero().tolist():
        top, left, bottom, right = boxes(grid, height, width)[patch]
        expected[image, top:bottom, left:right] = True
    assert torch.equal(pixel_mask(choice, grid, height, width), expected)


def test_the_owner_of_each_pixel() -> None:
    assert owner(5, 3).tolist() == [0, 1, 1, 2, 2]
    assert owner(4, 2).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("text", "rows", "cols"), [("4", 4, 4), ("3x5", 3, 5), ("1", 1, 1), (" 2 ", 2, 2), ("12x1", 12, 1)]
)
def test_a_grid_is_parsed_from_what_it_prints(text: str, rows: int, cols: int) -> None:
    grid = Grid.parse(text)
    assert (grid.rows, grid.cols, grid.patches) == (rows, cols, rows * cols)
    assert Grid.parse(str(grid)) == grid


@pytest.mark.parametrize(
    "text", ["", "x", "4x", "x4", "-1", "4.0", "3x5x2", "four", "3 x 5", "0", "0x3", "3x0", "3\n4"]
)
def test_no_grid_is_a_usage_error_that_names_the_text(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Grid.parse(text)
    assert repr(text)[1:-1].strip() in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("height", "width"), [(3, 8), (8, 4)])
def test_an_image_of_less_than_a_pixel_a_patch_is_refused(height: int, width: int) -> None:
    with pytest.raises(UsageError, match=f"{height} x {width} px image cannot hold a 4 x 5 grid"):
        boxes(Grid(4, 5), height, width)


def test_an_image_of_one_pixel_a_patch_is_accepted() -> None:
    assert boxes(Grid(2, 2), 2, 2) == [(0, 0, 1, 1), (0, 1, 1, 2), (1, 0, 2, 1), (1, 1, 2, 2)]

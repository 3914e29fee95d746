"""The picture of a scene: bounded whatever the scene's size, and legible with many classes or tiny cells."""

from __future__ import annotations

import numpy as np
import pytest

from patchdrop.report import theme
from patchdrop.report.scene import MOST, ScenePicture
from pyramids import picture

LOW = picture(16, 16, seed=3).transpose(1, 2, 0)


@pytest.mark.parametrize("size", [(3_000_000, 2_000_000), (40, 30), (8, 100_000), (100_000, 8)], ids=str)
def test_a_picture_is_bounded_whatever_the_scenes_size(size: tuple[int, int]) -> None:
    drawn = ScenePicture(size, 0.25)
    drawn.add((0, 0, size[0], size[1]), LOW, "#2f9be6", [(0, 0, 4, 4)])
    page = drawn.page("a", [("x", "#2f9be6", 1)], ["said"])
    assert max(drawn._view.size) <= MOST and max(drawn._marks.size) <= MOST
    assert max(page.size) < MOST + 400


def test_cells_too_small_for_an_outline_are_tinted_all_over() -> None:
    drawn = ScenePicture((64_000, 64_000), 0.25)
    drawn.add((0, 0, 256, 256), LOW, "#ff0000", [])
    side = MOST / 250  # of a cell in the picture
    marks = np.asarray(drawn._marks)
    tinted = marks[: round(side), : round(side)]
    assert (tinted[..., :3] == (255, 0, 0)).all() and len(np.unique(tinted[..., 3])) == 1
    assert not marks[round(side) :, :].any()


def test_a_legend_of_many_classes_names_the_most_frequent_and_counts_the_others() -> None:
    drawn = ScenePicture((64, 64), 0.25)
    legend = [(f"a class with a long name {i}", theme.class_colour(i), 1000 - i) for i in range(1000)]
    few, many = drawn.page("a", legend[:24], []), drawn.page("a", legend, [])
    assert few.size[0] == many.size[0] and 0 <= many.size[1] - few.size[1] < 60


def test_no_two_of_many_classes_share_a_colour() -> None:
    colours = [theme.class_colour(i) for i in range(254)]
    assert len(set(colours)) == len(colours)

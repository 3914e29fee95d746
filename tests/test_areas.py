"""Areas to order: each rule by hand, and what holds of every choice under every tariff."""

from __future__ import annotations

import math
from typing import Any

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Polygon, box

from patchdrop.tariffs.areas import Area, Ground, covered_km2, orderable
from patchdrop.tariffs.tariff import Step, Tariff

GROUND = Ground(100.0, 100.0, 0.01)
"""Pixels of 100 m: ten of them are a kilometre, a hundred a square kilometre."""
SIZE = (400, 400)
Boxes = list[tuple[int, int, int, int]]


def selling(**terms: Any) -> Tariff:
    return Tariff(currency="EUR", per_km2=(Step(0, math.inf, 1.0),), **terms)


def order(boxes: Boxes, size: tuple[int, int] = SIZE, **terms: Any) -> list[Area]:
    return orderable(boxes, size, GROUND, selling(**terms))


def square(row: int, column: int, side: int = 10) -> tuple[int, int, int, int]:
    """A patch of 1 km2 on the grid of such patches."""
    return row * side, column * side, (row + 1) * side, (column + 1) * side


def km2(shape: Polygon) -> float:
    return float(shape.area) * GROUND.km2


L_SHAPE = [square(0, 0), square(1, 0), square(2, 0), square(2, 1), square(2, 2)]


def test_neighbours_unite_exactly_and_patches_that_share_a_corner_do_not() -> None:
    (area,) = order(L_SHAPE)
    assert area.km2 == pytest.approx(5) and len(area.shape.exterior.coords) == 6 + 1
    assert area.shape.equals(shapely.union_all([box(0, 0, 10, 30), box(10, 20, 30, 30)]))
    assert [a.km2 for a in order([square(0, 0), square(1, 1)])] == pytest.approx([1, 1])


def test_overlapping_patches_are_counted_once() -> None:
    boxes = [(0, 0, 10, 10), (0, 4, 10, 14), (4, 0, 14, 10)]
    assert covered_km2(boxes, GROUND) == pytest.approx(1.8)
    assert sum(a.km2 for a in order(boxes)) == pytest.approx(1.8)


def test_a_ring_keeps_its_hole() -> None:
    (area,) = order([square(r, c) for r in range(3) for c in range(3) if (r, c) != (1, 1)])
    assert area.km2 == pytest.approx(8) and len(area.shape.interiors) == 1


def test_an_area_below_the_minimum_grows_to_it_and_costs_it() -> None:
    (area,) = order([square(10, 10)], minimum_km2=25)
    assert area.km2 == 25
    assert area.shape.bounds == pytest.approx((80, 80, 130, 130))
    (area,) = order(L_SHAPE, minimum_km2=7)
    assert area.km2 == 7 and km2(area.shape) == pytest.approx(7) and len(area.shape.exterior.coords) == 6 + 1


def test_what_grows_stays_in_the_scene() -> None:
    (area,) = order([square(0, 0)], minimum_km2=25)
    assert area.shape.bounds == pytest.approx((0, 0, 50, 50))
    (area,) = order([square(0, 0)], size=(30, 40), minimum_km2=25)
    assert area.km2 == 25 and area.shape.equals(box(0, 0, 40, 30))
    (area,) = order([square(1, 2)], size=(30, 200), minimum_width_km=4)
    assert area.km2 == pytest.approx(12) and area.shape.equals(box(5, 0, 45, 30))


def test_a_narrow_area_becomes_a_box_of_the_minimum_width() -> None:
    (area,) = order([square(20, column) for column in range(5, 11)], minimum_width_km=2)
    assert area.km2 == pytest.approx(12) and area.shape.equals(box(50, 195, 110, 215))


def test_two_areas_become_one_where_the_box_around_both_is_cheaper() -> None:
    near, far = [square(0, 0), square(0, 4)], [square(0, 0), square(0, 39)]
    assert [a.km2 for a in order(near, minimum_km2=4)] == pytest.approx([5])  # instead of 4 + 4
    assert [a.km2 for a in order(near)] == pytest.approx([1, 1])  # instead of 5
    assert [a.km2 for a in order(far, minimum_km2=4)] == pytest.approx([4, 4])  # instead of 40


def test_a_box_that_swallows_another_area_takes_it_in() -> None:
    (area,) = order([square(0, 0), square(0, 2), square(0, 4)], minimum_km2=4)
    assert area.km2 == pytest.approx(5) and area.shape.equals(box(0, 0, 50, 10))


@pytest.mark.parametrize("rule", ["priced", "ordered"])
def test_boxes_are_billed_where_the_tariff_says_so_and_a_bent_area_is_then_cheaper_in_parts(rule: str) -> None:
    areas = order(L_SHAPE, bounding_box=rule)
    assert sum(a.km2 for a in areas) == pytest.approx(5)
    assert all(a.shape.equals(box(*a.shape.bounds)) for a in areas) and len(areas) == 2


def test_an_area_priced_as_its_box_need_not_be_one() -> None:
    for rule, ordered in (("priced", 5.0), ("ordered", 9.0)):
        (area,) = order(L_SHAPE, bounding_box=rule, minimum_km2=6)
        assert area.km2 == pytest.approx(9) and km2(area.shape) == pytest.approx(ordered)


def test_an_area_with_too_many_corners_is_boxed_or_split_whichever_is_cheaper() -> None:
    comb = [square(0, c) for c in range(9)] + [square(1, c) for c in range(0, 9, 2)]
    (area,) = order(comb)
    assert area.km2 == pytest.approx(14) and len(area.shape.exterior.coords) == 20 + 1
    split = order(comb, max_vertices=8)
    assert sum(a.km2 for a in split) == pytest.approx(14) and len(split) > 1
    assert all(len(a.shape.exterior.coords) <= 8 + 1 for a in split)
    (boxed,) = order(comb, max_vertices=8, minimum_km2=12)
    assert boxed.km2 == pytest.approx(18)  # instead of two of at least 12


def test_no_order_is_dearer_than_the_whole_scene() -> None:
    checkers = [square(r, c) for r in range(8) for c in range(8) if (r + c) % 2]
    (area,) = order(checkers, size=(80, 80), minimum_width_km=1.5)  # 32 areas of 2.25 km2 otherwise
    assert area.km2 == pytest.approx(64) and area.shape.equals(box(0, 0, 80, 80))


def test_nothing_chosen_is_nothing_ordered() -> None:
    assert order([], minimum_km2=25) == [] and covered_km2([], GROUND) == 0


@st.composite
def choices(draw: st.DrawFn) -> tuple[Boxes, tuple[int, int]]:
    """Patches of some cells of 4 x 4, the last cells overlapping their neighbours as in a scene."""
    height, width = draw(st.integers(40, 130)), draw(st.integers(40, 130))
    tops = [min(top, height - 40) for top in range(0, height, 40)]
    lefts = [min(left, width - 40) for left in range(0, width, 40)]
    patches = st.tuples(st.sampled_from(tops), st.sampled_from(lefts), st.integers(0, 3), st.integers(0, 3))
    chosen = draw(st.sets(patches, min_size=1, max_size=24))
    return [(t + 10 * r, x + 10 * c, t + 10 * r + 10, x + 10 * c + 10) for t, x, r, c in sorted(chosen)], (
        height,
        width,
    )


TARIFFS = st.builds(
    selling,
    minimum_km2=st.sampled_from([0.0, 0.7, 3.0, 20.0, 500.0]),
    minimum_width_km=st.sampled_from([0.0, 0.5, 1.5, 3.3, 50.0]),
    bounding_box=st.sampled_from(["none", "priced", "ordered"]),
    max_vertices=st.sampled_from([None, 4, 6, 12]),
)


@settings(max_examples=25, deadline=None)
@given(choices(), TARIFFS, st.sampled_from([GROUND, Ground(50.0, 200.0, 0.0099)]))
def test_an_order_covers_its_patches_keeps_the_rules_and_costs_no_more_than_its_parts_or_the_scene(
    choice: tuple[Boxes, tuple[int, int]], tariff: Tariff, ground: Ground
) -> None:
    boxes, size = choice
    areas = orderable(boxes, size, ground, tariff)
    billed = sum(area.km2 for area in areas)
    apart = sum(area.km2 for one in boxes for area in orderable([one], size, ground, tariff))
    (whole,) = orderable([(0, 0, *size)], size, ground, tariff)
    assert covered_km2(boxes, ground) - 1e-9 <= billed <= min(apart, whole.km2) + 1e-6
    patches = shapely.union_all([box(left, top, right, bottom) for top, left, bottom, right in boxes])
    assert shapely.union_all([area.shape for area in areas]).buffer(1e-6).covers(patches)
    scene = box(0, 0, size[1], size[0])
    for shape, paid in areas:
        assert shape.is_valid and shape.geom_type == "Polygon" and scene.buffer(1e-6).covers(shape)
        corners = sum(len(ring.coords) - 1 for ring in (shape.exterior, *shape.interiors))
        assert corners <= (tariff.max_vertices or math.inf)
        around = box(*shape.bounds)
        if tariff.bounding_box == "ordered":
            assert shape.equals_exact(around, 1e-6, normalize=True)
        priced = shape if tariff.bounding_box == "none" else around
        assert priced.area * ground.km2 == pytest.approx(min(paid, scene.area * ground.km2), abs=1e-6)
        assert paid >= tariff.minimum_km2
        left, top, right, bottom = shape.bounds
        narrowest = tariff.minimum_width_km * 1000
        assert (right - left) * ground.across >= min(narrowest, size[1] * ground.across) - 1e-6
        assert (bottom - top) * ground.down >= min(narrowest, size[0] * ground.down) - 1e-6


@settings(max_examples=20, deadline=None)
@given(TARIFFS, st.tuples(*[st.integers(0, 60)] * 4), st.tuples(*[st.integers(0, 30)] * 4))
def test_a_larger_box_never_costs_less(tariff: Tariff, inner: tuple[int, ...], margin: tuple[int, ...]) -> None:
    top, left, height, width = inner
    small = (top + 35, left + 35, top + height + 36, left + width + 36)
    large = (small[0] - margin[0], small[1] - margin[1], small[2] + margin[2], small[3] + margin[3])
    (a,), (b,) = (orderable([one], SIZE, GROUND, tariff) for one in (small, large))
    assert a.km2 <= b.km2 + 1e-9

"""Turn chosen patches into areas that can be ordered under a tariff.

Everything happens in the scene's pixels, x to the right and y down, so that neighbours unite exactly. Two constants of
the scene, `Ground`, turn pixels into metres, for widths, and into square kilometres. The latter is geodesic for the
scene as a whole and in proportion to pixels within it.

An order costs square kilometres: an area is billed by its polygon, or its bounding box if the tariff says so, and at
least the tariff's minimum. `orderable` is greedy. It keeps two promises: the areas are never billed more than the
chosen patches ordered one by one, because areas only come together if that is not dearer; and never more than the whole
scene ordered as one area. It does not promise that no other set of areas is cheaper.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Polygon, box

from patchdrop.tariffs.tariff import Tariff

if TYPE_CHECKING:
    from patchdrop.tiff.tiles import Box

Bounds = NDArray[np.float64]
"""The least x and y of each box, and the largest, ``(2, 2, n)``; boxes last, which is fast for thousands of them."""
HAIR = 1e-9
"""Square kilometres, a thousandth of a square metre, that may come from rounding alone."""
HALVINGS = 60
"""Steps of the search for how far an area has to grow; each halves the remaining range."""


class Ground(NamedTuple):
    """The size of a scene's pixels on the ground."""

    across: float
    """Metres from one column to the next, halfway down the scene."""
    down: float
    """Metres from one row to the next, halfway across the scene."""
    km2: float
    """Square kilometres of a pixel: those of the whole scene, divided by its number of pixels."""


class Area(NamedTuple):
    """A polygon of an order."""

    shape: Polygon
    """In pixels of the scene; may have holes."""
    km2: float
    """Square kilometres that are billed for it."""


def covered_km2(boxes: Iterable[Box], ground: Ground) -> float:
    """Return the square kilometres that boxes of pixels cover, each pixel counted once."""
    return float(shapely.union_all(_polygons(_rectangles(boxes))).area) * ground.km2


def scene_outline(size: tuple[int, int]) -> Polygon:
    """Return the outline of a scene of ``size``, its height and width in pixels."""
    return box(0, 0, size[1], size[0])


def orderable(boxes: Iterable[Box], size: tuple[int, int], ground: Ground, tariff: Tariff) -> list[Area]:
    """Return areas that cover boxes of pixels and keep the tariff's rules; none if there are no boxes.

    An area that is narrower than the tariff's minimum width becomes a box of that width; one that is billed as the
    minimum grows to it on all sides. No area leaves the scene: one that cannot grow further is the whole scene, or as
    wide as it, and billed as the minimum all the same.

    Args:
        boxes: may overlap.
        size: height and width of the scene in pixels.
    """
    rectangles = _polygons(_rectangles(boxes))
    rules = _Rules(tariff, ground, size)
    areas = [Area(rules.ordered(shape, rectangles), rules.billed(shape)) for shape in _shapes(rectangles, rules)]
    return sorted(areas, key=lambda area: (area.shape.bounds[1], area.shape.bounds[0]))


def billed_km2(boxes: Iterable[Box], size: tuple[int, int], ground: Ground, tariff: Tariff) -> float:
    """Return the square kilometres billed for the areas of `orderable`, without their outlines, which take longer."""
    rules = _Rules(tariff, ground, size)
    return sum(map(rules.billed, _shapes(_polygons(_rectangles(boxes)), rules)))


def _shapes(rectangles: NDArray[np.object_], rules: _Rules) -> list[Polygon]:
    """Return the areas to order, before they grow to the tariff's minima."""
    if not len(rectangles):
        return []
    shapes = list(rectangles) if rules.boxed else _fitting(rectangles, rules)
    count = len(shapes) + 1
    while len(shapes) < count:
        count = len(shapes)
        shapes = _joined(shapes, rules)
        if not rules.boxed:
            shapes = _united(shapes, rules)
    return [rules.scene] if sum(map(rules.billed, shapes)) >= rules.billed(rules.scene) else shapes


class _Rules:
    """A tariff's rules in pixels of one scene."""

    def __init__(self, tariff: Tariff, ground: Ground, size: tuple[int, int]) -> None:
        self.scene = scene_outline(size)
        self.boxed = tariff.bounding_box != "none"
        self._only_boxes = tariff.bounding_box == "ordered"
        self._cap = tariff.max_vertices
        self._minimum = tariff.minimum_km2
        self._km2 = ground.km2
        self._sides = np.array([size[1], size[0]], dtype=np.float64)
        metres = np.array([ground.across, ground.down])
        self._narrowest = np.minimum(tariff.minimum_width_km * 1000 / metres, self._sides)

    def fits(self, shape: Polygon) -> bool:
        """Check whether a polygon has few enough corners."""
        return self._cap is None or _vertices(shape) <= self._cap

    def billed_boxes(self, bounds: Bounds) -> NDArray[np.float64]:
        """Return the square kilometres billed for areas that are boxes, ``(n,)``."""
        across, down = np.maximum(bounds[1] - bounds[0], self._narrowest[:, None])
        billed: NDArray[np.float64] = np.maximum(across * down * self._km2, self._minimum)
        return billed

    def billed(self, shape: Polygon) -> float:
        """Return the square kilometres billed for an area."""
        bounds = _bounds([shape])
        if self.boxed or self._narrow(bounds):
            return float(self.billed_boxes(bounds)[0])
        return max(float(shape.area) * self._km2, self._minimum)

    def ordered(self, shape: Polygon, rectangles: NDArray[np.object_]) -> Polygon:
        """Return the polygon to order for an area: wide and large enough, and within the scene.

        Args:
            rectangles: all that has to be covered by some area.
        """
        bounds = _bounds([shape])
        if self._narrow(bounds):
            low, high = bounds[..., 0]
            sides = np.maximum(high - low, self._narrowest)
            low = np.clip((low + high - sides) / 2, 0, self._sides - sides)
            shape = box(*low, *(low + sides))
        elif self.boxed and not self._only_boxes:
            exact = _parts(shapely.union_all(rectangles[shapely.covers(shape, rectangles)]))
            if len(exact) == 1 and exact[0].bounds == shape.bounds and self.fits(exact[0]):
                return self._grown(exact[0])
        return self._grown(shape)

    def _narrow(self, bounds: Bounds) -> bool:
        return bool((bounds[1] - bounds[0] < self._narrowest[:, None]).any())

    def _large(self, shape: Polygon) -> bool:
        priced = box(*shape.bounds) if self.boxed else shape
        return float(priced.area) * self._km2 >= self._minimum

    def _grown(self, shape: Polygon) -> Polygon:
        """Grow the shape by equal margins on all sides, within the scene, until it has the minimum area."""
        if self._large(shape):
            return shape
        if not self._large(self.scene):
            return self.scene
        least, most = 0.0, float(self._sides.max())
        for _ in range(HALVINGS):
            margin = (least + most) / 2
            if self._large(self._with_margin(shape, margin)):
                most = margin
            else:
                least = margin
        return self._with_margin(shape, most)

    def _with_margin(self, shape: Polygon, margin: float) -> Polygon:
        return shape.buffer(margin, join_style="mitre").intersection(self.scene)


def _fitting(rectangles: NDArray[np.object_], rules: _Rules) -> list[Polygon]:
    """Unite rectangles where they touch; box or halve a polygon with too many corners, whichever is cheaper."""
    found: list[Polygon] = []
    for part in _parts(shapely.union_all(rectangles)):
        if rules.fits(part):
            found.append(part)
            continue
        inside = rectangles[shapely.covers(part, rectangles)]
        bounds = _bounds(inside)
        longer = int(np.ptp(bounds[1], axis=1).argmax())
        order = np.argsort(bounds.sum(0)[longer], kind="stable")
        halves = [inside[half] for half in np.array_split(order, 2)]
        pieces = [piece for half in halves for piece in _fitting(half, rules)]
        boxed = box(*part.bounds)
        found += pieces if sum(map(rules.billed, pieces)) < rules.billed(boxed) else [boxed]
    return found


def _united(shapes: Sequence[Polygon], rules: _Rules) -> list[Polygon]:
    """Unite polygons that touch if the result has few enough corners."""
    every = np.array(shapes, dtype=object)
    found: list[Polygon] = []
    for part in _parts(shapely.union_all(every)):
        found += [part] if rules.fits(part) else every[shapely.covers(part, every)].tolist()
    return found


def _joined(shapes: Sequence[Polygon], rules: _Rules) -> list[Polygon]:
    """Pair each area with the one that saves most, and replace both by the box around them if that is cheaper."""
    bounds = _bounds(shapes)
    billed = np.array([rules.billed(shape) for shape in shapes], dtype=np.float64)
    found: list[Polygon | None] = list(shapes)
    for i in range(len(shapes)):
        if found[i] is None:
            continue
        one = bounds[..., i, None]
        around = np.stack([np.minimum(bounds[0], one[0]), np.maximum(bounds[1], one[1])])
        joint = rules.billed_boxes(around)
        saved = billed + billed[i] - joint
        saved[i] = -np.inf
        j = int(saved.argmax())
        if saved[j] <= HAIR:
            continue
        found[i], found[j] = None, box(*around[..., j].ravel())
        bounds[..., j], billed[j] = around[..., j], joint[j]
        billed[i] = -np.inf  # never worth joining again
    return [shape for shape in found if shape is not None]


def _rectangles(boxes: Iterable[Box]) -> list[Box]:
    """Cover the same pixels by fewer boxes: runs along rows, then equal runs below one another."""
    rows: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for top, left, bottom, right in boxes:
        rows[top, bottom].append((left, right))
    columns: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for row, spans in rows.items():
        for span in _runs(spans):
            columns[span].append(row)
    return [(top, left, bottom, right) for (left, right), spans in columns.items() for top, bottom in _runs(spans)]


def _runs(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Unite intervals that touch or overlap; return them sorted."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found


def _polygons(boxes: Sequence[Box]) -> NDArray[np.object_]:
    edges = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    polygons: NDArray[np.object_] = shapely.box(edges[:, 1], edges[:, 0], edges[:, 3], edges[:, 2])
    return polygons


def _parts(shape: shapely.Geometry) -> list[Polygon]:
    """Return the polygons of a union, without corners on straight lines."""
    return [part for part in shapely.get_parts(shape.simplify(0)).tolist() if not part.is_empty]


def _vertices(shape: Polygon) -> int:
    """Count the corners of a polygon and of its holes."""
    return int(shapely.get_num_coordinates(shape)) - 1 - len(shape.interiors)


def _bounds(shapes: Sequence[Polygon] | NDArray[np.object_]) -> Bounds:
    return np.ascontiguousarray(shapely.bounds(np.array(shapes, dtype=object)).T).reshape(2, 2, -1)

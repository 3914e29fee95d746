"""Turn polygons on the globe into geometries of GeoJSON (RFC 7946), in CRS84: longitude, latitude on WGS 84.

Rings run counter-clockwise (the right-hand rule). Longitudes are between -180 and 180 degrees; a polygon across the
180th meridian is cut there, and one over a pole reaches up to latitude 90 or -90.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import shapely

Point = tuple[float, float]
DIGITS = 8
"""Decimal digits of a degree: about a millimetre."""
POLE = 1e-7
"""A point nearer to a pole than this, in degrees, counts as the pole."""
TINY = 1e-9
"""Error in degrees that rounding may make."""
POLE_POINTS = 16
"""Points on each edge of an area that lies over a pole."""


def geometry(polygons: Sequence[Sequence[Sequence[Point]]]) -> dict[str, Any]:
    """Return one polygon of GeoJSON, or several as one geometry; the first ring of each is its outer one."""
    found = []
    for rings in polygons:
        rounded = [[(round(x, DIGITS), round(y, DIGITS)) for x, y in ring] for ring in rings]
        found.append([[list(point) for point in closed(ring, hole=i > 0)] for i, ring in enumerate(rounded)])
    if len(found) == 1:
        return {"type": "Polygon", "coordinates": found[0]}
    return {"type": "MultiPolygon", "coordinates": found}


def within_180(rings: list[list[Point]], wide: bool) -> list[list[list[Point]]]:
    """Move a polygon of degrees to between -180 and 180; if it lies across the 180th meridian, cut it into several.

    Args:
        rings: the outer ring, then those of holes.
        wide: it is wider than 180 degrees; one that only seems so has corners on both sides of the meridian.
    """
    xs = [x for x, _ in rings[0]]
    if max(xs) - min(xs) > 180 and not wide:
        rings = [[(x % 360, y) for x, y in ring] for ring in rings]
        xs = [x for x, _ in rings[0]]
    turns = 360 * math.floor((min(xs) + 180) / 360)
    if max(xs) - turns <= 180:
        return [[[(x - turns, y) for x, y in ring] for ring in rings]]
    whole = shapely.Polygon(rings[0], rings[1:])
    found = []
    for east in (turns, turns + 360):
        part = whole.intersection(shapely.box(east - 180, -90, east + 180, 90))
        for polygon in shapely.get_parts(part):
            if isinstance(polygon, shapely.Polygon):  # it may also touch the meridian
                outlines = (polygon.exterior, *polygon.interiors)
                found.append([[(x - east, y) for x, y in outline.coords[:-1]] for outline in outlines])
    return found


def over_pole(outer: Sequence[Point], holes: Sequence[Sequence[Point]]) -> list[list[list[Point]]]:
    """Return a polygon whose outer line goes round a pole as polygons on a map of degrees; the pole is its edge."""
    # No part of the line lies between its point nearest to the pole and the pole.
    first = max(range(len(outer)), key=lambda i: abs(outer[i][1]))
    line = [*outer[first:], *outer[: first + 1]]
    found = [line[0]]
    for (x, _), (u, v) in itertools.pairwise(line):
        found.append((found[-1][0] + _eastward(x, u), v))
    pole = math.copysign(90.0, line[0][1])
    cut = within_180([[*found, (found[-1][0], pole), (found[0][0], pole)]], wide=True)
    parts = [shapely.Polygon(ring) for (ring,) in cut]
    left = [shapely.Polygon(ring) for hole in holes for ring, *_ in within_180([list(hole)], wide=False)]
    whole = shapely.difference(shapely.union_all(parts, grid_size=TINY), shapely.union_all(left), grid_size=TINY)
    return [
        [list(ring.coords)[:-1] for ring in (part.exterior, *part.interiors)]
        for part in shapely.get_parts(whole).tolist()
        if isinstance(part, shapely.Polygon)
    ]


def turns_round_pole(ring: Sequence[Point]) -> bool:
    """Return whether a closed line of degrees goes once round a pole; False if it goes through a pole."""
    if not ring or any(abs(y) > 90 - POLE for _, y in ring):
        return False
    xs = [x for x, _ in ring]
    return abs(sum(map(_eastward, xs, [*xs[1:], xs[0]]))) > 180


def beside_poles(ring: Sequence[Point]) -> list[Point]:
    """Replace each pole, which has every longitude, by two points with the longitudes before and after it."""
    found: list[Point] = []
    for i, (x, y) in enumerate(ring):
        if abs(y) > 90 - POLE:
            before, after = ring[i - 1], ring[(i + 1) % len(ring)]
            found += [(before[0], math.copysign(90, y)), (after[0], math.copysign(90, y))]
        else:
            found.append((x, y))
    return found


def densified(ring: Sequence[Point]) -> list[Point]:
    """Return the ring with `POLE_POINTS` points on each edge."""
    following = [*ring[1:], ring[0]]
    steps = [i / POLE_POINTS for i in range(POLE_POINTS)]
    return [(x + s * (u - x), y + s * (v - y)) for (x, y), (u, v) in zip(ring, following, strict=True) for s in steps]


def spread(ring: Sequence[Point]) -> float:
    """Return the largest longitude minus the smallest, in degrees, as plain numbers."""
    xs = [x for x, _ in ring]
    return max(xs) - min(xs)


def closed(corners: Sequence[Point], hole: bool = False) -> list[Point]:
    """Return the ring closed and counter-clockwise, or clockwise round a hole."""
    ordered = list(reversed(corners)) if (_area(corners) < 0) != hole else list(corners)
    return [*ordered, ordered[0]]


def collection_start(kind: str) -> str:
    """Return the text of a feature collection up to its features."""
    said = '"coordinates": "pixels", ' if kind == "pixels" else ""
    return f'{{"type": "FeatureCollection", {said}"features": ['


COLLECTION_END = "\n]}\n"


def feature(geometry: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    """Return a GeoJSON feature."""
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _eastward(start: float, end: float) -> float:
    """Return the degrees from one longitude to another, the shorter way."""
    return (end - start + 180) % 360 - 180


def _area(ring: Sequence[Point]) -> float:
    """Return the signed area, positive if the ring runs counter-clockwise."""
    following = [*ring[1:], ring[0]]
    return sum(x * v - u * y for (x, y), (u, v) in zip(ring, following, strict=True)) / 2

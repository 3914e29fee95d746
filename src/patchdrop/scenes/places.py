"""Locate boxes of pixels: on the ground, and as polygons in CRS84 if the scene's header allows it.

A scene without a georeference, or with a coordinate system that has no EPSG code, gives pixel coordinates,
x to the right and y down; the collection then says so in ``"coordinates": "pixels"``, which is no part of the standard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from patchdrop.errors import DataError
from patchdrop.read.pairs import Onto, Points
from patchdrop.scenes.geojson import (
    Point,
    beside_poles,
    closed,
    densified,
    geometry,
    over_pole,
    spread,
    turns_round_pole,
    within_180,
)
from patchdrop.tariffs.areas import Ground
from patchdrop.tiff.directory import Georeference
from patchdrop.tiff.tiles import Box

AROUND = 90.0
"""An area over a pole is wider than this, in degrees."""
UNEVEN = 1.05
"""Largest ratio of a scene's longest to its shortest pixel on the ground, if cells have a ground size."""
EDGE_POINTS = 64
"""Parts in which an edge of a scene is measured: a straight line of its coordinate system is curved on the ground."""


class Places:
    """The georeference of one scene, which turns its boxes into polygons.

    Attributes:
        kind: coordinates that `polygon` returns: ``CRS84`` or ``pixels``.
        matrix: from pixels to the scene's own coordinates, as in `Georeference`; None without one.
        crs: system of the scene's own coordinates, such as ``EPSG:32633``; None if the header gives no code.
    """

    def __init__(self, georeference: Georeference | None, name: str) -> None:
        self._name = name
        self.matrix = None if georeference is None else georeference.matrix
        self.crs: str | None = None
        self._to_crs84: Callable[..., tuple[Sequence[float], Sequence[float]]] | None = None
        if georeference is not None and georeference.epsg is not None:
            from pyproj import CRS, Transformer
            from pyproj.exceptions import ProjError

            try:
                crs = CRS.from_epsg(georeference.epsg)
                horizontal = crs.is_geographic or crs.is_projected
                self._to_crs84 = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True).transform
            except ProjError:
                horizontal = False
            if not horizontal:
                raise DataError(
                    f"{name}: EPSG:{georeference.epsg} is no known coordinate system of maps: "
                    "correct it with gdal_edit -a_srs"
                )
            self.crs = f"EPSG:{georeference.epsg}"
            self._geographic = crs.is_geographic
        self.kind = "pixels" if self._to_crs84 is None else "CRS84"

    def cell(self, metres: float, size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width, in whole pixels, of a square with sides of that many metres on the ground.

        Metres are geodesic, whatever the coordinate system's own unit is, and measured in the middle of the scene.

        Args:
            size: height and width of the scene in pixels.

        Raises:
            DataError: there is no georeference, or pixels differ in size on the ground; or see `polygon`.
        """
        if self.kind == "pixels":
            raise DataError(
                f"{self._name}: has no georeference with an EPSG code, which --cell-metres needs: correct it with "
                "gdal_edit -a_srs, or leave --cell-metres out"
            )
        from pyproj import Geod

        at = [(x * size[1], y * size[0]) for y in (0.0, 0.5, 1.0) for x in (0.0, 0.5, 1.0)]
        down, across = (
            Geod(ellps="WGS84").inv(*_columns(self._points(at)), *_columns(self._points(moved)))[2]
            for moved in ([(x, y + 1) for x, y in at], [(x + 1, y) for x, y in at])
        )
        for sides in (down, across):
            if not max(sides) <= UNEVEN * min(sides):
                raise DataError(
                    f"{self._name}: its pixels are {min(sides):.4g} to {max(sides):.4g} m long, no grid of cells of "
                    "--cell-metres: warp it to UTM with gdalwarp, or cut it into smaller scenes"
                )
        return max(1, round(metres / down[4])), max(1, round(metres / across[4]))

    def onto(self, other: Places, width: int) -> Onto:
        """Return the function from this scene's pixels to those of another scene.

        Args:
            width: width of the other scene in pixels.

        Raises:
            DataError: one of the two has no georeference, or is rotated.
        """
        for places, others in ((self, other), (other, self)):
            if places.kind == "pixels" or places.matrix is None:
                raise DataError(
                    f"{places._name}: has no georeference with an EPSG code, which a pair with {others._name} needs: "
                    "correct it with gdal_edit -a_srs"
                )
            if places.matrix[1] or places.matrix[3]:
                raise DataError(
                    f"{places._name}: is rotated in its coordinate system, a pair with {others._name} needs rows that "
                    "run along it: warp it with gdalwarp"
                )
            if not places.matrix[0] or not places.matrix[4]:
                raise DataError(f"{places._name}: its georeference gives it no extent: correct it")
        transform = None
        if self.crs != other.crs:
            from pyproj import Transformer

            transform = Transformer.from_crs(self.crs, other.crs, always_xy=True).transform
        assert self.matrix is not None
        assert other.matrix is not None
        (a, _, c, _, e, f), (u, _, w, _, v, z) = self.matrix, other.matrix
        middle = w + u * width / 2

        def moved(columns: Points, rows: Points) -> tuple[Points, Points]:
            x, y = a * columns + c, e * rows + f
            if transform is not None:
                x, y = transform(x, y)
            if other._geographic:
                x = x - 360 * np.round((x - middle) / 360)  # 360 degrees more or less is the same place
            return (x - w) / u, (y - z) / v

        return moved

    def polygon(self, box: Box) -> dict[str, Any]:
        """Return a GeoJSON geometry of a box of pixels.

        Raises:
            DataError: it lies where its coordinate system has no meaning.
        """
        return self.outline([_corners(box)])

    def outline(self, rings: Sequence[Sequence[Point]]) -> dict[str, Any]:
        """Return a GeoJSON geometry of a polygon in pixels, x before y: its outer ring, then those of its holes.

        Args:
            rings: without a last point that repeats the first.

        Raises:
            DataError: it lies where its coordinate system has no meaning.
        """
        if self._to_crs84 is None or self.matrix is None:
            return geometry([rings])
        points = [self._points(ring) for ring in rings]
        if self._geographic:
            own = [x for x, _ in _moved(rings[0], self.matrix)]
            return geometry(within_180(points, max(own) - min(own) > 180))
        points = [beside_poles(ring) for ring in points]
        wide = [spread(ring) > AROUND for ring in points]
        dense = [self._points(densified(ring)) if turned else [] for ring, turned in zip(rings, wide, strict=True)]
        poled = [turns_round_pole(ring) for ring in dense]
        if any(poled[1:]):
            raise DataError(f"{self._name}: an area round a pole cannot be outlined: leave --tariff out")
        return geometry(over_pole(dense[0], points[1:]) if poled[0] else within_180(points, wide=False))

    def ring(self, box: Box) -> list[Point]:
        """Return the closed outline of a box of pixels in the scene's own coordinates, or in pixels if it has none."""
        corners = _corners(box)
        return closed(corners if self.matrix is None else _moved(corners, self.matrix))

    def ground(self, height: int, width: int) -> Ground | None:
        """Measure how large a scene's pixels are on the ground; None without a georeference.

        Lengths and area are geodesic, on the ellipsoid of WGS 84; edges follow the scene's own rows and columns.

        Args:
            height, width: size of the scene in pixels.

        Raises:
            DataError: see `polygon`; or the scene has no extent.
        """
        if self.kind == "pixels":
            return None
        from pyproj import Geod

        earth = Geod(ellps="WGS84")
        steps = [i / EDGE_POINTS for i in range(EDGE_POINTS)]
        down, across = [s * height for s in steps], [s * width for s in steps]
        outline = [
            *((0.0, y) for y in down),
            *((x, float(height)) for x in across),
            *((float(width), height - y) for y in down),
            *((width - x, 0.0) for x in across),
        ]
        square_metres, _ = earth.polygon_area_perimeter(*_columns(self._points(outline)))
        row = self._points([(x, height / 2) for x in (*across, width)])
        column = self._points([(width / 2, y) for y in (*down, height)])
        found = Ground(
            earth.line_length(*_columns(row)) / width,
            earth.line_length(*_columns(column)) / height,
            abs(square_metres) / 1e6 / (height * width),
        )
        if not all(value > 0 for value in found):
            raise DataError(f"{self._name}: its georeference gives it no extent: correct it")
        return found

    def _points(self, pixels: Sequence[Point]) -> list[Point]:
        """Convert points of the scene to CRS84; without a georeference return them as they are."""
        if self._to_crs84 is None or self.matrix is None:
            return list(pixels)
        xs, ys = self._to_crs84(*_columns(_moved(pixels, self.matrix)))
        # False for nan too. Grids of points at the poles reach half a pixel beyond them.
        if not all(abs(x) <= 540 and abs(y) <= 91 for x, y in zip(xs, ys, strict=True)):
            raise DataError(f"{self._name}: its georeference leads off the Earth: correct it")
        return [(x, min(90.0, max(-90.0, y))) for x, y in zip(xs, ys, strict=True)]


def _corners(box: Box) -> list[Point]:
    top, left, bottom, right = box
    return [(left, top), (left, bottom), (right, bottom), (right, top)]


def _moved(points: Sequence[Point], matrix: tuple[float, float, float, float, float, float]) -> list[Point]:
    a, b, c, d, e, f = matrix
    return [(a * x + b * y + c, d * x + e * y + f) for x, y in points]


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]

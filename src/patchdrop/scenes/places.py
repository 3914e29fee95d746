"""Where boxes of pixels lie: polygons of GeoJSON (RFC 7946), in CRS84 where the scene's header allows it.

CRS84 is longitude, latitude on WGS 84. Rings run counter-clockwise (the right-hand rule). A scene without a
georeference, or with a coordinate system that has no EPSG code, gives pixel coordinates, x to the right and y down; the
collection then says so in ``"coordinates": "pixels"``, which is no part of the standard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from patchdrop.errors import DataError
from patchdrop.read.tiff import Georeference
from patchdrop.read.tiled import Box

Point = tuple[float, float]
DIGITS = 8
"""Decimal digits of a degree: about a millimetre."""


class Places:
    """Turns boxes of one scene into polygons.

    Attributes:
        kind: ``CRS84`` or ``pixels``: what `polygon` gives.
        matrix: from pixels to the scene's own coordinates, as in `Georeference`; None without one.
        crs: those coordinates' system, such as ``EPSG:32633``; None where the header gives no code.
    """

    def __init__(self, georeference: Georeference | None, name: str) -> None:
        self._name = name
        self.matrix = None if georeference is None else georeference.matrix
        self.crs: str | None = None
        self._to_crs84: Callable[..., tuple[Sequence[float], Sequence[float]]] | None = None
        if georeference is not None and georeference.epsg is not None:
            from pyproj import CRS, Transformer
            from pyproj.exceptions import CRSError

            try:
                crs = CRS.from_epsg(georeference.epsg)
            except CRSError as error:
                raise DataError(
                    f"{name}: EPSG:{georeference.epsg} is no known coordinate system: correct it with gdal_edit -a_srs"
                ) from error
            self.crs = f"EPSG:{georeference.epsg}"
            self._to_crs84 = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True).transform
        self.kind = "pixels" if self._to_crs84 is None else "CRS84"

    def polygon(self, box: Box) -> dict[str, Any]:
        """A GeoJSON geometry of a box of pixels.

        Raises:
            DataError: it lies where its coordinate system has no meaning.
        """
        corners = _corners(box)
        if self._to_crs84 is not None and self.matrix is not None:
            xs, ys = self._to_crs84(*zip(*_moved(corners, self.matrix), strict=True))
            if not all(map(math.isfinite, [*xs, *ys])):
                raise DataError(f"{self._name}: its georeference leads off the Earth: correct it")
            corners = [(round(x, DIGITS), round(y, DIGITS)) for x, y in zip(xs, ys, strict=True)]
        return {"type": "Polygon", "coordinates": [[list(p) for p in _ring(corners)]]}

    def ring(self, box: Box) -> list[Point]:
        """The closed outline of a box of pixels in the scene's own coordinates; in pixels where it has none."""
        corners = _corners(box)
        return _ring(corners if self.matrix is None else _moved(corners, self.matrix))


def _corners(box: Box) -> list[Point]:
    top, left, bottom, right = box
    return [(left, top), (left, bottom), (right, bottom), (right, top)]


def _moved(points: Sequence[Point], matrix: tuple[float, float, float, float, float, float]) -> list[Point]:
    a, b, c, d, e, f = matrix
    return [(a * x + b * y + c, d * x + e * y + f) for x, y in points]


def _ring(corners: Sequence[Point]) -> list[Point]:
    """Closed and counter-clockwise."""
    ordered = list(corners) if _area(corners) >= 0 else list(reversed(corners))
    return [*ordered, ordered[0]]


def collection_start(kind: str) -> str:
    """The text of a feature collection up to its features."""
    said = '"coordinates": "pixels", ' if kind == "pixels" else ""
    return f'{{"type": "FeatureCollection", {said}"features": ['


COLLECTION_END = "\n]}\n"


def feature(geometry: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    """A GeoJSON feature."""
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _area(ring: Sequence[Point]) -> float:
    """Signed area, positive where the ring runs counter-clockwise."""
    following = [*ring[1:], ring[0]]
    return sum(x * v - u * y for (x, y), (u, v) in zip(ring, following, strict=True)) / 2

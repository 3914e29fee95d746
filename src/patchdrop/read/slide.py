"""Read a whole slide with OpenSlide: LR from a coarser level, HR patches as regions of level 0.

For slides that `patchdrop.tiff.directory` cannot read; the cells are those of `TiledScene`. OpenSlide opens the file
itself, so the bytes that it reads cannot be counted: the ledger counts regions and their pixels.

OpenSlide's pixels are transparent where nothing was scanned; here they are black, as transparent pixels always are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from patchdrop.errors import DataError
from patchdrop.grid import Shape, patch_size
from patchdrop.packed import Packed
from patchdrop.read.source import Reader
from patchdrop.read.tiled import SAME_SCALE, Cells, Look
from patchdrop.tiff.decode import Pixels
from patchdrop.tiff.resample import area_resampled
from patchdrop.tiff.tiles import Box
from patchdrop.transport.ledger import Purpose, RegionLedger, Regions

if TYPE_CHECKING:
    from openslide import OpenSlide

SLIDE_SUFFIXES = (".bif", ".czi", ".dcm", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".vms", ".vmu")


class SlideFile:
    """An open slide.

    Attributes:
        vendor: the format, as OpenSlide names it.
        ledger: regions that were read.

    Raises:
        DataError: OpenSlide does not know it, or cannot open it.
    """

    def __init__(self, source: str) -> None:
        from openslide import OpenSlide, OpenSlideError

        self.name = source
        self.ledger = RegionLedger()
        try:
            vendor = OpenSlide.detect_format(source)
            if vendor is None:
                raise DataError(f"{source}: no slide that OpenSlide knows: convert it to a tiled TIFF")
            self.slide: OpenSlide = OpenSlide(source)
        except OpenSlideError as error:
            raise DataError(f"{source}: OpenSlide cannot open it ({error}): replace it") from error
        self.vendor = vendor
        found = Path(source).stat()
        self.size, self._changed = found.st_size, found.st_mtime_ns

    @property
    def version(self) -> str:
        """Size and time of the last change."""
        return f"{self.size} bytes, {self._changed} ns"

    def region(self, level: int, box: Box, purpose: Purpose) -> Pixels:
        """Read the pixels of a box of a level.

        Raises:
            DataError: the slide is damaged there.
        """
        from openslide import OpenSlideError

        top, left, bottom, right = box
        width, height = self.slide.dimensions
        level_width, level_height = self.slide.level_dimensions[level]
        place = round(left * width / level_width), round(top * height / level_height)
        try:
            region = self.slide.read_region(place, level, (right - left, bottom - top))
        except OpenSlideError as error:
            raise DataError(f"{self.name}: damaged slide ({error}): replace it") from error
        self.ledger.add(purpose, 1, (bottom - top) * (right - left))
        values = np.asarray(region).transpose(2, 0, 1)
        seen = values[3] > 0
        return Pixels(values[:3] * seen, None if bool(seen.all()) else seen)

    def close(self) -> None:
        """Close the file."""
        self.slide.close()


class SlideScene(Cells):
    """A slide, ready to be looked at and read; as `TiledScene`, with another ledger.

    Raises:
        DataError: it does not fit the model.
    """

    def __init__(self, file: SlideFile, shape: Shape) -> None:
        reason = slide_misfit(file, shape)
        if reason:
            raise DataError(f"{file.name}: {reason}")
        width, height = file.slide.dimensions
        super().__init__((height, width), shape)
        self.transport = file
        self.name = file.name
        level = slide_level(file, shape)
        assert level is not None
        self._level = level

    @property
    def georeference(self) -> None:
        """None: a slide does not lie on Earth."""
        return None

    def groups(self) -> Iterator[range]:
        """Yield the cells in their order, in groups."""
        return self.in_groups()

    def look(self, cells: Sequence[int]) -> Look:
        """Return LR of some cells, from the coarser level."""
        width, height = self.transport.slide.level_dimensions[self._level]
        down, across = height / self.size[0], width / self.size[1]
        low, seen = [], []
        for top, left, bottom, right in map(self.cell_box, cells):
            exact = top * down, left * across, bottom * down, right * across
            outer = int(exact[0]), int(exact[1]), int(np.ceil(exact[2] - 1e-6)), int(np.ceil(exact[3] - 1e-6))
            pixels = self.transport.region(self._level, outer, "overview")
            low.append(torch.from_numpy(area_resampled(pixels.values, exact, outer, self.shape.low)))
            seen.append(pixels.seen is None or bool(pixels.seen.any()))
        return Look(torch.stack(low), torch.tensor(seen))

    def ask(self, cells: Sequence[int], choice: Tensor) -> None:
        """Do nothing: a region is read when it is decoded."""

    def reader(self, cells: Sequence[int]) -> Reader:
        """Return a reader of the chosen patches of some cells, one region each."""

        def read(choice: Tensor) -> Packed:
            image, patch = choice.cpu().nonzero(as_tuple=True)
            where = self.chosen(cells, choice)
            pixels = torch.zeros(len(where), 3, *patch_size(self.shape.grid, *self.shape.high), dtype=torch.uint8)
            for i, box in enumerate(where):
                values = self.transport.region(0, box, "patch").values
                pixels[i, :, : values.shape[1], : values.shape[2]] = torch.from_numpy(values)
            return Packed(pixels, image, patch, len(cells)).to(choice.device)

        return read

    def price(self, cells: Sequence[int], choice: Tensor, ledger: RegionLedger) -> None:
        """Count in ``ledger`` what `reader` would read for this choice, without reading."""
        for top, left, bottom, right in self.chosen(cells, choice):
            ledger.add("patch", 1, (bottom - top) * (right - left))

    def everything(self) -> Regions:
        """Return the cost of reading all patches of all cells."""
        height, width = self.shape.high
        return Regions(self.cells * self.shape.grid.patches, self.cells * height * width)


def slide_level(file: SlideFile, shape: Shape) -> int | None:
    """Return the coarsest level that is at least as fine as LR; None if there is only level 0."""
    wanted = min(high / low for high, low in zip(shape.high, shape.low, strict=True)) * SAME_SCALE
    width, height = file.slide.dimensions
    fit = [
        level
        for level, (w, h) in enumerate(file.slide.level_dimensions)
        if 1.5 < width / w <= wanted and height / h <= wanted
    ]
    return max(fit, key=lambda level: width / file.slide.level_dimensions[level][0]) if fit else None


def slide_misfit(file: SlideFile, shape: Shape) -> str:
    """Say why a slide cannot be read for such a model, and what to do; empty if it can."""
    width, height = file.slide.dimensions
    if shape.channels != 3:
        return f"slides have 3 colours, the model takes {shape.channels} bands: train one with --channels 3"
    if height < shape.high[0] or width < shape.high[1]:
        return f"{width} x {height} px is smaller than the model's HR image, {shape.high[1]} x {shape.high[0]}"
    if slide_level(file, shape) is None:
        return (
            f"has no level between level 0 and LR ({shape.high[0] / shape.low[0]:g} times coarser): "
            "convert it to a tiled TIFF with overviews"
        )
    return ""


def slide_instead(source: str, refused: DataError) -> SlideFile:
    """Open a file that the reader of TIFFs refused as a slide.

    Raises:
        DataError: ``refused``, if it is no slide either; or, for a slide, that OpenSlide is not installed.
    """
    try:
        import openslide
    except ImportError:
        if Path(source).suffix.lower() in SLIDE_SUFFIXES:
            raise DataError(f"{refused}; whole slides need `pip install 'patchdrop[slides]'`") from None
        raise refused from None
    if not Path(source).is_file() or openslide.OpenSlide.detect_format(source) is None:
        raise refused
    return SlideFile(source)

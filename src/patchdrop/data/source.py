"""Describe which labelled images to load, from where, in which sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from patchdrop.grid import Shape
from patchdrop.settings.flat import MARKERS, called_now


@dataclass(frozen=True)
class DataSource:
    """A data set's description, as `patchdrop.data.load.load` takes it.

    Attributes:
        data: folder or CSV file, or the name of the embedded data set.
        layout: how it is laid out, or ``auto``.
        shape: sizes and channels in which images are decoded, and the model's grid.
        val_fraction: share of train that is carved out for validation if there is no ``val`` split.
        seed: of that.
        skip_bad: whether images that cannot be read are left out; otherwise they are an error.
        memory_gb: GiB of 8-bit pixels that may be held in memory; more is streamed.
        workers: processes that decode.
        cache: folder that keeps what is read over a network; empty for none.
    """

    data: str
    layout: str
    shape: Shape
    val_fraction: float
    seed: int
    skip_bad: bool
    memory_gb: float
    workers: int
    cache: str

    @property
    def embedded(self) -> bool:
        """Whether it is the embedded data set."""
        return is_embedded(self.data, self.layout)

    def elsewhere(self, data: str | None) -> DataSource:
        """Describe another data set, read in the same way; itself if ``data`` is None or the same."""
        data = None if data is None else called_now(str(data))
        return self if data in (None, self.data) else replace(self, data=data, layout="auto")


def is_embedded(data: str, layout: str) -> bool:
    """Check whether name and layout are those of the embedded data set."""
    return layout == MARKERS or (layout == "auto" and data == MARKERS)

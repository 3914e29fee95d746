"""Hold and check the options of `compare` that are not settings of training; free of torch.

``compare.yaml`` holds `CompareOptions` and the training settings together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from patchdrop.errors import RunError, UsageError
from patchdrop.settings.flat import FREE_SETTINGS, Stage, from_mapping, read_yaml

TableName = Literal["fmow", "imagenet", "bagnet"]
ProfileName = Literal["cpu", "paper"]
PROFILES = {
    ("fmow", "cpu"): "fmow-cpu",
    ("fmow", "paper"): "fmow-paper",
    ("imagenet", "cpu"): "imagenet-cpu",
    ("imagenet", "paper"): "imagenet-paper",
    ("bagnet", "cpu"): "bagnet-cpu",
    ("bagnet", "paper"): "bagnet-paper",
}
"""(table, profile) -> name of the profile of settings."""
NEEDED: tuple[Stage, ...] = ("lr", "hr", "pt", "ft1", "ft2")
"""Stages that every table needs; ``patches`` may be left out."""
FREE_OPTIONS = ("seeds", "rows", "jobs")
"""Options that may differ from call to call: more seeds add folders, rows are what is trained and shown now."""


@dataclass(frozen=True)
class Sizes:
    """The networks that only the other rows have, and their shares of epochs."""

    cnn_network: str
    """Network of the masked CNN that is compared with BagNet."""
    generator_width: int
    """Channels of SRGAN's residual blocks."""
    generator_blocks: int
    generator_share: float
    """Epochs of SRGAN's generator as a share of those of ``hr``; one of its epochs takes five times as long."""
    resolved_share: float
    """Epochs of the classifier that trains on with the generator's images, as a share of those of ``hr``."""


SIZES: dict[str, Sizes] = {
    "cpu": Sizes("resnet8-w48-d", 32, 4, 0.2, 0.5),
    "paper": Sizes("resnet32", 64, 16, 1, 1),
}


def share_of(epochs: int, share: float) -> int:
    """Return a share of epochs as a whole number, at least 1 unless there are none."""
    return max(min(epochs, 1), round(epochs * share))


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """The options of a comparison: which table, from which networks, with which rows."""

    table: TableName
    profile: ProfileName = "cpu"
    seeds: int = 1
    """Seeds, counted up from the settings' own."""
    rows: tuple[str, ...] = ()
    """Methods to train and show; none is all of the table's."""
    patches: float | None = None
    """S of the other selectors in every stage; without it, PatchDrop's own mean of each stage on val."""
    jobs: int = 1
    """Rows trained side by side, each in a process of its own with its share of the threads."""

    @property
    def sizes(self) -> Sizes:
        """Sizes of the profile's networks."""
        return SIZES[self.profile]

    def check(self, patches: int, stages: Sequence[str], classifier: str) -> None:
        """Raise UsageError if the options make no sense by themselves or with a run.

        Args:
            patches: number of patches of the run's grid.
            stages: stages that the run trains.
            classifier: kind of the run's classifier.
        """
        if self.seeds < 1:
            raise UsageError(f"seeds: {self.seeds} is out of range, use 1 or more")
        if self.jobs < 1:
            raise UsageError(f"jobs: {self.jobs} is out of range, use 1 or more")
        if self.patches is not None and not 0 <= self.patches <= patches:
            raise UsageError(
                f"patches: {self.patches:g} cannot be read of a grid of {patches}; use 0 to {patches}, or a finer "
                "--grid"
            )
        missing = [stage for stage in NEEDED if stage not in stages]
        if missing:
            raise UsageError(
                f"table {self.table} compares in every stage, {missing[0]} is left out; leave --stages alone and set "
                f"--epochs-{missing[0]} to 1 or more"
            )
        wanted = "bagnet" if self.table == "bagnet" else "masked"
        if classifier != wanted:
            raise UsageError(f"classifier: table {self.table} compares with {wanted!r}, not {classifier!r}")

    def to_mapping(self) -> dict[str, Any]:
        """Return the options as plain values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Price:
    """The price of HR, by the image or by the area that it shows."""

    per_image: float | None = None
    per_km2: float | None = None
    gsd: float | None = None
    """Metres on the ground for each HR pixel."""

    def __post_init__(self) -> None:
        if (self.per_km2 is None) != (self.gsd is None):
            has, lacks = ("--gsd", "--price-per-km2") if self.per_km2 is None else ("--price-per-km2", "--gsd")
            raise UsageError(f"{has} without {lacks}: a price by the area needs both, the metres of a pixel as --gsd")
        if self.per_image is not None and self.per_km2 is not None:
            raise UsageError("--price-per-image and --price-per-km2 are two prices for one image; name one")
        for name, value in (
            ("--price-per-image", self.per_image),
            ("--price-per-km2", self.per_km2),
            ("--gsd", self.gsd),
        ):
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name}: {value:g} is no price or size, use a number above 0")

    def of_image(self, height: int, width: int) -> float | None:
        """Return the price of all of an HR image of that many pixels; None if no price is known."""
        if self.per_image is not None or self.per_km2 is None or self.gsd is None:
            return self.per_image
        return self.per_km2 * height * width * (self.gsd / 1000) ** 2


def bind(folder: Path, document: Mapping[str, Any]) -> None:
    """Check options and settings against those that the folder was started with; before a stage begins they may change.

    Args:
        document: options and settings, all that is needed to run the comparison again, as ``compare.yaml`` holds it.

    Raises:
        RunError: the folder was started with other settings; the error names them.
    """
    path = folder / "compare.yaml"
    if not path.exists() or not any(folder.glob("seed-*/*/*/")):
        return
    before = read_yaml(path)
    changed = [
        f"{name}: {before.get(name)} -> {now}"
        for name, now in document.items()
        if name not in (*FREE_SETTINGS, *FREE_OPTIONS) and before.get(name, now) != now
    ]
    if changed:
        raise RunError(f"{folder}: was started with other settings ({'; '.join(changed)}); use those, or another --out")


def split_mapping(values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the mapping of a YAML file into options and settings.

    Raises:
        UsageError: a key or value among the settings does not exist.
    """
    options = {k: v for k, v in values.items() if k in CompareOptions.__dataclass_fields__}
    settings = {k: v for k, v in values.items() if k not in options}
    from_mapping(settings, where)
    return {k: v for k, v in options.items() if v is not None}, settings

"""List the images of ImageNet (ILSVRC 2012) as published.

``train/<wnid>/``, and ``val/<wnid>/`` or a flat ``val/`` labelled by Kaggle's ``LOC_val_solution.csv``; in the folder
itself, or in one with ``ILSVRC/Data/CLS-LOC``. The official test set has no labels, so the validation set is listed as
``test``.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from patchdrop.data.folders import Row, Rows, checked, class_rows, images_below, some, visible_folders
from patchdrop.errors import DataError

_WNID = re.compile(r"n\d{8}")


def is_imagenet(root: Path) -> bool:
    """Check whether it is laid out as published, or by class folders named as WordNet's nouns."""
    if _imagenet_base(root) != root or (root / "LOC_val_solution.csv").is_file():
        return True
    names = [folder.name for split in ("train", "val") for folder in visible_folders(root / split)]
    # Someone's own train/val/test folders of ImageNet classes are an ordinary image folder.
    return bool(names) and all(_WNID.fullmatch(name) for name in names) and not visible_folders(root / "test")


def _imagenet_base(root: Path) -> Path:
    """Return the folder that holds ``train`` and ``val``."""
    nested = (root / "ILSVRC" / "Data" / "CLS-LOC", root / "Data" / "CLS-LOC")
    return next((folder for folder in nested if folder.is_dir()), root)


def read_imagenet(root: Path) -> Rows:
    """Return the rows of ``train`` and ``test``."""
    base = _imagenet_base(root)
    rows: Rows = {}
    if (base / "train").is_dir():
        rows["train"] = class_rows(base / "train")
    if (base / "val").is_dir():
        flat = not visible_folders(base / "val")
        rows["test"] = _flat_val_rows(root, base / "val") if flat else class_rows(base / "val")
    if not rows:
        raise DataError(f"{base}: no train or val folder: unpack ImageNet's archives into train/ and val/")
    return checked(root, rows)


def _flat_val_rows(root: Path, val: Path) -> list[Row]:
    solution = root / "LOC_val_solution.csv"
    if not solution.is_file():
        raise DataError(
            f"{val}: no class folders, and no {solution}: sort its images into val/<wnid>/ or add that file"
        )
    labels = _solution_labels(solution)
    images = sorted(images_below(val))
    unknown = [path.name for path in images if path.stem not in labels]
    if unknown:
        raise DataError(f"{val}: images not in {solution.name}: {some(unknown)}: remove them")
    absent = sorted(labels.keys() - {path.stem for path in images})
    if absent:
        raise DataError(f"{val}: images of {solution.name} are missing: {some(absent)}: unpack them again")
    return [Row(path, labels[path.stem]) for path in images]


def _solution_labels(file: Path) -> dict[str, str]:
    """Read image name -> wnid from lines such as ``ILSVRC2012_val_00048981,n03995372 85 1 499 272``."""
    labels = {}
    with file.open(newline="", encoding="utf-8", errors="replace") as stream:
        for line in csv.DictReader(stream):
            wnid = (line.get("PredictionString") or "").split(" ")[0]
            if not line.get("ImageId") or not _WNID.fullmatch(wnid):
                raise DataError(f"{file}: no ImageId,PredictionString lines: download it again from Kaggle")
            labels[line["ImageId"]] = wnid
    return labels

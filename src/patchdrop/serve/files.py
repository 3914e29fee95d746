"""Write predictions of image files into a folder."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchdrop.files import write_bytes

NAME = "predictions"


def write_predictions(folder: Path, predictions: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> list[Path]:
    """Write ``predictions.jsonl``, a line of JSON per image, and ``predictions.csv`` if ``csv`` is among ``kinds``.

    Files of an earlier call are replaced, whole ones by whole ones.

    Args:
        predictions: the fields of each `patchdrop.serve.predictor.Prediction`.

    Returns:
        The files.

    Raises:
        RunError: a file cannot be written.
    """
    written = [folder / f"{NAME}.jsonl"]
    write_bytes(written[0], "".join(json.dumps(row) + "\n" for row in predictions).encode())
    if "csv" in kinds and predictions:
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, fieldnames=list(predictions[0]))
        table.writeheader()
        for row in predictions:
            table.writerow({**row, "patches": " ".join(map(str, row["patches"]))})
        written.append(folder / f"{NAME}.csv")
        write_bytes(written[1], text.getvalue().encode("utf-8", "backslashreplace"))
    return written

"""Keep the finished tries of one stage side by side until the best of them becomes the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from patchdrop.errors import RunError
from patchdrop.files import read_json, read_tensors, write_json, write_tensors
from patchdrop.models.build import fill_weights
from patchdrop.training.loop import clear_state


class Attempts:
    """A list of finished tries in a stage's folder: ``try-N.json`` holds the checksum of ``try-N.safetensors``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def finished(self) -> list[dict[str, Any]]:
        """Read the record of each finished try, in order.

        Raises:
            RunError: a record is damaged.
        """
        found: list[dict[str, Any]] = []
        while (path := self.folder / f"try-{len(found)}.json").exists():
            record = read_json(path)
            if not isinstance(record, dict) or not isinstance(record.get("sha256"), str):
                raise RunError(f"{path}: is damaged; remove the tries in its folder and train that stage again")
            found.append(record)
        return found

    def add(self, model: nn.Module, record: dict[str, Any]) -> None:
        """Save a trained model and its record as the next try, and remove its training state.

        The state is removed before the record is written, because the next try would otherwise resume from it.
        """
        number = len(self.finished())
        digest = write_tensors(self.folder / f"try-{number}.safetensors", model.state_dict())
        clear_state(self.folder)
        write_json(self.folder / f"try-{number}.json", {**record, "sha256": digest})

    def restore(self, number: int, model: nn.Module) -> None:
        """Load a try's weights into a model."""
        weights = self.folder / f"try-{number}.safetensors"
        fill_weights(model, read_tensors(weights, self.finished()[number]["sha256"]), str(weights))

    def clear(self) -> None:
        """Remove all tries."""
        for path in (*self.folder.glob("try-*.json"), *self.folder.glob("try-*.safetensors")):
            path.unlink()

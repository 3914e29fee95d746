"""A run folder: settings, log, one folder a stage, results.

settings.yaml   complete, runs again with --config
data.json       classes, sizes of the splits, where LR comes from, what was carved out of train, what was skipped
log.jsonl       one line an event
<stage>/        config.json (networks, figures, checksum) and model.safetensors
results.json, report.html, figures/
calibration.json, bench.json    where they were asked for
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchdrop.errors import RunError, UsageError
from patchdrop.files import read_json, read_tensors, remove_unfinished, write_bytes, write_json, write_tensors
from patchdrop.models.build import ModelConfig, build_stage, fill_weights
from patchdrop.settings.flat import EARLIER_NAME, FREE_SETTINGS, MARKERS, STAGES, TrainSettings, read_settings, to_yaml

Build = Callable[[str, ModelConfig], nn.Module]
"""Maps stage and description to an untrained model."""


class RunFolder:
    """A folder of one run, or of anything else that is trained in stages and kept in the same form.

    Args:
        build: makes the models that trained weights are loaded into; by default a run's own.
    """

    def __init__(self, path: str | Path, build: Build = build_stage) -> None:
        self.path = Path(path)
        self.build = build

    def __str__(self) -> str:
        return str(self.path)

    def stage(self, stage: str) -> Path:
        """Return the folder of a stage."""
        return self.path / stage

    def exists(self) -> bool:
        """Check whether a run was started here."""
        return (self.path / "settings.yaml").exists()

    def begun(self) -> bool:
        """Check whether the training of any stage was begun here; until then settings and data may still change."""
        return any(self.stage(stage).exists() for stage in STAGES)

    def require(self) -> RunFolder:
        """Return the folder itself if a run was started here.

        Raises:
            RunError: no run was started here.
        """
        if not self.exists():
            raise RunError(f"{self.path}: is no run folder (it has no settings.yaml); make one with `patchdrop train`")
        return self

    def settings(self) -> TrainSettings:
        """Read the settings that this run was started with."""
        return read_settings(self.require().path / "settings.yaml")

    def data(self) -> dict[str, Any]:
        """Read ``data.json``, which describes this run's data; empty before its first training."""
        found = self._document("data.json", "run the same training again")
        return found | {"name": MARKERS, "layout": MARKERS} if found.get("layout") == EARLIER_NAME else found

    def results(self) -> dict[str, Any]:
        """Read ``results.json``; empty before the first evaluation."""
        return self._document("results.json", "run `patchdrop evaluate` again")

    def bench(self) -> dict[str, Any]:
        """Read ``bench.json``; empty before the first `patchdrop bench`."""
        return self._document("bench.json", "run `patchdrop bench` again")

    def _document(self, name: str, remedy: str) -> dict[str, Any]:
        path = self.path / name
        found = read_json(path) if path.exists() else {}
        if not isinstance(found, dict):
            raise RunError(f"{path}: is damaged; remove it and {remedy}")
        return found

    @property
    def own_low(self) -> bool:
        """Whether this run was trained on LR images from a sensor of their own."""
        return self.data().get("low") == "own"

    def start(self, settings: Mapping[str, Any]) -> None:
        """Record the settings, or, once a stage has begun, compare them with those the run was started with.

        Args:
            settings: all of them, as `TrainSettings.to_mapping` gives them.

        Raises:
            RunError: they differ in more than where and how fast it runs.
        """
        if self.exists() and self.begun():
            before = self.settings().to_mapping()
            changed = [
                f"{name}: {before[name]} -> {value}"
                for name, value in settings.items()
                if name not in FREE_SETTINGS and value != before[name]
            ]
            if changed:
                raise RunError(
                    f"{self.path}: was started with other settings ({'; '.join(changed)}); use those, or another --out"
                )
        else:
            write_bytes(self.path / "settings.yaml", to_yaml({**settings, "stages": list(STAGES)}).encode())

    def done(self, stage: str) -> bool:
        """Check whether a stage is trained to its end."""
        return (self.stage(stage) / "config.json").exists()

    def stages_done(self) -> list[str]:
        """List the trained stages, in order."""
        return [stage for stage in STAGES if self.done(stage)]

    def finish(self, stage: str, model: nn.Module, config: ModelConfig, more: dict[str, Any]) -> None:
        """Write a stage's weights, then the config with their checksum."""
        folder = self.stage(stage)
        digest = write_tensors(folder / "model.safetensors", model.state_dict())
        parameters = sum(p.numel() for p in model.parameters())
        described = {"stage": stage, **config.to_json(), "parameters": parameters, "sha256": digest, **more}
        write_json(folder / "config.json", described)

    def stage_config(self, stage: str) -> dict[str, Any]:
        """Read a trained stage's ``config.json``.

        Raises:
            RunError: the stage is not trained, or its file is damaged.
        """
        if not self.done(stage):
            done = ", ".join(self.stages_done()) or "none"
            raise RunError(f"{self.path}: stage {stage} is not trained (trained: {done})")
        config = read_json(self.stage(stage) / "config.json")
        if not isinstance(config, dict) or "sha256" not in config or not isinstance(config.get("figures"), dict):
            raise RunError(f"{self.stage(stage) / 'config.json'}: is damaged; remove its folder and train it again")
        return config

    def load(self, stage: str) -> tuple[nn.Module, ModelConfig]:
        """Load a trained stage's model, in evaluation mode, with its description.

        Raises:
            RunError: not trained, damaged, or of other networks.
        """
        values = self.stage_config(stage)
        where = str(self.stage(stage) / "config.json")
        config = ModelConfig.from_json(values, where)
        try:
            config.check()
            model = self.build(stage, config)
        except UsageError as error:
            raise RunError(f"{where}: is damaged or of another version ({error}); train that stage again") from error
        weights = self.stage(stage) / "model.safetensors"
        fill_weights(model, read_tensors(weights, values["sha256"]), str(weights))
        # Convolutions reorder their weights at every call unless these lie in memory as their images do.
        return model.eval().to(memory_format=torch.channels_last), config

    def log(self, event: dict[str, Any]) -> None:
        """Append a line to ``log.jsonl``."""
        path = self.path / "log.jsonl"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with open(path, "ab+") as file:
                # A crash may have cut the last line short; the new event must start a line of its own.
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                start = "" if file.read(1) in (b"", b"\n") else "\n"
                file.write((start + json.dumps(event, ensure_ascii=False) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror}); make room and run the same again") from error

    def read_log(self) -> list[dict[str, Any]]:
        """Read all whole lines of ``log.jsonl``; one cut short by a crash is left out."""
        path = self.path / "log.jsonl"
        if not path.exists():
            return []
        events = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
        return events

    def trained_by(self) -> list[dict[str, Any]]:
        """List command, commit and machine of each call that trained, from ``log.jsonl``."""
        starts = [event for event in self.read_log() if event.get("event") == "start"]
        return [{name: start[name] for name in ("command", "commit", "machine")} for start in starts]

    def forget_after(self, stage: str, step: int) -> None:
        """Drop a stage's lines after ``step``, which a resumed run will write again."""
        kept = [e for e in self.read_log() if e.get("stage") != stage or e.get("step", 0) <= step]
        if (self.path / "log.jsonl").exists():
            lines = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in kept)
            write_bytes(self.path / "log.jsonl", lines.encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for one training, or one evaluation that writes into it; make it if there is none.

        A folder that was made for this and holds nothing else in the end is removed again.

        Raises:
            RunError: another process holds it.
        """
        made = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror}); choose another folder") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"{self.path}: another training or evaluation is using it; wait for it, or choose another folder"
            ) from error
        else:
            remove_unfinished(self.path)
            yield
        finally:
            os.close(handle)
            if made and [p.name for p in self.path.iterdir()] == [".lock"]:
                (self.path / ".lock").unlink()
                self.path.rmdir()

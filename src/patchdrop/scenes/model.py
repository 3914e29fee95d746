"""Load a trained stage for use on scenes: policy and classifier for batches of any size."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from patchdrop.episode import Look
from patchdrop.evaluation.dial import chosen_point, read_calibration, stage_and_choice
from patchdrop.grid import Shape
from patchdrop.models.compute import Compute, Networks
from patchdrop.policy.choice import Choose, greedy
from patchdrop.runs.folder import RunFolder
from patchdrop.serve.predictor import Predictor
from patchdrop.settings.dial import Dial
from patchdrop.settings.machine import Machine
from patchdrop.transport.ranges import Stopped

CHUNK_PIXELS = {"cpu": 2**20, "cuda": 2**24}
"""Most HR pixels of the cells that go through the networks at once; a single cell may have more, and on a GPU it is as
much as is decoded at a time."""


class Choosing(NamedTuple):
    """The run and stage that choose patches, and the dial that says how many."""

    run: str | Path
    """Run folder."""
    stage: str | None = None
    """``pt``, ``ft1`` or ``ft2``; None: the last one that is trained."""
    dial: Dial | None = None
    """How many patches of a cell may be read; None: what the policy chooses."""
    machine: Machine | None = None
    """Device and precision; None: a GPU where there is one, in float32."""


@dataclass(frozen=True)
class Model:
    """A trained stage, for batches of any size, used by one scene at a time.

    Attributes:
        sha256: checksum of its weights.
        choice: how patches are chosen, in words: ``policy``, or what the dial says.
        stop: once it is set, `look`, and the classifier that it returns, raise `Stopped`.
    """

    run: str
    stage: str
    sha256: str
    predictor: Predictor
    choice: str = "policy"
    stop: threading.Event = field(default_factory=threading.Event, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    @property
    def shape(self) -> Shape:
        """Sizes, grid and channels of its input."""
        config = self.predictor.config
        return Shape(config.shape.high, config.shape.low, self.predictor.grid, config.shape.channels)

    @property
    def identity(self) -> dict[str, str]:
        """Stage and checksum, by which plans and results tell what they were made with."""
        return {"stage": self.stage, "sha256": self.sha256}

    def look(self, low: Tensor) -> Look:
        """Look at LR ``(B, C, h, w)``; the classifier of the returned look is for these images."""
        return self.networks.look(low)

    @cached_property
    def networks(self) -> Networks:
        """Its networks, in batches that do not depend on which scenes run side by side."""
        predictor, (height, width) = self.predictor, self.shape.high
        most = CHUNK_PIXELS["cpu" if predictor.compute.device.type == "cpu" else "cuda"] // (height * width)
        return Networks(predictor.model, predictor.compute, max(1, most), self._turn)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._lock:
            if self.stop.is_set():
                raise Stopped
            yield


def load_model(choosing: Choosing) -> Model:
    """Load a trained stage of a run.

    Raises:
        RunError: there is no such run or stage, or no calibrated point.
        UsageError: the dial is out of range, or needs all images at once; or there is no such device.
    """
    run, stage, dial, machine = choosing
    machine = machine or Machine()
    choose: Choose = greedy
    choice = "policy"
    if dial is not None and dial.turned:
        folder = RunFolder(run).require()
        stage, choose = stage_and_choice(dial, folder, stage, Compute.of(machine))
        choice = str(dial)
        if dial.calibrated:
            choice += f", threshold {chosen_point(folder, read_calibration(folder))['threshold']:.8g}"
    predictor = Predictor(run, stage, machine.device, choose, precision=machine.precision)
    sha256 = RunFolder(run).stage_config(predictor.stage)["sha256"]
    return Model(str(run), predictor.stage, sha256, predictor, choice)

"""Load a trained stage for use on scenes: policy and classifier for batches of any size."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from patchdrop.episode import Classify, Look
from patchdrop.evaluation.dial import chosen_point, read_calibration, stage_and_choice
from patchdrop.grid import Shape
from patchdrop.packed import Packed
from patchdrop.policy.choice import Choose, greedy
from patchdrop.runs.folder import RunFolder
from patchdrop.serve.predictor import Predictor
from patchdrop.settings.dial import Dial
from patchdrop.transport.ranges import Stopped

CHUNK_PIXELS = 2**20
"""Most HR pixels of the cells that go through the networks at once; a single cell may have more."""


class Choosing(NamedTuple):
    """The run and stage that choose patches, and the dial that says how many."""

    run: str | Path
    """Run folder."""
    stage: str | None = None
    """``pt``, ``ft1`` or ``ft2``; None: the last one that is trained."""
    dial: Dial | None = None
    """How many patches of a cell may be read; None: what the policy chooses."""


@dataclass(frozen=True)
class Model:
    """A trained stage, for batches of any size, used by one scene at a time.

    Attributes:
        sha256: checksum of its weights.
        choice: how patches are chosen, in words: ``policy``, or what the dial says.
        stop: once it is set, `look` and `classify` raise `Stopped`.
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
        found: list[Look] = []
        for part in torch.split(low, self._chunk):
            with self._turn():
                found.append(self.predictor.model.look(part.to(self.predictor.device)))
        return Look(*together(found), partial(self.classify, [look.classify for look in found]))

    def classify(self, by: Sequence[Classify], packed: Packed, low: Tensor) -> Tensor:
        """Return class logits ``(B, K)``; ``by`` are the classifiers of the chunks of these images."""
        found = []
        for start, classify in zip(range(0, packed.batch, self._chunk), by, strict=True):
            keep = torch.zeros(packed.batch, dtype=torch.bool)
            keep[start : start + self._chunk] = True
            part = packed.of_images(keep)
            with self._turn():
                found.append(classify(part, low[keep].to(self.predictor.device)))
        return torch.cat(found)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._lock:
            if self.stop.is_set():
                raise Stopped
            yield

    @property
    def _chunk(self) -> int:
        height, width = self.shape.high
        return max(1, CHUNK_PIXELS // (height * width))


def together(looks: Sequence[Look]) -> tuple[Tensor, Tensor | None]:
    """Join scores and chances of all images of one or more looks."""
    chances = [look.chances for look in looks if look.chances is not None]
    return torch.cat([look.scores for look in looks]), torch.cat(chances) if chances else None


def load_model(choosing: Choosing) -> Model:
    """Load a trained stage of a run.

    Raises:
        RunError: there is no such run or stage, or no calibrated point.
        UsageError: the dial is out of range, or needs all images at once.
    """
    run, stage, dial = choosing
    choose: Choose = greedy
    choice = "policy"
    if dial is not None and dial.turned:
        folder = RunFolder(run).require()
        stage, choose = stage_and_choice(dial, folder, stage, torch.device("cpu"))
        choice = str(dial)
        if dial.calibrated:
            choice += f", threshold {chosen_point(folder, read_calibration(folder))['threshold']:.8g}"
    predictor = Predictor(run, stage, choose=choose)
    sha256 = RunFolder(run).stage_config(predictor.stage)["sha256"]
    return Model(str(run), predictor.stage, sha256, predictor, choice)

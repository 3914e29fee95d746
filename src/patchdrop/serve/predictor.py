"""`Predictor`: a trained run as a function from image files to predictions.

Example::

    from patchdrop import Predictor
    model = Predictor("runs/mine")
    for p in model.predict(["a.jpg", "b.jpg"]):
        print(p.label, p.probability, p.patches, p.hr_fraction)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchdrop.classify.high import HighClassifier
from patchdrop.classify.two_stream import TwoStream
from patchdrop.data.low import area_average
from patchdrop.episode import Episode, Look, PatchDrop
from patchdrop.errors import UsageError
from patchdrop.evaluation.dial import policy_stage
from patchdrop.grid import Size
from patchdrop.models.compute import Compute, Networks
from patchdrop.packed import scatter
from patchdrop.policy.choice import Choose, greedy
from patchdrop.policy.ranking import forecast
from patchdrop.read.ahead import decoders
from patchdrop.read.image_file import ImageFiles, zoomed
from patchdrop.read.images import read_image
from patchdrop.report.gallery import GalleryItem
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.machine import Machine, Precision


@dataclass(frozen=True)
class Prediction:
    """The class of one image, and what was read for it."""

    path: str
    label: str
    probability: float
    """The classifier's probability of that label, 0..1."""
    patches: tuple[int, ...]
    """Numbers of the HR patches read, row-major from 0."""
    hr_fraction: float
    """Share of the HR patches read, 0..1."""
    chance_now: float | None = None
    """The policy's predicted chance that the label is right without HR, 0..1; None if it predicts none."""
    chance_after: float | None = None
    """The same after the patches that were read; None too if these are not the first of the policy's ranking."""
    chance_all: float | None = None
    """The same after all patches."""


class Predictor:
    """A trained stage of a run that predicts image files.

    Args:
        run: a run folder.
        stage: ``pt``, ``ft1`` or ``ft2``; by default the last one that is trained.
        choose: maps patch logits to a choice; by default every patch with a probability of at least 0.5.
        device: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``, a GPU where there is one; whatever it was trained on.
        precision: of the HR classifier, ``float32`` or ``bfloat16``; what is decided from LR is float32 always.
        scaled_low: make LR by decoding a JPEG at a reduced scale, instead of averaging HR; then HR is decoded only
            if a patch of it is chosen, and LR differs a little from what the run was trained on.

    Raises:
        RunError: no such run or stage, or a damaged checkpoint.
        UsageError: ``scaled_low``, if HR and LR differ in shape; or there is no such device or precision.
    """

    def __init__(
        self,
        run: str | Path,
        stage: str | None = None,
        device: str = "auto",
        choose: Choose = greedy,
        scaled_low: bool = False,
        precision: Precision = "float32",
    ) -> None:
        compute = Compute.of(Machine(device=device, precision=precision))
        folder = RunFolder(run).require()
        self.stage = policy_stage(folder, stage)
        model, self.config = folder.load(self.stage)
        (height, width), (low_height, low_width) = self.config.shape.high, self.config.shape.low
        if scaled_low and height * low_width != width * low_height:
            raise UsageError(f"{run}: HR and LR differ in shape, so LR cannot be HR at a reduced scale")
        self.choose, self.scaled_low = choose, scaled_low
        self.run, self.own_low = str(run), folder.own_low
        assert isinstance(model, PatchDrop)
        self.networks = Networks(model, compute)
        self.grid = self.config.shape.grid

    @property
    def model(self) -> PatchDrop:
        """Policy and classifier."""
        return self.networks.model

    @property
    def compute(self) -> Compute:
        """Device and precision."""
        return self.networks.compute

    def predict(
        self, images: Sequence[str | Path] | str | Path, low: Sequence[str | Path] | None = None
    ) -> list[Prediction]:
        """Predict a few images as one batch.

        Args:
            images: HR image files. Without ``low`` or ``scaled_low``, a file is decoded whole, because LR is made from
                it.
            low: LR image files of a sensor of their own, one for each image; then an HR file is opened only
                where a patch of it is chosen.

        Raises:
            DataError: a file cannot be read.
            UsageError: no ``low``, where the run was trained on LR images of their own; or memory that a single image
                does not fit in.
        """
        with decoders() as threads:
            return self.answer(self.ask(self.open(images, low, threads)))

    def scores(self, images: Sequence[str | Path] | str | Path, low: Sequence[str | Path] | None = None) -> Tensor:
        """Return the policy's patch logits ``(B, P)`` of a few images; arguments and errors are those of `predict`."""
        with decoders() as threads:
            return self.scores_of(self.open(images, low, threads))

    def explain(
        self, images: Sequence[str | Path] | str | Path, low: Sequence[str | Path] | None = None
    ) -> list[tuple[Prediction, GalleryItem]]:
        """Do as `predict`, and return what a picture of each decision needs (opens every HR file)."""
        with decoders() as threads:
            return self.explain_answer(self.ask(self.open(images, low, threads)))

    # The steps of `predict`, one by one: files are decoded while the networks work on others.

    def open(
        self, images: Sequence[str | Path] | str | Path, low: Sequence[str | Path] | None, threads: Executor
    ) -> Opened:
        """Begin to decode what LR comes from; otherwise as `predict`, whose first step it is."""
        paths = [Path(images)] if isinstance(images, (str, Path)) else [Path(p) for p in images]
        if not paths:
            raise UsageError("no image was given")
        files = ImageFiles(paths, self.config.shape.high, self.config.shape.channels, threads)
        if low is None and self.own_low:
            raise UsageError(f"{self.run}: was trained on LR images of their own; give one for each image with --low")
        if low is not None and self.scaled_low:
            raise UsageError("LR images were given, and are also to be made from HR; do one of the two")
        size, channels = self.config.shape.low, self.config.shape.channels
        if low is None and self.scaled_low:
            return Opened(files, [threads.submit(read_image, path, size, channels, gap=1) for path in paths])
        if low is None:
            files.ask(range(len(paths)))
            return Opened(files, None)
        if len(low) != len(paths):
            raise UsageError(f"{len(paths)} images and {len(low)} LR images were given, one each is needed")
        return Opened(files, [threads.submit(read_image, Path(path), size, channels) for path in low])

    def scores_of(self, opened: Opened) -> Tensor:
        """Return the policy's patch logits ``(B, P)`` of files that were opened."""
        with torch.inference_mode():
            return self.networks.look(opened.low(self.config.shape.low)).scores.cpu()

    def ask(self, opened: Opened) -> Asked:
        """Look at LR, choose, and begin to decode the HR files of which a patch is chosen; raises DataError."""
        low = opened.low(self.config.shape.low)
        with torch.inference_mode():
            look = self.networks.look(low)
            choice = self.choose(look.scores).cpu()
        opened.files.ask(zoomed(choice))
        return Asked(opened.files, low, look, choice)

    def answer(self, asked: Asked) -> list[Prediction]:
        """Read the chosen patches, and classify; raises DataError."""
        return self._predictions(asked.files, self._episode(asked))

    def explain_answer(self, asked: Asked) -> list[tuple[Prediction, GalleryItem]]:
        """Do as `answer`, and return what a picture of each decision needs."""
        asked.files.ask(range(len(asked.files.paths)))
        episode = self._episode(asked)
        predictions = self._predictions(asked.files, episode)
        highs = torch.stack([asked.files.high(position) for position in range(len(asked.files.paths))])
        items = gallery_items(
            self.model,
            episode,
            highs,
            asked.low,
            [p.path for p in predictions],
            ["" for _ in predictions],
            self.config.classes,
        )
        return list(zip(predictions, items, strict=True))

    def _episode(self, asked: Asked) -> Episode:
        """Take the last two steps of an episode; its tensors are on the CPU."""
        (scores, chances, classify), choice = asked.look, asked.choice
        packed = asked.files.reader(self.grid)(choice)
        with torch.inference_mode():
            logits = classify(packed, asked.low).cpu()
        return Episode(scores.cpu(), None if chances is None else chances.cpu(), choice, packed, logits)

    def _predictions(self, files: ImageFiles, episode: Episode) -> list[Prediction]:
        probabilities = episode.logits.softmax(1)
        best = probabilities.max(1)
        chances = chances_of(episode.scores, episode.chances, episode.choice)
        return [
            Prediction(
                str(path),
                self.config.classes[int(best.indices[i])],
                float(best.values[i]),
                tuple(episode.choice[i].nonzero().flatten().tolist()),
                float(episode.choice[i].float().mean()),
                *chances[i],
            )
            for i, path in enumerate(files.paths)
        ]


class Opened(NamedTuple):
    """Files of a batch that are being decoded."""

    files: ImageFiles
    lows: list[Future[Tensor]] | None
    """LR of each image, read from a file; None: made from HR."""

    def low(self, size: Size) -> Tensor:
        """Return LR ``(B, C, h, w)`` uint8, once it is there; raises DataError if a file cannot be read."""
        if self.lows is not None:
            return torch.stack([low.result() for low in self.lows])
        return area_average(torch.stack([self.files.high(i) for i in range(len(self.files.paths))]), size)


class Asked(NamedTuple):
    """A batch whose patches are chosen, and whose HR files are being decoded."""

    files: ImageFiles
    low: Tensor
    look: Look
    choice: Tensor
    """``(B, P)`` bool, on the CPU."""


class Chances(NamedTuple):
    """`Prediction.chance_now`, `Prediction.chance_after` and `Prediction.chance_all` of an image."""

    now: float | None = None
    after: float | None = None
    everything: float | None = None


def chances_of(scores: Tensor, chances: Tensor | None, choice: Tensor) -> list[Chances]:
    """Return the chances of each image of a batch; see `forecast` for the arguments."""
    if chances is None:
        return [Chances()] * len(choice)
    said = zip(*(chance.tolist() for chance in forecast(scores, chances, choice)), strict=True)
    return [Chances(now, None if math.isnan(after) else after, everything) for now, after, everything in said]


def gallery_items(
    model: PatchDrop,
    episode: Episode,
    highs: Tensor,
    lows: Tensor,
    names: Sequence[str],
    truths: Sequence[str],
    classes: Sequence[str],
) -> list[GalleryItem]:
    """Make the report's items of a batch: ``highs (B, C, H, W)`` and ``lows (B, C, h, w)`` uint8."""
    high_cnn = model.classifier.high if isinstance(model.classifier, TwoStream) else model.classifier
    assert isinstance(high_cnn, HighClassifier)
    with torch.inference_mode():
        # Only for display: not every classifier has such a canvas.
        device = high_cnn.normalise.mean.device
        packed = episode.packed.to(device)
        empty = high_cnn.empty(lows.to(device), (highs.shape[2], highs.shape[3]))
        canvas = scatter(packed, high_cnn.normalise(packed.pixels), empty, high_cnn.grid)
        seen = (canvas * high_cnn.normalise.std + high_cnn.normalise.mean).round().clamp(0, 255).to(torch.uint8)
    probabilities = episode.logits.float().softmax(1)
    best = probabilities.max(1)
    return [
        GalleryItem(
            name=names[i],
            low=_pixels(lows[i]),
            high=_pixels(highs[i]),
            probabilities=torch.sigmoid(episode.scores[i]).cpu().numpy(),
            choice=episode.choice[i].cpu().numpy(),
            seen=_pixels(seen[i]),
            true=truths[i],
            predicted=classes[int(best.indices[i])],
            probability=float(best.values[i]),
        )
        for i in range(len(names))
    ]


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = image.permute(1, 2, 0).cpu().numpy()
    return array

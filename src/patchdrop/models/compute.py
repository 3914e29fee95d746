"""Apply a trained model on a machine: on its device, in a precision, in batches that its memory takes.

Whatever sees LR alone (the policy, LR-CNN) is computed in float32, so that the patches chosen, the thresholds that
choose them and the chances of being right do not depend on the precision; HR classifiers follow it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from patchdrop.classify.two_stream import TwoStream
from patchdrop.episode import Classify, Look, PatchDrop
from patchdrop.errors import UsageError
from patchdrop.networks.device import autocast, device_of, exact_float32
from patchdrop.packed import Packed
from patchdrop.settings.machine import Machine, Precision
from patchdrop.terminal.talk import say

T = TypeVar("T")


@dataclass(frozen=True)
class Compute:
    """What a machine gives to a trained model: its device, and the precision of HR classifiers there."""

    device: torch.device
    precision: Precision = "float32"

    @classmethod
    def of(cls, machine: Machine | None) -> Compute:
        """Find what a user asked for; UsageError if this machine does not have it."""
        machine = machine or Machine()
        return cls(device_of(machine.device), machine.precision)

    def to_json(self) -> dict[str, str]:
        """Return plain values."""
        return {"device": self.device.type, "precision": self.precision}

    def exact(self) -> AbstractContextManager[None]:
        """Compute in float32 meanwhile, whatever the precision of HR classifiers is."""
        return exact_float32(self.device)

    def look(self, model: PatchDrop, low: Tensor) -> Look:
        """Look at LR ``(B, C, h, w)`` in float32; the classifier of the returned look is `classify`."""
        with self.exact():
            scores, chances, classifier = model.look(low.to(self.device))
        return Look(scores, chances, partial(self.classify, classifier))

    def classify(self, classifier: Classify, packed: Packed, low: Tensor) -> Tensor:
        """Return class logits ``(B, K)``, float32, of packed patches and LR, wherever these lie."""
        packed, low = packed.to(self.device), low.to(self.device)
        if self.precision == "float32":
            with self.exact():
                return classifier(packed, low).float()
        if isinstance(classifier, TwoStream):
            with self.exact():
                classifier = partial(classifier.join, classifier.low(low))
        with autocast(self.device.type, self.precision):
            return classifier(packed, low).float()


class Networks:
    """A trained model for batches of any size: it takes them in parts, from the first that its memory lacks in halves.

    Args:
        model: moved to the machine's device.
        most: images at a time.
        turn: entered while networks compute.
    """

    def __init__(
        self,
        model: PatchDrop,
        compute: Compute,
        most: int = sys.maxsize,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.model = model.to(compute.device)
        self.compute, self.most = compute, most
        self._turn, self._told = turn, False

    def look(self, low: Tensor) -> Look:
        """Look at LR ``(B, C, h, w)`` of one or more images; the classifier of the returned look is for these."""
        parts: list[tuple[slice, Look]] = []
        start = 0
        while start < len(low):
            part = slice(start, min(start + self.most, len(low)))
            found = self._tried(partial(self.compute.look, self.model, low[part]), part.stop - start)
            if found is not None:
                parts.append((part, found))
                start = part.stop
        return Look(*together([look for _, look in parts]), partial(self.classify, parts))

    def classify(self, parts: Sequence[tuple[slice, Look]], packed: Packed, low: Tensor) -> Tensor:
        """Return class logits ``(B, K)``; ``parts`` are the looks at these images."""
        return torch.cat([self._classify_part(look, _images(packed, part), low[part]) for part, look in parts])

    def _classify_part(self, look: Look, packed: Packed, low: Tensor) -> Tensor:
        found = self._tried(partial(look.classify, packed, low), len(low))
        if found is not None:
            return found
        middle = (len(low) + 1) // 2
        halves = slice(0, middle), slice(middle, len(low))
        # What was computed of all these images cannot be cut in two, so that they are looked at again.
        return torch.cat([self.look(low[half]).classify(_images(packed, half), low[half]) for half in halves])

    def _tried(self, work: Callable[[], T], images: int) -> T | None:
        """Return what the networks make of some images, or None if memory ran out; from then on take half as many."""
        try:
            with self._turn():
                return work()
        except torch.OutOfMemoryError:
            pass  # what was computed so far is let go of with the error
        with self._turn():
            self._halve(images)
        return None

    def _halve(self, images: int) -> None:
        device = self.compute.device
        if images == 1:
            raise UsageError(f"device {device}: out of memory with a single image; use --device cpu")
        self.most = min(self.most, (images + 1) // 2)
        if not self._told:
            say(f"device {device}: out of memory with {images} images at a time; goes on with {self.most}, or fewer")
            self._told = True
        if device.type == "cuda":
            torch.cuda.empty_cache()


def together(looks: Sequence[Look]) -> tuple[Tensor, Tensor | None]:
    """Join scores and chances of all images of one or more looks."""
    chances = [look.chances for look in looks if look.chances is not None]
    return torch.cat([look.scores for look in looks]), torch.cat(chances) if chances else None


def _images(packed: Packed, part: slice) -> Packed:
    """Return the patches of some of the images, which are renumbered from 0."""
    if part.start == 0 and part.stop >= packed.batch:
        return packed
    keep = torch.zeros(packed.batch, dtype=torch.bool, device=packed.image.device)
    keep[part] = True
    return packed.of_images(keep)

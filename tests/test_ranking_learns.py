"""A ranking policy learns how much is needed: one certain patch, any three, none, or all of them.

Everything but the networks is the real thing: the task of stage Pt, the loop, the operating point. HR is black but for
marks; the classifier knows the class once it has read as many marked patches as the toy asks for. LR is noise, with
bright squares where the marks are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from patchdrop.classify.high import HighClassifier
from patchdrop.classify.low import LowCNN
from patchdrop.classify.two_stream import TwoStream
from patchdrop.data.sets import MemorySource, Split
from patchdrop.grid import Grid, boxes
from patchdrop.networks import Normalise
from patchdrop.one_look import Advised
from patchdrop.packed import Packed
from patchdrop.policy.network import Policy
from patchdrop.policy.ranking import Ranking
from patchdrop.settings import TrainSettings
from patchdrop.training.loop import train
from patchdrop.training.ranking_stages import RankingTask

GRID = Grid(4, 4)
SIDE = 16
CLASSES = 4


def normalise() -> Normalise:
    return Normalise(torch.full((3,), 40.0), torch.full((3,), 50.0))


class Counts(HighClassifier):
    """Sure of the class once ``needed`` marked patches of an image were read, and clueless before."""

    def __init__(self, needed: int) -> None:
        super().__init__(GRID, normalise())
        self.needed = needed

    def forward(self, packed: Packed, low: Tensor) -> Tensor:
        level = (packed.pixels.float().amax((1, 2, 3)) / 50).round().long()
        marks = torch.nn.functional.one_hot(level, CLASSES + 1)[:, 1:].float()
        seen = torch.zeros(packed.batch, CLASSES).index_add(0, packed.image, marks)
        return 20 * (seen >= self.needed)


class Word(LowCNN):
    """Knows nothing, or, where ``sure``, the class, which is the lowest pixel of LR."""

    def __init__(self, sure: bool) -> None:
        nn.Module.__init__(self)
        self.sure = sure

    def forward(self, low: Tensor) -> Tensor:
        known = torch.nn.functional.one_hot(low[:, 0, -1, -1].long() % CLASSES, CLASSES).float()
        return 20 * known if self.sure else torch.zeros(len(low), CLASSES)


def marked(count: int, marks: int, seed: int) -> Split:
    draw = np.random.default_rng(seed)
    high = np.zeros((count, 3, SIDE, SIDE), dtype=np.uint8)
    low = draw.integers(0, 60, (count, 3, SIDE, SIDE), dtype=np.uint8)
    targets = draw.integers(CLASSES, size=count)
    for image in range(count):
        for place in draw.permutation(GRID.patches)[:marks]:
            top, left, bottom, right = boxes(GRID, SIDE, SIDE)[place]
            high[image, :, top:bottom, left:right] = 50 * (targets[image] + 1)
            low[image, :, top:bottom, left:right] = 220
        low[image, 0, -1, -1] = targets[image]
    tensors = torch.from_numpy(high), torch.from_numpy(low), torch.from_numpy(targets)
    return Split(MemorySource(*tensors, [str(i) for i in range(count)]), torch.arange(count))


def learnt(folder: Path, seed: int, marks: int, needed: int, sure: bool) -> tuple[RankingTask, dict[str, float]]:
    settings = TrainSettings(
        high=str(SIDE), low=str(SIDE), grid="4", seed=seed, batch=64, epochs_pt=10, rate_policy=1e-2, augment=()
    )
    torch.manual_seed(seed)
    policy = Ranking(Policy("resnet8-w4", GRID, (SIDE, SIDE), normalise()), CLASSES)
    model = Advised(policy, TwoStream(Counts(needed), Word(sure), "learned"), shared=False)
    fit, val = marked(1024, marks, 2 * seed + 1), marked(256, marks, 2 * seed + 2)
    task = RankingTask("pt", model, fit, val, settings, torch.device("cpu"))
    outcome = train(task, folder, seed, lambda _: None, lambda _: None, lambda: 0, 5.0, "muon")
    return task, outcome["figures"]

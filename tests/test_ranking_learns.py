"""A ranking policy learns how much is needed: one certain patch, any three, none, or all of them.

Everything but the networks is the real thing: the task of stage Pt, the loop, the operating point. HR is black but for
marks; the classifier knows the class once it has read as many marked patches as the toy asks for. LR is noise, with
bright squares where the marks are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchdrop.classify.high import HighClassifier, Spec
from patchdrop.classify.low import LowCNN
from patchdrop.classify.two_stream import TwoStream
from patchdrop.data.sets import MemorySource, Split
from patchdrop.evaluation.operating_point import Goal, calibrate_critic, find_price, outputs_on, tried_counts
from patchdrop.evaluation.outcome import outcome_of
from patchdrop.grid import Grid, Shape, boxes
from patchdrop.models.compute import Compute
from patchdrop.models.shared_pass import RankingModel
from patchdrop.networks.build import Normalise
from patchdrop.packed import Packed
from patchdrop.policy.choice import greedy
from patchdrop.policy.network import Policy
from patchdrop.policy.ranking import Ranking
from patchdrop.settings.flat import TrainSettings
from patchdrop.training.loop import train
from patchdrop.training.ranking_stages import RankingTask
from tiny import config_of, learning_of, loader_of

CPU = torch.device("cpu")
GRID = Grid(4, 4)
SIDE = 16
CLASSES = 4


def normalise() -> Normalise:
    return Normalise(torch.full((3,), 40.0), torch.full((3,), 50.0))


class Counts(HighClassifier):
    """Sure of the class once ``needed`` marked patches of an image were read, and clueless before."""

    def __init__(self, needed: int) -> None:
        super().__init__(Spec("", CLASSES, Shape((16, 16), (8, 8), GRID, 3), normalise()))
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


@dataclass(frozen=True)
class Toy:
    """What an image needs, and how long it takes to find out.

    Attributes:
        marks: marked patches of an image.
        needed: marked patches that have to be read.
        sure: whether LR-CNN knows the class already.
        reads: least and most mean number of patches of a policy that has learnt it.
        tolerance: points of accuracy that it may give up.
    """

    marks: int
    needed: int
    sure: bool
    reads: tuple[float, float]
    tolerance: float = 0.5
    images: int = 512
    epochs: int = 8
    batch: int = 32


TOYS = {
    "one certain patch": Toy(1, 1, False, (1, 1.05)),
    "any three of sixteen": Toy(16, 3, False, (3, 3.05)),
    # A mark too few is of no use, so that three of six are learnt slowest, and the last half point is the dearest.
    "three of six": Toy(6, 3, False, (3, 4.5), tolerance=1.0, images=1024, epochs=10, batch=64),
    "none": Toy(1, 1, True, (0, 0)),
    "all": Toy(16, 16, False, (16, 16)),
}


def learnt(folder: Path, toy: Toy, seed: int) -> tuple[float, float]:
    """Accuracy and mean number of patches on fresh images of a policy that was trained and judged."""
    settings = TrainSettings(
        high=str(SIDE), low=str(SIDE), grid="4", seed=seed, batch=toy.batch, epochs_pt=toy.epochs, augment=(),
        rate_policy=1e-2,
    )  # fmt: skip
    torch.manual_seed(seed)
    policy = Ranking(Policy("resnet8-w4", GRID, (SIDE, SIDE), normalise()), CLASSES)
    model = RankingModel(policy, TwoStream(Counts(toy.needed), Word(toy.sure), "learned"), shared=False)
    fit, val, fresh = (
        marked(count, toy.marks, 3 * seed + part) for part, count in ((1, toy.images), (2, 256), (3, 256))
    )
    task = RankingTask("pt", model, loader_of(settings, fit, val), learning_of(settings))
    train(task, folder, lambda _: None, lambda _: None, lambda: 0)
    model.eval()
    config = config_of(settings, [str(c) for c in range(CLASSES)])
    policy.log_price.fill_(0)
    outputs = outputs_on(model, config.shape.low, val, CPU, tried_counts(GRID.patches))
    calibrate_critic(model, outputs)
    with torch.no_grad():
        scores, chances = model.policy.weigh(outputs.utilities, outputs.low_logits)
    find_price(model, scores, chances, outputs, Goal(tolerance=toy.tolerance))
    found = outcome_of(model, config.shape, fresh, lambda scores, _: greedy(scores), Compute(CPU))
    return float(found.right.double().mean()), float(found.choice.sum(1).double().mean())


def solve(folder: Path, name: str, seed: int) -> None:
    toy = TOYS[name]
    accuracy, mean_patches = learnt(folder, toy, seed)
    assert accuracy >= 0.97, (accuracy, mean_patches)
    assert toy.reads[0] <= mean_patches <= toy.reads[1], (accuracy, mean_patches)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", TOYS)
def test_a_policy_learns_which_patches_are_needed_and_how_many(tmp_path: Path, name: str, seed: int) -> None:
    solve(tmp_path, name, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 10))
@pytest.mark.parametrize("name", TOYS)
def test_whatever_the_seed(tmp_path: Path, name: str, seed: int) -> None:
    solve(tmp_path, name, seed)

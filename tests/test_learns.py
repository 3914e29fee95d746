"""It learns: a toy whose label hides in one of 16 patches, at a place that LR reveals, solved within 2 patches.

Everything but the networks is the real thing: the task of stage Pt, its estimators, the training loop. HR holds
a grey value in one patch, which is the class, and is black elsewhere; LR is noise with a bright square at that
place and says nothing of the class. Who reads nothing is right on a quarter of the images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchdrop.data.sets import MemorySource, Split
from patchdrop.episode import PatchDrop
from patchdrop.grid import Grid, boxes
from patchdrop.networks.build import Normalise
from patchdrop.packed import Packed
from patchdrop.policy.network import Policy
from patchdrop.settings.flat import TrainSettings
from patchdrop.training.loop import train
from patchdrop.training.policy_stages import PolicyTask
from tiny import learning_of, loader_of

pytestmark = pytest.mark.filterwarnings("ignore::patchdrop.errors.CollapsedPolicyWarning")
GRID = Grid(4, 4)
SIDE = 16
CLASSES = 4
EPOCHS = 10


class ReadsGrey(nn.Module):
    """A classifier that is sure of the class if the patch that holds it was read, and clueless otherwise."""

    def forward(self, packed: Packed, low: Tensor) -> Tensor:
        level = (packed.pixels.float().amax((1, 2, 3)) / 50).round().long()
        votes = 10 * torch.nn.functional.one_hot(level, CLASSES + 1)[:, 1:].float()
        if packed.weight is not None:
            votes = votes * packed.weight.unsqueeze(1)
        return torch.zeros(packed.batch, CLASSES).index_add(0, packed.image, votes)


class Glance(nn.Module):
    """A network of one layer whose features are those of the sixteen patches."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, self.num_features, 4, stride=4)

    def forward_features(self, images: Tensor) -> Tensor:
        return torch.relu(self.layer(images))


def hidden(count: int, seed: int) -> Split:
    draw = np.random.default_rng(seed)
    high = np.zeros((count, 3, SIDE, SIDE), dtype=np.uint8)
    low = draw.integers(0, 60, (count, 3, SIDE, SIDE), dtype=np.uint8)
    targets = draw.integers(CLASSES, size=count)
    for image, place in enumerate(draw.integers(GRID.patches, size=count)):
        top, left, bottom, right = boxes(GRID, SIDE, SIDE)[place]
        high[image, :, top:bottom, left:right] = 50 * (targets[image] + 1)
        low[image, :, top:bottom, left:right] = 220
    tensors = torch.from_numpy(high), torch.from_numpy(low), torch.from_numpy(targets)
    return Split(MemorySource(*tensors, [str(i) for i in range(count)]), torch.arange(count))


def learnt(folder: Path, seed: int, estimator: str, network: str = "glance") -> dict[str, float]:
    """Figures of the best validation."""
    settings = TrainSettings(
        high=str(SIDE),
        low=str(SIDE),
        grid="4",
        seed=seed,
        batch=64,
        epochs_pt=EPOCHS,
        optimizer="adamw",
        rate_policy=1e-2,
        augment=(),
        estimator=estimator,
        samples=4,
        sigma=0.5,
        alpha_start=0.7,
        alpha_end=0.95,
    )
    torch.manual_seed(seed)
    normalise = Normalise(torch.full((3,), 40.0), torch.full((3,), 50.0))
    policy = Policy("resnet8-w4", GRID, (SIDE, SIDE), normalise)
    if network == "glance":
        policy.network = Glance()
        policy.head = nn.Linear(2 * Glance.num_features, 1)
        nn.init.zeros_(policy.head.weight)
        nn.init.zeros_(policy.head.bias)
    model = PatchDrop(policy, ReadsGrey())
    fit, val = hidden(1024, 2 * seed + 1), hidden(256, 2 * seed + 2)
    task = PolicyTask("pt", model, loader_of(settings, fit, val), learning_of(settings))
    outcome = train(task, folder, lambda _: None, lambda _: None, lambda: 0)
    figures: dict[str, float] = outcome["figures"]
    return figures


def assert_solved(figures: dict[str, float]) -> None:
    shown = {k: figures[k] for k in ("accuracy", "mean_patches", "distinct_masks", "accuracy_shuffled")}
    assert figures["accuracy"] >= 0.95, shown
    assert figures["mean_patches"] <= 2, shown
    assert figures["distinct_masks"] >= GRID.patches, shown
    assert figures["accuracy_shuffled"] <= 0.6, shown


@pytest.mark.parametrize("seed", range(20))
def test_the_papers_estimator_finds_the_patch(tmp_path: Path, seed: int) -> None:
    assert_solved(learnt(tmp_path, seed, "self-critical"))


@pytest.mark.parametrize("estimator", ["rloo", "straight-through"])
def test_the_other_estimators_find_it_too(tmp_path: Path, estimator: str) -> None:
    assert_solved(learnt(tmp_path, 0, estimator))


def test_a_residual_network_finds_it(tmp_path: Path) -> None:
    assert_solved(learnt(tmp_path, 0, "rloo", "resnet"))

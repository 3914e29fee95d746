"""Every row of the tables is trained through the one loop: stopped anywhere, it goes on and ends with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from patchdrop.classify.pcn import PartiallyCoupled
from patchdrop.classify.super_resolution import Discriminator, Generator, SuperResolution, SuperResolved
from patchdrop.errors import Interrupted
from patchdrop.grid import Grid
from patchdrop.networks.build import Normalise
from patchdrop.policy.baselines import stochastic
from patchdrop.policy.choice import sampled
from patchdrop.policy.stn import relaxed_top
from patchdrop.training.couple import CoupledTask
from patchdrop.training.loop import Task
from patchdrop.training.objectives import Teacher
from patchdrop.training.selectors import SelectorTask
from patchdrop.training.super_resolution import GeneratorTask, SuperResolvedTask
from patchdrop.training.supervised import ClassifierTask
from rows import FIT, VAL, bits, same_bits, tiny_model, trained
from tiny import NETWORK, learning_of, loader_of, tiny_settings

SETTINGS = tiny_settings(augment=("flip", "shift", "erase"))
LOADER, LEARNING = loader_of(SETTINGS, FIT, VAL), learning_of(SETTINGS)
EPOCHS = SETTINGS.epochs_hr


def taught() -> Teacher:
    return Teacher(tiny_model("hr", SETTINGS), Grid.parse(SETTINGS.grid), weight=0.7)


def scale() -> Normalise:
    return Normalise(torch.full((3,), 110.0), torch.full((3,), 40.0))


def generator() -> Generator:
    return Generator((16, 16), (8, 8), scale(), width=4, blocks=1)


def blind() -> Task:
    model = tiny_model("ft2", SETTINGS)
    model.policy = stochastic(Grid(4, 4), 5.5)
    return SelectorTask("ft2", model, sampled, LOADER, LEARNING)


ROWS: dict[str, Callable[[], Task]] = {
    "kd": lambda: ClassifierTask("kd", tiny_model("lr", SETTINGS), LOADER, like="lr", teacher=taught()),
    "pcn": lambda: CoupledTask("pcn", PartiallyCoupled(NETWORK, 3, scale(), scale()), LOADER),
    "sr": lambda: GeneratorTask(
        "sr", SuperResolution(generator(), Discriminator(width=4)), tiny_model("hr", SETTINGS), LOADER, EPOCHS
    ),
    "sr-cnn": lambda: SuperResolvedTask(
        "sr-cnn", SuperResolved(generator(), tiny_model("hr", SETTINGS)), LOADER, EPOCHS
    ),
    "stn": lambda: SelectorTask(
        "ft1", tiny_model("ft1", SETTINGS), partial(relaxed_top, mean_patches=5.5), LOADER, LEARNING
    ),
    "stochastic": blind,
}


@pytest.mark.parametrize("stop_after", [1, 4])
@pytest.mark.parametrize("row", ROWS)
def test_a_row_that_was_stopped_ends_with_the_bits_of_an_unbroken_one(
    tmp_path: Path, row: str, stop_after: int
) -> None:
    torch.manual_seed(0)
    unbroken = ROWS[row]()
    before = bits(unbroken.model)
    figures = trained(unbroken, tmp_path / "unbroken")
    assert not same_bits(bits(unbroken.model), before)
    torch.manual_seed(0)
    with pytest.raises(Interrupted):
        trained(ROWS[row](), tmp_path / "stopped", stop_after)
    torch.manual_seed(1)  # weights of its own, replaced by those that were saved
    resumed = ROWS[row]()
    assert trained(resumed, tmp_path / "stopped") == figures
    assert same_bits(bits(resumed.model), bits(unbroken.model))

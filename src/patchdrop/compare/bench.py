"""What all rows of one seed are trained on and start from: the data, the recipe, and an ordinary run beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from patchdrop.costs.flops import Cost, forward_costs
from patchdrop.data.load import Data, Statistics, statistics
from patchdrop.episode import PatchDrop
from patchdrop.errors import RunError
from patchdrop.grid import Grid
from patchdrop.models.build import ModelConfig, build_stage
from patchdrop.networks.build import Normalise
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.comparison import CompareOptions
from patchdrop.training.batches import Loader
from patchdrop.training.recipe import Recipe

POLICY_STAGES = ("pt", "ft1", "ft2")
CHAIN = ("patches", *POLICY_STAGES)
"""What Ft-2 has been trained by, beside HR-CNN's and LR-CNN's own epochs."""


@dataclass(frozen=True)
class Bench:
    """One seed of a comparison.

    Attributes:
        folder: of the seed; ``run/`` in it is the ordinary run.
        planned: whether this is for a plan, in which what is not trained stands in untrained.
    """

    options: CompareOptions
    recipe: Recipe
    data: Data
    folder: Path
    planned: bool = False

    @property
    def run(self) -> RunFolder:
        """The ordinary run."""
        return RunFolder(self.folder / "run")

    @property
    def grid(self) -> Grid:
        """Of the patches."""
        return self.data.shape.grid

    @property
    def device(self) -> torch.device:
        """Of training and evaluation."""
        return self.recipe.device

    @cached_property
    def statistics(self) -> Statistics:
        """Of the training images."""
        return statistics(self.data.splits["fit"], self.data.shape.low)

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """Of the run's networks."""
        return forward_costs(self.config())

    @property
    def policy_stages(self) -> list[str]:
        """Stages of the policy that are trained: those the tables have columns for."""
        return [s for s in self.recipe.stages if s in POLICY_STAGES]

    @property
    def seed(self) -> int:
        """Of everything random."""
        return self.recipe.schedule.seed

    @property
    def loader(self) -> Loader:
        """What the run trains on."""
        return self.recipe.loader(self.data)

    def config(self, recipe: Recipe | None = None) -> ModelConfig:
        """The description of the networks, of another recipe where one is given."""
        return (recipe or self.recipe).with_classes(self.data.classes)

    def normalise(self) -> Normalise:
        """HR pixels by the training images' statistics."""
        return Normalise(self.statistics.mean, self.statistics.std)

    def normalise_low(self) -> Normalise:
        """LR pixels by the training images' statistics."""
        return Normalise(self.statistics.low_mean, self.statistics.low_std)

    def new(self, stage: str, recipe: Recipe | None = None) -> nn.Module:
        """The untrained model of a stage."""
        return build_stage(stage, self.config(recipe), self.statistics, self.recipe.pretrained)

    def earlier(self, stage: str) -> nn.Module:
        """Loads a fresh copy of the run's trained model of a stage."""
        return self.trained(self.run, stage, lambda: self.new(stage))

    def trained(self, folder: RunFolder, stage: str, untrained: Callable[[], nn.Module]) -> nn.Module:
        """A trained model, or in a plan, where there is none, an untrained one."""
        if self.planned and not folder.done(stage):
            return untrained()
        return folder.load(stage)[0]

    def patches(self, stage: str) -> float:
        """S that the other choosers are given: what was asked for, or PatchDrop's mean on val in that stage.

        Raises:
            RunError: the run's stage is not trained.
        """
        if self.options.patches is not None:
            return self.options.patches
        if self.planned and not self.run.done(stage):
            return self.recipe.learning.target_patches or self.grid.patches / 2
        config = self.run.stage_config(stage)
        figures = config.get("verdict", config["figures"])  # a ranking policy's operating point is found afterwards
        if "mean_patches" not in figures:
            raise RunError(f"{self.run}: stage {stage} does not say how many patches it reads; train it again")
        return float(figures["mean_patches"])

    def last_model(self) -> PatchDrop:
        """The model of the run's last stage."""
        model = self.earlier(self.policy_stages[-1])
        assert isinstance(model, PatchDrop)
        return model

    def with_budget(self, stage: str) -> Recipe:
        """The recipe by which the run's ``lr`` or ``hr`` trains as long as Ft-2 did: its own epochs and the chain's."""
        schedule = self.recipe.schedule
        epochs = sum(schedule.epochs[s] for s in (stage, *CHAIN) if s == stage or s in self.recipe.stages)
        return replace(self.recipe, schedule=schedule.with_epochs(**{stage: epochs}))

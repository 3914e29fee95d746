"""The shared base of all rows of one seed: the data, the recipe, and an ordinary run that rows start from."""

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
from patchdrop.models.compute import Compute
from patchdrop.networks.build import Normalise
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.comparison import CompareOptions
from patchdrop.training.batches import Loader
from patchdrop.training.recipe import Recipe

POLICY_STAGES = ("pt", "ft1", "ft2")
CHAIN = ("patches", *POLICY_STAGES)
"""The stages that train Ft-2's networks, besides the epochs of HR-CNN and LR-CNN."""


@dataclass(frozen=True)
class Bench:
    """A seed of a comparison.

    Attributes:
        folder: of the seed; ``run/`` in it is the ordinary run.
        planned: whether this is for a plan; then untrained models stand in for those that are not trained.
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
        """The grid of the patches."""
        return self.data.shape.grid

    @property
    def device(self) -> torch.device:
        """The device of training and evaluation."""
        return self.recipe.device

    @property
    def compute(self) -> Compute:
        """The same device in float32, in which all rows are judged."""
        return Compute(self.device)

    @cached_property
    def statistics(self) -> Statistics:
        """Channel statistics of the training images."""
        return statistics(self.data.splits["fit"], self.data.shape.low)

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """Forward costs of the run's networks."""
        return forward_costs(self.config())

    @property
    def policy_stages(self) -> list[str]:
        """Stages of the policy that are trained; the tables have a column for each."""
        return [s for s in self.recipe.stages if s in POLICY_STAGES]

    @property
    def seed(self) -> int:
        """Seed of everything random."""
        return self.recipe.schedule.seed

    @property
    def loader(self) -> Loader:
        """The loader that the run trains from."""
        return self.recipe.loader(self.data)

    def config(self, recipe: Recipe | None = None) -> ModelConfig:
        """Return the description of the networks, of another recipe if one is given."""
        return (recipe or self.recipe).with_classes(self.data.classes)

    def normalise(self) -> Normalise:
        """Return the layer that normalises HR pixels by the training images' statistics."""
        return Normalise(self.statistics.mean, self.statistics.std)

    def normalise_low(self) -> Normalise:
        """Return the layer that normalises LR pixels by the training images' statistics."""
        return Normalise(self.statistics.low_mean, self.statistics.low_std)

    def new(self, stage: str, recipe: Recipe | None = None) -> nn.Module:
        """Build the untrained model of a stage."""
        return build_stage(stage, self.config(recipe), self.statistics, self.recipe.pretrained)

    def earlier(self, stage: str) -> nn.Module:
        """Load a fresh copy of the run's trained model of a stage."""
        return self.trained(self.run, stage, lambda: self.new(stage))

    def trained(self, folder: RunFolder, stage: str, untrained: Callable[[], nn.Module]) -> nn.Module:
        """Load a trained model, or in a plan, where there is none, build an untrained one."""
        if self.planned and not folder.done(stage):
            return untrained()
        return folder.load(stage)[0]

    def patches(self, stage: str) -> float:
        """Return the S that the other selectors are given: as asked for, or PatchDrop's mean on val in that stage.

        Raises:
            RunError: the run's stage is not trained.
        """
        if self.options.patches is not None:
            return self.options.patches
        if self.planned and not self.run.done(stage):
            return self.recipe.learning.target_patches or self.grid.patches / 2
        config = self.run.stage_config(stage)
        figures = config.get("verdict", config["figures"])  # a ranking policy's operating point is found later
        if "mean_patches" not in figures:
            raise RunError(f"{self.run}: stage {stage} does not say how many patches it reads; train it again")
        return float(figures["mean_patches"])

    def last_model(self) -> PatchDrop:
        """Load the model of the run's last stage."""
        model = self.earlier(self.policy_stages[-1])
        assert isinstance(model, PatchDrop)
        return model

    def with_budget(self, stage: str) -> Recipe:
        """Return the recipe that trains ``lr`` or ``hr`` as long as Ft-2: its own epochs and the chain's."""
        schedule = self.recipe.schedule
        epochs = sum(schedule.epochs[s] for s in (stage, *CHAIN) if s == stage or s in self.recipe.stages)
        return replace(self.recipe, schedule=schedule.with_epochs(**{stage: epochs}))

"""Turn a run's flat settings into the few values that the other packages take."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from patchdrop.data.load import Data
from patchdrop.data.source import DataSource
from patchdrop.evaluation.operating_point import Goal
from patchdrop.models.build import ModelConfig
from patchdrop.networks.device import device_of
from patchdrop.settings.flat import TrainSettings
from patchdrop.training.batches import Loader
from patchdrop.training.policy_stages import Learning
from patchdrop.training.schedule import Schedule

_NETWORKS = tuple(name for name in ModelConfig.__dataclass_fields__ if name not in ("classes", "shape"))


@dataclass(frozen=True)
class Recipe:
    """A recipe: all settings that a run is trained by.

    Attributes:
        networks: their description, without classes until there are data (`with_classes`).
        asked: stages to train now.
        insist: whether a policy is trained even where HR-CNN is no better than LR-CNN.
        pretrained: whether timm's networks start from published weights.
        device_name: the device as a user named it.
        threads: torch's CPU threads; 0 leaves torch's default.
    """

    source: DataSource
    networks: ModelConfig
    schedule: Schedule
    learning: Learning
    goal: Goal
    asked: tuple[str, ...]
    insist: bool
    pretrained: bool
    device_name: str
    threads: int

    @classmethod
    def of(cls, settings: TrainSettings) -> Recipe:
        """Build the recipe from settings whose sizes, networks, batch and epochs are filled in."""
        s, shape = settings, settings.shape
        return cls(
            DataSource(
                s.data, s.layout, shape, s.val_fraction, s.seed, s.skip_bad, s.memory_gb, s.workers, s.cache
            ),
            ModelConfig((), shape, **{name: getattr(s, name) for name in _NETWORKS}),
            Schedule(
                s.seed, s.batch, s.epochs, s.augment, s.optimizer, s.rate_classifier, s.rate_finetune, s.rate_policy,
                s.weight_decay, s.label_smoothing, s.precision, s.save_minutes, s.shards,
            ),
            Learning(s.estimator, s.samples, s.sigma, s.target_patches, s.alpha_start, s.alpha_end),
            Goal(s.target_patches, s.mistake, s.tolerance),
            s.stages,
            s.insist,
            s.pretrained,
            s.device,
            s.threads,
        )  # fmt: skip

    @property
    def device(self) -> torch.device:
        """The device that networks run on; see `device_of`."""
        return device_of(self.device_name)

    @property
    def stages(self) -> list[str]:
        """The stages asked for, in training order, without those of 0 epochs."""
        return [stage for stage in self.schedule.stages if stage in self.asked]

    def with_classes(self, classes: tuple[str, ...]) -> ModelConfig:
        """Return the networks' description with a data set's classes."""
        return replace(self.networks, classes=classes)

    def loader(self, data: Data) -> Loader:
        """Return the loader that the stages train from."""
        return Loader(data, self.schedule, self.device)

    def use_threads(self) -> None:
        """Set torch's number of CPU threads to the recipe's."""
        if self.threads:
            torch.set_num_threads(self.threads)

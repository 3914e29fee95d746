"""The recipe of a run: flat settings as the few values that the rooms take."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch

from patchdrop.data.load import Data
from patchdrop.data.source import DataSource
from patchdrop.errors import RunError, UsageError
from patchdrop.evaluation.settle import Goal
from patchdrop.models.build import ModelConfig
from patchdrop.settings.flat import TrainSettings
from patchdrop.training.batches import Loader
from patchdrop.training.policy_stages import Learning
from patchdrop.training.schedule import Schedule

_NETWORKS = tuple(name for name in ModelConfig.__dataclass_fields__ if name not in ("classes", "shape"))


@dataclass(frozen=True)
class Recipe:
    """All that a run is trained by.

    Attributes:
        networks: their description, without classes until there are data (`with_classes`).
        asked: stages that are to be trained now.
        insist: whether a policy is trained even where HR-CNN is no better than LR-CNN.
        pretrained: whether timm's networks start from published weights.
        device_name: as a user named it.
        threads: of torch on the CPU; 0 leaves it as it is.
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
        """The recipe of settings in which sizes, networks, batch and epochs are filled in."""
        s, shape = settings, settings.shape
        return cls(
            DataSource(
                s.data, s.layout, shape, s.val_fraction, s.seed, s.skip_bad, s.memory_gb, s.workers, s.cache
            ),
            ModelConfig((), shape, **{name: getattr(s, name) for name in _NETWORKS}),
            Schedule(
                s.seed, s.batch, s.epochs, s.augment, s.optimizer, s.rate_classifier, s.rate_finetune, s.rate_policy,
                s.weight_decay, s.label_smoothing, s.precision, s.save_minutes,
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
        """Where networks run; see `device_of`."""
        return device_of(self.device_name)

    @property
    def stages(self) -> list[str]:
        """The stages asked for, in training order, without those of 0 epochs."""
        return [stage for stage in self.schedule.stages if stage in self.asked]

    def with_classes(self, classes: tuple[str, ...]) -> ModelConfig:
        """The description of the networks of a data set."""
        return replace(self.networks, classes=classes)

    def loader(self, data: Data) -> Loader:
        """What its stages train on."""
        return Loader(data, self.schedule, self.device)

    def use_threads(self) -> None:
        """Let torch use the recipe's number of CPU threads."""
        if self.threads:
            torch.set_num_threads(self.threads)


def device_of(name: str) -> torch.device:
    """The device of a name; ``auto`` takes a GPU where there is one.

    Raises:
        UsageError: there is no such device, or none that this project runs on.
        RunError: it is a GPU that is not here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"device: {name!r} is not one of auto, cpu, cuda and cuda:0, cuda:1, ...")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RunError(f"device {name}: torch finds no GPU here; use --device cpu")
    number = int(name.partition(":")[2] or 0)
    if name.startswith("cuda") and number >= torch.cuda.device_count():
        raise RunError(f"device {name}: torch finds {torch.cuda.device_count()} GPUs here, the first is cuda:0")
    return torch.device(name)

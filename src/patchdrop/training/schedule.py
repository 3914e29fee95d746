"""The training schedule: how long and how fast networks are trained, and with which augmentations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from patchdrop.training.seeds import derived_seed


@dataclass(frozen=True)
class Schedule:
    """The training settings that all stages of a run share.

    Attributes:
        seed: seed of everything random.
        batch: images per step.
        epochs: epochs of each stage, in training order; a stage of 0 epochs is left out.
        augment: augmentations of a training batch, by name.
        optimizer: ``muon`` or ``adamw``.
        rate_classifier: peak learning rate of classifiers trained from scratch.
        rate_finetune: peak learning rate of classifiers that start from trained weights.
        rate_policy: peak learning rate of the policy in Pt.
        weight_decay: of the classifiers, decoupled.
        label_smoothing: of the classifiers' cross-entropy.
        precision: in which networks compute while they train, ``float32`` or ``bfloat16``.
        save_minutes: how often the state is saved, besides at each epoch's end.
        shards: parts into which each batch is cut, see `patchdrop.training.shards`; 1 leaves it whole.
    """

    seed: int
    batch: int
    epochs: Mapping[str, int]
    augment: tuple[str, ...]
    optimizer: str
    rate_classifier: float
    rate_finetune: float
    rate_policy: float
    weight_decay: float
    label_smoothing: float
    precision: str = "float32"
    save_minutes: float = 5.0
    shards: int = 1

    @property
    def stages(self) -> list[str]:
        """Stages that have epochs, in training order."""
        return [stage for stage, epochs in self.epochs.items() if epochs > 0]

    def with_epochs(self, **epochs: int) -> Schedule:
        """Return the same schedule with other epochs for some stages."""
        return replace(self, epochs={**self.epochs, **epochs})

    def again(self, number: int) -> Schedule:
        """Return the same schedule with the seed of another try; number 0 is the first."""
        return self if number == 0 else replace(self, seed=derived_seed(self.seed, "try", number))

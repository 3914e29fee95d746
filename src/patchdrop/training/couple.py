"""PCN's training: cross-entropy of both networks on the same augmented images, LR and the HR it was made from."""

from __future__ import annotations

import torch
from torch import Tensor

from patchdrop.classify.pcn import PartiallyCoupled
from patchdrop.data.sets import Split
from patchdrop.settings.flat import TrainSettings
from patchdrop.training.batches import Views
from patchdrop.training.supervised import ClassifierTask


class CoupledTask(ClassifierTask):
    """Trains as the stage ``lr`` does, with the HR network's cross-entropy added; validates the LR network alone."""

    model: PartiallyCoupled

    def __init__(
        self,
        stage: str,
        model: PartiallyCoupled,
        fit: Split,
        val: Split,
        settings: TrainSettings,
        device: torch.device,
    ) -> None:
        super().__init__(stage, model, fit, val, settings, device, like="lr")

    def objective(self, logits: Tensor, views: Views) -> Tensor:
        """The sum of both cross-entropies."""
        high_logits = self.model.high_logits(views.high, views.low)
        return super().objective(logits, views) + super().objective(high_logits, views)

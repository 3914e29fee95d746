"""Train PCN: cross-entropy of both networks on the same augmented images, LR and the HR that it was made from."""

from __future__ import annotations

from torch import Tensor

from patchdrop.classify.pcn import PartiallyCoupled
from patchdrop.training.batches import Loader, Views
from patchdrop.training.supervised import ClassifierTask


class CoupledTask(ClassifierTask):
    """A task that trains as the stage ``lr`` does, plus the HR network's cross-entropy; it validates LR alone."""

    model: PartiallyCoupled

    def __init__(self, stage: str, model: PartiallyCoupled, loader: Loader) -> None:
        super().__init__(stage, model, loader, like="lr")

    def objective(self, logits: Tensor, views: Views) -> Tensor:
        """Add up the cross-entropies of both networks."""
        high_logits = self.model.high_logits(views.high, views.low)
        return super().objective(logits, views) + super().objective(high_logits, views)

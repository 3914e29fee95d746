"""SRGAN's two stages: the generator against its discriminator, then the classifier on generated images.

Both start from the frozen HR-CNN: the first compares features by it, the second goes on training a copy of it. One
loss and one optimizer train both given (`classify.super_resolution` has how, and the departures from the paper).
"""

from __future__ import annotations

from torch import Tensor

from patchdrop.classify.masked_cnn import MaskedCNN
from patchdrop.classify.super_resolution import SuperResolution, SuperResolved, bilinear, generator_losses, psnr
from patchdrop.data.sets import Batch
from patchdrop.training.batches import Loader
from patchdrop.training.loop import Group
from patchdrop.training.objectives import freeze
from patchdrop.training.supervised import ClassifierTask, weight_groups

FEATURE_WEIGHT = 0.1
ADVERSARIAL_WEIGHT = 1e-3


class GeneratorTask(ClassifierTask):
    """A task that trains the generator; the checkpoint is the one with the best PSNR.

    Args:
        reference: HR-CNN, whose features are compared; this freezes it and puts it into evaluation mode.
        epochs: epochs to train.
    """

    model: SuperResolution

    def __init__(
        self,
        stage: str,
        model: SuperResolution,
        reference: MaskedCNN,
        loader: Loader,
        epochs: int,
    ) -> None:
        super().__init__(stage, model, loader, like="hr")
        self.epochs = epochs
        self.reference = reference.to(loader.device).eval()
        freeze(reference, True)

    def groups(self) -> list[Group]:
        """Train at the rate of fine-tuning: without batch norm the classifiers' rate is too high. No decay."""
        return [Group(list(self.model.parameters()), self.schedule.rate_finetune)]

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Compute pixel, feature and adversarial loss."""
        views = self.loader.training_views(batch)
        made = self.model(views.low)
        losses = generator_losses(made, views.high, self.model.discriminator, self.reference, ADVERSARIAL_WEIGHT)
        figures = {name: float(value.detach()) for name, value in losses._asdict().items()}
        loss = losses.pixel + FEATURE_WEIGHT * losses.feature + losses.adversarial
        return loss, {**figures, "psnr": float(psnr(made.detach(), views.high).mean())}

    def validate(self, progress: float) -> dict[str, float]:
        """Measure the mean PSNR, which is the score, and that of the bilinear enlargement."""
        made, plain = 0.0, 0.0
        for views in self.loader.validation_views():
            made += float(psnr(self.model(views.low), views.high).sum())
            plain += float(psnr(bilinear(views.low, self.loader.data.shape.high), views.high).sum())
        count = len(self.loader.val)
        return {"psnr": made / count, "psnr_bilinear": plain / count, "score": made / count}


class SuperResolvedTask(ClassifierTask):
    """A task that trains the classifier alone, for ``epochs`` at the rate of fine-tuning."""

    def __init__(self, stage: str, model: SuperResolved, loader: Loader, epochs: int) -> None:
        super().__init__(stage, model, loader, like="lr")
        self.epochs = epochs

    def groups(self) -> list[Group]:
        """Train at the rate of fine-tuning, because the weights are already trained, as in the stage ``patches``."""
        return weight_groups(self.model, self.schedule.rate_finetune, self.schedule.weight_decay)

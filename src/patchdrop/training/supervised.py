"""Train the classifiers: LR-CNN, HR-CNN, and a copy of HR-CNN that reads any subset of patches.

Beyond the paper: ``patches``. A classifier that has only seen whole images is poor on few patches, so a policy
started on it learns to read everything, or nothing. A copy of HR-CNN is first trained on random masks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from patchdrop.data.sets import Batch
from patchdrop.packed import Packed
from patchdrop.read.source import from_memory
from patchdrop.training.batches import Loader, Views
from patchdrop.training.loop import Group
from patchdrop.training.objectives import Teacher, classifier_loss


class ClassifierTask:
    """A task that trains by cross-entropy: the stages ``lr``, ``hr`` and ``patches``, and others trained like them.

    Args:
        like: the stage whose epochs, rate and inputs this one has; by default its own. ``lr`` calls ``model(low)``, the
            others ``model(packed, low)``.
        teacher: if given, the model learns from its softened outputs besides the labels.
    """

    def __init__(
        self,
        stage: str,
        model: nn.Module,
        loader: Loader,
        like: str = "",
        teacher: Teacher | None = None,
    ) -> None:
        self.stage = stage
        self.like = like or stage
        self.model = model
        self.loader, self.schedule = loader, loader.schedule
        self.teacher = teacher
        self.epochs = self.schedule.epochs[self.like]
        self.steps_per_epoch = loader.steps_per_epoch
        self.memory: dict[str, float] = {}
        self.grid = loader.data.shape.grid

    def groups(self) -> list[Group]:
        """Return all weights at one rate."""
        schedule = self.schedule
        rate = schedule.rate_finetune if self.like == "patches" else schedule.rate_classifier
        return weight_groups(self.model, rate, schedule.weight_decay)

    def train_mode(self) -> None:
        """Put the model into training mode, so that batch-norm statistics move."""
        self.model.train()

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Yield every image of the fit split once, in a new order each epoch."""
        return self.loader.batches(self.stage, epoch, first_step)

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Compute the objective on an augmented batch."""
        views = self.loader.training_views(batch)
        logits = self._classify(views, random_subset(len(views.target), self.grid.patches))
        right = (logits.argmax(1) == views.target).float().mean()
        return self.objective(logits, views), {"accuracy": float(right)}

    def objective(self, logits: Tensor, views: Views) -> Tensor:
        """Return `classifier_loss`; stages trained in another way override this."""
        return classifier_loss(logits, views, self.schedule.label_smoothing, self.teacher)

    def validate(self, progress: float) -> dict[str, float]:
        """Measure accuracy; for ``patches`` at S = P, P/2 and P/4, whose mean is the score."""
        patches = self.grid.patches
        counts = [patches, max(1, patches // 2), max(1, patches // 4)] if self.like == "patches" else [patches]
        right = [0] * len(counts)
        for views in self.loader.validation_views():
            for i, count in enumerate(counts):
                logits = self._classify(views, exact_subset(len(views.target), patches, count))
                right[i] += int((logits.argmax(1) == views.target).sum())
        accuracies = [r / len(self.loader.val) for r in right]
        figures = {"accuracy": accuracies[0], "score": sum(accuracies) / len(accuracies)}
        if self.like == "patches":
            figures |= {f"accuracy_at_{c}": a for c, a in zip(counts, accuracies, strict=True)}
        return figures

    def _classify(self, views: Views, subset: Tensor) -> Tensor:
        if self.like == "lr":
            logits: Tensor = self.model(views.low)
            return logits
        choice = subset if self.like == "patches" else torch.ones_like(subset)
        packed: Packed = from_memory(views.high, self.grid)(choice.to(views.high.device))
        logits = self.model(packed, views.low)
        return logits


def weight_groups(model: nn.Module, rate: float, weight_decay: float) -> list[Group]:
    """Group the trainable weights; biases and batch-norm's scales are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1]
    plain = [p for p in trained if p.ndim <= 1]
    return [Group(decayed, rate, weight_decay), Group(plain, rate)]


def random_subset(images: int, patches: int) -> Tensor:
    """Draw S uniformly in 1..P for each image, then S random patches: ``(images, patches)`` bool."""
    counts = torch.randint(1, patches + 1, (images, 1))
    return torch.rand(images, patches).argsort(1).argsort(1) < counts


def exact_subset(images: int, patches: int, count: int) -> Tensor:
    """Draw ``count`` random patches for each image: ``(images, patches)`` bool."""
    return torch.rand(images, patches).argsort(1).argsort(1) < count

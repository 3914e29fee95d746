"""The losses that classifiers are trained on: cross-entropy, and distillation from a teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchdrop.classify.two_stream import Streams
from patchdrop.grid import Grid
from patchdrop.read.source import from_memory
from patchdrop.training.batches import Views


def cross_entropy(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Return the cross-entropy, a mean over the batch."""
    return F.cross_entropy(logits, target, label_smoothing=smoothing)


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    weight: float,
    temperature: float,
    smoothing: float = 0.0,
) -> Tensor:
    """Return ``(1 - weight) CE + weight T^2 KL(teacher_T || student_T)``, a mean over images.

    T^2 keeps the second term's gradient at the first one's size whatever T is (Hinton et al. 2015, section 2).

    Args:
        student_logits: ``(B, K)``, as ``teacher_logits``.
        target: ``(B,)`` int64.
        temperature: T, divides both logits before the softmax.
        smoothing: label smoothing of CE.
    """
    student = F.log_softmax(student_logits / temperature, 1)
    teacher = F.log_softmax(teacher_logits / temperature, 1)
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    hard = cross_entropy(student_logits, target, smoothing)
    return (1 - weight) * hard + weight * temperature**2 * divergence


class Teacher:
    """HR-CNN as a teacher: it sees all of an augmented image, while the student sees LR or a few patches.

    For LR students this is the cross quality distillation of Su and Maji 2016, which the paper's row KD cites
    (recalled).

    Args:
        model: HR classifier; this freezes it and puts it into evaluation mode. It is not saved with the student.
        weight: the teacher's share of the loss, 0..1; with 0 training is the same to the bit as without a teacher.
        temperature: T of `distillation_loss`.
    """

    def __init__(self, model: nn.Module, grid: Grid, weight: float, temperature: float = 4.0) -> None:
        self.model = model.eval()
        freeze(model, True)
        self.grid = grid
        self.weight, self.temperature = weight, temperature

    @torch.no_grad()
    def logits(self, views: Views) -> Tensor:
        """Return the class logits ``(B, K)`` of the whole HR images."""
        choice = torch.ones(len(views.target), self.grid.patches, dtype=torch.bool, device=views.high.device)
        logits: Tensor = self.model(from_memory(views.high, self.grid)(choice), views.low)
        return logits


def classifier_loss(logits: Tensor, views: Views, smoothing: float, teacher: Teacher | None) -> Tensor:
    """Return the cross-entropy with label smoothing, or `distillation_loss` if there is a teacher."""
    if teacher is None:
        return cross_entropy(logits, views.target, smoothing)
    taught = teacher.logits(views)
    return distillation_loss(logits, taught, views.target, teacher.weight, teacher.temperature, smoothing)


def streams_loss(streams: Streams, views: Views, smoothing: float, teacher: Teacher | None) -> Tensor:
    """Return the mean of two losses: the fused streams' cross-entropy, and the HR stream's own `classifier_loss`.

    LR-CNN has memorised its training images; from the fused loss alone the HR stream would have little left to learn.
    """
    together = cross_entropy(streams.fused, views.target, smoothing)
    if not len(streams.high):
        return together
    all_zoomed = len(streams.high) == len(views.target)
    seen = views if all_zoomed else Views(*(part[streams.zoomed] for part in views))
    return (together + classifier_loss(streams.high, seen, smoothing, teacher)) / 2


def freeze(module: nn.Module, frozen: bool) -> None:
    """Set whether a module's weights take gradients."""
    for parameter in module.parameters():
        parameter.requires_grad_(not frozen)

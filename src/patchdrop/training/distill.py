"""KD: LR-CNN learns from HR-CNN's softened outputs for the same images (Hinton et al. 2015).

Across resolutions it is the cross quality distillation of Su and Maji 2016, which the paper's row cites (recalled).
Teacher and student see the same augmented image: HR, and the LR made from it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchdrop.classify.masked_cnn import MaskedCNN
from patchdrop.data.sets import Split
from patchdrop.read.source import from_memory
from patchdrop.settings import TrainSettings
from patchdrop.training.batches import Views
from patchdrop.training.policy_stages import freeze
from patchdrop.training.supervised import ClassifierTask, cross_entropy


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    weight: float,
    temperature: float,
    smoothing: float = 0.0,
) -> Tensor:
    """``(1 - weight) CE + weight T^2 KL(teacher_T || student_T)``, a mean over images.

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


class DistillTask(ClassifierTask):
    """Trains as the stage ``lr`` does, with a frozen teacher in the objective.

    Args:
        model: LR classifier, ``low -> logits``.
        teacher: HR-CNN; frozen and in evaluation mode from here on. It is no part of what is saved.
        weight: share of the teacher's term; 0 is plain training to the bit.
        temperature: T of `distillation_loss`.
    """

    def __init__(
        self,
        stage: str,
        model: nn.Module,
        teacher: MaskedCNN,
        fit: Split,
        val: Split,
        settings: TrainSettings,
        device: torch.device,
        *,
        weight: float = 0.7,
        temperature: float = 4.0,
    ) -> None:
        super().__init__(stage, model, fit, val, settings, device, like="lr")
        self.teacher = teacher.to(device).eval()
        freeze(teacher, True)
        self.weight, self.temperature = weight, temperature

    def objective(self, logits: Tensor, views: Views) -> Tensor:
        """`distillation_loss` against the teacher's logits for the whole HR image."""
        choice = torch.ones(len(logits), self.grid.patches, dtype=torch.bool, device=self.device)
        with torch.no_grad():
            taught = self.teacher(from_memory(views.high, self.grid)(choice), views.low)
        smoothing = self.settings.label_smoothing
        return distillation_loss(logits, taught, views.target, self.weight, self.temperature, smoothing)

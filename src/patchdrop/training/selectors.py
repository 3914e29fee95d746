"""Pt, Ft-1 and Ft-2 for the selectors that PatchDrop is compared with: there is no reward, and S is given.

Only the loss differs from `PolicyTask`, which sets the trained weights, rates, epochs, augmentation and frozen
batch-norm statistics: here it is the classifier's loss on the selector's own masks, as in the run's stage. A
selector with fixed scores (`policy.baselines`) has nothing to learn, so its Pt has no steps, and Ft-1 and Ft-2 train
the classifier alone. STN (`policy.stn`) learns from the same loss through its relaxation, in Pt too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchdrop.classify.two_stream import TwoStream
from patchdrop.data.sets import Batch
from patchdrop.episode import PatchDrop
from patchdrop.evaluation.metrics import spread
from patchdrop.policy.choice import Choose
from patchdrop.policy.reward import right_probability
from patchdrop.training.batches import Loader
from patchdrop.training.objectives import Teacher, cross_entropy, streams_loss
from patchdrop.training.policy_stages import Learning, PolicyTask, keep_weights


class SelectorTask(PolicyTask):
    """One of the stages ``pt``, ``ft1``, ``ft2`` of a selector.

    Args:
        choose: turns the policy's scores ``(B, P)`` into a choice: bool (`greedy`, `sampled`, `top`), or float with a
            gradient (`relaxed_top`). It draws from torch's own generator, which the loop seeds.
        teacher: the one that `RankingTask` has in the same stage.
    """

    def __init__(
        self,
        stage: str,
        model: PatchDrop,
        choose: Choose,
        loader: Loader,
        learning: Learning,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__(stage, model, loader, learning)
        self.choose = choose
        self.teacher = teacher
        if teacher is not None:
            keep_weights(model)
        self.memory = {}
        if not any(group.parameters for group in self.groups()):
            self.epochs = 0

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Compute the classifier's loss on the chosen patches."""
        views = self.loader.training_views(batch)
        choice = self.choose(self.model.look(views.low).scores)
        smoothing = self.schedule.label_smoothing
        if self.teacher is not None and isinstance(self.judge, TwoStream):
            said = self.judge.apart(self.judge.low(views.low), self._packed(choice, views), views.low)
            logits, loss = said.fused, streams_loss(said, views, smoothing, self.teacher)
        else:
            logits = self._classify(choice, views, with_gradient=True)
            loss = cross_entropy(logits, views.target, smoothing)
        right = (logits.argmax(1) == views.target).float().mean()
        figures = {"accuracy": float(right), "patches": float(choice.detach().sum(1).float().mean())}
        if not loss.requires_grad:
            # In Ft-2, when no image of the batch keeps a patch, no trainable weight takes part: the gradient is 0.
            loss = loss + 0 * torch.stack([p.sum() for group in self.groups() for p in group.parameters]).sum()
        return loss, figures

    def validate(self, progress: float) -> dict[str, float]:
        """Measure accuracy and the spread of the masks; the score is the mean probability of the right class."""
        choice = self.choose(torch.cat([self.model.look(v.low).scores for v in self.loader.validation_views()])).bool()
        logits, target = self._play(choice)
        accuracy = float((logits.argmax(1) == target).float().mean())
        probability = float(right_probability(logits, target).mean())
        return {"accuracy": accuracy, "probability": probability, **spread(choice), "score": probability}

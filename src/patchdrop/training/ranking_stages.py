"""Pt, Ft-1 and Ft-2 of a ranking policy: which patches by policy gradient, how many by the predicted chance.

Actor and critic. For each image a number of patches k, few more often than many, and an order of the patches are drawn,
the order from the ranking; the classifier reads the first k. Then

* the critic, `patchdrop.policy.ranking.Critic`, learns by cross-entropy whether the class was right;
* the ranking learns by REINFORCE with the critic as its baseline: ``(right - chance_k) grad log P(order) / k``. The
  division by k keeps an image of which much is read from weighing more than another;
* in Ft-1 and Ft-2 the classifier learns from the patches read: the fused streams by cross-entropy, and the HR stream by
  its own cross-entropy and by distillation from HR-CNN, which sees the whole image. The weight of each stream is not
  learnt here, it is set on validation images (`patchdrop.evaluation.operating_point`).

None of these losses has a price or a penalty for patches: what reading is worth is decided at use, from the chances, so
one policy has every operating point. Batch-norm statistics stay those of the supervised stages (`policy_stages`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from patchdrop.classify.two_stream import TwoStream
from patchdrop.data.sets import Batch
from patchdrop.evaluation.metrics import spread
from patchdrop.models.shared_pass import RankingModel
from patchdrop.policy.budget import above, cut_for_mean
from patchdrop.policy.choice import shuffled
from patchdrop.policy.ranking import Ranking, drawn_order, first, log_probability
from patchdrop.policy.reward import right_probability
from patchdrop.read.source import from_memory
from patchdrop.training.batches import Loader
from patchdrop.training.loop import Group
from patchdrop.training.objectives import Teacher, streams_loss
from patchdrop.training.policy_stages import Learning, PolicyTask, keep_weights
from patchdrop.training.seeds import derived_seed

SHARE = 0.25
"""Share of all patches read on validation images if no number of patches is asked for."""
WHOLE = 8
OUTLOOK_RATE = 1e-2
"""Peak learning rate of the critic, which has some hundred weights on a dozen inputs."""


def drawn_counts(images: int, patches: int) -> Tensor:
    """Draw a number of patches from 1 to P for each image: ``(images,)``.

    One of `WHOLE` images gets all P; the others get ``1 + floor(P u^2)``, u uniform, so few more often than many.
    """
    few = 1 + (patches * torch.rand(images).square()).long().clamp(max=patches - 1)
    return torch.where(torch.rand(images) * WHOLE < 1, patches, few)


class RankingTask(PolicyTask):
    """One of the stages ``pt``, ``ft1``, ``ft2`` of a ranking policy."""

    model: RankingModel

    def __init__(
        self, stage: str, model: RankingModel, loader: Loader, learning: Learning, teacher: Teacher | None = None
    ) -> None:
        super().__init__(stage, model, loader, learning)
        self.teacher = teacher
        keep_weights(model)

    @property
    def streams(self) -> TwoStream:
        """The classifier that is scored: a folded copy in the stage where it is frozen."""
        assert isinstance(self.judge, TwoStream)
        return self.judge

    @property
    def policy(self) -> Ranking:
        """The model's policy."""
        return self.model.policy

    def groups(self) -> list[Group]:
        """Return the ranking, its critic, and in Ft the classifier."""
        ranking, *classifier = super().groups()
        critic = list(self.policy.critic.parameters())
        theirs = {id(p) for p in critic}
        rest = [p for p in ranking.parameters if id(p) not in theirs]
        return [Group(rest, ranking.rate), Group(critic, OUTLOOK_RATE), *classifier]

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Compute the losses of ranking and critic, and in Ft add the classifier's loss on the patches read."""
        views = self.loader.training_views(batch)
        utilities, low_logits = self.model.outputs(views.low)
        order = drawn_order(utilities.detach())
        counts = drawn_counts(*order.shape).to(order.device)
        packed = from_memory(views.high, self.grid)(first(order, counts))
        with torch.set_grad_enabled(self.trains_classifier):
            said = self.streams.apart(low_logits, packed, views.low)
        right = said.fused.argmax(1) == views.target
        odds = self.policy.critic.raw(utilities.detach(), low_logits)
        at_count = odds.gather(1, counts.unsqueeze(1)).squeeze(1)
        low_right = low_logits.argmax(1) == views.target
        learnt = F.binary_cross_entropy_with_logits(at_count, right.float())
        learnt = (learnt + F.binary_cross_entropy_with_logits(odds[:, 0], low_right.float())) / 2
        advantage = right.float() - at_count.detach().sigmoid()
        chance = log_probability(utilities, order, counts) / counts
        loss = learnt - (advantage * chance).mean()
        figures = {
            "reward": float(right.float().mean()),
            "patches": float(counts.float().mean()),
            "critic_loss": float(learnt.detach()),
        }
        if self.trains_classifier:
            loss = loss + streams_loss(said, views, self.schedule.label_smoothing, self.teacher)
            figures["accuracy"] = figures["reward"]
        return loss, figures

    def validate(self, progress: float) -> dict[str, float]:
        """Spend a mean budget on the validation split, with the Shuffled control.

        The score grows with each epoch, so the last one is kept: learning rates have fallen to 0 by then, and an epoch
        that is best on some hundred images is best by luck.
        """
        scores = torch.cat([self._scores(views) for views in self.loader.validation_views()])
        budget = self.learning.target_patches or SHARE * self.grid.patches
        choice = above(scores, cut_for_mean(scores, budget))
        generator = torch.Generator().manual_seed(derived_seed(self.schedule.seed, "shuffled"))
        logits, target = self._play(choice)
        control, _ = self._play(shuffled(choice, generator))
        probability = float(right_probability(logits, target).mean())
        return {
            "accuracy": float((logits.argmax(1) == target).float().mean()),
            "probability": probability,
            "accuracy_shuffled": float((control.argmax(1) == target).float().mean()),
            **spread(choice),
            "score": progress,
        }

"""Pt, Ft-1 and Ft-2: the policy learns from rewards, and in Ft the HR classifier learns with it.

| stage | trains | classifier |
|---|---|---|
| pt  | policy | HR classifier, frozen |
| ft1 | policy and HR classifier | HR classifier |
| ft2 | policy, HR classifier, weights of both streams | two streams, LR classifier frozen |

With ``low_stream`` there are two streams from an earlier stage on.

Departures from the paper, each on its own setting or for a stated reason:

* Batch-norm statistics stay those of the supervised stages throughout, so that a sampled and a greedy choice are
  judged by the same classifier.
* With the straight-through estimator mask and class come out of one pass in Ft, so the classifier's cross-entropy
  reaches the policy too, and the reward the classifier.
* The policy loss is divided by 1 + sigma, so that its weight beside the cross-entropy does not depend on sigma.
* With ``target_patches`` sigma moves until images use that many patches on average.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from patchdrop.classify.two_stream import TwoStream
from patchdrop.data.sets import Batch
from patchdrop.episode import PatchDrop
from patchdrop.errors import CollapsedPolicyWarning
from patchdrop.evaluation.metrics import entropy, same_mask, spread
from patchdrop.models.shared_pass import RankingModel, SharedBackbone
from patchdrop.networks.build import folded
from patchdrop.packed import Packed
from patchdrop.policy.choice import greedy, shuffled
from patchdrop.policy.reward import reward, right_probability, soft_reward
from patchdrop.read.source import from_memory
from patchdrop.training.batches import Loader, Views
from patchdrop.training.estimator import estimator
from patchdrop.training.loop import Group
from patchdrop.training.objectives import cross_entropy, freeze
from patchdrop.training.seeds import derived_seed
from patchdrop.training.supervised import weight_groups

SIGMA_RANGE = (0.1, 20.0)
SIGMA_SPEED = 0.1
FINETUNE = 0.4
"""The policy's rate in Ft as a share of that in Pt: it is trained by then, and the classifier moves with it."""
COLLAPSED = 0.98
"""Share of images with one and the same mask above which a warning says that the policy hardly looks."""


@dataclass(frozen=True)
class Learning:
    """The settings by which a policy learns from rewards.

    Attributes:
        estimator: name of the policy gradient's estimator; see `patchdrop.training.estimator`.
        samples: masks per image that ``rloo`` draws.
        sigma: penalty for a wrong class, or its start where it moves.
        target_patches: mean patches per image that sigma moves towards; with 0 sigma stays.
        alpha_start, alpha_end: mixing towards the policy at a stage's start and end, 0.5 to 1.
    """

    estimator: str
    samples: int
    sigma: float
    target_patches: float
    alpha_start: float
    alpha_end: float

    def alpha(self, progress: float) -> float:
        """Return the mixing towards the policy at a share 0..1 of the stage."""
        return self.alpha_start + (self.alpha_end - self.alpha_start) * progress


class PolicyTask:
    """One of the stages ``pt``, ``ft1``, ``ft2``."""

    def __init__(
        self,
        stage: str,
        model: PatchDrop,
        loader: Loader,
        learning: Learning,
    ) -> None:
        self.stage = stage
        self.model = model
        self.loader, self.schedule = loader, loader.schedule
        self.learning = learning
        self.grid = loader.data.shape.grid
        self.estimator = estimator(learning.estimator, learning.samples)
        self.epochs = self.schedule.epochs[stage]
        self.trains_classifier = stage != "pt"
        self.steps_per_epoch = loader.steps_per_epoch
        self.memory = {"log_sigma": math.log(max(learning.sigma, 1e-6))}
        freeze(model.classifier, not self.trains_classifier)
        self.judge = model.classifier if self.trains_classifier else folded(model.classifier)
        if isinstance(model.classifier, TwoStream):
            freeze(model.classifier.low, True)
        if isinstance(model, SharedBackbone):
            freeze(model.policy.network, True)
        if isinstance(model, RankingModel) and model.shared:
            freeze(model.policy.utility.network, True)

    @property
    def sigma(self) -> float:
        """The current penalty for a wrong class."""
        return math.exp(self.memory["log_sigma"]) if self.learning.target_patches else self.learning.sigma

    def groups(self) -> list[Group]:
        """Return the policy without weight decay, and the classifier as in its own training."""
        schedule = self.schedule
        rate = schedule.rate_policy * (FINETUNE if self.trains_classifier else 1)
        policy = Group([p for p in self.model.policy.parameters() if p.requires_grad], rate)
        if not self.trains_classifier:
            return [policy]
        return [policy, *weight_groups(self.model.classifier, schedule.rate_finetune, schedule.weight_decay)]

    def train_mode(self) -> None:
        """Put everything into evaluation mode: batch-norm statistics do not move (see the top of this file)."""
        self.model.eval()

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Yield every image of the fit split once, in a new order each epoch."""
        return self.loader.batches(self.stage, epoch, first_step)

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Compute the policy loss, and in Ft add the cross-entropy on the sampled mask."""
        views = self.loader.training_views(batch)
        alpha = self.learning.alpha(progress)
        scores = self._scores(views)
        choices = self.estimator.propose(scores, alpha)
        class_logits = [self._classify(choice, views, with_gradient=i == 0) for i, choice in enumerate(choices)]
        rewards = torch.stack([self._reward(c, y, views.target) for c, y in zip(choices, class_logits, strict=True)])
        # A wrong class costs sigma, which may be 20; beside the cross-entropy only the policy's preferences matter.
        loss = self.estimator.loss(scores, choices, rewards, alpha) / (1 + self.sigma)
        hard = greedy(scores.detach())
        self._move_sigma(float(hard.sum(1).float().mean()))
        figures = {
            "reward": float(rewards[0].detach().mean()),
            "patches": float(choices[0].detach().sum(1).float().mean()),
        }
        if self.trains_classifier:
            loss = loss + cross_entropy(class_logits[0], views.target, self.schedule.label_smoothing)
            figures["accuracy"] = float((class_logits[0].argmax(1) == views.target).float().mean())
        return loss, figures

    def _scores(self, views: Views) -> Tensor:
        return self.model.look(views.low).scores

    def _classify(self, choice: Tensor, views: Views, with_gradient: bool) -> Tensor:
        packed = self._packed(choice, views)
        if choice.is_floating_point():
            with weights_out_of_graph(self.judge, not with_gradient):
                relaxed: Tensor = self.judge(packed, views.low)
            return relaxed
        with torch.set_grad_enabled(with_gradient and self.trains_classifier):
            logits: Tensor = self.judge(packed, views.low)
        return logits

    def _packed(self, choice: Tensor, views: Views) -> Packed:
        """Return the chosen patches; for a float choice all patches, with the choice as their weights."""
        read = from_memory(views.high, self.grid)
        if not choice.is_floating_point():
            return read(choice)
        packed = read(torch.ones_like(choice, dtype=torch.bool))
        return Packed(packed.pixels, packed.image, packed.patch, packed.batch, choice.flatten())

    def _reward(self, choice: Tensor, class_logits: Tensor, target: Tensor) -> Tensor:
        if self.estimator.relaxed:
            return soft_reward(choice, class_logits, target, self.sigma)
        paid = reward(choice, class_logits, target, self.sigma)
        # argmax picks a class even among logits that are not numbers; NaN makes the loop stop instead.
        return torch.where(class_logits.isfinite().all(1), paid, torch.nan)

    def _move_sigma(self, patches: float) -> None:
        """Raise sigma while images use fewer patches than wanted, and lower it while they use more."""
        if not self.learning.target_patches:
            return
        gap = (self.learning.target_patches - patches) / self.grid.patches
        moved = self.memory["log_sigma"] + SIGMA_SPEED * gap
        low, high = (math.log(limit) for limit in SIGMA_RANGE)
        self.memory["log_sigma"] = min(max(moved, low), high)

    def validate(self, progress: float) -> dict[str, float]:
        """Measure the greedy policy on the validation split, with the Shuffled control and signs of a collapse."""
        scores = torch.cat([self._scores(v) for v in self.loader.validation_views()])
        choice = greedy(scores)
        generator = torch.Generator().manual_seed(derived_seed(self.schedule.seed, "shuffled"))
        logits, target = self._play(choice)
        control, _ = self._play(shuffled(choice, generator))
        figures = {
            "accuracy": float((logits.argmax(1) == target).float().mean()),
            "probability": float(right_probability(logits, target).mean()),
            "accuracy_shuffled": float((control.argmax(1) == target).float().mean()),
            "reward": float(reward(choice, logits, target, self.sigma).mean()),
            "entropy": entropy(scores),
            "sigma": self.sigma,
            "alpha": self.learning.alpha(progress),
            **spread(choice),
        }
        self._warn_of_collapse(choice)
        return {**figures, "score": self._score(figures)}

    def _score(self, figures: dict[str, float]) -> float:
        """Return the validation reward; if sigma moves, the right class' mean probability less the excess share.

        The probability, because an accuracy over some hundred images is up or down a point by chance, and would pick an
        early checkpoint for its luck. S swings about the wanted number, so up to an eighth more is no excess.
        """
        if not self.learning.target_patches:
            return figures["reward"]
        excess = max(0.0, figures["mean_patches"] - 1.125 * self.learning.target_patches)
        return figures["probability"] - excess / self.grid.patches

    def _play(self, choice: Tensor) -> tuple[Tensor, Tensor]:
        logits, targets, start = [], [], 0
        for views in self.loader.validation_views():
            part = choice[start : start + len(views.target)]
            start += len(part)
            logits.append(self._classify(part, views, with_gradient=False))
            targets.append(views.target)
        return torch.cat(logits), torch.cat(targets)

    def _warn_of_collapse(self, choice: Tensor) -> None:
        same = same_mask(choice)
        if len(choice) >= 100 and same > COLLAPSED * len(choice):
            warnings.warn(
                f"stage {self.stage}: {same} of {len(choice)} images have the same mask, the policy hardly looks. "
                "Set --target-patches to the number you want to spend, more --epochs-patches, "
                "or --policy ranking",
                CollapsedPolicyWarning,
                stacklevel=2,
            )


def keep_weights(model: PatchDrop) -> None:
    """Freeze the fusion weights of the two streams: they were fitted to validation images."""
    if isinstance(model.classifier, TwoStream):
        for parameter in model.classifier.learnable:
            parameter.requires_grad_(False)


@contextmanager
def weights_out_of_graph(module: nn.Module, active: bool) -> Iterator[None]:
    """While active, let gradients pass through a module but not reach its weights."""
    trained = [p for p in module.parameters() if active and p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)

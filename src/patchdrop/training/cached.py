"""Pt where the frozen classifier looks at one patch at a time: its network runs once, rewards of masks are sums.

A patch-local classifier's logits are a function of what each chosen patch says by itself (`BagNet.evidence`), and in Pt
nothing of it is trained. So what every patch of every image says is computed once for each of a few augmented views,
and kept: ``P * K`` numbers an image. A step then runs the policy alone, the reward of a mask is a masked mean, and many
masks an image (``estimator: rloo`` with many ``samples``, ``exact``) cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from patchdrop.classify.bagnet import BagNet
from patchdrop.data.sets import Batch, Split
from patchdrop.episode import PatchDrop
from patchdrop.errors import UsageError
from patchdrop.grid import Grid
from patchdrop.packed import gather
from patchdrop.policy.choice import keep_all
from patchdrop.settings import TrainSettings
from patchdrop.training.batches import Views, shuffled_plan, training_views
from patchdrop.training.loop import derived_seed
from patchdrop.training.policy_stages import PolicyTask

EVIDENCE_BATCH = 64


class CachedPolicyTask(PolicyTask):
    """Pt on kept evidence. In its views ``high`` holds evidence ``(B, P, K)`` in place of pixels.

    Epoch e trains on view ``e % views`` of each image. A view is augmented from seeds of its own, so a resumed stage
    ends with the same bits.
    """

    def __init__(self, model: PatchDrop, fit: Split, val: Split, settings: TrainSettings, device: torch.device) -> None:
        super().__init__("pt", model, fit, None, val, settings, device)
        assert isinstance(model.classifier, BagNet)
        _check_memory(settings, len(fit), model.classifier.head.out_features)
        assert isinstance(self.judge, BagNet)
        self.bagnet = self.judge
        self._kept: dict[int, Views] = {}
        self._kept_val: list[Views] | None = None

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Evidence, LR and classes of the epoch's view."""
        kept = self._view(epoch % self.settings.pt_views)
        plan = shuffled_plan(self.fit, self.settings.batch, self.settings.seed, self.stage, epoch)
        for positions in plan[first_step:]:
            yield Batch(*(values[positions] for values in kept))

    def _views(self, batch: Batch) -> Views:
        assert batch.low is not None
        return Views(*(values.to(self.device) for values in (batch.high, batch.low, batch.target)))

    def _classify(self, choice: Tensor, views: Views, with_gradient: bool) -> Tensor:
        return self.bagnet.of_evidence(views.high, choice)

    def _val_views(self) -> Iterator[Views]:
        if self._kept_val is None:
            self._kept_val = [self._with_evidence(views) for views in super()._val_views()]
        return iter(self._kept_val)

    def _view(self, number: int) -> Views:
        if number not in self._kept:
            parts = []
            for i, batch in enumerate(self.fit.in_order(EVIDENCE_BATCH)):
                torch.manual_seed(derived_seed(self.settings.seed, self.stage, "view", number, i))
                views = self._with_evidence(training_views(batch, self.settings, self.device))
                parts.append(Views(*(values.cpu() for values in views)))
            self._kept[number] = Views(*(torch.cat(values) for values in zip(*parts, strict=True)))
        return self._kept[number]

    @torch.no_grad()
    def _with_evidence(self, views: Views) -> Views:
        everything = keep_all(torch.empty(len(views.target), self.grid.patches, device=self.device))
        return views._replace(high=self.bagnet.evidence(gather(views.high, everything, self.grid)))


def _check_memory(settings: TrainSettings, images: int, classes: int) -> None:
    """Raise UsageError where evidence and LR of all views are more than may be kept."""
    height, width = settings.low_size
    image = 4 * Grid.parse(settings.grid).patches * classes + settings.channels * height * width
    needed = images * image * min(settings.pt_views, settings.epochs_pt) / 2**30
    if needed > settings.memory_gb:
        raise UsageError(
            f"pt_views: {settings.pt_views} views of {images} images are {needed:.3g} GB, more than --memory-gb "
            f"{settings.memory_gb:g}; use fewer, or 0 for Pt through the network"
        )

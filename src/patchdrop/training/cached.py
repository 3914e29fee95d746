"""Pt where the frozen classifier looks at one patch at a time: its network runs once, rewards of masks are sums.

A patch-local classifier's logits are a function of what each chosen patch says by itself (`BagNet.evidence`), and in Pt
nothing of it is trained. So what every patch of every image says is computed once for each of a few augmented views,
and kept: ``P * K`` numbers an image. A step then runs the policy alone, the reward of a mask is a masked mean, and many
masks an image (``estimator: rloo`` with many ``samples``, ``exact``) cost next to nothing.

What LR-CNN says as a second stream is kept beside it. Where the policy stands on LR-CNN (`patchdrop.one_look`) its
features are kept too, and a step runs the policy's head alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from patchdrop.classify.bagnet import BagNet
from patchdrop.classify.two_stream import TwoStream
from patchdrop.data.sets import Batch, Split
from patchdrop.episode import PatchDrop
from patchdrop.errors import UsageError
from patchdrop.one_look import OneLook
from patchdrop.packed import gather
from patchdrop.policy.choice import keep_all
from patchdrop.settings import TrainSettings
from patchdrop.training.batches import Views, shuffled_plan, training_views
from patchdrop.training.loop import derived_seed
from patchdrop.training.policy_stages import PolicyTask

EVIDENCE_BATCH = 64


class CachedPolicyTask(PolicyTask):
    """Pt on kept evidence.

    In its views ``high`` holds, in place of pixels, what each patch says, ``(B, P, K)``; where there are two streams
    LR-CNN's class logits come behind them, ``(B, P + 1, K)``. ``low`` holds LR, or for a policy that stands on LR-CNN
    what it saw at the place of each patch, ``(B, P, F)``.

    Epoch e trains on view ``e % views`` of each image. A view is augmented from seeds of its own, so a resumed stage
    ends with the same bits.
    """

    def __init__(self, model: PatchDrop, fit: Split, val: Split, settings: TrainSettings, device: torch.device) -> None:
        super().__init__("pt", model, fit, None, val, settings, device)
        self.streams = self.judge if isinstance(self.judge, TwoStream) else None
        bagnet = self.judge if self.streams is None else self.streams.high
        assert isinstance(bagnet, BagNet)
        self.bagnet = bagnet
        self.one_look = model if isinstance(model, OneLook) else None
        model.eval()  # what is kept is what a step would see
        check_memory(model, settings, len(fit))
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

    def _scores(self, views: Views) -> Tensor:
        if self.one_look is None:
            return super()._scores(views)
        return self.one_look.policy.decide(views.low, views.high[:, -1])

    def _classify(self, choice: Tensor, views: Views, with_gradient: bool) -> Tensor:
        logits = self.bagnet.of_evidence(views.high[:, : self.grid.patches], choice)
        if self.streams is None:
            return logits
        weight = self.streams.weight_at(choice.float().mean(1)).unsqueeze(1)
        return weight * logits + (1 - weight) * views.high[:, -1]

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
        kept = views._replace(high=self.bagnet.evidence(gather(views.high, everything, self.grid)))
        if self.one_look is not None:
            maps = self.one_look.policy.look(views.low)
            places, opinion = self.one_look.policy.places(maps), self.one_look.policy.opinion(maps)
            return kept._replace(low=places, high=torch.cat([kept.high, opinion.unsqueeze(1)], 1))
        if self.streams is not None:
            return kept._replace(high=torch.cat([kept.high, self.streams.low(views.low).unsqueeze(1)], 1))
        return kept


def check_memory(model: PatchDrop, settings: TrainSettings, images: int) -> None:
    """Raise UsageError where what `CachedPolicyTask` keeps of all views is more than may be."""
    streams = model.classifier
    bagnet = streams.high if isinstance(streams, TwoStream) else streams
    assert isinstance(bagnet, BagNet)
    patches, classes = bagnet.grid.patches, bagnet.head.out_features
    height, width = settings.low_size
    image = 4 * classes * (patches + isinstance(streams, TwoStream))
    image += 4 * patches * model.policy.features if isinstance(model, OneLook) else settings.channels * height * width
    needed = images * image * min(settings.pt_views, settings.epochs_pt) / 2**30
    if needed > settings.memory_gb:
        raise UsageError(
            f"pt_views: {settings.pt_views} views of {images} images are {needed:.3g} GB, more than --memory-gb "
            f"{settings.memory_gb:g}; use fewer, or 0 for Pt through the network"
        )

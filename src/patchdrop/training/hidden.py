"""Train HR-CNN with a part hidden in every second image: by CutOut's square, or by a trained policy's masks.

*Conditional hard positives*: a trained policy's masks leave just the patches from which an image's class can be told.
CutOut (DeVries and Taylor 2017) hides a random place. Both are judged on whole images.

Departures: CutOut's square has a quarter of the image's area here and lies within the image. A mask that leaves nothing
hides nothing: an image without content has no class.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from patchdrop.classify.masked_cnn import MaskedCNN
from patchdrop.data.sets import Batch
from patchdrop.episode import PatchDrop
from patchdrop.policy.choice import sampled
from patchdrop.read.source import from_memory
from patchdrop.training.batches import Loader, Views
from patchdrop.training.objectives import freeze
from patchdrop.training.supervised import ClassifierTask

PROBABILITY = 0.5
Hide = Callable[[Views, int], tuple[Tensor, Tensor]]
"""Maps views and P to HR ``(B, C, H, W)`` and the patches ``(B, P)`` bool that stay visible."""


class HiddenTask(ClassifierTask):
    """A task that trains as the stage ``hr`` does, but hides a part of each image with a probability of one half.

    Args:
        hide: `cut_out` or `policy_masks`.
    """

    def __init__(self, stage: str, model: MaskedCNN, hide: Hide, loader: Loader) -> None:
        super().__init__(stage, model, loader, like="hr")
        self.hide = hide

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Compute the cross-entropy on what is left visible."""
        views = self.loader.training_views(batch)
        hidden = (torch.rand(len(views.target)) < PROBABILITY).to(views.high.device)
        high, left = self.hide(views, self.grid.patches)
        high = torch.where(hidden.view(-1, 1, 1, 1), high, views.high)
        logits: Tensor = self.model(from_memory(high, self.grid)(left | ~hidden.unsqueeze(1)), views.low)
        right = (logits.argmax(1) == views.target).float().mean()
        return self.objective(logits, views), {"accuracy": float(right)}


def cut_out(mean: Tensor) -> Hide:
    """Hide one square of a quarter of the image's area at a random place.

    Args:
        mean: colour of the square, ``(C,)`` in 0..255; the classifier's mean is what unread patches hold.
    """
    colour = mean.round().clamp(0, 255).to(torch.uint8).view(1, -1, 1, 1)

    def hide(views: Views, patches: int) -> tuple[Tensor, Tensor]:
        n, _, height, width = views.high.shape
        rows = _span(n, height).to(views.high.device)
        cols = _span(n, width).to(views.high.device)
        hole = (rows.unsqueeze(2) & cols.unsqueeze(1)).unsqueeze(1)
        whole = torch.ones(n, patches, dtype=torch.bool, device=views.high.device)
        return torch.where(hole, colour.to(views.high.device), views.high), whole

    return hide


def _span(n: int, length: int) -> Tensor:
    """Mark half of a side, from a random place: ``(n, length)`` bool."""
    start = torch.randint(0, length - length // 2 + 1, (n, 1))
    places = torch.arange(length)
    return (places >= start) & (places < start + length // 2)


def policy_masks(model: PatchDrop) -> Hide:
    """Hide all but the patches that a trained policy samples; freezes its model and puts it into evaluation mode."""
    model.eval()
    freeze(model, True)

    def hide(views: Views, patches: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            left = sampled(model.look(views.low).scores)
        return views.high, left | ~left.any(1, keepdim=True)

    return hide

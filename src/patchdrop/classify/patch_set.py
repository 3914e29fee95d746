"""The patch set: runs a CNN on each chosen patch by itself, then a small transformer over an image's patches.

Saves reads and multiply-adds: all layers run on what was chosen; the transformer adds one token for an image.

* The layers of the transformer are pre-norm (timm's) and start without effect, so at the start the result is the mean
  over the patches' features and the CNN learns from the first step.
* Images with equally many patches are stacked (`classify.sets`); there is no padding.
* ``fill="low"``: the features of a copy of LR-CNN are added to the token that all patches attend to. They start without
  effect, and in training an image goes without them with a probability of `DROP`, so that HR is not neglected.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from patchdrop.classify.high import SparseClassifier, Spec
from patchdrop.classify.low import LowCNN
from patchdrop.classify.sets import by_count, key_bias, own_image
from patchdrop.errors import UsageError, first_line
from patchdrop.grid import patch_size
from patchdrop.networks.build import channels_last
from patchdrop.packed import Packed

WIDTH, HEAD = 256, 32
"""Channels of a token, at most, and of an attention head."""
DROP = 0.3


class PatchSet(SparseClassifier):
    """A patch set: maps packed HR patches, and with a ``context`` LR, to class logits ``(B, K)``.

    Args:
        spec: its network maps a patch, ``(N, C, p, q)``, to one feature vector.
        context: maps an LR image to features; None for ``fill="mean"``.
        layers: of the transformer.

    Raises:
        UsageError: a network that cannot take patches of this size.
    """

    def __init__(self, spec: Spec, *, context: LowCNN | None = None, layers: int = 1) -> None:
        from timm.models.vision_transformer import Block  # late: see `patchdrop.networks.build`

        super().__init__(replace(spec, fill="mean" if context is None else "low"))
        size, _, grid, channels = spec.shape
        self.network = spec.backbone(0)
        features = _features(spec.network, self.network, (channels, *patch_size(grid, *size)))
        width = max(HEAD, min(WIDTH, features) // HEAD * HEAD)
        self.embed = nn.Linear(features, width)
        self.positions = nn.Parameter(torch.empty(1, grid.patches, width))
        self.token = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.positions, 0, 0.02)
        self.layers = nn.ModuleList(Block(width, width // HEAD, 2, qkv_bias=True) for _ in range(layers))
        for layer in self.layers:
            for last in (layer.attn.proj, layer.mlp.fc2):  # type: ignore[union-attr]
                nn.init.zeros_(last.weight)  # type: ignore[union-attr, arg-type]
                nn.init.zeros_(last.bias)  # type: ignore[union-attr, arg-type]
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, spec.classes)
        self.context = context
        if context is not None:
            self.join = nn.Linear(int(context.network.num_features), width)  # type: ignore[arg-type]
            nn.init.zeros_(self.join.weight)
            nn.init.zeros_(self.join.bias)

    def classify(self, packed: Packed, low: Tensor) -> Tensor:
        """Return class logits of images each of which has a patch."""
        tokens = self.embed(self.network(channels_last(self.normalise(packed.pixels))))
        tokens = tokens + self.positions[0, packed.patch]
        first = self._first(packed.batch, low)
        in_a_graph = torch.compiler.is_exporting()
        pooled = (self._pooled_in_a_graph if in_a_graph else self._pooled)(packed, first, tokens)
        logits: Tensor = self.head(self.norm(pooled))
        return logits

    def _pooled(self, packed: Packed, first: Tensor, tokens: Tensor) -> Tensor:
        """Return the head's input per image, from its token ``first (B, D)`` and its patches' ``tokens (N, D)``."""
        order, pooled = [], []
        for images, rows in by_count(packed):
            weight = tokens.new_ones(rows.shape) if packed.weight is None else packed.weight[rows]
            sequence = torch.cat([first[images, None], tokens[rows]], 1)
            bias = None
            if packed.weight is not None:
                bias = key_bias(torch.cat([torch.ones_like(weight[:, :1]), weight], 1))
            for layer in self.layers:
                sequence = layer(sequence, attn_mask=bias)
            mass = weight.sum(1, keepdim=True)
            mean = (sequence[:, 1:] * weight[:, :, None]).sum(1) / torch.where(mass > 0, mass, 1)
            order.append(images)
            pooled.append(sequence[:, 0] + mean)
        return torch.cat(pooled)[torch.cat(order).argsort()]

    def _pooled_in_a_graph(self, packed: Packed, first: Tensor, tokens: Tensor) -> Tensor:
        """Do the same, with the tokens of all images in one sequence."""
        bias = own_image(torch.cat([torch.arange(packed.batch), packed.image]))
        sequence = torch.cat([first, tokens])[None]
        for layer in self.layers:
            sequence = layer(sequence, attn_mask=bias)
        total = first.new_zeros(first.shape).index_add(0, packed.image, sequence[0, packed.batch :])
        return sequence[0, : packed.batch] + total / packed.counts.clamp(min=1)[:, None]

    def _first(self, batch: int, low: Tensor) -> Tensor:
        """Return the token of each image, ``(B, D)``."""
        token = self.token.expand(batch, -1)
        if self.context is None:
            return token
        known = self.join(self.context(low))
        if self.training:
            known = known * (torch.rand(batch, 1) >= DROP).to(known)
        joined: Tensor = token + known
        return joined


def _features(name: str, network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return the length of the network's feature vector of a patch ``(C, p, q)``."""
    try:
        with torch.no_grad():
            found: Tensor = network.eval()(torch.zeros(1, *shape))
    except Exception as error:
        raise UsageError(
            f"classifier patch-set: network {name!r} cannot take patches of {shape[1]} x {shape[2]} px "
            f"({first_line(error)}); use larger patches (--high, --grid), or resnet8 to resnet50, which take any"
        ) from error
    finally:
        network.train()
    return found.shape[1]

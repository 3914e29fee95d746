"""A vision transformer that embeds and runs the tokens of the chosen patches only.

Saves reads and multiply-adds: each layer runs on the chosen patches' tokens, the class token and, with ``fill="low"``,
one token of LR for each unread patch. Attention grows with the square of their number, the rest in proportion.

With every patch read this is the plain transformer. Only transformers with learnt positions and a class token to
decide by are accepted: a mean over tokens would mix in those of LR.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchdrop.classify.high import SparseClassifier, Spec, check_patches, is_full
from patchdrop.classify.sets import by_count, key_bias, own_image
from patchdrop.errors import UsageError
from patchdrop.grid import patch_size
from patchdrop.networks.build import build_vit, vit_token
from patchdrop.packed import Packed

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


class TokenViT(SparseClassifier):
    """A sparse transformer: maps packed HR patches, and with ``fill="low"`` LR, to class logits ``(B, K)``.

    Args:
        spec: its network is ``vit4-w192-p8`` (4 layers, 192 channels, tokens of 8 px), or one of timm's.

    Raises:
        UsageError: no such transformer, or patches that are no multiple of its tokens.
    """

    network: VisionTransformer

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        network, (size, low_size, grid, channels) = spec.network, spec.shape
        token = vit_token(network)
        check_patches("vit", grid, size, token, f"the size of {network}'s tokens")
        self.network = build_vit(network, size, spec.classes, channels, spec.pretrained)
        if self.network.pos_embed is None or self.network.global_pool != "token":
            raise UsageError(
                f"classifier vit: network {network!r} has no learnt positions or no class token to decide by; "
                "use one such as vit4-w192-p8 or vit_tiny_patch16_224"
            )
        p, q = patch_size(grid, *size)
        self.tokens = (p // token[0], q // token[1])
        self.cell = (max(1, low_size[0] // grid.rows), max(1, low_size[1] // grid.cols))
        width = int(self.network.embed_dim)
        if spec.fill == "low":
            self.low_embed = nn.Conv2d(channels, width, self.cell, self.cell)
            self.low_positions = nn.Parameter(torch.empty(1, grid.patches, width))
            nn.init.normal_(self.low_positions, 0, 0.02)

    def whole(self, high: Tensor, low: Tensor) -> Tensor:
        """Run the plain transformer."""
        logits: Tensor = self.network(self.normalise(high))
        return logits

    def classify(self, packed: Packed, low: Tensor) -> Tensor:
        """Return class logits of images each of which has a patch."""
        tokens = self._high_tokens(packed)
        unread = self._low_tokens(low) if self.fill == "low" and not is_full(packed, self.grid) else None
        in_a_graph = torch.compiler.is_exporting()
        first = (self._first_in_a_graph if in_a_graph else self._first)(packed, self._prefix(), tokens, unread)
        network = self.network
        logits: Tensor = network.head(network.head_drop(network.fc_norm(network.norm(first))))
        return logits

    def _first(self, packed: Packed, prefix: Tensor, tokens: Tensor, unread: Tensor | None) -> Tensor:
        """Return the class token of each image after all layers ``(B, D)``."""
        order, found = [], []
        for images, rows in by_count(packed):
            parts = [prefix.expand(len(images), -1, -1), tokens[rows].flatten(1, 2)]
            bias = None
            if packed.weight is not None:
                bias = self._bias(packed.weight[rows], unread is not None)
            if unread is not None:
                parts.append(self._rest(unread[images], packed.patch[rows], packed.weight is not None))
            sequence = self.network.norm_pre(torch.cat(parts, 1))
            for block in self.network.blocks:
                sequence = block(sequence, attn_mask=bias)
            order.append(images)
            found.append(sequence[:, 0])
        return torch.cat(found)[torch.cat(order).argsort()]

    def _first_in_a_graph(self, packed: Packed, prefix: Tensor, tokens: Tensor, unread: Tensor | None) -> Tensor:
        """Do the same, with all images' tokens in one sequence, where LR tokens of read places are hidden."""
        each = torch.arange(packed.batch)
        image = [each.repeat_interleave(prefix.shape[1]), packed.image.repeat_interleave(tokens.shape[1])]
        parts = [prefix.expand(packed.batch, -1, -1).flatten(0, 1), tokens.flatten(0, 1)]
        key = None
        if unread is not None:
            places = self.grid.patches
            read = packed.image.new_zeros(packed.batch * places)
            read = read.index_add(0, packed.image * places + packed.patch, torch.ones_like(packed.patch))
            key = torch.cat([*(torch.ones_like(part) for part in image), 1 - read]) > 0
            image.append(each.repeat_interleave(places))
            parts.append(unread.flatten(0, 1))
        bias = own_image(torch.cat(image), key)
        sequence = self.network.norm_pre(torch.cat(parts)[None])
        for block in self.network.blocks:
            sequence = block(sequence, attn_mask=bias)
        first: Tensor = sequence[0, : packed.batch * prefix.shape[1] : prefix.shape[1]]
        return first

    def _high_tokens(self, packed: Packed) -> Tensor:
        """Return the tokens of each patch ``(N, t, D)``, row-major, with their positions added."""
        embed = self.network.patch_embed
        found = embed.norm(embed.proj(self.normalise(packed.pixels)).flatten(2).transpose(1, 2))
        (rows, cols), (h, w) = (self.grid.rows, self.grid.cols), self.tokens
        places = self._positions()[0, -rows * h * cols * w :].view(rows, h, cols, w, -1)
        placed: Tensor = found + places.transpose(1, 2).flatten(2, 3).flatten(0, 1)[packed.patch]
        return placed

    def _low_tokens(self, low: Tensor) -> Tensor:
        """Return one token of LR at each place of the grid: ``(B, P, D)``."""
        size = (self.cell[0] * self.grid.rows, self.cell[1] * self.grid.cols)
        cells: Tensor = self.low_embed(F.adaptive_avg_pool2d(self.normalise(low), size))
        return cells.flatten(2).transpose(1, 2) + self.low_positions

    def _rest(self, unread: Tensor, patches: Tensor, every: bool) -> Tensor:
        """Return LR tokens ``(b, P - S, D)`` of places that are not in ``patches (b, S)``; with ``every``, all."""
        if every:
            return unread
        left = torch.ones(unread.shape[:2], dtype=torch.bool, device=unread.device).scatter(1, patches, False)
        return unread[left].view(len(unread), -1, unread.shape[2])

    def _prefix(self) -> Tensor:
        """Return class token and registers ``(1, n, D)``, with their positions if they have some."""
        network, positions = self.network, self._positions()
        tokens: list[Tensor] = [token for token in (network.cls_token, network.reg_token) if token is not None]
        prefix = torch.cat(tokens, 1)
        placed = positions.shape[1] - network.patch_embed.num_patches
        return prefix + positions[:, :placed] if placed else prefix

    def _positions(self) -> Tensor:
        assert self.network.pos_embed is not None
        return self.network.pos_embed

    def _bias(self, weight: Tensor, with_low: bool) -> Tensor:
        """Return each key's bias: HR tokens count as their patch's weight ``(b, P)``, LR's as 1 minus it."""
        ones = weight.new_ones(len(weight), self.network.num_prefix_tokens)
        high = weight.repeat_interleave(self.tokens[0] * self.tokens[1], 1)
        return key_bias(torch.cat([ones, high, *([1 - weight] if with_low else [])], 1))

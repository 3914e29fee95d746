"""A step cut into shards, so that its result does not depend on how many processes share it.

A shard is a batch of its own: it is seeded by itself, and batch norm takes the statistics of its images alone (as
"ghost batch norm" does). Gradients, running statistics, figures, and numbers that move while training are weighted by
images and added up along one binary tree over the shards. Each process adds up the subtrees of its own shards, then all
exchange these sums and every one finishes the tree in the same order. So the bits are those of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from patchdrop.data.sets import Batch
from patchdrop.training.seeds import derived_seed
from patchdrop.training.team import Team

Loss = Callable[[Batch], tuple[Tensor, dict[str, float]]]
Node = tuple[int, int]
"""The first shard of a subtree, and the one after its last."""


class Sums(NamedTuple):
    """Sums over the images of some shards."""

    values: Tensor
    """Gradients of all parameters, then running statistics, then how many shards have a gradient of each parameter:
    ``(V,)`` float32 on the networks' device."""
    numbers: Tensor
    """Images, then moves of the task's numbers, then figures: ``(N,)`` float64 on the CPU."""


def halves(node: Node) -> tuple[Node, Node]:
    """Cut a subtree in two; the left one has the largest power of two of shards that leaves some."""
    first, end = node
    middle = first + (1 << ((end - first - 1).bit_length() - 1))
    return (first, middle), (middle, end)


def nodes_within(own: range, node: Node) -> list[Node]:
    """List the largest subtrees that hold none but some of the shards, in order."""
    first, end = node
    if own.start <= first and end <= own.stop:
        return [node]
    if end <= own.start or own.stop <= first:
        return []
    return [found for half in halves(node) for found in nodes_within(own, half)]


def tree_sum(node: Node, known: Callable[[Node], Sums | None]) -> Sums:
    """Add up a subtree, from the sums of those below it that are known; asks for them from left to right."""
    found = known(node)
    if found is None:
        left, right = (tree_sum(half, known) for half in halves(node))
        found = Sums(left.values + right.values, left.numbers + right.numbers)
    return found


def exchanged(own: Mapping[Node, Sums], shards: int, team: Team) -> Sums:
    """Give all processes' subtrees to each of them, and return the sum over all shards."""
    nodes = [nodes_within(Team(rank, team.size).own(shards), (0, shards)) for rank in range(team.size)]
    rows = max(map(len, nodes))
    every: dict[Node, list[Tensor]] = {}
    for part in zip(*own.values(), strict=True):
        ours = torch.stack([*part, *[torch.zeros_like(part[0])] * (rows - len(part))])
        for theirs, found in zip(nodes, team.gather(ours), strict=True):
            for node, row in zip(theirs, found, strict=False):
                every.setdefault(node, []).append(row)
    return tree_sum((0, shards), lambda node: Sums(*every[node]) if node in every else None)


class ShardedStep:
    """What one step computes from: the model, what its loss changes besides gradients, and the seed.

    Args:
        parameters: those that the optimizer trains.
        memory: numbers that the loss may move; here they move once a step, by the mean of the shards' moves.
        seed: each shard's seed is derived from it and the shard's number.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        memory: MutableMapping[str, float],
        loss: Loss,
        seed: Sequence[object],
    ) -> None:
        self.parameters, self.memory, self.loss, self.seed = parameters, memory, loss, seed
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
        self.running = [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]
        self.counters = [m.num_batches_tracked for m in norms if m.num_batches_tracked is not None]
        self.before = [t.clone() for t in (*self.running, *self.counters)]
        self.remembered = dict(memory)
        self.names: list[str] = []

    def gradients(self, batches: Sequence[Batch], shards: int, team: Team) -> dict[str, float]:
        """Set the gradients of the mean loss over the whole batch; return that loss and the means of its figures.

        Args:
            batches: this process' shards.
            shards: how many there are in all.
        """
        own = team.own(shards)
        mine = dict(zip(own, batches, strict=True))
        sums = {
            node: tree_sum(node, lambda part: self._shard(part[0], mine[part[0]]) if part[1] - part[0] == 1 else None)
            for node in nodes_within(own, (0, shards))
        }
        total = exchanged(sums, shards, team)
        images, *rest = total.numbers.tolist()
        means = [number / images for number in rest]
        self._set(total.values, images)
        for name, move in zip(self.remembered, means, strict=False):
            self.memory[name] = self.remembered[name] + move
        return dict(zip(self.names, means[len(self.remembered) :], strict=True))

    def _shard(self, shard: int, batch: Batch) -> Sums:
        """Compute one shard, from where all of them start."""
        torch.manual_seed(derived_seed(*self.seed, shard))
        self._start()
        loss, figures = self.loss(batch)
        images = len(batch.target)
        (loss * images).backward()  # type: ignore[no-untyped-call]
        figures = {**figures, "loss": float(loss.detach())}
        self.names = list(figures)
        moves = [self.memory[name] - value for name, value in self.remembered.items()]
        with torch.no_grad():
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
            parts += [running * images for running in self.running]
            has = torch.tensor([float(p.grad is not None) for p in self.parameters], device=parts[0].device)
            values = torch.cat([*(part.reshape(-1) for part in parts), has])
        numbers = torch.tensor([1.0, *moves, *figures.values()], dtype=torch.float64) * images
        return Sums(values, numbers)

    def _start(self) -> None:
        """Put everything that a shard changes back to the step's start."""
        for parameter in self.parameters:
            parameter.grad = None
        for tensor, value in zip((*self.running, *self.counters), self.before, strict=True):
            tensor.copy_(value)
        self.memory.update(self.remembered)

    @torch.no_grad()
    def _set(self, values: Tensor, images: float) -> None:
        """Set gradients and running statistics to their means; a parameter that no shard uses has no gradient."""
        sizes = [t.numel() for t in (*self.parameters, *self.running)]
        *parts, has = torch.split(values, [*sizes, len(self.parameters)])
        count = len(self.parameters)
        for parameter, part, shards in zip(self.parameters, parts[:count], has.tolist(), strict=True):
            mean = torch.empty_like(parameter).copy_(part.view(parameter.shape)).div_(images)
            parameter.grad = mean if shards else None
        for tensor, part in zip(self.running, parts[count:], strict=True):
            tensor.copy_(part.view(tensor.shape) / images)

"""One training loop for every stage: seeded, resumable, and stopped by the first value that is not a number.

No random state outlives a step: the generators are seeded anew from (seed, stage, step), and the data order from (seed,
stage, epoch). So weights, optimizer, a few running sums and the step's number are all that a resumed run needs to end
with the same bits as an unbroken one, and that a process needs to help with the steps of another (`assist`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from patchdrop.data.sets import Batch
from patchdrop.errors import Interrupted, RunError, TrainingError
from patchdrop.files import read_json, read_tensors, remove_unfinished, write_json, write_tensors
from patchdrop.models.build import fill_weights
from patchdrop.networks.device import autocast
from patchdrop.training.optimizer import Muon
from patchdrop.training.schedule import Schedule
from patchdrop.training.seeds import derived_seed
from patchdrop.training.shards import ShardedStep
from patchdrop.training.team import ALONE, Team

WARM_UP = 0.2
Log = Callable[[dict[str, Any]], None]
Stop = Callable[[], int]
"""Called after every step; returns the signal that asks to stop, or 0."""


@dataclass(frozen=True)
class Group:
    """A group of parameters that share a peak learning rate and a weight decay."""

    parameters: Sequence[nn.Parameter]
    rate: float
    weight_decay: float = 0.0


class Task(Protocol):
    """A stage as the loop sees it: model, parameters, batches, loss and validation."""

    stage: str
    schedule: Schedule
    epochs: int
    steps_per_epoch: int
    memory: dict[str, float]
    """Numbers that change while training and are saved with its state, such as a moving sigma."""

    @property
    def model(self) -> nn.Module:
        """The stage's model."""

    def groups(self) -> list[Group]:
        """Return the parameters to train."""

    def train_mode(self) -> None:
        """Put each module into the mode it trains in."""

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Yield the epoch's batches from its ``first_step`` on, unaugmented; of cut ones this process' shards."""

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch, or shard, and figures to average over the epoch; ``progress`` is in 0..1.

        Both are means over its images.
        """

    def validate(self, progress: float) -> dict[str, float]:
        """Return figures of the validation split; ``score`` among them selects the checkpoint."""


class Standing(NamedTuple):
    """A stage's standing as the leader tells it to helpers: the step it is at and, after the first, its tensors."""

    step: int
    memory: Mapping[str, float]
    tensors: Mapping[str, Tensor]


@dataclass
class _State:
    step: int = 0
    best_score: float = -math.inf
    best_figures: dict[str, float] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    best: dict[str, Tensor] = field(default_factory=dict)


def rate_at(progress: float) -> float:
    """Return the learning rate as a share of its peak: linear warm-up, then a half cosine to zero."""
    if progress < WARM_UP:
        return (progress + 1e-3) / (WARM_UP + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def train(
    task: Task, folder: Path, log: Log, advance: Callable[[int], None], stop: Stop, team: Team = ALONE
) -> dict[str, Any]:
    """Train a stage to its end, resuming from the state in its folder if there is one.

    Args:
        folder: the stage's folder; holds ``state.json`` and its tensors while training runs.
        log: called with one dict per epoch.
        advance: called with the number of steps done, for a progress bar.
        team: leads these processes; the others are in `assist`.

    Returns:
        ``figures`` of the best validation and ``seconds`` spent; the model holds the best weights.

    Raises:
        TrainingError: the loss or a gradient is not a number.
        Interrupted: ``stop`` asked for it, here or in another process; the state is saved.
    """
    optimizer = make_optimizer(task.groups(), task.schedule.optimizer)
    state = _resume(folder, task, optimizer)
    if team.size > 1:
        team.send(_standing(task, optimizer, state.step))
    advance(state.step)
    started = saved = time.monotonic()
    spent = state.seconds
    with team.stepping():
        for figures in _updates(task, optimizer, state.step, team):
            for name, value in figures.items():
                state.sums[name] = state.sums.get(name, 0.0) + value
            state.sums["steps"] = state.sums.get("steps", 0.0) + 1
            state.step += 1
            advance(1)
            state.seconds = spent + time.monotonic() - started
            if state.step % task.steps_per_epoch == 0:
                _end_epoch(task, state, log)
            interrupted = team.highest(stop())
            due = time.monotonic() - saved > 60 * task.schedule.save_minutes
            if interrupted or due or state.step % task.steps_per_epoch == 0:
                _save(folder, task, optimizer, state)
                saved = time.monotonic()
            if interrupted:
                team.leave()  # now that it is saved: torchrun ends the others once one has ended
                raise Interrupted(interrupted)
    if state.best:
        task.model.load_state_dict(state.best)
    return {"figures": state.best_figures, "seconds": round(state.seconds, 1)}


def assist(task: Task, standing: Standing, stop: Stop, team: Team) -> None:
    """Take part in the steps of a stage that another process leads, in `train`, from the standing that it told.

    Raises:
        TrainingError, Interrupted: as in `train`.
    """
    optimizer = make_optimizer(task.groups(), task.schedule.optimizer)
    if standing.tensors:
        _fill(task, optimizer, standing.tensors, "the first process")
    task.memory.update(standing.memory)
    for _ in _updates(task, optimizer, standing.step, team):
        if interrupted := team.highest(stop()):
            team.leave()
            raise Interrupted(interrupted)


def _updates(task: Task, optimizer: torch.optim.Optimizer, step: int, team: Team) -> Iterator[dict[str, float]]:
    """Make one update after the other from ``step`` to the stage's end; yield the figures of each."""
    total = task.epochs * task.steps_per_epoch
    while step < total:
        for batches in steps(task, *divmod(step, task.steps_per_epoch), team):
            try:
                figures = one_step(task, optimizer, batches, step, total, team)
            except TrainingError:  # every process finds the same
                team.leave()
                raise
            yield figures
            step += 1


def steps(task: Task, epoch: int, first_step: int, team: Team = ALONE) -> Iterator[Sequence[Batch]]:
    """Yield for each step of an epoch the shards that this process computes; one batch, where it is not cut."""
    batches = task.batches(epoch, first_step)
    return zip(*[batches] * len(team.own(task.schedule.shards)), strict=False)


def one_step(
    task: Task, optimizer: torch.optim.Optimizer, batches: Sequence[Batch], step: int, total: int, team: Team = ALONE
) -> dict[str, float]:
    """Make one seeded update from this process' shards and, in a team, those of the others; return its figures."""
    task.train_mode()
    seed = (task.schedule.seed, task.stage, "step", step)
    if task.schedule.shards == 1:
        torch.manual_seed(derived_seed(*seed))
        return train_step(task, optimizer, batches[0], step, total)

    def loss(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        with _computing(task):
            return task.loss(batch, step / total)

    sharded = ShardedStep(task.model, _trained(optimizer), task.memory, loss, seed)
    figures = sharded.gradients(batches, task.schedule.shards, team)
    _check_loss(task, figures["loss"], step)
    _update(task, optimizer, step, total)
    return figures


def make_optimizer(groups: Sequence[Group], name: str) -> torch.optim.Optimizer:
    """Build a ``muon`` or ``adamw`` optimizer over the groups."""
    described = [
        {"params": list(g.parameters), "lr": g.rate, "peak": g.rate, "weight_decay": g.weight_decay} for g in groups
    ]
    return Muon(described) if name == "muon" else torch.optim.AdamW(described)


def train_step(task: Task, optimizer: torch.optim.Optimizer, batch: Batch, step: int, total: int) -> dict[str, float]:
    """Make one update from a whole batch and return figures of the batch.

    Raises:
        TrainingError: the loss or a gradient is not a number; nothing was updated.
    """
    with _computing(task):
        loss, figures = task.loss(batch, step / total)
    value = float(loss.detach())
    _check_loss(task, value, step)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    _update(task, optimizer, step, total)
    return {**figures, "loss": value}


def _update(task: Task, optimizer: torch.optim.Optimizer, step: int, total: int) -> None:
    """Move the weights by their gradients, at the step's rate."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in _trained(optimizer) if p.grad is not None])
    if not bool(torch.isfinite(norm)):
        raise TrainingError(_not_a_number(task, step, "a gradient"))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * rate_at(step / total)
    optimizer.step()


def _trained(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _check_loss(task: Task, loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise TrainingError(_not_a_number(task, step, "the loss"))


def _computing(task: Task) -> torch.autocast:
    """Compute convolutions and matrix products in the schedule's precision; softmax and the like stay in float32."""
    return autocast(next(task.model.parameters()).device.type, task.schedule.precision)


def _not_a_number(task: Task, step: int, what: str) -> str:
    return (
        f"stage {task.stage}, step {step}: {what} is not a finite number; nothing was saved after the last epoch. "
        "Train with a lower learning rate (--rate-classifier, --rate-finetune, --rate-policy) into another --out"
    )


def _end_epoch(task: Task, state: _State, log: Log) -> None:
    epoch = state.step // task.steps_per_epoch
    steps = state.sums.pop("steps")
    means = {f"train_{name}": value / steps for name, value in state.sums.items()}
    state.sums = {}
    torch.manual_seed(derived_seed(task.schedule.seed, task.stage, "validate"))
    task.model.eval()
    with torch.inference_mode(), _computing(task):
        figures = task.validate(epoch / task.epochs)
    log({"event": "validation", "stage": task.stage, "epoch": epoch, "step": state.step,
         "seconds": round(state.seconds, 1), **means, **figures})  # fmt: skip
    if figures["score"] > state.best_score:
        state.best_score = figures["score"]
        state.best_figures = {"epoch": epoch, **means, **figures}
        state.best = {k: v.detach().clone() for k, v in task.model.state_dict().items()}


def _save(folder: Path, task: Task, optimizer: torch.optim.Optimizer, state: _State) -> None:
    tensors = _tensors(task, optimizer) | {f"best/{k}": v for k, v in state.best.items()}
    if not all(bool(t.isfinite().all()) for t in tensors.values()):
        raise TrainingError(_not_a_number(task, state.step, "a weight"))
    name = f"state-{state.step:08d}.safetensors"
    digest = write_tensors(folder / name, tensors)
    manifest = {
        "file": name,
        "sha256": digest,
        "step": state.step,
        "steps": task.epochs * task.steps_per_epoch,
        "best_score": state.best_score if state.best else None,
        "best_figures": state.best_figures,
        "sums": state.sums,
        "memory": task.memory,
        "seconds": state.seconds,
    }
    write_json(folder / "state.json", manifest)
    for old in folder.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink()


def _tensors(task: Task, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the weights under ``model/``, and the optimizer's state under ``optimizer/``."""
    tensors = {f"model/{k}": v for k, v in task.model.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{k}": v for k, v in slots.items()}
    return tensors


def _standing(task: Task, optimizer: torch.optim.Optimizer, step: int) -> Standing:
    tensors = {name: tensor.cpu() for name, tensor in _tensors(task, optimizer).items()} if step else {}
    return Standing(step, dict(task.memory), tensors)


def clear_state(folder: Path) -> None:
    """Remove the files that only an unfinished stage needs: its training state and leftovers of broken writes."""
    (folder / "state.json").unlink(missing_ok=True)
    remove_unfinished(folder)
    for old in folder.glob("state-*.safetensors"):
        old.unlink()


def _resume(folder: Path, task: Task, optimizer: torch.optim.Optimizer) -> _State:
    remove_unfinished(folder)
    manifest_path = folder / "state.json"
    if not manifest_path.exists():
        return _State()
    manifest = _manifest(manifest_path)
    total = task.epochs * task.steps_per_epoch
    if manifest["steps"] != total:
        raise RunError(
            f"{folder}: was stopped in a training of {manifest['steps']} steps, this one has {total}; "
            "use the settings it was started with, or another --out"
        )
    tensors = read_tensors(folder / manifest["file"], manifest["sha256"])
    _fill(task, optimizer, tensors, str(folder))
    task.memory.update(manifest["memory"])
    score = manifest["best_score"]
    return _State(
        manifest["step"],
        -math.inf if score is None else score,
        manifest["best_figures"],
        manifest["sums"],
        manifest["seconds"],
        _under("best/", tensors),
    )


def _fill(task: Task, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load what `_tensors` returned into model and optimizer."""
    fill_weights(task.model, _under("model/", tensors), where)
    loaded = optimizer.state_dict()
    loaded["state"] = {}
    for name, tensor in _under("optimizer/", tensors).items():
        index, slot = name.split("/")
        loaded["state"].setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict(loaded)
    if not all(_belong(p, slots) for p, slots in optimizer.state.items()):
        raise RunError(
            f"{where}: was stopped by a version that trained other weights; remove its state.json to train that stage "
            "again"
        )


def _belong(parameter: object, slots: Mapping[str, Tensor]) -> bool:
    """Check that an optimizer's state fits its parameter; one that the optimizer lacks shows as a number."""
    return isinstance(parameter, Tensor) and all(not s.ndim or s.shape == parameter.shape for s in slots.values())


def saved_step(folder: Path) -> int:
    """Return the step at which a stage was stopped, 0 if it was not started."""
    path = folder / "state.json"
    return int(_manifest(path)["step"]) if path.exists() else 0


def _manifest(path: Path) -> Mapping[str, Any]:
    manifest = read_json(path)
    kinds = {"file": str, "sha256": str, "step": int, "steps": int, "sums": dict, "memory": dict, "best_figures": dict}
    if not isinstance(manifest, dict) or not all(isinstance(manifest.get(k), kind) for k, kind in kinds.items()):
        raise RunError(f"{path}: is damaged; remove it and train that stage again")
    return manifest


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

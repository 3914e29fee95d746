"""Time of Pt on kept evidence against Pt through the network, to the same validation reward.

    python benchmarks/cached_pt.py RUN [--epochs N] [--network-epochs N] [--ways NAME...] [--images N] [--checks 4]
                                   [--cpu] [--json]

RUN is a run with ``classifier: bagnet`` whose stages ``lr``, ``hr`` and, where it has one, ``patches`` are trained. All
ways start from the same policy and classifier and train for N epochs: through the network with the paper's estimator,
with the run's own and with RLOO of 32 samples, on kept evidence with the latter two. Those through the network may
have more epochs, which the paper's estimator needs to the same reward. A ratio is the time of one way to its best
validation reward over that of the other to the same. Seconds are those of training steps, with what keeping the
evidence takes; validation, ``--checks`` times an epoch, is left out on both sides. LR-CNN beside BagNet and the
policy's network are as in the run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from patchdrop.data.load import load, statistics
from patchdrop.data.sets import Split
from patchdrop.models import ModelConfig
from patchdrop.provenance import provenance
from patchdrop.runfolder import RunFolder
from patchdrop.settings import TrainSettings
from patchdrop.talk import errors_told
from patchdrop.training.loop import derived_seed, make_optimizer, train_step
from patchdrop.training.run import make_task, on_device, starting_model


def main() -> None:
    """Print seconds and validation reward of each way, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--network-epochs", type=int, help="of the ways through the network; by default --epochs")
    parser.add_argument("--ways", nargs="+", help="only these, by name; by default all")
    parser.add_argument("--images", type=int, help="to train on, evenly over the split; by default all")
    parser.add_argument("--checks", type=int, default=4, help="validations an epoch")
    parser.add_argument("--cpu", action="store_true", help="CPU time in place of wall-clock, for a busy machine")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    given = (asked.epochs, asked.network_epochs, asked.images, asked.checks)
    if min(n for n in given if n is not None) < 1:
        parser.error("--epochs, --network-epochs, --images and --checks are at least 1")
    clock = time.process_time if asked.cpu else time.perf_counter
    run = RunFolder(asked.run).require()
    if run.settings().classifier != "bagnet":
        parser.error(f"{asked.run}: has classifier {run.settings().classifier}; give a run with bagnet")
    settings = replace(run.settings(), epochs_pt=asked.epochs, target_patches=0.0)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    data = load(settings, lambda done, total: None)
    if asked.images:
        data = replace(data, splits={**data.splits, "fit": some(data.splits["fit"], asked.images)})
    ways = {
        "network, self-critical": replace(settings, estimator="self-critical", pt_views=0),
        f"network, {settings.estimator}": replace(settings, pt_views=0),
        "network, rloo 32": replace(settings, pt_views=0, estimator="rloo", samples=32),
        f"evidence, {settings.estimator}": replace(settings, pt_views=1),
        "evidence, rloo 32": replace(settings, pt_views=1, estimator="rloo", samples=32),
    }
    odd = sorted(set(asked.ways or ()) - set(ways))
    if odd:
        parser.error(f"there is no way {odd[0]!r}; there are {', '.join(map(repr, ways))}")
    through_network = asked.network_epochs or asked.epochs
    curves = {
        name: list(curve(run, data, replace(way, epochs_pt=epochs), asked.checks, clock))
        for name, way, epochs in ((n, w, asked.epochs if w.pt_views else through_network) for n, w in ways.items())
        if not asked.ways or name in asked.ways
    }
    document: dict[str, Any] = {"threads": torch.get_num_threads(), "images": len(data.splits["fit"])}
    document |= {"clock": "CPU time" if asked.cpu else "wall-clock", "curves": curves}
    document["provenance"] = provenance(settings.seed)
    document["ratios"] = {
        f"{slow} / {fast}": ratio(curves[slow], curves[fast])
        for slow in curves
        for fast in curves
        if slow.startswith("network") and fast.startswith("evidence")
    }
    if asked.json:
        print(json.dumps(document))
        return
    where = document["provenance"]["machine"]
    print(f"{where}, {document['threads']} threads, {document['images']} images, {document['clock']}")
    for name, points in curves.items():
        print(name, ", ".join(f"{p['seconds']:.1f} s {p['reward']:.4f} (S {p['patches']:.2f})" for p in points))
    for name, value in document["ratios"].items():
        print(f"{name}: " + ("not reached" if value is None else f"{value:.1f}"))


def some(split: Split, images: int) -> Split:
    """So many images, or all of them, evenly over a split."""
    positions = torch.linspace(0, len(split) - 1, min(images, len(split))).round().long()
    return Split(split.source, split.index[positions])


def curve(
    run: RunFolder, data: Any, settings: TrainSettings, checks: int, clock: Callable[[], float]
) -> Iterator[dict[str, float]]:
    """Seconds of training so far and validation figures, so many times an epoch."""
    torch.manual_seed(derived_seed(settings.seed, "pt", "weights"))
    config = ModelConfig.of(settings, data.classes)
    found = statistics(data.splits["fit"], settings.low_size)
    device = torch.device("cpu")
    model = on_device(starting_model("pt", settings, config, found, lambda stage: run.load(stage)[0]), device)
    task = make_task("pt", model, data, settings, device)
    optimizer = make_optimizer(task.groups(), settings.optimizer)
    total, step, seconds = task.epochs * task.steps_per_epoch, 0, 0.0
    ends = {round(task.steps_per_epoch * (i + 1) / checks) for i in range(checks)}
    for epoch in range(task.epochs):
        started = clock()
        for batch in task.batches(epoch, 0):
            task.train_mode()
            torch.manual_seed(derived_seed(settings.seed, "pt", "step", step))
            train_step(task, optimizer, batch, step, total)
            step += 1
            if step - epoch * task.steps_per_epoch in ends:
                seconds += clock() - started
                with torch.inference_mode():
                    figures = task.validate(step / total)
                yield {"seconds": seconds, "reward": figures["reward"], "patches": figures["mean_patches"]}
                started = clock()


def ratio(slow: list[dict[str, float]], fast: list[dict[str, float]]) -> float | None:
    """Time of the slow way to its best reward over that of the fast way to the same; None where it is not reached."""
    best = max(slow, key=lambda point: point["reward"])
    reached = [point["seconds"] for point in fast if point["reward"] >= best["reward"]]
    return best["seconds"] / reached[0] if reached else None


if __name__ == "__main__":
    with errors_told():
        main()

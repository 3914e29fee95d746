"""Images a second of HR-CNN's training on one and two processes of a thread each, and the cost of the exact sum.

    torchrun --standalone --nproc-per-node 2 benchmarks/processes.py results/processes [ROUNDS]

Takes everything in turns in one run, on the embedded images: a whole batch on one process, the same batch in 8 shards
on one, and on both. ``sum`` is what both spend to exchange their subtrees and finish the tree; beside it what
PyTorch's own sum takes, whose bits depend on the number of processes, and what exchanging every shard would. CPU
time is the first process' own: on a machine that does other work too it says what wall time cannot.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from patchdrop.commands.shared import prepared
from patchdrop.data.load import statistics as channel_statistics
from patchdrop.files import write_bytes, write_json
from patchdrop.models.build import build_stage
from patchdrop.runs.provenance import provenance
from patchdrop.settings.flat import from_mapping, read_profile
from patchdrop.terminal.talk import errors_told, hush
from patchdrop.training.loop import Task, make_optimizer, one_step, steps
from patchdrop.training.run import make_task, on_device
from patchdrop.training.shards import Sums, exchanged, nodes_within
from patchdrop.training.team import ALONE, Team, joined

SHARDS, ROUNDS = 8, 25
HIGH = "128"
"""HR size in pixels; the other settings are the profile's and the recipe's."""


def main(out: Path, rounds: int) -> None:
    """Measure, and let the first process write what was found."""
    torch.set_num_threads(1)
    with joined(lambda: torch.device("cpu")) as team:
        hush(team.rank > 0)
        settings = replace(from_mapping(read_profile("demo"), "demo"), high=HIGH, hr_network="", threads=1)
        ready = prepared(replace(settings, augment=("shift",), device="cpu"))
        work, both, weights, batch = jobs(ready, team)
        seconds: dict[str, list[float]] = {name: [] for name in work}
        cpu: dict[str, list[float]] = {name: [] for name in work}
        load = os.getloadavg()[0]
        for turn in range(rounds + 2):
            for name, job in work.items():
                team.highest(0)
                start, used = time.perf_counter(), time.process_time()
                if team.rank == 0 or name in both:
                    job()
                if turn > 1:
                    seconds[name].append(time.perf_counter() - start)
                    cpu[name].append(time.process_time() - used)
        if team.rank == 0:
            found = document(seconds, cpu, weights, batch, load)
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / "results.json", {**found, "provenance": provenance(0)})
            write_bytes(out / "README.md", page(found).encode())
            print(page(found))
        team.leave()


def jobs(ready: Any, team: Team) -> tuple[dict[str, Callable[[], Any]], set[str], int, int]:
    """What is timed, what of it both processes do, the number of weights, and the images of a step."""

    def stage(shards: int, shared: Team) -> Callable[[], Any]:
        torch.manual_seed(0)
        schedule = replace(ready.recipe.schedule, shards=shards)
        found = channel_statistics(ready.data.splits["fit"], ready.config.shape.low, 64)
        model = on_device(build_stage("hr", ready.config, found), torch.device("cpu"))
        loader = replace(ready.recipe.loader(ready.data), schedule=schedule, own=shared.own(shards))
        task = make_task("hr", model, loader, ready.recipe.learning)
        sizes.append(sum(p.numel() for p in model.parameters()))
        return step(task, shared)

    def step(task: Task, shared: Team) -> Callable[[], Any]:
        optimizer = make_optimizer(task.groups(), task.schedule.optimizer)
        epochs = iter(range(10**6))
        waiting = [batches for _ in range(2) for batches in steps(task, next(epochs), 0, shared)]
        places = iter(range(10**6))
        return lambda: one_step(task, optimizer, waiting[next(places) % len(waiting)], 0, 100, shared)

    sizes: list[int] = []
    work = {"whole": stage(1, ALONE), "one": stage(SHARDS, ALONE), "two": stage(SHARDS, team)}
    vector, numbers = torch.randn(sizes[0]), torch.zeros(3, dtype=torch.float64)
    own = dict.fromkeys(nodes_within(team.own(SHARDS), (0, SHARDS)), Sums(vector, numbers))
    every = {n: Sums(vector, numbers) for k in team.own(SHARDS) for n in nodes_within(range(k, k + 1), (0, SHARDS))}
    work |= {
        "sum": lambda: exchanged(own, SHARDS, team),
        "plain sum": lambda: dist.all_reduce(vector.clone()),
        "every shard": lambda: [team.gather(torch.stack([sums.values for sums in every.values()]))],
        "vote": lambda: team.highest(0),
    }
    batch = min(ready.recipe.schedule.batch, len(ready.data.splits["fit"]))
    return work, {"two", "sum", "plain sum", "every shard", "vote"}, sizes[0], batch


def document(
    seconds: dict[str, list[float]], cpu: dict[str, list[float]], weights: int, batch: int, load: float
) -> dict[str, Any]:
    """Medians, least and most of all times in milliseconds, and images a second."""
    ms = {name: [1000 * f(times) for f in (statistics.median, min, max)] for name, times in seconds.items()}
    return {
        "high": HIGH,
        "weights": weights,
        "batch": batch,
        "shards": SHARDS,
        "rounds": len(seconds["two"]),
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "milliseconds": {name: [round(t, 3) for t in times] for name, times in ms.items()},
        "cpu_milliseconds": {name: round(1000 * statistics.median(times), 3) for name, times in cpu.items()},
        "images_a_second": {name: round(1000 * batch / ms[name][0], 1) for name in ("whole", "one", "two")},
    }


def page(found: dict[str, Any]) -> str:
    """The same for people."""
    ms, rate, cpu = found["milliseconds"], found["images_a_second"], found["cpu_milliseconds"]
    busy = found["load_before"] > 0.5
    shared = "other work took its share, so the two had no core each" if busy else "it did nothing else"
    said = {
        "whole": "a whole batch, one process",
        "one": f"{found['shards']} shards, one process",
        "two": f"{found['shards']} shards, two processes",
        "sum": "of that: the exact sum",
        "plain sum": "for comparison: all_reduce",
        "every shard": "for comparison: exchanging every shard",
        "vote": "whether to stop",
    }
    times = {name: f"{middle:.2f} ({least:.2f} - {most:.2f})" for name, (middle, least, most) in ms.items()}
    rows = "\n".join(f"| {said[name]} | {times[name]} | {cpu[name]:.2f} | {rate.get(name, '')} |" for name in said)
    return f"""# Processes

HR-CNN's stage on {found["high"]} px, {found["weights"]:,} weights, {found["batch"]} images a step, one thread a
process. Milliseconds are the median (least - most) of {found["rounds"]}, all in turns; CPU time is that of the first
process. The machine has {found["cores"]} cores and had a load of {found["load_before"]} before: {shared}.

| what | ms | CPU ms | images a second |
| --- | --- | --- | --- |
{rows}

Two processes are {rate["two"] / rate["one"]:.2f} times as fast as one on the same shards, and
{rate["two"] / rate["whole"]:.2f} times as fast as one on whole batches. Made by `benchmarks/processes.py`.
"""


if __name__ == "__main__":
    with errors_told():
        main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS)

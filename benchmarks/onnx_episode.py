"""ONNX Runtime against torch: one image's episode by the same networks, threads and choice, timed in turns.

    python benchmarks/onnx_episode.py RUN [--stage ft2] [--threads 1] [--rounds 50] [--json]

A row is an episode (policy, choice, patches cut from memory, classifier) at batch 1 with S patches of noise. ``ratio``
is ONNX Runtime's time over torch's, the median over rounds; the target is at most 1. The stage is exported first, in
memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from patchdrop.costs.times import PATCHES, WARM_UP
from patchdrop.data.low import area_average
from patchdrop.episode import PatchDrop, play
from patchdrop.evaluation.dial import policy_stage
from patchdrop.policy.budget import ALL, at_most
from patchdrop.read.source import from_memory
from patchdrop.runs.folder import RunFolder
from patchdrop.runs.provenance import provenance
from patchdrop.serve.export import Runtime, to_graphs
from patchdrop.terminal.talk import errors_told


def main(folder: str, stage: str | None, threads: int, rounds: int, as_json: bool) -> None:
    """Print a line for each number of patches."""
    torch.set_num_threads(threads)
    run = RunFolder(folder).require()
    stage = policy_stage(run, stage)
    model, config = run.load(stage)
    assert isinstance(model, PatchDrop)
    runtime, grid = Runtime(to_graphs(model, config), threads), config.shape.grid
    high = torch.randint(0, 256, (1, config.shape.channels, *config.shape.high), dtype=torch.uint8)
    low, read = area_average(high, config.shape.low), from_memory(high, grid)
    rows = []
    for count in (c for c in PATCHES if c <= grid.patches):
        choose = partial(at_most, budget=count, cut=ALL)
        onnx_way = partial(play, runtime.look, choose, read, low)
        rows.append({"patches": count, **timed(partial(model, low, choose, read), onnx_way, rounds)})
    document: dict[str, Any] = {"stage": stage, "classifier": config.classifier, "threads": threads, "rounds": rounds}
    document |= {"rows": rows, "provenance": provenance(run.settings().seed)}
    if as_json:
        print(json.dumps(document, indent=2))
        return
    print(f"{run.path.name}, stage {stage}, {threads} threads, {rounds} rounds, {document['provenance']['machine']}")
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))


def timed(torch_way: Callable[[], Any], onnx_way: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Median milliseconds of both and their ratio, each round starting with the other one."""
    ways = (torch_way, onnx_way)
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for turn in range(WARM_UP + rounds):
            for way in (turn % 2, 1 - turn % 2):
                start = time.perf_counter()
                ways[way]()
                if turn >= WARM_UP:
                    seconds[way].append(time.perf_counter() - start)
    ratio = statistics.median(o / t for t, o in zip(*seconds, strict=True))
    ms = [round(1000 * statistics.median(s), 3) for s in seconds]
    return {"torch_ms": ms[0], "onnx_ms": ms[1], "ratio": round(ratio, 2)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("--stage")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if min(given.threads, given.rounds) < 1:
        parser.error("--threads and --rounds are at least 1")
    with errors_told():
        main(given.run, given.stage, given.threads, given.rounds, given.json)

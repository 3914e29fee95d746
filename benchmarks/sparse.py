"""What each HR classifier takes by the number of patches read: milliseconds and FLOPs.

    python benchmarks/sparse.py [PROFILE | --paper] [--classifiers canvas vit] [--batch 1 64] [--rounds 9] [--cpu]
                                [--device cuda] [--mix RESULTS.json pt] [--json]

Untrained networks, one thread. Times, all ways in turns in one run: the plain HR network, and for each classifier
whole Ft-2 episodes (policy, LR-CNN, reading from memory, classifier) at fixed numbers of patches. Then a line of
time against S with the share of variance that it explains, and, for batches, images with S = 0..P (mixed) against the
same number of patches spread evenly. ``--mix`` adds 64 images whose numbers of patches are spread as PatchDrop's in a
run's ``results.json``, for a run whose weights are elsewhere. ``--paper`` is ResNet-50 at 224 px, 4 x 4, and for
``vit`` a transformer of 12 layers and 384 channels on tokens of 14 px.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchdrop.costs.times import PLAIN, Way, measure, straight_lines
from patchdrop.data.low import area_average
from patchdrop.episode import PatchDrop
from patchdrop.errors import UsageError
from patchdrop.files import read_json
from patchdrop.grid import Grid
from patchdrop.models.build import build_stage
from patchdrop.packed import gather
from patchdrop.policy.budget import ALL, at_most
from patchdrop.read.source import from_memory
from patchdrop.runs.provenance import provenance
from patchdrop.settings.defaults import GRID, networks_for
from patchdrop.settings.flat import from_mapping, read_profile
from patchdrop.terminal.talk import errors_told
from patchdrop.training.recipe import Recipe, device_of

IMAGES = 64
"""Of `--mix`, run in whole batches."""
COUNTS = (0, 1, 2, 4, 5, 8, 16)
CLASSES = 30
NAMES = ("masked", "bagnet", "canvas", "patch-set", "vit")
PAPER = {
    "high": "224",
    "low": "56",
    "grid": "4",
    "hr_network": "resnet50",
    "lr_network": "resnet10-w32-d",
    "policy_network": "resnet10-w32-d",
    "fill": "low",
    "fusion": "learned",
}


def main() -> None:
    """Print the tables, or one JSON document."""
    parser = argparse.ArgumentParser()
    parser.add_argument("profile", nargs="?", default="canvas-cpu")
    parser.add_argument("--paper", action="store_true")
    parser.add_argument("--classifiers", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--vit", help="network of vit; by default vit6-w192-p8, or vit12-w384-p14 with --paper")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu", action="store_true", help="CPU time in place of wall-clock, for a busy machine")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mix", nargs=2, metavar=("RESULTS", "STAGE"), help="numbers of patches as in a run's results")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if min(*arguments.batch, arguments.rounds) < 1:
        parser.error("--batch and --rounds are at least 1")
    torch.set_num_threads(1)
    profile = completed(PAPER if arguments.paper else read_profile(arguments.profile))
    vit = arguments.vit or ("vit12-w384-p14" if arguments.paper else "vit6-w192-p8")
    rows: list[dict[str, Any]] = []
    device = device_of(arguments.device)
    counts = mixed_counts(*arguments.mix) if arguments.mix else None
    for size in arguments.batch:
        high, low = (part.to(device) for part in pixels(profile, max(size, IMAGES if arguments.mix else 0)))
        ways = [way for name in arguments.classifiers for way in ways_of(name, profile, vit, size, device, counts)]
        ways = [ways[0], *(way for way in ways[1:] if way.name != PLAIN)]
        clock = time.process_time if arguments.cpu else time.perf_counter
        rows += measure(ways, high, low, size, arguments.rounds, lambda: None, clock)
    found = {
        "device": device.type,
        "mix": arguments.mix and {"results": Path(arguments.mix[0]).parent.name, "stage": arguments.mix[1]},
        "threads": 1,
        "profile": "paper" if arguments.paper else arguments.profile,
        "clock": "CPU time" if arguments.cpu else "wall-clock",
        "rounds": arguments.rounds,
        "rows": rows,
        "lines": straight_lines(rows),
        "provenance": provenance(0),
    }
    print(json.dumps(found) if arguments.json else table(found))


def completed(profile: dict[str, Any]) -> dict[str, Any]:
    """A profile's settings with the networks that it leaves open."""
    settings = from_mapping(profile, "profile").filled({"grid": GRID})
    high, low, _, _ = settings.shape
    return settings.filled(networks_for(high, low, settings.low_enlarge, settings.lr_network)).to_mapping()


def pixels(profile: dict[str, Any], images: int) -> tuple[Tensor, Tensor]:
    """Noise: HR and LR, uint8."""
    shape = from_mapping(profile, "profile").shape
    generator = torch.Generator().manual_seed(0)
    high = torch.randint(0, 256, (images, 3, *shape.high), dtype=torch.uint8, generator=generator)
    return high, area_average(high, shape.low)


def mixed_counts(results: str, stage: str) -> Tensor:
    """Numbers of patches of `IMAGES` images, spread as PatchDrop's over a run's test images: at even quantiles."""
    document = read_json(Path(results))
    rows = document.get("rows", []) if isinstance(document, dict) else []
    found = [r["patches_histogram"] for r in rows if (r["method"], r["stage"]) == ("PatchDrop", stage)]
    if not found:
        raise UsageError(f"--mix {results} {stage}: has no row of PatchDrop in stage {stage}")
    histogram = found[0]
    counts = torch.repeat_interleave(torch.arange(len(histogram)), torch.tensor(histogram))
    quantiles = ((torch.arange(IMAGES) + 0.5) / IMAGES * len(counts)).long()
    return counts[quantiles][torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))]


def ways_of(
    name: str, profile: dict[str, Any], vit: str, images: int, device: torch.device, counts: Tensor | None
) -> list[Way]:
    """The plain HR network of the profile, and the episodes of one classifier."""
    fill = "mean" if name == "bagnet" else profile["fill"]
    network = vit if name == "vit" else profile["hr_network"]
    settings = from_mapping({**profile, "classifier": name, "hr_network": network, "fill": fill}, "profile")
    classes = tuple(str(i) for i in range(CLASSES))
    config = Recipe.of(settings).with_classes(classes)
    plain = build_stage("hr", Recipe.of(from_mapping(profile, "profile")).with_classes(classes))
    model = build_stage("ft2", config)
    assert isinstance(model, PatchDrop)
    for part in (plain, model):
        part.eval().to(device, memory_format=torch.channels_last)
    grid = config.shape.grid
    scores = torch.rand(images, grid.patches, generator=torch.Generator().manual_seed(1)).to(device)

    def episode(count: int) -> Callable[[Tensor, Tensor], object]:
        choice = at_most(scores, count, ALL)
        return lambda high, low: model(low, lambda _: choice, from_memory(high, grid))

    found = [Way(PLAIN, "hr", plain.whole)]  # type: ignore[arg-type]
    found += [Way(f"{name}, S = {s}", name, episode(s), s) for s in COUNTS if s <= grid.patches]
    if images > 1:
        every = torch.arange(images, device=device) % (grid.patches + 1)
        mixed = scores.argsort(1, descending=True).argsort(1) < every[:, None]
        spread = torch.full((images,), int(every.sum()) // images, device=device)
        spread[: int(every.sum()) % images] += 1
        even = scores.argsort(1, descending=True).argsort(1) < spread[:, None]
        assert int(mixed.sum()) == int(even.sum())
        for kind, choice in (("mixed", mixed), ("even", even)):
            found.append(Way(f"{name}, {kind}", name, _fixed(model, grid, choice)))
    if counts is not None:
        found.append(Way(f"{name}, as the run", name, _in_turn(model, grid, counts), every_batch=True))
    return found


def _in_turn(model: PatchDrop, grid: Grid, counts: Tensor) -> Callable[[Tensor, Tensor], object]:
    """Episodes of one batch after the other, image by image with the next number of patches."""
    place = 0

    def run(high: Tensor, low: Tensor) -> object:
        nonlocal place
        here = counts[(torch.arange(len(high)) + place) % len(counts)]
        place = (place + len(high)) % len(counts)
        choice = (torch.arange(grid.patches) < here[:, None]).to(high.device)
        return model(low, lambda _: choice, lambda chosen: gather(high, chosen, grid))

    return run


def _fixed(model: PatchDrop, grid: Grid, choice: Tensor) -> Callable[[Tensor, Tensor], object]:
    return lambda high, low: model(low, lambda _: choice, lambda chosen: gather(high, chosen, grid))


def table(found: dict[str, Any]) -> str:
    """For people."""
    where = found["provenance"]["machine"]
    lines = [f"{where}, 1 thread, {found['profile']}, {found['clock']}, median of {found['rounds']} rounds"]
    lines += [
        f"batch {row['batch']:>3}  {row['way']:<18} {row['ms_image']:8.2f} ms/image  x {PLAIN} {row['to_plain']:5.2f}"
        f"  {row['flops_image'] / 1e6:9.1f} MFLOP"
        for row in found["rows"]
    ]
    lines += [fit(line) for line in found["lines"]]
    return "\n".join(lines)


def fit(line: dict[str, Any]) -> str:
    """A straight line in words."""
    return (
        f"batch {line['batch']:>3}  {line['stage']:<10} {line['ms_first']:.2f} ms + {line['ms_patch']:.3f} ms a patch, "
        f"R2 {line['explained']:.4f}"
    )


if __name__ == "__main__":
    with errors_told():
        main()

"""Five small data sets on which a verdict is known, and what runs trained on them said.

    python benchmarks/verdicts.py make CIFAR10 PHOTOGRAPHS OUT      # two folders of labelled images, one to make
    python benchmarks/verdicts.py table OUT RUN...                  # of `patchdrop train --data SET --out RUN`

| set | what it is | what is right |
|---|---|---|
| colour | noise of 32 px, tinted | LR alone is enough |
| majority | stripes in 16 patches, and the question which way most of them run | everything is needed |
| two | two classes of CIFAR-10 | no collapse |
| imbalance | four classes of CIFAR-10, 20 to 1 | no collapse |
| hundred | four classes of photographs, 20 training images each | too few images to judge by |
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchdrop.files import write_bytes
from patchdrop.runs.folder import RunFolder

Drawn = Iterator[tuple[str, str, int, NDArray[np.float64]]]
"""Split, class, number and pixels of each image."""
CIFAR_SETS = {
    "two": {"automobile": 1500, "horse": 1500},
    "imbalance": {"airplane": 2000, "automobile": 700, "frog": 250, "ship": 100},
}
"""Training images of each class."""
CIFAR_TEST = {"two": 300, "imbalance": 200}


def colour(rng: np.random.Generator) -> Drawn:
    """Noise in which one channel is lighter."""
    for split, count in (("train", 600), ("test", 300)):
        for number in range(count):
            image = rng.normal(110, 25, (32, 32, 3))
            image[..., number % 3] += 25
            yield split, "rgb"[number % 3], number, image


def majority(rng: np.random.Generator) -> Drawn:
    """16 patches of 8 px, each striped across or upright; 9 or 10 of them one way, the others the other."""
    for split, count in (("train", 3000), ("test", 1000)):
        for number in range(count):
            across = number % 2 == 1
            lying, count_lying = np.zeros(16, bool), int(rng.choice([9, 10] if across else [6, 7]))
            lying[rng.permutation(16)[:count_lying]] = True
            image = np.zeros((32, 32))
            for patch in range(16):
                top, left, phase = patch // 4 * 8, patch % 4 * 8, rng.integers(2)
                stripes = np.zeros((8, 8))
                stripes[phase::2] = 1
                image[top : top + 8, left : left + 8] = stripes if lying[patch] else stripes.T
            grey = 80 + 80 * image + rng.normal(0, 10, (32, 32))
            yield split, "h" if across else "v", number, np.repeat(grey[..., None], 3, 2)


def make(cifar: Path, photographs: Path, out: Path) -> None:
    """Write the five sets as image folders; the same arguments write the same images."""
    rng = np.random.default_rng(0)
    for name, drawn in (("colour", colour(rng)), ("majority", majority(rng))):
        for split, label, number, image in drawn:
            path = out / name / split / label / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    for name, classes in CIFAR_SETS.items():
        for label, count in classes.items():
            _copy(cifar, out / name, label, {"train": count, "test": CIFAR_TEST[name]})
    for label in sorted(path.name for path in (photographs / "train").iterdir())[:4]:
        _copy(photographs, out / "hundred", label, {"train": 20, "test": 5})


def _copy(source: Path, target: Path, label: str, counts: dict[str, int]) -> None:
    for split, count in counts.items():
        (target / split / label).mkdir(parents=True, exist_ok=True)
        for path in sorted((source / split / label).iterdir())[:count]:
            shutil.copy(path, target / split / label / path.name)


def table(out: Path, runs: list[Path]) -> None:
    """Write ``OUT/results.json`` and the table in ``OUT/README.md``."""
    rows = []
    for path in runs:
        run = RunFolder(path).require()
        stage = run.stages_done()[-1]
        found = {(row["method"], row["stage"]): row for row in run.results()["rows"]}
        ours, low, high = found["PatchDrop", stage], found["LR-CNN", "lr"], found["HR-CNN", "hr"]
        seconds = sum(run.stage_config(s)["seconds"] for s in run.stages_done())
        rows.append(
            {
                "data": run.data()["name"],
                "images": run.data()["images"],
                "stage": stage,
                "verdict": run.stage_config(stage)["verdict"]["sentence"],
                "accuracy": ours["accuracy"],
                "mean_patches": ours["mean_patches"],
                "lr_cnn": low["accuracy"],
                "hr_cnn": high["accuracy"],
                "n": ours["n"],
                "seconds": seconds,
                "trained": run.trained_by(),
            }
        )
    lines = [
        "| data | verdict | stage | accuracy % | S of 16 | LR-CNN | HR-CNN | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        percent = [f"{100 * row[name]:.1f}" for name in ("accuracy", "lr_cnn", "hr_cnn")]
        lines.append(
            f"| {row['data']} | {row['verdict']} | {row['stage']} | {percent[0]} | {row['mean_patches']:.2f} "
            f"| {percent[1]} | {percent[2]} | {row['seconds'] / 60:.0f} |"
        )
    machine = rows[0]["trained"][-1]["machine"]
    foot = f"Accuracies are on test images, the verdicts' on validation images; seed 0; {machine}."
    calls = [row["trained"][-1] for row in rows]
    commands = "\n".join(f"* `{call['command']}` at {call['commit'][:12]}" for call in calls)
    write_bytes(out / "README.md", "\n".join(["# verdicts", "", *lines, "", foot, "", commands, ""]).encode())
    write_bytes(out / "results.json", (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    verb, *paths = sys.argv[1:]
    if verb == "make":
        make(*map(Path, paths))
    else:
        table(Path(paths[0]), [Path(path) for path in paths[1:]])

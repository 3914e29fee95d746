"""What the dial keeps of its word on a trained run's test images.

    python benchmarks/dial.py RUN [--trained-for OTHER] [--budgets 1 2 4 6 8] [--splits 100]
                              [--json] [--out results/dial]

* Budgets: accuracy and S under ``--budget K``, under ``--budget K --threshold 0``, under ``--mean-budget K``, and with
  the threshold that ``calibrate --mean-budget K`` finds on the validation images; with the distance of the mean from K.
  ``--trained-for`` is a run of the same data with ``target_patches`` of its own; it is shown beside, by its own choice.
* The guarantee: test images are dealt at random to calibration and test, half and half, ``--splits`` times. Each time
  the cheapest point proved on one half is looked up, for several wanted accuracies, and counted as broken where its
  accuracy on all test images, or on the other half, is below the wanted one. At 95 % five in a hundred may be.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchdrop.compare.results import markdown_table
from patchdrop.data.load import load
from patchdrop.data.sets import Split
from patchdrop.episode import PatchDrop
from patchdrop.evaluation.calibrate import cuts_on, drawn, measure
from patchdrop.evaluation.dial import policy_scores, policy_stage
from patchdrop.evaluation.guarantee import p_values, proved, towards_cheaper
from patchdrop.evaluation.metrics import mcnemar
from patchdrop.evaluation.outcome import Outcome, outcome_of
from patchdrop.files import write_json
from patchdrop.models.compute import Compute
from patchdrop.policy.budget import ALL, above, at_most, cut_for_mean
from patchdrop.policy.choice import Choose, greedy
from patchdrop.runs.folder import RunFolder
from patchdrop.runs.provenance import provenance
from patchdrop.terminal.talk import errors_told
from patchdrop.training.recipe import Recipe

CONFIDENCE = 0.95
CPU = Compute(torch.device("cpu"))


def main(asked: argparse.Namespace) -> None:
    """Print the figures."""
    run = RunFolder(asked.run).require()
    settings = run.settings()
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    splits = load(Recipe.of(settings).source, lambda done, total: None).splits
    val, test = splits["val"], splits["test"]
    own = judged(run, test, greedy)
    document: dict[str, Any] = {
        "run": run.path.name,
        "images": len(test),
        "own": figures(own),
        "budgets": [row for patches in asked.budgets for row in budgets(run, val, test, patches)],
        "guarantee": guarantee(run, val, test, asked.splits),
        "provenance": provenance(settings.seed),
    }
    if asked.trained_for:
        other = RunFolder(asked.trained_for).require()
        wanted = round(other.settings().target_patches)
        if wanted < 1:
            sys.exit(f"{asked.trained_for}: was trained for no number of patches (target_patches)")
        theirs = judged(other, test, greedy)
        ours = {name: judged(run, test, choose) for name, choose in dials(run, val, test, wanted).items()}
        document["trained_for"] = {
            "patches": wanted,
            **figures(theirs),
            "ours": {name: {**figures(o), "p": mcnemar(o.right, theirs.right)} for name, o in ours.items()},
        }
    if asked.out:
        write_json(asked.out / "results.json", document)
        (asked.out / "README.md").write_text(markdown(document), encoding="utf-8")
    print(json.dumps(document, indent=2) if asked.json else text(document))


def judged(run: RunFolder, split: Split, choose: Choose) -> Outcome:
    """The run's last stage on a split, by that choice."""
    model, config = run.load(policy_stage(run))
    return outcome_of(model, config.shape, split, lambda scores, start: choose(scores), CPU)


def figures(outcome: Outcome) -> dict[str, float]:
    """Accuracy and mean S."""
    return {
        "accuracy": float(outcome.right.double().mean()),
        "mean_patches": float(outcome.choice.sum(1).double().mean()),
    }


def dials(run: RunFolder, val: Split, test: Split, patches: int) -> dict[str, Choose]:
    """At most so many patches an image, exactly so many, as many on average over the test images, and over val."""
    model, config = run.load(policy_stage(run))
    assert isinstance(model, PatchDrop)
    cuts = {
        name: cut_for_mean(policy_scores(model, config.shape.low, split, CPU), patches)
        for name, split in (("mean-budget", test), ("calibrated", val))
    }
    means = {name: partial(above, cut=cut) for name, cut in cuts.items()}
    exactly = partial(at_most, budget=patches, cut=ALL)
    return {"budget": partial(at_most, budget=patches), "budget, threshold 0": exactly, **means}


def budgets(run: RunFolder, val: Split, test: Split, patches: int) -> list[dict[str, Any]]:
    """A budget by each dial."""
    rows = []
    for name, choose in dials(run, val, test, patches).items():
        found = figures(judged(run, test, choose))
        rows.append({"dial": name, "patches": patches, **found, "off": found["mean_patches"] / patches - 1})
    return rows


def guarantee(run: RunFolder, val: Split, test: Split, times: int) -> list[dict[str, Any]]:
    """How often a proved accuracy is not had."""
    model, config = run.load(policy_stage(run))
    assert isinstance(model, PatchDrop)
    cuts = cuts_on(policy_scores(model, config.shape.low, val, CPU))
    order = towards_cheaper(measure(model, config, val, cuts, CPU, lambda done: None).accuracy)
    found = measure(model, config, test, cuts, CPU, lambda done: None)
    right, read = found.right, found.choice.sum(2).double().mean(1)
    top = float(right.double().mean(1).max())
    return [_broken(round(top - less, 3), order, right, read, times) for less in (0.01, 0.02, 0.03, 0.05)]


def _broken(wanted: float, order: list[int], right: Tensor, read: Tensor, times: int) -> dict[str, Any]:
    n, points, broken, broken_there = right.shape[1], [], 0, 0
    for seed in range(times):
        rest, held = drawn(n, 0.5, seed)
        passed = proved(p_values(right[:, held].sum(1), len(held), wanted), order, CONFIDENCE)
        if passed:
            point = passed[-1]
            points.append(point)
            broken += float(right[point].double().mean()) < wanted
            broken_there += float(right[point, rest].double().mean()) < wanted
    mean = float(read[points].mean()) if points else None
    return {
        "wanted": wanted,
        "splits": times,
        "proved": len(points),
        "mean_patches": mean,
        "broken_on_all": broken,
        "broken_on_other_half": broken_there,
    }


def text(document: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{document['run']}, {document['images']} test images", f"own choice: {_told(document['own'])}"]
    lines += [f"{r['dial']} {r['patches']}: {_told(r)} ({100 * r['off']:+.1f} %)" for r in document["budgets"]]
    if "trained_for" in document:
        other = document["trained_for"]
        ours = "; ".join(f"{name} {_told(row)}, p {row['p']:.2g}" for name, row in other["ours"].items())
        lines.append(f"trained for {other['patches']}: {_told(other)}; this run: {ours}")
    lines += [", ".join(f"{name} {value}" for name, value in row.items()) for row in document["guarantee"]]
    return "\n".join(lines)


def markdown(document: dict[str, Any]) -> str:
    """The page of ``--out``."""
    where = document["provenance"]
    budgets = [
        (r["dial"], r["patches"], f"{100 * r['accuracy']:.1f}", f"{r['mean_patches']:.2f}", f"{100 * r['off']:+.1f}")
        for r in document["budgets"]
    ]
    parts = [
        "# The dial",
        f"{document['images']} test images. By its own choice: {_told(document['own'])}.",
        markdown_table(("dial", "patches", "accuracy %", "S", "off %"), [list(map(str, row)) for row in budgets]),
        "`budget` is at most so many patches an image, of those that the policy would read; with `threshold 0` exactly "
        "so many; `mean-budget` so many on average over the test images; `calibrated` the threshold that `calibrate "
        "--mean-budget` finds on validation images.",
    ]
    if "trained_for" in document:
        other = document["trained_for"]
        ours = "; ".join(f"{name} {_told(row)} (p {row['p']:.2g})" for name, row in other["ours"].items())
        parts.append(f"A policy trained for {other['patches']} patches: {_told(other)}. This one: {ours}.")
    lines = [["" if v is None else f"{v:.4g}" for v in row.values()] for row in document["guarantee"]]
    parts += [
        "## The guarantee",
        "Test images are dealt to calibration and test, half and half; each time the cheapest point is taken that is "
        f"proved on one half with {100 * CONFIDENCE:.0f} % confidence. It is broken where its accuracy on all test "
        "images is below the wanted one. The other half is a small draw itself, and is below more often.",
        markdown_table([name.replace("_", " ") for name in document["guarantee"][0]], lines),
        f"`{where['command']}` at {where['commit']} on {where['machine']}, seed {where['seed']}",
    ]
    return "\n\n".join(parts) + "\n"


def _told(row: dict[str, Any]) -> str:
    return f"{100 * row['accuracy']:.2f} % at S {row['mean_patches']:.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--trained-for")
    parser.add_argument("--budgets", nargs="+", type=int, default=[1, 2, 4, 6, 8])
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path)
    with errors_told():
        main(parser.parse_args())

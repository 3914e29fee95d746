"""Write results/speed/README.md from the JSON that lies there.

    python scripts/publish_speed.py

| file | made by |
|---|---|
| bench.json | `patchdrop bench RUN --data aid150`, RUN of the profile `aid150-canvas` |
| paper-1.json | `benchmarks/sparse.py --paper --batch 1 --mix RESULTS.json pt`, RESULTS of the profile `canvas-paper` |
| paper-64.json | the same, `--batch 1 64`, of which 64 is shown: batch 1 met other work |
| gpu.json | `benchmarks/sparse.py --paper --device cuda` |
| cached*.json | `benchmarks/cached_pt.py RUN`, RUN with BagNet, at the commit that the file names; it is gone since |
| onnx-*.json | `benchmarks/onnx_episode.py RUN` |

What a figure should be stands beside it; nothing here is typed by hand but those limits, and gpu.json's provenance.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from patchdrop.files import read_json

RESULTS = Path(__file__).resolve().parent.parent / "results"
SPEED = RESULTS / "speed"
PLAIN = "HR-CNN"
OWN = {"bench": "episode, own choice", "paper": "canvas, as the run"}
"""How a file calls the episodes with the policy's own numbers of patches."""
NONE = {"bench": "episode, S = 0", "paper": "canvas, S = 0"}
"""And those that read nothing, which are policy and LR-CNN alone."""
RUNS = {"bench": "aid150-canvas", "paper": "canvas-paper"}
LIMITS = {"bench": 20, "paper": 8}
"""Of policy and LR-CNN, as a share of HR-CNN's time in percent."""
SAME = {1: 2.0, 64: 2.6}
PLAIN_LIMITS = {1: 1.5, 64: 2.0}
SHOWN = 10
"""Points of a curve of training, at most."""
Row = dict[str, Any]


def main() -> None:
    """Write the page."""
    found = {path.name: read_json(path) for path in sorted(SPEED.glob("*.json"))}
    parts = [
        "# Speed\n",
        against_plain(found),
        same_classifier(paper(found), "## The same classifier, S = 5 of 16 against all 16", SAME),
        same_classifier(found["gpu.json"], "## The same on a GPU", {}),
        cached([document for name, document in found.items() if name.startswith("cached")]),
        onnx([document for name, document in found.items() if name.startswith("onnx-")]),
        "## The dial\n\n[results/dial](../dial/README.md).\n",
        origins(found),
    ]
    (SPEED / "README.md").write_text("\n".join(parts), encoding="utf-8")


def paper(found: dict[str, Any]) -> dict[str, Any]:
    """Both files of the paper's size as one document."""
    documents = [(batch, found[f"paper-{batch}.json"]) for batch in (1, 64)]
    return {
        key: [part for batch, document in documents for part in document[key] if part["batch"] == batch]
        for key in ("rows", "lines")
    }


def against_plain(found: dict[str, Any]) -> str:
    """The policy's own choice against the plain HR network on whole images."""
    lines = [
        "## Against the plain HR-CNN\n",
        "Whole episodes of `canvas` with as many patches as the trained policy reads, policy and LR-CNN included; "
        "ResNet-50 at 224 px has the numbers of patches of its run, and time needs no trained weights. "
        "These policies read nearly every image whole or not at all: HR-CNN is saved where it does not run.\n",
        "| run | accuracy %, HR-CNN | PatchDrop | S of 16, of the images timed | batch | HR-CNN ms | PatchDrop ms "
        "| faster (wanted) | FLOPs of HR-CNN's (<= 0.45) | policy + LR-CNN % of HR-CNN (wanted) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in RUNS.items():
        rows = (paper(found) if name == "paper" else found[f"{name}.json"])["rows"]
        ours, plain = (accuracy(run, method) for method in ("PatchDrop", PLAIN))
        for batch in dict.fromkeys(row["batch"] for row in rows):
            of_batch = {row["way"]: row for row in rows if row["batch"] == batch}
            high, own, none = of_batch[PLAIN], of_batch[OWN[name]], of_batch[NONE[name]]
            wanted = f" ({PLAIN_LIMITS[batch]:g})" if batch in PLAIN_LIMITS else ""
            flops = own["flops_image"] / high["flops_image"]
            lines.append(
                f"| [{run}](../{run}/README.md) | {plain:.2f} | {ours:.2f} | {own['mean_patches']:.2f} | {batch} "
                f"| {high['ms_image']:.2f} | {own['ms_image']:.2f} | **{1 / own['to_plain']:.2f}**{wanted} "
                f"| {flops:.2f} | {100 * none['to_plain']:.0f} ({LIMITS[name]}) |"
            )
    return "\n".join(lines) + "\n"


def accuracy(run: str, method: str) -> float:
    """In percent, on the test split."""
    rows = read_json(RESULTS / run / "results.json")["rows"]
    return 100 * float(next(row for row in reversed(rows) if row["method"] == method)["accuracy"])


def same_classifier(document: dict[str, Any], title: str, wanted: dict[int, float]) -> str:
    """Each classifier against itself with every patch read, the line of time over S, and mixed batches."""
    lines = [
        f"{title}\n",
        "| classifier | batch | S = 16, ms an image | S = 5 | faster (wanted) | R2 of time over S = 1 .. 16 (0.98) "
        "| line at S = 0, ms | policy + LR-CNN, ms | mixed / even (1.10) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in document["lines"]:
        kind, batch = line["stage"], line["batch"]
        if kind == "masked":
            continue
        ways = {row["way"]: row["ms_image"] for row in document["rows"] if row["batch"] == batch}
        every, five, none = (ways[f"{kind}, S = {count}"] for count in (16, 5, 0))
        mixed = f"{ways[f'{kind}, mixed'] / ways[f'{kind}, even']:.2f}" if f"{kind}, mixed" in ways else ""
        limit = f" ({wanted[batch]:g})" if batch in wanted else ""
        lines.append(
            f"| {kind} | {batch} | {every:.2f} | {five:.2f} | **{every / five:.2f}**{limit} | {line['explained']:.3f} "
            f"| {line['ms_first']:.2f} | {none:.2f} | {mixed} |"
        )
    return "\n".join(lines) + "\n"


def cached(documents: list[dict[str, Any]]) -> str:
    """Pt on kept evidence against Pt through the network."""
    first = documents[0]
    lines = [
        "## Pt on kept evidence\n",
        f"BagNet on CIFAR-10 with LR-CNN beside it and the policy on LR-CNN's features (`bagnet-cifar10`), "
        f"{first['images']} training images; seconds of training ({first['clock']}) to a validation reward. "
        "A way's name ends in its estimator's.\n",
        "| way | seconds, reward and S |",
        "|---|---|",
    ]
    for document in documents:
        for way, points in document["curves"].items():
            step = math.ceil(len(points) / SHOWN)
            points = points[step - 1 :: step]
            told = ", ".join(f"{p['seconds']:.0f} s {p['reward']:.3f} ({p['patches']:.1f})" for p in points)
            lines.append(f"| {way} | {told} |")
    lines += ["\n| time to the slow way's best reward / time of the fast way to the same (wanted 15) | |", "|---|---|"]
    for document in documents:
        for pair, ratio in document["ratios"].items():
            lines.append(f"| {pair} | {'not reached' if ratio is None else f'**{ratio:.1f}**'} |")
    return "\n".join(lines) + "\n"


def onnx(documents: list[dict[str, Any]]) -> str:
    """ONNX Runtime against torch, one image at a time."""
    lines = [
        "## ONNX Runtime against torch, batch 1\n",
        "`bagnet` is the run of `bagnet-cifar10`, `masked` the profile `aid150`; `canvas` is the profile "
        "`aid150-canvas`, `patch-set` and `vit` are `aid150` with that classifier, each after an epoch on 360 images, "
        "as time needs no trained weights (`vit` in Pt, without LR-CNN).\n",
        "| classifier | S | torch ms | ONNX Runtime ms | ONNX / torch (<= 1) |",
        "|---|---|---|---|---|",
    ]
    for document in documents:
        for row in document["rows"]:
            lines.append(
                f"| {document['classifier']} | {row['patches']} | {row['torch_ms']:.2f} | {row['onnx_ms']:.2f} "
                f"| {row['ratio']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def origins(found: dict[str, Any]) -> str:
    """Command, commit and machine of each file."""
    lines = ["## Where it comes from\n", "| file | command | commit | machine | threads | rounds |"]
    lines.append("|---|---|---|---|---|---|")
    for name, document in found.items():
        where = document["provenance"]
        lines.append(
            f"| `{name}` | `{where['command']}` | {where['commit'][:12]} | {where['machine']} | {document['threads']} "
            f"| {document.get('rounds', '')} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

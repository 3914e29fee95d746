"""Copy what may be published to results/<name>: the table, its JSON and figures without anyone's images.

    python scripts/publish.py RUN results/demo [--gallery]
    python scripts/publish.py COMPARISON results/fmow-aid150

Takes the folder of a run or of a comparison. Draws the table of README.md anew, which must have a place for it: between
``<!-- results/demo -->`` and ``<!-- end -->``; of a run, with the yardsticks that the chart shows, all of them being in
results/<name>/README.md. ``--gallery`` copies the pictures of images too; only for data that may
be shown, such as the embedded images.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from patchdrop.compare.results import markdown_table
from patchdrop.files import read_json
from patchdrop.report.words import brief
from patchdrop.terminal import columns
from patchdrop.terminal.columns import Column

README = Path(__file__).resolve().parent.parent / "README.md"
FIGURES = ("accuracy.png", "forecast.png", "training-pt.png", "training-ft1.png", "training-ft2.png")
SHORT = tuple(c for c in columns.RESULTS if c not in (columns.SPREAD, columns.MASKS, columns.REWARD))
"""The columns of a table in README.md."""
COMPARISON = ("results.json", "compare.yaml", "table.csv", "accuracy.png")


def main(source: Path, out: Path, gallery: bool) -> None:
    """Write ``out`` from the results.json and figures of a run or a comparison."""
    place = f"<!-- results/{out.name} -->"
    if place not in README.read_text(encoding="utf-8"):
        sys.exit(f"README.md has no place for it: put {place} and <!-- end --> where the table is to stand")
    if not (source / "results.json").exists():
        sys.exit(f"{source}: has no results.json; give the folder of an evaluated run or a comparison")
    document = read_json(source / "results.json")
    if "table" in document:
        of_comparison(source, out, document)
    else:
        of_run(source, out, document, gallery)


def of_comparison(source: Path, out: Path, document: dict[str, Any]) -> None:
    """Its table as it stands, with where it comes from, and for the README the paper's form of it."""
    out.mkdir(parents=True, exist_ok=True)
    for name in COMPARISON:
        shutil.copy(source / name, out / name)
    where = document["provenance"]
    text = (source / "table.md").read_text(encoding="utf-8").rsplit("\n\n", 1)[0]
    origin = f"* evaluated by `{where['command']}` at {where['commit']} on {where['machine']}\n{_trained(where)}"
    seeds = ", ".join(str(seed) for seed in document["seeds"])
    more = f"* seed {seeds}\n* {_versions(where)}\n* settings: `compare.yaml`\n"
    (out / "README.md").write_text(f"{text}\n{origin}{more}", encoding="utf-8")
    first = document["tables"][0]
    into_readme(f"results/{out.name}", f"{markdown_table(first['header'], first['lines'])}\n\n{document['foot'][0]}\n")


def of_run(run: Path, out: Path, document: dict[str, Any], gallery: bool) -> None:
    """Every stage with its intervals and tests, under the verdict."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "settings.yaml"):
        shutil.copy(run / name, out / name)
    for name in (*FIGURES, *(("gallery.png",) if gallery else ())):
        if (run / "figures" / name).exists():
            shutil.copy(run / "figures" / name, out / name)
    verdict = document.get("verdict")
    said = "" if verdict is None else f"{verdict['sentence']} (Judged on {verdict['images']} validation images.)\n\n"
    table = markdown(document["rows"])
    (out / "README.md").write_text(f"# {out.name}\n\n{said}{table}\n{origin(document)}", encoding="utf-8")
    into_readme(f"results/{out.name}", markdown(brief(document["rows"]), SHORT))


def markdown(rows: list[dict[str, Any]], shown: tuple[Column, ...] = columns.RESULTS) -> str:
    """The table of some rows of a results document."""
    return markdown_table([c.name for c in shown], [[c.text(row) for c in shown] for row in rows]) + "\n"


def origin(document: dict[str, Any]) -> str:
    """Command, commit, machine, seed and times."""
    where = document["provenance"]
    seconds = ", ".join(f"{stage} {s:.0f} s" for stage, s in where.get("seconds", {}).items() if s is not None)
    return (
        "\np: exact McNemar test of the stage's PatchDrop against that row; p HR-CNN: of that row against HR-CNN; "
        f"P = {document['patches']}; n = {document['rows'][0]['n']} {document['split']} images of {document['data']}."
        "\n\n"
        f"* evaluated by `{where['command']}` at {where['commit']} on {where['machine']}\n{_trained(where)}"
        f"* seed {where['seed']}; time: {seconds}\n* {_versions(where)}\n* settings: `settings.yaml`\n"
    )


def _trained(where: dict[str, Any]) -> str:
    lines = [f"* trained by `{t['command']}` at {t['commit']} on {t['machine']}\n" for t in where.get("trained", ())]
    return "".join(dict.fromkeys(lines))


def _versions(where: dict[str, Any]) -> str:
    return ", ".join(f"{name} {v}" for name, v in where["versions"].items())


def into_readme(name: str, table: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- end -->``."""
    text = README.read_text(encoding="utf-8")
    place = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    README.write_text(place.sub(lambda m: f"{m[1]}{table}{m[2]}", text), encoding="utf-8")


if __name__ == "__main__":
    arguments = [a for a in sys.argv[1:] if a != "--gallery"]
    main(Path(arguments[0]), Path(arguments[1]), "--gallery" in sys.argv)

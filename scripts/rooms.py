"""The rooms of the package: which may import which, and a drawing of them with two walks through them.

    python scripts/rooms.py           # writes docs/rooms.svg

Names and what is said of a room come from its own first line, so the drawing is as old as the code; a test holds the
file in ``docs`` against what this script draws now.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "patchdrop"
DRAWING = ROOT / "docs" / "rooms.svg"

LAYERS: tuple[tuple[str, ...], ...] = (
    # From high to low. A room (a folder with all that is in it, or a module beside the folders) imports from lower
    # layers and from itself; rooms of one layer do not know each other.
    ("__main__",),
    ("cli",),
    ("commands", "scenes"),
    ("compare",),
    ("training", "serve"),
    ("evaluation", "report", "costs", "cluster"),
    ("runs",),
    ("models",),
    ("episode",),
    ("classify",),  # above policy: it enlarges LR as the policy does
    ("policy", "data", "tariffs"),
    ("read",),  # below data: labelled windows of scenes are read as serving reads them
    ("tiff",),
    ("transport",),
    ("networks", "packed", "files", "terminal"),
    ("settings",),
    ("grid",),
    ("errors", "version"),
)

Walk = Sequence[tuple[str, str]]
"""Functions of the package in the order in which they take part, and what each does."""
TRAINING: Walk = (
    ("cli.train", "flags become settings"),
    ("commands.runs.train", "the run's folder is held"),
    ("commands.shared.prepared", "what nobody named is filled in from the data; settings become values"),
    ("data.load.load", "images in splits"),
    ("training.run.train_stages", "stage after stage, each from where it was stopped"),
    ("training.loop.train", "epoch after epoch, saved and resumed to the bit"),
    ("training.loop.train_step", "one batch, one update"),
    ("training.ranking_stages.RankingTask.loss", "what a ranking policy learns from"),
    ("models.shared_pass.RankingModel.outputs", "policy and LR-CNN look at LR"),
    ("policy.ranking.drawn_order", "an order of the patches is drawn"),
    ("read.source.from_memory", "the first k of them are gathered from HR"),
    ("classify.two_stream.TwoStream.apart", "both streams say a class"),
    ("runs.folder.RunFolder.finish", "weights and figures of the finished stage"),
)
SERVING: Walk = (
    ("cli.predict", "flags, and the scenes that they name"),
    ("scenes.predict.predict", "scene after scene, those that are finished left alone"),
    ("scenes.model.Choosing", "run, stage and dial become a model that chooses"),
    ("scenes.walk.opened", "a scene with its header read"),
    ("transport.opening.open_transport", "bytes from a disk, a server, a store, or the cache"),
    ("tiff.directory.read_header", "where tiles lie"),
    ("read.tiled.TiledScene.look", "LR of a group of cells, from an overview"),
    ("scenes.walk.decide", "one choice a cell"),
    ("models.shared_pass.RankingModel.look", "patch logits and chances, LR-CNN runs once"),
    ("policy.choice.greedy", "the patches that are worth their price"),
    ("read.tiled.TiledScene.ask", "their tiles, and nothing else"),
    ("tiff.tiles.Tiles.windows", "tiles decoded to pixels"),
    ("classify.two_stream.TwoStream.join", "a class from what was read and what was seen"),
    ("scenes.outputs.outputs", "labels and places in files"),
)


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; a folder's ``__init__`` has the folder's name, the package's ''."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    """The room that a module lies in."""
    return module.split(".")[0]


def layer_of(module: str) -> int:
    """The number of its layer, 0 the highest."""
    return next(i for i, rooms in enumerate(LAYERS) if room_of(module) in rooms)


def imports(source: str, known: set[str]) -> Iterator[str]:
    """The package's own modules that a file imports, wherever in it; not what is only for type checkers."""
    for node in _runtime_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "patchdrop" or alias.name.startswith("patchdrop."):
                    yield alias.name.removeprefix("patchdrop").removeprefix(".")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full"
            name = node.module or ""
            if name == "patchdrop" or name.startswith("patchdrop."):
                below = name.removeprefix("patchdrop").removeprefix(".")
                for alias in node.names:
                    longer = f"{below}.{alias.name}".removeprefix(".")
                    yield longer if longer in known else below


def _runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield from _runtime_nodes(child)


def graph() -> dict[str, set[str]]:
    """Module -> modules that it imports."""
    known = modules()
    return {name: set(imports(path.read_text(encoding="utf-8"), set(known))) for name, path in known.items()}


def room_imports() -> dict[str, set[str]]:
    """Room -> rooms that it imports."""
    found: dict[str, set[str]] = {room: set() for rooms in LAYERS for room in rooms}
    for module, others in graph().items():
        if module:
            found[room_of(module)] |= {room_of(other) for other in others if other} - {room_of(module)}
    return found


def missing_steps(walk: Walk) -> list[str]:
    """Steps of a walk that are no function or method of the package, or that no step before them names."""
    known = modules()
    gone, read = [], ""
    for number, (step, _) in enumerate(walk):
        module = max((name for name in known if name and step.startswith(f"{name}.")), key=len, default="")
        text = known[module].read_text(encoding="utf-8") if module else ""
        names = step.removeprefix(f"{module}.").split(".")
        tree: ast.AST | None = ast.parse(text)
        for name in names:
            nodes = getattr(tree, "body", [])
            tree = next((node for node in nodes if getattr(node, "name", "") == name), None)
        called = number == 0 or re.search(rf"\b{names[-1]}\b", read)
        if tree is None or not called:
            gone.append(step)
        read += text
    return gone


def purpose(room: str) -> str:
    """The first sentence that a room's own docstring says of it."""
    path = SOURCE / room / "__init__.py" if (SOURCE / room).is_dir() else SOURCE / f"{room}.py"
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(said.split("\n\n")[0].split()).replace("``", "").replace("`", "")


WIDTH, MARGIN, GAP, ROW, TEXT = 1160, 20, 12, 84, 6.2
COLOURS = {"training": "#1f6feb", "serving": "#bf4b00"}


def draw() -> str:
    """The drawing as SVG: a row a layer, and the steps of both walks as numbers in the rooms where they are taken."""
    boxes, height = _boxes()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for room, (x, y, width) in boxes.items():
        parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{ROW - GAP}" rx="6" fill="#f6f8fa" stroke="#57606a"/>'
        )
        parts.append(f'<text x="{x + 10}" y="{y + 18}" font-size="14" font-weight="bold">{escape(room)}</text>')
        steps = max(sum(room_of(step) == room for step, _ in walk) for walk in (TRAINING, SERVING))
        lines = textwrap.wrap(purpose(room), int((width - 20 - 24 * steps) / TEXT), max_lines=3, placeholder=" ...")
        for number, line in enumerate(lines):
            parts.append(
                f'<text x="{x + 10}" y="{y + 35 + 14 * number}" font-size="11" fill="#24292f">{escape(line)}</text>'
            )
    for name, walk in (("training", TRAINING), ("serving", SERVING)):
        parts += _steps(walk, boxes, COLOURS[name], 0 if name == "training" else 1)
    parts.append(_legend(height))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _boxes() -> tuple[dict[str, tuple[int, int, int]], int]:
    """Room -> left, top and width; and the height of the whole."""
    found = {}
    rows = [rooms for rooms in LAYERS if rooms != ("__main__",)]
    for number, rooms in enumerate(rows):
        width = (WIDTH - 2 * MARGIN - GAP * (len(rooms) - 1)) // len(rooms)
        for place, room in enumerate(rooms):
            found[room] = (MARGIN + place * (width + GAP), MARGIN + number * ROW, width)
    return found, MARGIN + len(rows) * ROW + 30


def _steps(walk: Walk, boxes: dict[str, tuple[int, int, int]], colour: str, line: int) -> list[str]:
    """A walk's numbers, at the right end of the rooms where its steps are taken."""
    numbers: dict[str, list[int]] = {}
    for number, (step, _) in enumerate(walk, 1):
        numbers.setdefault(room_of(step), []).append(number)
    parts = []
    for room, taken in numbers.items():
        x, y, width = boxes[room]
        for place, number in enumerate(reversed(taken)):
            cx, cy = x + width - 16 - 24 * place, y + 16 + 26 * line
            parts.append(f'<circle cx="{cx}" cy="{cy}" r="10" fill="{colour}"/>')
            parts.append(
                f'<text x="{cx}" y="{cy + 4}" font-size="11" fill="#ffffff" text-anchor="middle">{number}</text>'
            )
    return parts


def _legend(height: int) -> str:
    said = (("training", "one image in training"), ("serving", "one scene in serving"))
    parts = []
    for place, (name, text) in enumerate(said):
        x, y = MARGIN + 10 + 240 * place, height - 18
        parts.append(f'<circle cx="{x}" cy="{y}" r="10" fill="{COLOURS[name]}"/>')
        parts.append(f'<text x="{x + 18}" y="{y + 4}" font-size="12">{escape(text)}</text>')
    return "\n".join(parts)


if __name__ == "__main__":
    DRAWING.write_text(draw(), encoding="utf-8")

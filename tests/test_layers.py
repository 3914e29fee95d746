"""Imports go one way, and the page on the architecture shows how; the contract is in `scripts/rooms.py`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import patchdrop
from patchdrop.settings.combinations import COMBINATIONS

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import rooms

ALWAYS_FREE_OF_TORCH = (
    "settings.flat",
    "settings.combinations",
    "settings.comparison",
    "settings.config_file",
    "settings.defaults",
    "settings.machine",
    "settings.dial",
    "errors",
    "version",
    "cli",
    "__main__",
    "terminal.tables",
    "terminal.talk",
    "tariffs.tariff",
)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return rooms.graph()


def test_every_part_has_its_layer_and_every_layer_its_parts(graph: dict[str, set[str]]) -> None:
    named = [part for parts in rooms.LAYERS for part in parts]
    assert len(named) == len(set(named))
    assert {rooms.room_of(module) for module in graph if module} == set(named)


def test_every_import_goes_to_a_lower_layer_or_stays_in_its_part(graph: dict[str, set[str]]) -> None:
    wrong = [
        f"{module or 'patchdrop'} imports {other or 'patchdrop'}"
        for module, others in graph.items()
        for other in others
        if module
        and rooms.room_of(module) != rooms.room_of(other)
        and (not other or rooms.layer_of(module) >= rooms.layer_of(other))
    ]
    assert wrong == []


def test_the_package_itself_imports_only_the_lowest_layers(graph: dict[str, set[str]]) -> None:
    assert graph[""] <= {"settings.flat", "version"}


def test_no_module_imports_itself_by_way_of_others(graph: dict[str, set[str]]) -> None:
    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += graph.get(module, ())
        return seen

    assert [module for module in graph if module and module in reached(module)] == []


def test_the_walk_sees_imports_at_the_top_in_functions_and_of_modules(graph: dict[str, set[str]]) -> None:
    source = (
        "from __future__ import annotations\nimport torch\nfrom patchdrop.grid import Grid\n"
        "from patchdrop import commands\nimport patchdrop.files\n"
        "if TYPE_CHECKING:\n    from patchdrop.episode import PatchDrop\n"
        "def f():\n    from patchdrop.training import loop\n"
    )
    assert set(rooms.imports(source, set(graph))) == {"grid", "commands", "files", "training.loop"}
    assert graph["cli"] >= {"commands", "terminal.tables", "errors", "settings.flat"}


@pytest.mark.parametrize("module", ALWAYS_FREE_OF_TORCH)
def test_what_answers_at_once_does_not_import_torch_at_its_top(module: str) -> None:
    tree = ast.parse(rooms.modules()[module].read_text(encoding="utf-8"))
    names = {
        name.split(".")[0]
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert names.isdisjoint({"torch", "timm", "torchvision", "numpy", "matplotlib", "sklearn", "safetensors"})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--help"], "Usage: patchdrop"),
        (["--version"], patchdrop.__version__),
        (["train", "--help"], "--target-patches"),
        (["train", "--no-such-flag", "--out", "x"], ""),
    ],
)
def test_help_and_mistyped_flags_are_answered_without_torch(arguments: list[str], says: str) -> None:
    code = (
        "import sys\nfrom patchdrop.cli import main\n"
        f"main({arguments!r})\n"
        "heavy = {'torch', 'timm', 'numpy', 'matplotlib', 'sklearn', 'PIL'} & set(sys.modules)\n"
        "print(f'heavy: {sorted(heavy)}')\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert says in found.stdout
    assert found.stdout.rstrip().endswith("heavy: []")


def test_importing_the_package_and_its_settings_does_not_import_torch() -> None:
    code = (
        "import sys, patchdrop, patchdrop.settings.flat, patchdrop.errors\n"
        "patchdrop.TrainSettings(); patchdrop.settings.flat.read_profile('demo')\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_scenes_and_our_own_networks_need_neither_timm_nor_torchvision_nor_matplotlib() -> None:
    code = (
        "import sys, torch\nfrom patchdrop.grid import Grid, Shape\n"
        "from patchdrop.networks.build import Normalise, build, folded\n"
        "import patchdrop.scenes.plan, patchdrop.scenes.predict, patchdrop.models.build\n"
        "from patchdrop.report import theme\n"
        "from patchdrop.classify.canvas import CanvasCNN\nfrom patchdrop.classify.high import Spec\n"
        "shape, normalise = Shape((32, 32), (8, 8), Grid(2, 2), 3), Normalise(torch.zeros(3), torch.ones(3))\n"
        "CanvasCNN(Spec('resnet8-w4', 3, shape, normalise))\n"
        "folded(build('resnet50-w4-d', 3)); theme.font(12)\n"
        "print(sorted({'timm', 'torchvision', 'matplotlib', 'sklearn'} & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.rstrip() == "[]"


def test_every_name_the_package_offers_exists_and_no_other_does() -> None:
    for name in patchdrop.__all__:
        assert getattr(patchdrop, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        patchdrop.nothing  # noqa: B018


def test_a_room_says_in_its_own_words_which_rooms_it_may_import() -> None:
    found = rooms.room_imports()
    for room in (part for parts in rooms.LAYERS for part in parts):
        if not (rooms.SOURCE / room).is_dir():
            continue
        said = " ".join((rooms.SOURCE / room / "__init__.py").read_text(encoding="utf-8").split())
        named = re.search(r"May import (.*?)\.(?: |$|\"\"\")", said)
        assert named, room
        if "everything" in named[1] or "below" in named[1]:
            continue
        missing = {other for other in found[room] - {"errors"} if f"`{other}`" not in named[1]}
        assert not missing, f"{room} imports {sorted(missing)}"


def test_the_drawing_and_the_walks_are_those_of_the_code() -> None:
    assert rooms.DRAWING.read_text(encoding="utf-8") == rooms.draw(), "run python scripts/rooms.py"
    page = (rooms.ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for walk in (rooms.TRAINING, rooms.SERVING):
        assert rooms.missing_steps(walk) == []
        assert all(f"{number}. `{step}`: {what}" in page for number, (step, what) in enumerate(walk, 1))
    assert rooms.missing_steps((("cli.train", ""), ("cli.no_such", ""), ("packed.gather", ""))) != []


def test_the_page_on_settings_shows_what_goes_together() -> None:
    page = (rooms.ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    listed = [line.removeprefix("* ") for line in page.splitlines() if line.startswith("* ")]
    assert listed == [combination.rule for combination in COMBINATIONS]


def test_only_the_door_takes_the_whole_of_the_settings() -> None:
    """A room takes the value that it needs; whoever takes all of them stands at the door."""
    door = {"cli", "commands", "settings", "training.recipe"}
    takers = []
    for module, path in rooms.modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if any("TrainSettings" in ast.unparse(a.annotation) for a in given if a.annotation is not None):
                    takers.append((module, node.name))
    outside = [taker for taker in takers if taker[0] not in door and rooms.room_of(taker[0]) not in door]
    assert outside == []
    assert len({name for module, name in takers if module != "cli"}) <= 9


def test_text_becomes_sizes_grids_and_tariffs_in_few_places() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in rooms.modules().values())
    calls = {name: len(re.findall(rf"(?<!def ){re.escape(name)}\(", sources)) for name in ("Grid.parse", "size_of")}
    assert calls == {"Grid.parse": 1, "size_of": 1}
    # The command line reads the tariff of scenes, `calibrate` the one that prices masks.
    assert len(re.findall(r"(?<!def )read_tariff\(", sources)) == 2


def test_at_most_eight_modules_lie_beside_the_rooms() -> None:
    beside = {path.name for path in rooms.SOURCE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert "episode.py" in beside
    assert len(beside) <= 8


def retired() -> set[str]:
    """The names in the first column of the page's table of names."""
    page = (rooms.ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Names")[2]
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    return set(re.findall(r"`(\w+)`", " ".join(rows)))


def names_in(path: Path) -> set[str]:
    """The names that a module uses or defines, and its own."""
    return {path.stem}.union(
        *(
            {getattr(node, attribute, None) for attribute in ("id", "attr", "arg", "name", "module")}
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    )


def test_retired_names_do_not_come_back() -> None:
    assert {"opinion", "Outlook", "sights", "give_way"} <= retired()
    back = {module: names_in(path) & retired() for module, path in rooms.modules().items()}
    assert {module: names for module, names in back.items() if names} == {}
    pages = [path for path in (rooms.ROOT / "docs").glob("*.md") if path.stem != "architecture"]
    assert [(page.name, name) for page in pages for name in retired() if f"`{name}`" in page.read_text("utf-8")] == []


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{module}.{node.name}"
        for module, path in rooms.modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and module != "cli" and _lines(node) > 50
    ]
    assert long == []


def _lines(node: ast.FunctionDef) -> int:
    """Lines of a function, its docstring left out."""
    first = node.body[0]
    said = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if said else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring

"""Imports go one way. The contract is `LAYERS`; the reasons are in the documentation's page on the architecture."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import patchdrop

SOURCE = Path(patchdrop.__file__).parent

LAYERS: list[tuple[str, ...]] = [
    # From high to low. A part (a module, or a folder with all that is in it) imports from lower layers and from
    # itself; parts of one layer do not know each other.
    ("__main__",),
    ("cli",),
    ("commands", "scenes"),
    ("compare",),
    ("serve", "training"),
    ("report", "evaluation", "costs"),
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
]
ALWAYS_FREE_OF_TORCH = (
    "settings.flat",
    "settings.combinations",
    "settings.comparison",
    "settings.config_file",
    "settings.defaults",
    "settings.dial",
    "errors",
    "version",
    "cli",
    "__main__",
    "terminal.tables",
    "terminal.talk",
    "tariffs.tariff",
)


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; a folder's ``__init__`` has the folder's name, the package's ''."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def part_of(module: str) -> str:
    return module.split(".")[0]


def layer_of(module: str) -> int:
    return next(i for i, parts in enumerate(LAYERS) if part_of(module) in parts)


def imports(source: str, known: set[str]) -> Iterator[str]:
    """The package's own modules that a file imports, wherever in it; not what is only for type checkers."""
    for node in runtime_nodes(ast.parse(source)):
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


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield from runtime_nodes(child)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: set(imports(path.read_text(encoding="utf-8"), set(known))) for name, path in known.items()}


def test_every_part_has_its_layer_and_every_layer_its_parts(graph: dict[str, set[str]]) -> None:
    named = [part for parts in LAYERS for part in parts]
    assert len(named) == len(set(named))
    assert {part_of(module) for module in graph if module} == set(named)


def test_every_import_goes_to_a_lower_layer_or_stays_in_its_part(graph: dict[str, set[str]]) -> None:
    wrong = [
        f"{module or 'patchdrop'} imports {other or 'patchdrop'}"
        for module, others in graph.items()
        for other in others
        if module and part_of(module) != part_of(other) and (not other or layer_of(module) >= layer_of(other))
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
    assert set(imports(source, set(graph))) == {"grid", "commands", "files", "training.loop"}
    assert graph["cli"] >= {"commands", "terminal.tables", "errors", "settings.flat"}


@pytest.mark.parametrize("module", ALWAYS_FREE_OF_TORCH)
def test_what_answers_at_once_does_not_import_torch_at_its_top(module: str) -> None:
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
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
        "import sys, torch\nfrom patchdrop.grid import Grid\n"
        "from patchdrop.networks.build import Normalise, build, folded\n"
        "import patchdrop.scenes.plan, patchdrop.scenes.predict, patchdrop.models.build\n"
        "from patchdrop.report import theme\n"
        "from patchdrop.classify.canvas import CanvasCNN\n"
        "CanvasCNN('resnet8-w4', 3, Grid(2, 2), (32, 32), Normalise(torch.zeros(3), torch.ones(3)))\n"
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

"""What the README tells a newcomer to type works as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchdrop.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [body for name, body in fenced if name == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README's reader has it: photos/{train,test}/<class>/ and two loose images."""
    root = tmp_path_factory.mktemp("reader")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for index, name in enumerate(("cat", "dog")):
            (root / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 128, (32, 32, 3)) + 100 * index
                Image.fromarray(pixels.astype(np.uint8)).save(root / "photos" / split / name / f"{i}.jpg")
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(rng.integers(0, 255, (100, 140, 3)).astype(np.uint8)).save(root / name)
    return root


def test_every_command_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    lines = [line for block in blocks("") for line in block.splitlines() if "patchdrop " in line]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line)[1:]
        expanded = [str(p) for w in words for p in (sorted(Path(".").glob(w)) if "*" in w else [w])]
        assert main(expanded) == 0, line
        assert capsys.readouterr().out
    assert len(list((folder / "pictures").glob("*.png"))) == 3
    assert (folder / "runs" / "photos" / "report.html").exists()


def test_the_lines_of_python_run_after_the_commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["a.jpg", "b.jpg"]
    assert all(line.split()[1] in ("cat", "dog") for line in printed)


def test_the_make_targets_it_names_exist() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"^`?make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)


def test_every_file_of_its_tree_and_every_link_exists() -> None:
    root = Path(__file__).parent.parent
    tree = next(block for block in blocks("") if block.startswith("src/patchdrop/"))
    names = [line.split()[0] for line in tree.splitlines()[1:]]
    assert [name for name in names if not (root / "src/patchdrop" / name).exists()] == []
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert [link for link in links if not (root / link).exists()] == []

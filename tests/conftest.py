"""One thread for every test: the same bits everywhere, and no fight for the cores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from patchdrop.cli import app, main
from untrained import untrained_run

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Leave out the long tests where nothing was asked with ``-m``."""
    config.option.markexpr = config.option.markexpr or "not long"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with small networks that were not trained."""
    return untrained_run(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in this process: exit code, stdout, stderr."""

    def of(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        app.config = ()
        code = main([str(a) for a in arguments])
        found = capsys.readouterr()
        return code, found.out, found.err

    return of

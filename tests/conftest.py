"""One thread for every test: the same bits everywhere, and no fight for the cores."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from patchdrop.cli import app, main

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Leave out the long tests where nothing was asked with ``-m``."""
    config.option.markexpr = config.option.markexpr or "not long"


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

"""One thread for every test: the same bits everywhere, and no fight for the cores."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Leave out the long tests where nothing was asked with ``-m``."""
    config.option.markexpr = config.option.markexpr or "not long"

"""One thread for every test: the same bits everywhere, and no fight for the cores."""

from __future__ import annotations

import torch

torch.set_num_threads(1)

"""A run without training, and commands in processes that can be killed, for tests of what is done with a run."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from patchdrop.cli import main
from patchdrop.models.build import build_stage
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.flat import TrainSettings
from tiny import config_of, tiny_settings, unsettle

SETTINGS = tiny_settings(high="64", low="16", policy_head="global")


def untrained_run(path: Path, settings: TrainSettings = SETTINGS, stages: tuple[str, ...] = ("pt", "ft2")) -> Path:
    """Random networks that choose, and see, something different in each cell."""
    folder = RunFolder(path)
    folder.start(settings.to_mapping())
    config = config_of(settings)
    for seed, stage in enumerate(stages):
        torch.manual_seed(seed)
        module = unsettle(build_stage(stage, config), seed)
        for name, tensor in module.state_dict().items():
            if name.endswith(("normalise.mean", "normalise.std")):
                tensor.fill_(100.0 if name.endswith("mean") else 50.0)
        folder.finish(stage, module, config, {"figures": {}, "seconds": 0.0})
    return folder.path


def command(arguments: list[str], errors: Path) -> None:
    """A process's target: the command line, its stderr in a file."""
    # A shell starts what runs in its background with SIGINT ignored, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with errors.open("w") as file:
        os.dup2(file.fileno(), 2)
    sys.exit(main(arguments))

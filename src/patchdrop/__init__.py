"""PatchDrop: learn when and where to zoom (Uzkent & Ermon, CVPR 2020).

    import patchdrop
    settings = patchdrop.TrainSettings(data="photos", high="128", low="32")
    patchdrop.train(settings, "runs/photos")
    for p in patchdrop.Predictor("runs/photos").predict(["a.jpg", "b.jpg"]):
        print(p.path, p.label, p.probability, p.patches, p.hr_fraction)

Names are imported on first use, so that the command line can answer ``--help`` without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from patchdrop.settings.flat import TrainSettings
from patchdrop.version import VERSION as __version__

if TYPE_CHECKING:
    from patchdrop.commands import bench, calibrate, evaluate, train
    from patchdrop.serve.predictor import Prediction, Predictor
    from patchdrop.settings.dial import Dial, Target
    from patchdrop.settings.machine import Machine

_HOMES = {
    "Dial": "patchdrop.settings.dial",
    "Target": "patchdrop.settings.dial",
    "Machine": "patchdrop.settings.machine",
    "bench": "patchdrop.commands",
    "calibrate": "patchdrop.commands",
    "train": "patchdrop.commands",
    "evaluate": "patchdrop.commands",
    "Predictor": "patchdrop.serve.predictor",
    "Prediction": "patchdrop.serve.predictor",
}

__all__ = [
    "Dial",
    "Machine",
    "Prediction",
    "Predictor",
    "Target",
    "TrainSettings",
    "__version__",
    "bench",
    "calibrate",
    "evaluate",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'patchdrop' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

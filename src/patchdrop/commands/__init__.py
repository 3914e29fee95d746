"""Provide a function for each command; together these functions are also the Python API.

May import everything but `cli`.
"""

from __future__ import annotations

from patchdrop.commands.calibrating import calibrate
from patchdrop.commands.comparing import compare, compare_list
from patchdrop.commands.exporting import export
from patchdrop.commands.planning import plan
from patchdrop.commands.predicting import predict, predict_into
from patchdrop.commands.runs import evaluate, info, train
from patchdrop.commands.timing import bench

__all__ = [
    "bench",
    "calibrate",
    "compare",
    "compare_list",
    "evaluate",
    "export",
    "info",
    "plan",
    "predict",
    "predict_into",
    "train",
]

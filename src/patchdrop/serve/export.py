"""Export a policy and its classifier as two ONNX graphs, and check that they compute what torch computes.

The graphs hold the networks with their normalisation, nothing else: choosing, reading and cropping are up to whoever
runs them. A classifier needs no code of its own to be exported, as long as `torch.export` can follow it; one that
branches on data asks ``torch.compiler.is_exporting()``, as `TwoStream` and `SparseClassifier.in_a_graph` do.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from patchdrop.classify.high import HighClassifier
from patchdrop.classify.two_stream import TwoStream
from patchdrop.episode import Look, PatchDrop, play
from patchdrop.errors import RunError, UsageError, first_line
from patchdrop.grid import Grid, patch_size
from patchdrop.models.build import ModelConfig
from patchdrop.packed import Packed
from patchdrop.policy.choice import Choose, greedy, keep_all
from patchdrop.read.source import from_memory

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Largest difference of a logit that passes the check if no logit of the batch is above 10 in size ..."""
RELATIVE = 1e-5
"""... and as a share of the largest logit if one is: float32 rounds in proportion."""
BATCHES = (1, 2, 7)
"""Images per batch in the check."""
REMEDY = "nothing is exported; use another network, or other versions of torch and onnxruntime"
BATCH, PATCHES = "batch", "patches"
"""The two sizes that a graph leaves open: the number of images, and of chosen patches of all of them."""


class Graphs(NamedTuple):
    """Two ONNX files."""

    policy: bytes
    """Maps ``low (batch, C, h, w)`` uint8 to ``scores (batch, P)``, the patch logits."""
    classifier: bytes
    """Maps the fields of `Packed`, and ``low``, to ``logits (batch, K)``.

    These are ``pixels (patches, C, p, q)`` uint8, ``image`` and ``patch (patches,)`` int64; the batch is ``low``'s.
    """


def check_packages() -> None:
    """Raise UsageError if a package that is needed to export is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UsageError(f"export: needs {', '.join(missing)}; install with `pip install 'patchdrop[onnx]'`")


def to_graphs(model: PatchDrop, config: ModelConfig) -> Graphs:
    """Export the model, in evaluation mode on the CPU, as ONNX graphs without a trace of where they were made.

    Raises:
        RunError: a network cannot be written as a graph.
    """
    assert isinstance(model.classifier, (HighClassifier, TwoStream))
    low = torch.zeros(3, config.shape.channels, *config.shape.low, dtype=torch.uint8)
    grid = config.shape.grid
    order = torch.arange(5)
    pixels = torch.zeros(len(order), config.shape.channels, *patch_size(grid, *config.shape.high), dtype=torch.uint8)
    packed = {"pixels": pixels, "image": order % len(low), "patch": order % grid.patches, "low": low}
    return Graphs(
        _to_graph(_Scores(model), {"low": low}, "scores", f"policy {config.policy_network}"),
        _to_graph(_OnTensors(model.classifier), packed, "logits", f"classifier {config.classifier}"),
    )


class _Scores(nn.Module):
    """A module that maps LR to patch logits, with all networks that the policy uses."""

    def __init__(self, model: PatchDrop) -> None:
        super().__init__()
        self.model = model

    def forward(self, low: Tensor) -> Tensor:
        return self.model.look(low).scores


class _OnTensors(nn.Module):
    """A module that calls a classifier with the fields of `Packed` one by one."""

    def __init__(self, classifier: HighClassifier | TwoStream) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor, image: Tensor, patch: Tensor, low: Tensor) -> Tensor:
        packed = Packed(pixels, image, patch, low.shape[0])
        logits: Tensor = self.classifier(packed, low)
        return logits


def _to_graph(network: nn.Module, inputs: dict[str, Tensor], output: str, name: str) -> bytes:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    open_sizes = tuple({0: BATCH if key == "low" else PATCHES} for key in inputs)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                network.eval(),
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=open_sizes,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            assert program is not None
            ClearMetadataAndDocStringPass()(program.model)  # lines of this program's source, with their paths
            return bytes(program.model_proto.SerializeToString())
    except Exception as error:  # whatever the exporter ran into, with the reason it names first
        reason = first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise RunError(f"{name}: cannot be written as an ONNX graph ({reason}); use another network") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: its remarks are about its own internals, and stderr is for what a user can act on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Runtime:
    """The graphs under ONNX Runtime, in the form of `play`'s policy and classifier. Tensors are on the CPU.

    Args:
        threads: threads of each graph.
    """

    def __init__(self, graphs: Graphs, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only, which it raises as well
        self._policy, self._classifier = (
            onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]) for graph in graphs
        )

    def look(self, low: Tensor) -> Look:
        """Map LR pixels ``(B, C, h, w)`` to patch logits ``(B, P)``, and return the classifier with them."""
        return Look(_run(self._policy, {"low": low}), None, self.classify)

    def classify(self, packed: Packed, low: Tensor) -> Tensor:
        """Map packed patches and LR to class logits ``(B, K)``."""
        fields = {"pixels": packed.pixels, "image": packed.image, "patch": packed.patch, "low": low}
        return _run(self._classifier, fields)


def _run(session: Any, inputs: dict[str, Tensor]) -> Tensor:
    (found,) = session.run(None, {name: tensor.contiguous().numpy() for name, tensor in inputs.items()})
    return torch.from_numpy(found)


def interface(graph: bytes) -> dict[str, Any]:
    """Describe a graph by plain values: opset, and name, type and shape of inputs and outputs.

    A size that is left open has a name, `BATCH` or `PATCHES`, instead of a number.
    """
    import onnx

    model = onnx.load_from_string(graph)
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    return {"opset": opset, "inputs": _values(model.graph.input), "outputs": _values(model.graph.output)}


def _values(found: Iterable[Any]) -> list[dict[str, Any]]:
    import onnx

    return [
        {
            "name": value.name,
            "type": onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            "shape": [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim],
        }
        for value in found
    ]


def check(model: PatchDrop, runtime: Runtime, grid: Grid, high: Tensor, low: Tensor) -> dict[str, float]:
    """Compare ONNX Runtime with torch on batches of `BATCHES` images, of which no, some or all patches are chosen.

    Args:
        high: ``(n, C, H, W)`` uint8, as many images as the largest batch, or more.
        low: ``(n, C, h, w)`` uint8.

    Returns:
        Largest absolute difference of the patch logits, ``scores``, and of the class logits, ``logits``.

    Raises:
        RunError: a logit differs by more than `TOLERANCE` allows, or the policy's own choice by a patch.
    """
    choices: dict[str, Choose] = {"own choice": greedy, "no patch": _none, "some patches": _some, "all": keep_all}
    worst = {"scores": 0.0, "logits": 0.0}
    for size in BATCHES:
        for name, choose in choices.items():
            where = f"a batch of {size}, {name}"
            read = from_memory(high[:size], grid)
            with torch.inference_mode():
                ours = model(low[:size], choose, read)
            try:
                theirs = play(runtime.look, choose, read, low[:size])
            except Exception as error:  # ONNX Runtime's own, of many kinds
                raise RunError(f"{where}: ONNX Runtime fails ({first_line(error)}); {REMEDY}") from error
            if not torch.equal(ours.choice, theirs.choice):
                raise RunError(f"{where}: ONNX Runtime chooses other patches than torch; {REMEDY}")
            for key in worst:
                worst[key] = max(worst[key], _difference(getattr(ours, key), getattr(theirs, key), f"{where}: {key}"))
    return worst


def _difference(ours: Tensor, theirs: Tensor, what: str) -> float:
    if ours.shape != theirs.shape:
        raise RunError(f"{what} are {list(theirs.shape)} in ONNX Runtime and {list(ours.shape)} in torch; {REMEDY}")
    found = float((ours - theirs).abs().max())
    allowed = max(TOLERANCE, RELATIVE * float(ours.abs().max()))
    if not found <= allowed:  # also where it is not a number
        raise RunError(f"{what} differ by {found:.2g} from torch's, more than {allowed:.2g}; {REMEDY}")
    return found


def _none(scores: Tensor) -> Tensor:
    return torch.zeros_like(scores, dtype=torch.bool)


def _some(scores: Tensor) -> Tensor:
    """Choose every third patch of every second image, and none of the others."""
    images, patches = (torch.arange(length) for length in scores.shape)
    return (images % 2 == 0)[:, None] & (patches % 3 == 0)[None, :]

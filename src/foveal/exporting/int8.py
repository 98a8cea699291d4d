"""Eight bits instead of thirty-two: a core whose layers compute in whole numbers, by static quantisation.

Scales and offsets of what flows between the layers are fixed by running calibration images through the network
(Jacob et al. 2018). What is quantised is chosen by what it gives: layers with weights over many places, and what
stands between them. Everything else stays in float32.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from foveal.errors import ExportError
from foveal.exporting.cores import SQUARE, Core
from foveal.extras import require

if TYPE_CHECKING:
    import onnx

MIN_CALIBRATION_IMAGES = 16
_BATCH_SIZE = 8
_WEIGHTED = frozenset(("Conv", "Gemm", "MatMul"))
_POOLING = frozenset(("ReduceMean", "ReduceMax", "GlobalAveragePool", "GlobalMaxPool"))
_PASSING = frozenset(("MaxPool", "Relu", "Clip"))
"""What gives some of its input values on, so that whole numbers go through it."""


def quantise(core: Core, squares: NDArray[np.uint8]) -> Core:
    """The same network in whole numbers of eight bits.

    Weights are int8 with a scale for each output channel, activations uint8 with a scale and an offset for each tensor:
    the pair that x86 has instructions for. Weights use seven of their eight bits: without VNNI two products of bytes
    are added up in sixteen bits, which full weights overflow; so the file gives the same answer with and without.

    Args:
        core: in float32.
        squares: uint8 [n, side, side, 3], calibration images as the network will see them; never test images.

    Raises:
        ExportError: there are too few images, or the network has nothing to quantise.
        MissingExtraError: the export libraries are not installed.
    """
    require("onnx", extra="export", purpose="quantise a model")
    require("onnxruntime", extra="export", purpose="quantise a model")
    if len(squares) < MIN_CALIBRATION_IMAGES:
        raise ExportError(
            f"Quantisation fixes its scales on at least {MIN_CALIBRATION_IMAGES} images, and {len(squares)} came.",
            fix="give the data that the model was trained on, or export without --int8.",
        )
    with tempfile.TemporaryDirectory(prefix="foveal-int8-") as folder:
        model = _quantised(core.model, squares, Path(folder))
    return Core(model, core.has_heatmap, core.heatmap_reason)


def _quantised(model: "onnx.ModelProto", squares: NDArray[np.uint8], folder: Path) -> "onnx.ModelProto":
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quant_pre_process, quantize_static

    # Symbolic shape inference would leave a file in the working folder where it fails, and nothing here needs it.
    # By files, because both functions change a model that they are handed.
    onnx.save(model, folder / "float.onnx")
    quant_pre_process(folder / "float.onnx", folder / "prepared.onnx", skip_symbolic_shape=True)
    prepared = onnx.load(folder / "prepared.onnx")
    names = nodes_to_quantise(prepared)
    if not names:
        raise ExportError("The network has no layer that could be quantised.", fix="export without --int8.")
    quantize_static(
        folder / "prepared.onnx",
        folder / "quantised.onnx",
        _Reader(squares),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=names,
        calibrate_method=CalibrationMethod.MinMax,
        # The mean over the batches of their extremes, not the extremes of all: one odd image would stretch the steps
        # of all others. On nets with SiLU or hard swish this halves what quantisation changes.
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"], "CalibMovingAverage": True},
    )
    found = onnx.load(folder / "quantised.onnx")
    del found.metadata_props[:]
    del found.graph.value_info[:]
    onnx.checker.check_model(found, full_check=True)
    return found


def nodes_to_quantise(model: "onnx.ModelProto") -> list[str]:
    """Names of the nodes that are worth computing in whole numbers.

    Layers with constant weights, but for
    - the last of them before each output: they cost next to nothing, and their errors are those of the answer;
    - the gates of squeeze-and-excitation (Hu et al. 2018): one place only, so they cost next to nothing too, and one
      error of theirs is spread over a whole channel.
    Then what adds up or passes on what such layers give. Not Sigmoid, SiLU, GELU, Softmax, normalisations and the sums
    of transformers, whose values are spread too widely for 256 steps.

    Args:
        model: its nodes named, in their order.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    left = _last_layers(graph, makers, constants) | _gates(graph, makers, constants)
    chosen: set[str] = set()
    for node in graph.node:
        sources = [makers[name] for name in node.input if name in makers]
        have_all = len(sources) == len(node.input)
        if _has_weights(node, constants):
            is_chosen = node.name not in left
        elif node.op_type in _PASSING:
            is_chosen = bool(sources) and sources[0].name in chosen
        elif node.op_type == "Concat":
            is_chosen = have_all and all(source.name in chosen for source in sources)
        else:
            is_sum = node.op_type == "Add" and have_all
            is_chosen = is_sum and any(source.op_type == "Conv" and source.name in chosen for source in sources)
        if is_chosen:
            chosen.add(node.name)
    return [node.name for node in graph.node if node.name in chosen]


def _has_weights(node: Any, constants: set[str]) -> bool:
    return node.op_type in _WEIGHTED and node.input[1] in constants


def _last_layers(graph: Any, makers: dict[str, Any], constants: set[str]) -> set[str]:
    """On every way back from the outputs, the first layer with weights."""
    found: set[str] = set()
    seen: set[str] = set()
    upcoming = [output.name for output in graph.output]
    while upcoming:
        name = upcoming.pop()
        node = makers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if _has_weights(node, constants):
            found.add(node.name)
        else:
            upcoming.extend(node.input)
    return found


def _gates(graph: Any, makers: dict[str, Any], constants: set[str]) -> set[str]:
    """Layers that work on means over places, and give what other values are multiplied by."""
    pooled: set[str] = set()
    found: set[str] = set()
    for node in graph.node:
        inputs = [name for name in node.input if name and name not in constants]
        if node.op_type in _POOLING or (inputs and pooled.issuperset(inputs)):
            pooled.update(node.output)
        elif node.op_type == "Mul":
            upcoming = [name for name in inputs if name in pooled]
            while upcoming:
                maker = makers[upcoming.pop()]
                if maker.op_type not in _POOLING and maker.name not in found:
                    found.add(maker.name)
                    upcoming.extend(name for name in maker.input if name in pooled)
    return found


class _Reader:
    """Calibration images for onnxruntime, in batches; its base class is no more than this."""

    def __init__(self, squares: NDArray[np.uint8]) -> None:
        self._batches = self._each(squares)

    @staticmethod
    def _each(squares: NDArray[np.uint8]) -> Iterator[dict[str, NDArray[np.uint8]]]:
        for start in range(0, len(squares), _BATCH_SIZE):
            yield {SQUARE: np.ascontiguousarray(squares[start : start + _BATCH_SIZE])}

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch; None after the last."""
        return next(self._batches, None)

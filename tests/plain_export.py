"""A small exported model built node by node, so that the server's tests need neither torch nor a training."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foveal.exported.spec import FORMAT_VERSION, METADATA_KEY, ExportedMember, ExportSpec, LookSpec
from foveal.model.bundle_spec import PreprocessingSpec, TrainingDataSpec, WeightsSpec
from foveal.pixels.policy import POLICY_VERSION

CLASSES = ("discs", "squares", "stripes")


def write_export(
    folder: Path,
    *,
    class_names: Sequence[str] = CLASSES,
    size_px: int = 16,
    heatmap: bool = True,
    seed: int = 0,
    num_slow_layers: int = 0,
) -> Path:
    """A convolution, a mean over places, a linear layer: takes finished squares, gives probabilities and heatmaps.

    `num_slow_layers` matrices of 512 x 512 that come back to where they started make each image cost more.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    channels, num_classes = 8, len(class_names)
    weights = {
        "scale": np.float32(1 / 255),
        "filters": rng.normal(0, 0.4, (channels, 3, 4, 4)).astype(np.float32),
        "classes": rng.normal(0, 4.0, (num_classes, channels, 1, 1)).astype(np.float32),
        "bias": rng.normal(0, 0.1, num_classes).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["square"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["channels_first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["channels_first", "filters"], ["filtered"], strides=[4, 4]),
        helper.make_node("Relu", ["filtered"], ["features"]),
        helper.make_node("Conv", ["features", "classes"], ["heatmap"]),
        helper.make_node("ReduceMean", ["heatmap", "places"], ["means"], keepdims=0),
        helper.make_node("Add", ["means", "bias"], ["logits_0"]),
    ]
    weights["places"] = np.array([2, 3], dtype=np.int64)
    if num_slow_layers:
        # Into 512 numbers and back without loss: each layer turns them by a permutation and its inverse.
        spread = np.zeros((num_classes, 512), dtype=np.float32)
        spread[np.arange(num_classes), np.arange(num_classes)] = 1.0
        order = rng.permutation(512)
        weights |= {"spread": spread, "gather": spread.T.copy(), "turn": np.eye(512, dtype=np.float32)[order]}
        weights["back"] = weights["turn"].T.copy()
        weights["shape"] = np.array([-1, 64, 512], dtype=np.int64)
        weights["tiles"] = np.array([1, 64], dtype=np.int64)
        nodes += [
            helper.make_node("MatMul", ["logits_0", "spread"], ["wide"]),
            helper.make_node("Tile", ["wide", "tiles"], ["tiled"]),
            helper.make_node("Reshape", ["tiled", "shape"], ["slow_0"]),
        ]
        for number in range(num_slow_layers):
            nodes.append(helper.make_node("MatMul", [f"slow_{number}", "turn"], [f"turned_{number}"]))
            nodes.append(helper.make_node("MatMul", [f"turned_{number}", "back"], [f"slow_{number + 1}"]))
        weights["rows"] = np.array([1], dtype=np.int64)
        nodes += [
            helper.make_node("ReduceMean", [f"slow_{num_slow_layers}", "rows"], ["slow"], keepdims=0),
            helper.make_node("MatMul", ["slow", "gather"], ["logits"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["logits_0"], ["logits"]))
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", num_classes])]
    if heatmap:
        side = size_px // 4
        outputs.append(helper.make_tensor_value_info("heatmap", TensorProto.FLOAT, ["batch", num_classes, side, side]))
    graph = helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info("square", TensorProto.UINT8, ["batch", size_px, size_px, 3])],
        outputs,
        [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    spec = _spec(class_names, size_px, heatmap=heatmap)
    helper.set_model_props(model, {METADATA_KEY: spec.model_dump_json(), "class_names": json.dumps(list(class_names))})
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def _spec(class_names: Sequence[str], size_px: int, *, heatmap: bool) -> ExportSpec:
    preprocessing = PreprocessingSpec(
        policy_version=POLICY_VERSION,
        max_pixels=120_000_000,
        size_px=size_px,
        store_px=size_px + 2,
        fit="crop",
        interpolation="bilinear",
        background=(255, 255, 255),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    return ExportSpec(
        format_version=FORMAT_VERSION,
        foveal_version="0",
        libraries={},
        bundle_sha256="0" * 64,
        architecture="one convolution",
        class_names=tuple(class_names),
        precision="fp32",
        opset=18,
        resize="outside",
        temperature=1.0,
        looks=(LookSpec(input="square", preprocessing=preprocessing),),
        members=(ExportedMember(name="plain", weight=1.0, look=0, temperature=1.0),),
        heatmap=heatmap,
        heatmap_reason="" if heatmap else "the head is no linear layer over a feature map",
        training_data=TrainingDataSpec(fingerprint="0" * 64, num_images={"train": 1}),
        weights=WeightsSpec(source="none", licence="Apache-2.0"),
        metrics={"test": {"accuracy": 0.5}},
    )

"""One ONNX file of one or several networks: images in, probabilities out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.errors import ExportError
from foveal.exported.spec import (
    HEATMAP,
    IMAGE_INPUT,
    MEMBER_PROBABILITIES,
    METADATA_KEY,
    PROBABILITIES,
    ExportSpec,
    LookSpec,
)
from foveal.exporting.graph_writer import GraphWriter, int64_scalar, int64s
from foveal.exporting.merging import add_graph, used_domains
from foveal.exporting.preprocessing_graph import OPSET, write_squares
from foveal.exporting.voting_graph import write_softmax, write_vote, write_weighted_sum
from foveal.extras import require
from foveal.files import atomic_writer, to_json
from foveal.version import __version__

if TYPE_CHECKING:
    import onnx

    from foveal.exporting.cores import Core

MAX_BYTES = 2**31 - 1
"""What a protobuf message, and so an ONNX file without others beside it, can hold at most."""

_BATCH = "batch"
_PLAIN_DOMAIN = ("", "ai.onnx")


def heatmap_of(cores: Sequence["Core"]) -> tuple[bool, str]:
    """Whether networks together give class activation maps, and why not.

    Args:
        cores: one, or the members of an ensemble.
    """
    for number, core in enumerate(cores):
        if not core.has_heatmap:
            return False, core.heatmap_reason if len(cores) == 1 else f"member {number + 1}: {core.heatmap_reason}"
    sizes = {_map_size(core) for core in cores}
    if len(sizes) > 1:
        listed = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
        return False, f"the members' maps are of different sizes ({listed})"
    return True, ""


def assemble(cores: Sequence["Core"], spec: ExportSpec) -> "onnx.ModelProto":
    """Make one graph of the preprocessing, the networks, their calibration and their vote.

    Args:
        cores: a network for each of `spec.members`, in order.
        spec: what the model is; it goes into the metadata.

    Returns:
        The checked model. Inputs: `image`, uint8 [batch, height, width, 3], and for each look an optional one with
        finished squares, which is used instead where it holds any; with `resize="outside"` these alone, required.
        Outputs: `probabilities`, of ensembles `member_probabilities`, and `heatmap` where the spec says so.

    Raises:
        ExportError: the networks do not go together or with the spec, or are too large for one file.
        MissingExtraError: onnx is not installed.
    """
    library: Any = require("onnx", extra="export", purpose="write ONNX files")
    _check(cores, spec)
    model = library.ModelProto()
    model.ir_version = max(core.model.ir_version for core in cores)
    model.opset_import.extend(_opsets(cores))
    model.producer_name, model.producer_version = "foveal", __version__
    graph = model.graph
    graph.name = "foveal"
    writer = GraphWriter("foveal/")
    squares = [_write_look(library, graph, writer, look, spec.resize) for look in spec.looks]
    for number, (core, member) in enumerate(zip(cores, spec.members, strict=True)):
        prefix = f"network_{number}/"
        writer.add("Identity", squares[member.look], name=f"{prefix}{core.model.graph.input[0].name}")
        graph.node.extend(writer.nodes)
        writer.nodes.clear()
        add_graph(graph, core.model, prefix, _BATCH)
    _write_outputs(library, graph, writer, cores, spec)
    graph.node.extend(writer.nodes)
    graph.initializer.extend(writer.initializers)
    _describe(model, spec)
    _check_model(library, model)
    return model


def save_onnx(model: "onnx.ModelProto", path: Path) -> None:
    """Write a model as one file, which appears when it is whole.

    Args:
        model: what `assemble` gave.
        path: where to; its folder is made where it is missing.

    Raises:
        ExportError: it is larger than one ONNX file can be.
        FovealError: the disk is full, or the folder cannot be written.
    """
    _check_size([model])
    content = model.SerializeToString(deterministic=True)
    with atomic_writer(path) as stream:
        stream.write(content)


def _write_look(library: Any, graph: "onnx.GraphProto", writer: GraphWriter, look: LookSpec, resize: str) -> str:
    """The inputs of a look and what decides between them; the name of its squares."""
    make_value, uint8 = library.helper.make_tensor_value_info, library.TensorProto.UINT8
    size_px = look.preprocessing.size_px
    shape = [size_px, size_px, 3]
    if resize == "outside":
        graph.input.append(make_value(look.input, uint8, [_BATCH, *shape]))
        return look.input
    if not graph.input:
        graph.input.append(make_value(IMAGE_INPUT, uint8, [_BATCH, "height", "width", 3]))
    # Another name for the number of squares: runtimes may take sizes of one name to be equal, and it is 0 where images
    # are given.
    num_squares = f"{look.input}_batch"
    graph.input.append(make_value(look.input, uint8, [num_squares, *shape]))
    graph.initializer.append(library.numpy_helper.from_array(np.zeros((0, *shape), np.uint8), look.input))

    given = GraphWriter(f"{look.input}/given/")
    given_squares = given.add("Identity", look.input)
    made = GraphWriter(f"{look.input}/made/")
    made_squares = write_squares(made, IMAGE_INPUT, look.preprocessing.geometry())
    branches = [
        library.helper.make_graph(
            branch.nodes, name, [], [make_value(result, uint8, [batch, *shape])], branch.initializers
        )
        for branch, name, result, batch in (
            (given, "given", given_squares, num_squares),
            (made, "made", made_squares, _BATCH),
        )
    ]
    count = writer.add("Gather", writer.add("Shape", look.input), int64_scalar(0))
    is_given = writer.add("Greater", count, int64_scalar(0))
    squares = writer.add("If", is_given, then_branch=branches[0], else_branch=branches[1])
    graph.value_info.append(make_value(squares, uint8, [_BATCH, *shape]))
    return squares


def _write_outputs(
    library: Any, graph: "onnx.GraphProto", writer: GraphWriter, cores: Sequence["Core"], spec: ExportSpec
) -> None:
    make_value, float32 = library.helper.make_tensor_value_info, library.TensorProto.FLOAT
    num_classes, num_members = len(spec.class_names), len(spec.members)
    logits = [f"network_{number}/logits" for number in range(num_members)]
    graph.output.append(make_value(PROBABILITIES, float32, [_BATCH, num_classes]))
    if spec.vote is None:
        write_softmax(writer, logits[0], spec.temperature, name=PROBABILITIES)
    else:
        each = [
            writer.add("Unsqueeze", write_softmax(writer, one, member.temperature), int64s(0))
            for one, member in zip(logits, spec.members, strict=True)
        ]
        by_member = writer.add("Concat", *each, axis=0, name=MEMBER_PROBABILITIES)
        graph.output.append(make_value(by_member, float32, [num_members, _BATCH, num_classes]))
        write_vote(
            writer,
            by_member,
            spec.vote,
            [member.weight for member in spec.members],
            num_classes=num_classes,
            temperature=spec.temperature,
            name=PROBABILITIES,
        )
    if spec.heatmap:
        maps = [f"network_{number}/activation" for number in range(num_members)]
        _write_heatmap(writer, maps, spec)
        graph.output.append(make_value(HEATMAP, float32, [_BATCH, num_classes, *_map_size(cores[0])]))


def _write_heatmap(writer: GraphWriter, maps: Sequence[str], spec: ExportSpec) -> None:
    if len(maps) == 1:
        writer.add("Identity", maps[0], name=HEATMAP)
        return
    weights = [member.weight if spec.vote == "weighted" else 1.0 / len(maps) for member in spec.members]
    by_member = writer.add("Concat", *(writer.add("Unsqueeze", one, int64s(0)) for one in maps), axis=0)
    write_weighted_sum(writer, by_member, weights, name=HEATMAP)


def _describe(model: "onnx.ModelProto", spec: ExportSpec) -> None:
    """Write the metadata, for foveal and for others."""
    sizes = " and ".join(f"{look.input}: uint8 [batch, {_side(look)}, {_side(look)}, 3]" for look in spec.looks)
    image = f"{IMAGE_INPUT}: uint8 [batch, height, width, 3], sRGB, upright, of any size"
    outside = "finished squares, sRGB, upright, scaled and cut as the preprocessing says"
    taken = f"{image}; or instead {sizes}, {outside}" if spec.resize == "inside" else f"{sizes}, {outside}"
    description = (
        f"{spec.architecture}: probabilities of {len(spec.class_names)} classes for images. "
        f"Resizing, normalisation, softmax and calibration are part of the graph."
        if spec.resize == "inside"
        else f"{spec.architecture}: probabilities of {len(spec.class_names)} classes for squares cut from images. "
        f"Normalisation, softmax and calibration are part of the graph; resizing is not."
    )
    model.doc_string = model.graph.doc_string = f"{description} Input: {taken}."
    metadata = {
        METADATA_KEY: to_json(spec.model_dump(mode="json")),
        "class_names": json.dumps(spec.class_names),
        "pixel_policy_version": ", ".join(sorted({str(look.preprocessing.policy_version) for look in spec.looks})),
        "licence": spec.weights.licence,
        "input": taken,
        "description": description,
    }
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)


def _side(look: LookSpec) -> int:
    return look.preprocessing.size_px


def _check(cores: Sequence["Core"], spec: ExportSpec) -> None:
    problems = []
    if len(cores) != len(spec.members):
        problems.append(f"{len(spec.members)} members are described, and {len(cores)} networks came")
    if spec.vote is None and spec.members[0].temperature != spec.temperature:
        problems.append(
            f"the one network has temperature {spec.members[0].temperature}, and the whole {spec.temperature}"
        )
    for number, (core, member) in enumerate(zip(cores, spec.members, strict=False)):
        size_px = spec.looks[member.look].preprocessing.size_px
        graph = core.model.graph
        if (seen := _sizes(graph.input[0])[1:]) != (size_px, size_px, 3):
            problems.append(f"network {number + 1} sees squares {list(seen)}, and its look has {size_px} pixels")
        outputs = {output.name: _sizes(output) for output in graph.output}
        if "logits" not in outputs or outputs["logits"][-1] != len(spec.class_names):
            problems.append(f"network {number + 1} does not give logits of {len(spec.class_names)} classes")
        if (version := _opset(core.model)) < OPSET:
            problems.append(f"network {number + 1} is written in opset {version}, and at least {OPSET} is needed")
        if version != spec.opset:
            problems.append(f"network {number + 1} is written in opset {version}, and opset {spec.opset} is described")
    has_heatmap, reason = heatmap_of(cores)
    if spec.heatmap and not has_heatmap:
        problems.append(f"a heatmap is described, and there is none: {reason}")
    if problems:
        raise ExportError("The networks and their description do not go together.", problems=problems)
    _check_size([core.model for core in cores])


def _opsets(cores: Sequence["Core"]) -> list["onnx.OperatorSetIdProto"]:
    """One for each domain whose operators are used; exporters and quantisers list others too.

    Raises:
        ExportError: networks need different versions of one.
    """
    found: dict[str, onnx.OperatorSetIdProto] = {}
    for core in cores:
        used = used_domains(core.model)
        for opset in core.model.opset_import:
            domain = "" if opset.domain in _PLAIN_DOMAIN else opset.domain
            if domain and domain not in used:
                continue
            earlier = found.setdefault(domain, opset)
            if earlier.version != opset.version:
                raise ExportError(
                    f"Networks are written in different versions of the operators {domain or 'ai.onnx'!r}: "
                    f"{earlier.version} and {opset.version}."
                )
    return list(found.values())


def _opset(model: "onnx.ModelProto") -> int:
    return next((int(each.version) for each in model.opset_import if each.domain in _PLAIN_DOMAIN), 0)


def _sizes(value: "onnx.ValueInfoProto") -> tuple[int, ...]:
    """The known sizes of a value, -1 where it is not known before."""
    dims = value.type.tensor_type.shape.dim
    return tuple(int(dim.dim_value) if dim.HasField("dim_value") else -1 for dim in dims)


def _map_size(core: "Core") -> tuple[int, int]:
    height, width = next(_sizes(output)[-2:] for output in core.model.graph.output if output.name == "activation")
    return height, width


def _check_size(models: Sequence["onnx.ModelProto"]) -> None:
    num_bytes = sum(len(tensor.raw_data) for model in models for tensor in model.graph.initializer)
    if num_bytes >= MAX_BYTES:
        raise ExportError(
            f"The weights have {num_bytes:,} bytes, and an ONNX file holds less than {MAX_BYTES:,}.",
            fix="export with --int8, which takes a quarter; or export fewer members, or a smaller network.",
        )


def _check_model(library: Any, model: "onnx.ModelProto") -> None:
    # Whatever the checker and its inference of shapes have to say comes as one of several unrelated classes.
    faults = (library.checker.ValidationError, library.shape_inference.InferenceError, ValueError)
    try:
        library.checker.check_model(model, full_check=True)
    except faults as error:
        raise ExportError(f"The assembled graph is no valid ONNX: {error}") from error

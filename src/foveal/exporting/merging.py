"""Putting the graphs of several networks into one, so that no names clash."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from foveal.extras import require

if TYPE_CHECKING:
    import onnx


def add_graph(target: "onnx.GraphProto", source: "onnx.ModelProto", prefix: str, batch: str) -> None:
    """Copy the nodes, weights and known shapes of a model into a graph.

    Every name gets the prefix, also those of inputs and outputs, which are no inputs and outputs of the target then,
    and those within the branches and bodies of nodes. (`onnx.compose.add_prefix` forgets weights of the outer graph
    that a branch uses.)

    Args:
        target: gets them.
        source: is left as it is. Functions of its own are written out where they are called.
        prefix: what all names are to begin with.
        batch: the name of the batch's size in the target; other unknown sizes get the prefix too.
    """
    if source.functions:
        inliner: Any = require("onnx.inliner", extra="export", purpose="write ONNX files")
        source = inliner.inline_local_functions(source)
    part = type(target)()
    part.CopyFrom(source.graph)
    first = part.input[0].type.tensor_type.shape.dim[0].dim_param
    # What is known of the shapes of inputs and outputs is as good as that of any other value.
    part.value_info.extend([*part.input, *part.output])
    _prefix_graph(part, prefix, {first: batch} if first else {})
    target.node.extend(part.node)
    target.initializer.extend(part.initializer)
    target.sparse_initializer.extend(part.sparse_initializer)
    target.value_info.extend(part.value_info)
    target.quantization_annotation.extend(part.quantization_annotation)


def used_domains(model: "onnx.ModelProto") -> set[str]:
    """The domains of all operators of a model, also of those in branches, bodies and functions."""
    found = set()
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        found.add(node.domain)
        waiting += [inner for graph in _inner_graphs(node) for inner in graph.node]
    return found


def _inner_graphs(node: "onnx.NodeProto") -> list["onnx.GraphProto"]:
    single = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return [*single, *(graph for attribute in node.attribute for graph in attribute.graphs)]


def _prefix_graph(graph: "onnx.GraphProto", prefix: str, sizes: dict[str, str]) -> None:
    for node in graph.node:
        node.name = prefix + node.name if node.name else ""
        for names in (node.input, node.output):
            # An empty name is an optional input or output that is left out.
            names[:] = [prefix + name if name else "" for name in names]
        for inner in _inner_graphs(node):
            _prefix_graph(inner, prefix, sizes)
    sparse = [part for tensor in graph.sparse_initializer for part in (tensor.values, tensor.indices)]
    for named in _with_names(graph.initializer, sparse, graph.input, graph.output, graph.value_info):
        named.name = prefix + named.name
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = prefix + annotation.tensor_name
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = prefix + entry.value
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = sizes.get(size.dim_param, prefix + size.dim_param)


def _with_names(*groups: Iterable[Any]) -> list[Any]:
    return [named for group in groups for named in group if named.name]

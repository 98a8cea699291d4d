"""Writing ONNX nodes one after the other."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from foveal.extras import require

if TYPE_CHECKING:
    import onnx

Operand = str | NDArray[Any]
"""The name of a value, or a constant."""


class GraphWriter:
    """Collects the nodes of a graph, and the constants that they use.

    Args:
        prefix: what all names begin with, so that several writers can share a graph.
    """

    def __init__(self, prefix: str) -> None:
        self._onnx: Any = require("onnx", extra="export", purpose="write ONNX files")
        self._prefix = prefix
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._num_names = self._num_nodes = 0
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def add(self, operator: str, *operands: Operand, name: str = "", **attributes: Any) -> str:
        """Add a node with one output.

        Args:
            operator: of ONNX's own domain.
            operands: its inputs; an empty text leaves an optional one out.
            name: of the output, as it is; by default a new one.
            attributes: of the node.

        Returns:
            The name of the output.
        """
        output = name or self._new_name(operator.lower())
        inputs = [operand if isinstance(operand, str) else self.constant(operand) for operand in operands]
        # A number of its own: whoever takes the nodes away may empty the list.
        self._num_nodes += 1
        node_name = f"{self._prefix}{operator}_{self._num_nodes}"
        self.nodes.append(self._onnx.helper.make_node(operator, inputs, [output], name=node_name, **attributes))
        return output

    def branch(self, operator: str, *values: str, **attributes: Any) -> "onnx.GraphProto":
        """A branch for `If`: one node over values of the graph that it stands in."""
        helper = self._onnx.helper
        self._num_nodes += 1
        output, name = self._new_name(operator.lower()), f"{self._prefix}{operator}_{self._num_nodes}"
        node = helper.make_node(operator, values, [output], name=name, **attributes)
        # Its type follows from what goes in.
        return helper.make_graph([node], name, [], [helper.make_empty_tensor_value_info(output)])

    def constant(self, value: NDArray[Any]) -> str:
        """The name of a constant; equal ones are kept once."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            name = self._new_name("constant")
            self.initializers.append(self._onnx.numpy_helper.from_array(value, name))
            self._constants[key] = name
        return self._constants[key]

    def cast(self, operand: Operand, kind: str) -> str:
        """A value as another type, by its name in ONNX, such as DOUBLE."""
        return self.add("Cast", operand, to=self._onnx.TensorProto.DataType.Value(kind))

    def _new_name(self, stem: str) -> str:
        self._num_names += 1
        return f"{self._prefix}{stem}_{self._num_names}"


def int64s(*values: int) -> NDArray[np.int64]:
    """int64 [n], as axes, shapes and places are given."""
    return np.array(values, dtype=np.int64)


def int64_scalar(value: int) -> NDArray[np.int64]:
    """int64 [], where an operator wants a number and no list of one."""
    return np.array(value, dtype=np.int64)


def doubles(*values: float) -> NDArray[np.float64]:
    """float64 [n]."""
    return np.array(values, dtype=np.float64)

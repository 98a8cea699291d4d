"""From the logits of networks to the probabilities of the whole, as nodes of an ONNX graph.

The same as `foveal.inference.Predictor` does, in single precision.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foveal.exporting.graph_writer import GraphWriter, int64_scalar, int64s
from foveal.model.voting import LEAST_PROBABILITY, Vote


def write_softmax(writer: GraphWriter, logits: str, temperature: float, *, name: str = "") -> str:
    """Calibrated probabilities float32 [batch, classes] of logits of the same shape."""
    if temperature != 1.0:
        logits = writer.add("Div", logits, _floats(temperature))
    return writer.add("Softmax", logits, axis=-1, name=name)


def write_vote(
    writer: GraphWriter,
    by_member: str,
    vote: Vote,
    weights: Sequence[float],
    *,
    num_classes: int,
    temperature: float,
    name: str,
) -> str:
    """Add the nodes that make one answer of several, see `foveal.model.voting.voted`.

    Args:
        writer: gets the nodes.
        by_member: float32 [members, batch, classes], each member's calibrated probabilities.
        vote: soft, weighted or majority.
        weights: a share for each member; only weighted takes it.
        num_classes: how many classes there are.
        temperature: of the whole.
        name: of the output, float32 [batch, classes].
    """
    shares = weights if vote == "weighted" else [1.0 / len(weights)] * len(weights)
    mixed = write_weighted_sum(writer, by_member, shares)
    if vote == "majority":
        # The first of equal ones, as numpy has it.
        chosen = writer.add("ArgMax", by_member, axis=2, keepdims=0, select_last_index=0)
        ballots = writer.add("OneHot", chosen, int64_scalar(num_classes), _floats(0.0, 1.0), axis=-1)
        votes = writer.add("ReduceSum", ballots, int64s(0), keepdims=0)
        mixed = writer.add("Div", writer.add("Add", votes, mixed), _floats(len(weights) + 1))
    return write_softmax(
        writer, writer.add("Log", writer.add("Max", mixed, _floats(LEAST_PROBABILITY))), temperature, name=name
    )


def write_weighted_sum(writer: GraphWriter, by_member: str, weights: Sequence[float], *, name: str = "") -> str:
    """float32 [members, batch, ...] to [batch, ...]."""
    shares = np.array(weights, np.float32)
    parts = [
        writer.add("Mul", writer.add("Gather", by_member, int64_scalar(number), axis=0), _floats(float(share)))
        for number, share in enumerate(shares)
    ]
    return writer.add("Sum", *parts, name=name)


def _floats(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)

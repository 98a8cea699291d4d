"""From decoded images to the squares that a network sees, as nodes of an ONNX graph.

The same as `foveal.pixels.geometry`, `to_store` and then `to_square`, to the bit; only the pixels of the square are
computed.
"""

from collections.abc import Sequence

import numpy as np

from foveal.exporting.graph_writer import GraphWriter, Operand, int64s
from foveal.exporting.resizing import Axis, Extent, plan_axis, resize_last_axis
from foveal.pixels.geometry import MAX_ASPECT, Geometry

OPSET = 18
"""The first version of ONNX's operators that has all that is used here."""


def write_squares(writer: GraphWriter, images: str, geometry: Geometry) -> str:
    """Add the nodes that make squares of images.

    Args:
        writer: gets the nodes.
        images: uint8 [batch, height, width, 3], upright, of any size, all of the same. An image without any pixel
            makes the graph fail.
        geometry: what is wanted.

    Returns:
        uint8 [batch, size_px, size_px, 3].
    """
    size_px = geometry.size_px
    height, width = _checked_sizes(writer, images)
    offsets, extents = _extents(writer, height, width, geometry)
    down, across = extents
    is_down_first = _is_down_first(writer, down, across)

    # From here on there is a first and a second direction, whichever of the two they are.
    extents_in_order = (_chosen(writer, is_down_first, down, across), _chosen(writer, is_down_first, across, down))
    first, second = (plan_axis(writer, extent, size_px, geometry.interpolation) for extent in extents_in_order)
    cut = _cut(writer, images, offsets, (first, second), is_down_first)
    # [batch, second, 3, first]
    planes = _transposed(writer, cut, is_down_first, down_first=(0, 2, 3, 1), across_first=(0, 1, 3, 2))
    num_second = writer.add("Sub", second.high, second.low)
    lines = writer.add("Reshape", planes, _shape(writer, -1, writer.add("Sub", first.high, first.low)))
    narrowed = resize_last_axis(writer, lines, first)
    planes = writer.add("Reshape", narrowed, _shape(writer, -1, num_second, 3 * size_px))
    lines = writer.add("Reshape", writer.add("Transpose", planes, perm=(0, 2, 1)), _shape(writer, -1, num_second))
    # [batch, 3, first, second]
    resized = writer.add("Reshape", resize_last_axis(writer, lines, second), int64s(-1, 3, size_px, size_px))
    squares = _transposed(writer, resized, is_down_first, down_first=(0, 2, 3, 1), across_first=(0, 3, 2, 1))
    return _padded(writer, squares, extents, geometry) if geometry.fit == "pad" else squares


def _is_down_first(writer: GraphWriter, down: Extent, across: Extent) -> str:
    """Whether the columns are resized before the rows, bool [1]; the result is not quite the same.

    Pillow does so where it is faster, since version 13 (libImaging/Resample.c, ImagingResampleInner).
    """
    shrinks_down, shrinks_across = (writer.add("Sub", extent[0], extent[1]) for extent in (down, across))
    is_more = writer.add("Greater", shrinks_down, writer.add("Mul", shrinks_across, int64s(2)))
    return writer.add("And", writer.add("Greater", shrinks_down, int64s(0)), is_more)


def _chosen(writer: GraphWriter, condition: str, one: Extent, other: Extent) -> Extent:
    size_before, size_after, first = (writer.add("Where", condition, *pair) for pair in zip(one, other, strict=True))
    return size_before, size_after, first


def _cut(
    writer: GraphWriter, images: str, offsets: tuple[Operand, Operand], axes: tuple[Axis, Axis], is_down_first: str
) -> str:
    """The part of the images that counts."""
    first, second = axes
    ends = []
    for of_first, of_second in ((first.low, second.low), (first.high, second.high)):
        down = writer.add("Where", is_down_first, of_first, of_second)
        across = writer.add("Where", is_down_first, of_second, of_first)
        places = [writer.add("Add", *pair) for pair in zip(offsets, (down, across), strict=True)]
        ends.append(writer.add("Concat", *places, axis=0))
    return writer.add("Slice", images, *ends, int64s(1, 2))


def _transposed(
    writer: GraphWriter, value: str, is_down_first: str, *, down_first: Sequence[int], across_first: Sequence[int]
) -> str:
    """Axes in one order or in another."""
    branches = [writer.branch("Transpose", value, perm=order) for order in (down_first, across_first)]
    # A list of one is as good as a number here, but not every runtime takes it.
    condition = writer.add("Squeeze", is_down_first)
    return writer.add("If", condition, then_branch=branches[0], else_branch=branches[1])


def _checked_sizes(writer: GraphWriter, images: str) -> tuple[str, str]:
    """Height and width, int64 [1]."""
    shape = writer.add("Shape", images)
    sizes = writer.add("Slice", shape, int64s(1), int64s(3), int64s(0))
    # An image without pixels looks up what is not there, which is an error wherever it runs. Without it, some runtimes
    # would divide by zero, and end the process.
    is_empty = writer.cast(writer.add("Less", writer.add("ReduceMin", sizes, keepdims=1), int64s(1)), "INT64")
    sizes = writer.add("Mul", sizes, writer.add("Gather", int64s(1), is_empty))
    return writer.add("Gather", sizes, int64s(0)), writer.add("Gather", sizes, int64s(1))


def _extents(
    writer: GraphWriter, height: str, width: str, geometry: Geometry
) -> tuple[tuple[Operand, Operand], tuple[Extent, Extent]]:
    """Down and across: where the image is cut before scaling, and what is scaled to what.

    All are int64 [1]: first the two offsets, then of each direction the size before and after scaling and the place of
    the square's first pixel within that.
    """
    zero, side, size_px = int64s(0), int64s(geometry.store_px), int64s(geometry.size_px)
    if geometry.fit == "squash":
        wanted = writer.constant(side)
        return (zero, zero), ((height, wanted, zero), (width, wanted, zero))
    if geometry.fit == "pad":
        longer = writer.add("Max", height, width)
        scaled = [
            writer.add("Max", _divided(writer, writer.add("Mul", edge, side), longer), int64s(1))
            for edge in (height, width)
        ]
        # Halves are cut before the sign changes: the image starts where `to_store` puts it.
        first = [writer.add("Neg", writer.add("Div", writer.add("Sub", side, edge), int64s(2))) for edge in scaled]
        return (zero, zero), ((height, scaled[0], first[0]), (width, scaled[1], first[1]))
    shorter = writer.add("Min", height, width)
    longest = writer.add("Mul", shorter, int64s(MAX_ASPECT))
    offsets, extents = [], []
    for edge in (height, width):
        kept = writer.add("Min", edge, longest)
        offsets.append(writer.add("Div", writer.add("Sub", edge, kept), int64s(2)))
        scaled_edge = _divided(writer, writer.add("Mul", kept, side), shorter)
        extents.append((kept, scaled_edge, writer.add("Div", writer.add("Sub", scaled_edge, size_px), int64s(2))))
    return (offsets[0], offsets[1]), (extents[0], extents[1])


def _divided(writer: GraphWriter, dividend: str, divisor: str) -> str:
    """The quotient of what is not negative, rounded half up."""
    two = int64s(2)
    above = writer.add("Add", writer.add("Mul", dividend, two), divisor)
    return writer.add("Div", above, writer.add("Mul", divisor, two))


def _padded(writer: GraphWriter, squares: str, extents: tuple[Extent, Extent], geometry: Geometry) -> str:
    """Put the background where the scaled image does not reach."""
    places = np.arange(geometry.size_px, dtype=np.int64)
    inside = []
    for (_, scaled, first), shape in zip(extents, ((1, -1, 1, 1), (1, 1, -1, 1)), strict=True):
        pixel = writer.add("Add", first, places)
        is_inside = writer.add("And", writer.add("GreaterOrEqual", pixel, int64s(0)), writer.add("Less", pixel, scaled))
        inside.append(writer.add("Reshape", is_inside, int64s(*shape)))
    background = np.array(geometry.background, np.uint8)
    return writer.add("Where", writer.add("And", *inside), squares, background)


def _shape(writer: GraphWriter, *parts: int | str) -> str:
    """A shape, int64 [n], some of whose parts are values int64 [1]."""
    return writer.add("Concat", *(part if isinstance(part, str) else int64s(part) for part in parts), axis=0)

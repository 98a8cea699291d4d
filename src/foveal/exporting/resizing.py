"""Pillow's resize as nodes of an ONNX graph, to the bit.

Pillow (libImaging/Resample.c) computes the weights of each output pixel in double precision, rounds them to whole
numbers of 1 / 2^22, takes the weighted sums of whole numbers along the rows, rounds and clips them to bytes, and does
the same along the columns. All sums here are of whole numbers too, so their order does not matter, and every machine
gives the same bytes.

ONNX's own operator Resize comes close where it is told to antialias: with ONNX Runtime, up to 3 bytes of a thousand are
off by one (measured on photographs of 100 pixels to 48). It has no Lanczos filter, and other runtimes compute it in
their own ways.

The sums run as products of 8-bit matrices (MatMulInteger), which is what processors are fastest at: neighbouring output
pixels, `_BLOCK` of them, see nearly the same input pixels, so each block is one small matrix over the window that it
sees. A weight of 23 bits is cut into four digits of base 128. Digits of base 256 would be three, but processors that
lack VNNI add two products of 255 times a digit in 16 bits, where these overflow and those do not.
"""

from dataclasses import dataclass

import numpy as np

from foveal.exporting.graph_writer import GraphWriter, Operand, doubles, int64_scalar, int64s
from foveal.pixels.geometry import Interpolation

_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
_PRECISION_BITS = 22
_NUM_DIGITS, _BASE = 4, 128
# Output pixels in one product: more would multiply with more zeros, fewer would make more products.
_BLOCK, _MAX_BLOCKS = 32, 16


Extent = tuple[Operand, Operand, Operand]
"""Of one direction: the size before, the size after, and the first pixel after that is wanted; all int64 [1]."""


@dataclass(frozen=True)
class Axis:
    """What one direction of a resize comes to; all are names of values in the graph.

    Attributes:
        low: int64 [1], the first input pixel that counts.
        high: int64 [1], the one after the last.
        starts: int64 [blocks], where each block's window begins, counted from `low`.
        length: int64 [1], how long all windows are.
        digits: int8 [blocks, length, 4 * block], the weights.
        num_outputs: of pixels.
    """

    low: str
    high: str
    starts: str
    length: str
    digits: str
    num_outputs: int


def plan_axis(writer: GraphWriter, extent: Extent, num_outputs: int, interpolation: Interpolation) -> Axis:
    """Compute what a direction of a resize needs to know, from sizes that are known only when the graph runs.

    Args:
        writer: gets the nodes.
        extent: from which size to which, and where to begin. Pixels that are wanted outside of the image come out as
            the nearest one inside.
        num_outputs: how many are wanted.
        interpolation: the filter.
    """
    in_size, out_size, first = extent
    num_blocks = min(-(-num_outputs // _BLOCK), _MAX_BLOCKS)
    block = -(-num_outputs // num_blocks)
    wanted = np.minimum(np.arange(num_blocks * block), num_outputs - 1)
    one, last = int64s(1), num_blocks * block - 1

    # Pillow hands the size of the image over in single precision.
    scale = writer.add("Div", _doubled(writer, writer.cast(in_size, "FLOAT")), writer.cast(out_size, "DOUBLE"))
    filter_scale = writer.add("Max", scale, doubles(1.0))
    support = writer.add("Mul", filter_scale, doubles(_SUPPORT[interpolation]))
    pixel = writer.add(
        "Min", writer.add("Max", writer.add("Add", first, wanted), int64s(0)), writer.add("Sub", out_size, one)
    )
    centre = writer.add("Mul", writer.add("Add", _doubled(writer, pixel), doubles(0.5)), scale)
    # The conversion to whole numbers cuts towards zero, as in C.
    below = writer.cast(writer.add("Add", writer.add("Sub", centre, support), doubles(0.5)), "INT64")
    above = writer.cast(writer.add("Add", writer.add("Add", centre, support), doubles(0.5)), "INT64")
    begin, end = writer.add("Max", below, int64s(0)), writer.add("Min", above, in_size)

    low, high = (writer.add("Gather", place, int64s(number)) for place, number in ((begin, 0), (end, last)))
    firsts = np.arange(num_blocks, dtype=np.int64) * block
    block_begin, block_end = writer.add("Gather", begin, firsts), writer.add("Gather", end, firsts + block - 1)
    length = writer.add("ReduceMax", writer.add("Sub", block_end, block_begin), keepdims=1)
    begin_of_window = writer.add("Min", block_begin, writer.add("Sub", high, length))

    offsets = writer.add("Range", int64_scalar(0), writer.add("Squeeze", length), int64_scalar(1))
    place = writer.add(
        "Add",
        writer.add("Reshape", begin_of_window, int64s(num_blocks, 1, 1)),
        writer.add("Reshape", offsets, int64s(1, -1, 1)),
    )
    shape = int64s(num_blocks, 1, block)
    begin, end, centre = (writer.add("Reshape", value, shape) for value in (begin, end, centre))
    distance = writer.add("Add", writer.add("Sub", _doubled(writer, place), centre), doubles(0.5))
    distance = writer.add("Mul", distance, writer.add("Div", doubles(1.0), filter_scale))
    counts = writer.add("And", writer.add("GreaterOrEqual", place, begin), writer.add("Less", place, end))
    weights = writer.add("Where", counts, _filtered(writer, distance, interpolation), doubles(0.0))
    digits = _digits(writer, _fixed_point(writer, weights))
    starts = writer.add("Sub", begin_of_window, low)
    return Axis(low, high, starts, length, digits, num_outputs)


def resize_last_axis(writer: GraphWriter, lines: str, axis: Axis) -> str:
    """Resize lines of pixels.

    Args:
        writer: gets the nodes.
        lines: uint8 [n, high - low], the pixels of each line that count.
        axis: what `plan_axis` gave.

    Returns:
        uint8 [n, num_outputs].
    """
    num_blocks = min(-(-axis.num_outputs // _BLOCK), _MAX_BLOCKS)
    block = -(-axis.num_outputs // num_blocks)
    parts = []
    for number in range(num_blocks):
        start = writer.add("Gather", axis.starts, int64s(number))
        window = writer.add("Slice", lines, start, writer.add("Add", start, axis.length), int64s(1))
        digits = writer.add("Gather", axis.digits, int64_scalar(number), axis=0)
        parts.append(_summed(writer, writer.add("MatMulInteger", window, digits), block))
    outputs = parts[0] if len(parts) == 1 else writer.add("Concat", *parts, axis=1)
    if num_blocks * block == axis.num_outputs:
        return outputs
    return writer.add("Slice", outputs, int64s(0), int64s(axis.num_outputs), int64s(1))


def _filtered(writer: GraphWriter, distance: str, interpolation: Interpolation) -> str:
    """The filter at float64 distances, by the same operations in the same order as Pillow."""
    if interpolation == "lanczos":
        third = writer.add("Div", distance, doubles(3.0))
        # The window is rounded to whole pixels, so some of them lie beyond the support.
        inside = writer.add(
            "And",
            writer.add("GreaterOrEqual", distance, doubles(-3.0)),
            writer.add("Less", distance, doubles(3.0)),
        )
        product = writer.add("Mul", _sinc(writer, distance), _sinc(writer, third))
        return writer.add("Where", inside, product, doubles(0.0))
    x = writer.add("Abs", distance)

    def plus(value: str, number: float) -> str:
        return writer.add("Add", value, doubles(number))

    def times(value: str, factor: Operand) -> str:
        return writer.add("Mul", value, factor)

    near_one = writer.add("Less", x, doubles(1.0))
    if interpolation == "bilinear":
        return writer.add("Where", near_one, writer.add("Sub", doubles(1.0), x), doubles(0.0))
    # Keys' cubic convolution with a = -0.5 (1981).
    near = plus(times(times(plus(times(x, doubles(1.5)), -2.5), x), x), 1.0)
    far = times(plus(times(plus(times(plus(x, -5.0), x), 8.0), x), -4.0), doubles(-0.5))
    far = writer.add("Where", writer.add("Less", x, doubles(2.0)), far, doubles(0.0))
    return writer.add("Where", near_one, near, far)


def _sinc(writer: GraphWriter, x: str) -> str:
    is_zero = writer.add("Equal", x, doubles(0.0))
    angle = writer.add("Mul", writer.add("Where", is_zero, doubles(1.0), x), doubles(np.pi))
    return writer.add("Where", is_zero, doubles(1.0), writer.add("Div", writer.add("Sin", angle), angle))


def _fixed_point(writer: GraphWriter, weights: str) -> str:
    """Weights as whole numbers: each column divided by its sum, in parts of 2^22, halves rounded away from zero.

    Both are [blocks, length, block], float64 and int32.
    """
    # Not ReduceSum, which may add in any order: a cumulative sum goes from the first to the last, as Pillow does.
    sums = writer.add("Gather", writer.add("CumSum", weights, int64_scalar(1)), int64s(-1), axis=1)
    sums = writer.add("Where", writer.add("Equal", sums, doubles(0.0)), doubles(1.0), sums)
    scaled = writer.add("Mul", writer.add("Div", weights, sums), doubles(2.0**_PRECISION_BITS))
    half = writer.add("Where", writer.add("Less", scaled, doubles(0.0)), doubles(-0.5), doubles(0.5))
    return writer.cast(writer.add("Add", scaled, half), "INT32")


def _digits(writer: GraphWriter, weights: str) -> str:
    """int32 [blocks, length, block] to int8 [blocks, length, 4 * block]: digits from -64 to 63, the highest first."""
    half, base = np.array([_BASE // 2], np.int32), np.array([_BASE], np.int32)
    rest = weights
    digits: list[str] = []
    for number in range(_NUM_DIGITS):
        digit = rest
        if number < _NUM_DIGITS - 1:
            digit = writer.add("Sub", writer.add("Mod", writer.add("Add", rest, half), base), half)
            rest = writer.add("Div", writer.add("Sub", rest, digit), base)
        digits.insert(0, writer.cast(digit, "INT8"))
    return writer.add("Concat", *digits, axis=2)


def _summed(writer: GraphWriter, products: str, block: int) -> str:
    """int32 [n, 4 * block], the sums for each digit, to the rounded bytes uint8 [n, block].

    Sums for a single digit may leave 32 bits where a line has more than a hundred thousand pixels; they wrap around,
    and so the total, which always fits, is right all the same.
    """
    total = ""
    for number in range(_NUM_DIGITS):
        part = writer.add("Slice", products, int64s(number * block), int64s((number + 1) * block), int64s(1))
        if total:
            part = writer.add("Add", writer.add("Mul", total, np.array([_BASE], np.int32)), part)
        total = part
    rounded = writer.add("Add", total, np.array([1 << (_PRECISION_BITS - 1)], np.int32))
    # Below 0 and above 255 is clipped, and what is not negative can be shifted.
    most = np.array([(256 << _PRECISION_BITS) - 1], np.int32)
    clipped = writer.add("Min", writer.add("Max", rounded, np.array([0], np.int32)), most)
    shifted = writer.add(
        "BitShift", writer.cast(clipped, "UINT32"), np.array([_PRECISION_BITS], np.uint32), direction="RIGHT"
    )
    return writer.cast(shifted, "UINT8")


def _doubled(writer: GraphWriter, value: str) -> str:
    return writer.cast(value, "DOUBLE")

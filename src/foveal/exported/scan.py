"""Whether an ONNX file stands alone, read from its bytes without any library.

ONNX lets a tensor lie in another file, named by a path. With `../`, an absolute path or a link, that reads what the
author of the file chose, on the machine of whoever opens it. foveal writes one file, and opens nothing else.

Source: Protocol Buffers, "Encoding"; the numbers of the fields are those of onnx.proto. What holds no tensor and no
operator is stepped over by its length, so weights cost nothing. Where parsers differ in what they forgive, it is
refused.
"""

from collections.abc import Iterator

from foveal.errors import ArtifactError

KNOWN_DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
"""Whose operators a graph may use: ONNX's own, and those that ONNX Runtime brings."""

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_MAX_DEPTH = 90
_MAX_FIELDS = 5_000_000
_MAX_SHOWN = 80

# By message: which of its fields hold messages that are looked into, and how these are called here.
_INNER: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "tensor": {},
    "opset": {},
}
_DOMAIN_FIELDS = {"opset": 1, "node": 7, "function": 10}
_OPERATOR, _TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION, _TRAINING_INFO, _GRAPH = 4, 8, 13, 14, 20, 7
_METADATA_PROPS = 14

_OUTSIDE_OPERATORS = frozenset(("EPContext",))
"""Operators that read files of their own."""


class _BrokenError(Exception):
    """The bytes are no message."""


def check_self_contained(content: bytes) -> None:
    """Refuse an ONNX file that reaches outside of itself.

    Args:
        content: the whole file.

    Raises:
        ArtifactError: a tensor anywhere in it lies in another file, it uses operators of an unknown domain, it brings
            training code, or it is cut off or no ONNX file.
    """
    # ONNX Runtime goes by these four bytes, which are also the fifth to eighth of some ONNX file.
    if content[4:8] == b"ORTM":
        raise ArtifactError("This is a model in ONNX Runtime's own format, where ONNX was expected.")
    scan = _Scan(content)
    try:
        scan.look_through()
    except _BrokenError as error:
        raise ArtifactError(
            f"This is no ONNX file, or it is damaged: {error}.", fix="copy the file again, or export it again."
        ) from error
    if scan.problems:
        raise ArtifactError(
            "The ONNX file is refused: it does not stand alone.",
            problems=list(scan.problems),
            fix="export it again with foveal, which writes one file with everything in it.",
        )


def read_metadata(content: bytes) -> dict[str, str]:
    """The metadata of an ONNX file, `metadata_props` in its outermost message.

    Args:
        content: the whole file, which `check_self_contained` has passed.

    Raises:
        ArtifactError: it is damaged.
    """
    scan = _Scan(content)
    found: dict[str, str] = {}
    try:
        for number, wire, start, end in scan.fields(0, len(content)):
            if number == _METADATA_PROPS and wire == _BYTES:
                entry = {key: content[first:last].decode("utf-8") for key, _, first, last in scan.fields(start, end)}
                found[entry.get(1, "")] = entry.get(2, "")
    except (_BrokenError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"The metadata of the ONNX file are damaged: {error}.", fix="copy the file again."
        ) from error
    return found


class _Scan:
    """A walk through the messages of a file.

    Args:
        content: the file.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._num_fields = 0
        self._has_graph = False
        self.problems: dict[str, None] = {}

    def look_through(self) -> None:
        """Look through the file.

        Raises:
            _BrokenError: it is no model.
        """
        self._look_into("model", 0, len(self._content), 0)
        if not self._has_graph:
            raise _BrokenError("there is no graph in it")

    def _look_into(self, message: str, start: int, end: int, depth: int) -> None:
        """Look through a message and those in it."""
        if depth > _MAX_DEPTH:
            raise _BrokenError("messages lie too deep in each other")
        inner, domain_field = _INNER[message], _DOMAIN_FIELDS.get(message, 0)
        is_outside, name = False, ""
        for number, wire, first, last in self.fields(start, end):
            if wire == _BYTES and number in inner:
                self._has_graph |= message == "model" and number == _GRAPH
                self._look_into(inner[number], first, last, depth + 1)
            elif message == "tensor":
                # Any value but 0, for parsers cut numbers to 32 bits, and 2^32 + 1 says the same as 1.
                is_outside |= number == _EXTERNAL_DATA or (number == _DATA_LOCATION and first != 0)
                if number == _TENSOR_NAME and wire == _BYTES:
                    name = self._text(first, last)
            elif wire == _BYTES and number == domain_field:
                if (domain := self._text(first, last)) not in KNOWN_DOMAINS:
                    self._found(f"operators of the domain {domain!r} are used")
            elif message == "node" and number == _OPERATOR and wire == _BYTES:
                if (operator := self._text(first, last)) in _OUTSIDE_OPERATORS:
                    self._found(f"the operator {operator} reads other files")
            elif message == "model" and number == _TRAINING_INFO:
                self._found("it brings code for training")
        if is_outside:
            self._found(f"the tensor {name!r} lies in another file")

    def _found(self, problem: str) -> None:
        self.problems[problem] = None

    def _text(self, start: int, end: int) -> str:
        text = self._content[start : min(end, start + _MAX_SHOWN)].decode("utf-8", errors="replace")
        return text if end - start <= _MAX_SHOWN else f"{text}..."

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """The fields of a message: number, type, and where the value begins and ends; of a number its value, twice."""
        content, place = self._content, start
        while place < end:
            self._num_fields += 1
            if self._num_fields > _MAX_FIELDS:
                raise _BrokenError(f"it has more than {_MAX_FIELDS:,} fields")
            tag = content[place]
            place += 1
            if tag >= 0x80:
                tag, place = self._number(place - 1, end)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 2**29:
                raise _BrokenError(f"a field has the number {number}")
            if wire == _BYTES:
                length, place = self._number(place, end)
                first, place = place, place + length
                found = (number, wire, first, place)
            elif wire == _VARINT:
                value, place = self._number(place, end)
                found = (number, wire, value, value)
            elif wire in (_FIXED_64, _FIXED_32):
                first, place = place, place + (8 if wire == _FIXED_64 else 4)
                found = (number, wire, first, place)
            else:
                raise _BrokenError(f"a field has the type {wire}")
            if place > end:
                raise _BrokenError("a field ends after the message that it is in")
            yield found

    def _number(self, place: int, end: int) -> tuple[int, int]:
        """A number of up to 64 bits, seven a byte, the lowest first; and the place after it."""
        value = 0
        for shift in range(0, 70, 7):
            if place >= end:
                break
            byte = self._content[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, place
        raise _BrokenError("a number has no end")

"""Inputs and outputs of prediction: any number of files in, one table row each out, in order, with flat memory."""

import csv
import glob
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from foveal.errors import ConfigError, DataError
from foveal.extras import require
from foveal.files import Utf8Lines, atomic_writer, natural_key, neutral_cell, to_json
from foveal.prediction import Prediction

TableFormat = Literal["csv", "jsonl", "parquet"]
PARQUET_ROWS = 4096
_SUFFIXES: dict[str, TableFormat] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def expand_inputs(inputs: Sequence[str], stdin: IO[str] | None = None) -> Iterator[str]:
    """The files that inputs stand for, in the order of the inputs, and in natural order within a folder.

    Args:
        inputs: files; folders, walked to the bottom without hidden entries; glob patterns; or `-` for a list on stdin,
            one path a line. A sub-folder that cannot be listed is given out itself, so that it fails where it is used.
        stdin: where `-` reads from.

    Raises:
        DataError: a pattern or folder holds no file.
    """
    for text in inputs:
        if text == "-":
            yield from _listed(stdin)
        elif os.path.isdir(text):  # noqa: PTH112  Path would change how the name is spelled
            yield from _some(_walk(text), f"The folder {text} holds no files.")
        elif glob.has_magic(text) and not os.path.lexists(text):
            found = sorted(glob.iglob(text, recursive=True), key=natural_key)  # noqa: PTH207
            yield from _some((path for path in found if os.path.isfile(path)), f"No file matches {text}.")  # noqa: PTH113
        else:
            yield text


def _listed(stdin: IO[str] | None) -> Iterator[str]:
    """Paths from a stream, one a line; from its bytes where it has them, since a name need not be UTF-8."""
    raw: Iterable[bytes] | None = getattr(stdin, "buffer", None)
    for line in stdin or () if raw is None else map(os.fsdecode, raw):
        if line.strip():
            yield line.rstrip("\r\n")


def _walk(folder: str) -> Iterator[str]:
    faults: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=faults.append):
        while faults:
            yield str(faults.pop().filename)
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural_key)
        for name in sorted((name for name in files if not name.startswith(".")), key=natural_key):
            yield os.path.join(parent, name)  # noqa: PTH118
    yield from (str(fault.filename) for fault in faults)


def _some(paths: Iterable[str], message: str) -> Iterator[str]:
    empty = True
    for path in paths:
        empty = False
        yield path
    if empty:
        raise DataError(message, fix="check the path; hidden files and folders are passed over.")


def table_format(out: Path | None, wanted: str | None) -> TableFormat:
    """The format of a table, as wanted or by its file's ending; CSV for stdout.

    Raises:
        ConfigError: neither says.
    """
    if wanted in {"csv", "jsonl", "parquet"}:
        chosen: TableFormat = wanted  # type: ignore[assignment]
    elif wanted is not None:
        raise ConfigError(f"--format {wanted}: expected csv, jsonl or parquet.")
    elif out is None:
        chosen = "csv"
    elif out.suffix.lower() in _SUFFIXES:
        chosen = _SUFFIXES[out.suffix.lower()]
    else:
        raise ConfigError(f"--out {out}: the ending says no format.", fix="use .csv, .jsonl or .parquet, or --format.")
    if chosen == "parquet" and out is None:
        raise ConfigError("Parquet cannot be written to the terminal.", fix="give --out FILE.parquet.")
    return chosen


class Sink(Protocol):
    """A table that is being written."""

    def add(self, prediction: Prediction) -> None:
        """Write one row."""


@contextmanager
def open_table(out: Path | None, kind: TableFormat, class_names: Sequence[str], stdout: IO[str]) -> Iterator[Sink]:
    """A table of predictions that appears under its name only when it is whole.

    Columns: path, status, reason, predicted, probability, and p_<class> for each class. Text cells of a CSV are
    neutralised, so that no spreadsheet runs them.

    Args:
        out: the file; None for `stdout`.
        kind: csv, jsonl or parquet.
        class_names: in the order of the probabilities.
        stdout: where rows go without a file.
    """
    if out is None:
        raw: IO[bytes] | None = getattr(stdout, "buffer", None)
        if raw is None:
            yield _make_sink(stdout, kind, class_names)
        else:  # past the stream's own encoding, which may have no word for a file name
            stdout.flush()
            yield _make_sink(Utf8Lines(raw), kind, class_names)
            raw.flush()
        return
    with atomic_writer(out) as stream:
        if kind == "parquet":
            sink = _Parquet(stream, class_names)
            try:
                yield sink
                sink.flush()
            finally:
                sink.close()
        else:
            yield _make_sink(Utf8Lines(stream), kind, class_names)


class _TextSink(Protocol):
    def write(self, text: str, /) -> int: ...


def _make_sink(stream: _TextSink, kind: TableFormat, class_names: Sequence[str]) -> Sink:
    return _Csv(stream, class_names) if kind == "csv" else _JsonLines(stream, class_names)


class _Csv:
    def __init__(self, stream: _TextSink, class_names: Sequence[str]) -> None:
        self._writer = csv.writer(stream)
        columns = ["path", "status", "reason", "predicted", "probability", *(f"p_{name}" for name in class_names)]
        self._writer.writerow([neutral_cell(name) for name in columns])

    def add(self, prediction: Prediction) -> None:
        numbers = (prediction.probability, *prediction.probabilities.tolist())
        texts = (prediction.path, prediction.status, prediction.reason, prediction.predicted)
        shown = ("" if math.isnan(number) else f"{number:.6g}" for number in numbers)
        self._writer.writerow([*(neutral_cell(text) for text in texts), *shown])


class _JsonLines:
    def __init__(self, stream: _TextSink, class_names: Sequence[str]) -> None:
        self._stream, self._class_names = stream, class_names

    def add(self, prediction: Prediction) -> None:
        failed = prediction.status != "ok"
        row: dict[str, Any] = {
            "path": prediction.path,
            "status": prediction.status,
            "reason": prediction.reason,
            "predicted": None if failed else prediction.predicted,
            "probability": None if failed else prediction.probability,
        }
        for name, value in zip(self._class_names, prediction.probabilities.tolist(), strict=True):
            row[f"p_{name}"] = None if failed else value
        self._stream.write(to_json(row) + "\n")


class _Parquet:
    """Rows in groups, so that memory does not grow with their number."""

    def __init__(self, stream: IO[bytes], class_names: Sequence[str]) -> None:
        self._arrow = require("pyarrow", extra="train", purpose="write Parquet")
        parquet = require("pyarrow.parquet", extra="train", purpose="write Parquet")
        text, number = self._arrow.string(), self._arrow.float64()
        names = ["path", "status", "reason", "predicted", "probability", *(f"p_{name}" for name in class_names)]
        self._schema = self._arrow.schema(list(zip(names, [text] * 4 + [number] * (len(names) - 4), strict=True)))
        self._writer = parquet.ParquetWriter(stream, self._schema, compression="zstd")
        self._rows: list[tuple[Any, ...]] = []

    def add(self, prediction: Prediction) -> None:
        failed = prediction.status != "ok"
        numbers = (prediction.probability, *prediction.probabilities.tolist())
        path = prediction.path.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")
        predicted = None if failed else prediction.predicted
        row = (path, prediction.status, prediction.reason, predicted, *(None if failed else n for n in numbers))
        self._rows.append(row)
        if len(self._rows) >= PARQUET_ROWS:
            self.flush()

    def close(self) -> None:
        self._writer.close()

    def flush(self) -> None:
        if self._rows:
            columns = [
                self._arrow.array(column, field.type)
                for column, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
            ]
            self._writer.write_table(self._arrow.Table.from_arrays(columns, schema=self._schema))
            self._rows.clear()

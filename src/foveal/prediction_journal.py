"""What a long prediction has said so far, on disk: a run that was killed goes on where it was.

Beside the table lies a journal while it is being made, one line an image. The same command again takes from it what
still holds, an image after the other: the same model, the same path, and a file that has not changed since.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from foveal.errors import ArtifactError, FovealError
from foveal.file_lock import take_lock
from foveal.files import to_json
from foveal.prediction import Prediction

FLUSH_SECONDS = 2.0
"""What a kill costs at most, beside the batch in the works."""


class Journal:
    """Predictions of one table, in order.

    Args:
        stream: the journal's file, to be read and written.
        key: of the model and how it is asked; what was said under another key counts for nothing.
        class_names: in the order of the probabilities.
    """

    def __init__(self, stream: IO[bytes], key: Mapping[str, Any], class_names: Sequence[str]) -> None:
        self._stream, self._class_names = stream, tuple(class_names)
        self._first = (to_json(dict(key)) + "\n").encode("utf-8")
        self._flushed = time.monotonic()
        self.num_kept = 0

    def resumed(
        self, paths: Iterable[str], predict: Callable[[Iterable[str]], Iterator[Prediction]]
    ) -> Iterator[Prediction]:
        """Predictions of all paths, in order: those that are known already, then new ones, written down as they come.

        Args:
            paths: what to predict.
            predict: predicts paths, in order.
        """
        upcoming = iter(paths)
        pending: list[str] = []
        for path, line in self._known(upcoming, pending):
            self.num_kept += 1
            yield self._prediction(path, line)
        self._stream.truncate()
        for prediction in predict(chain(pending, upcoming)):
            self._add(prediction)
            yield prediction
        self._flush()

    def _known(self, upcoming: Iterator[str], pending: list[str]) -> Iterator[tuple[str, list[Any]]]:
        """Lines that hold, with their paths; the stream is left behind the last, the path after it in `pending`."""
        self._stream.seek(0)
        if self._stream.readline() != self._first:
            self._stream.seek(0)
            self._stream.truncate()
            self._stream.write(self._first)
            return
        end = self._stream.tell()
        for path in upcoming:
            line = self._line()
            if line is None or line[:3] != [path, *_identity(path)]:
                pending.append(path)
                break
            end = self._stream.tell()
            yield path, line
        self._stream.seek(end)

    def _line(self) -> list[Any] | None:
        text = self._stream.readline()
        if not text.endswith(b"\n"):
            return None  # the end, or what a kill cut off
        try:
            line = json.loads(text)
        except ValueError:
            return None
        is_whole = isinstance(line, list) and len(line) == 5 + len(self._class_names)
        return line if is_whole else None

    def _prediction(self, path: str, line: list[Any]) -> Prediction:
        status, reason = str(line[3]), str(line[4])
        values = np.array([np.nan if value is None else value for value in line[5:]], dtype=np.float64)
        if status != "ok":
            return Prediction(path, status, reason, "", float("nan"), values)
        top = int(values.argmax())
        return Prediction(path, status, reason, self._class_names[top], float(values[top]), values)

    def _add(self, prediction: Prediction) -> None:
        is_ok = prediction.status == "ok"
        values = prediction.probabilities.tolist() if is_ok else [None] * len(self._class_names)
        line = [prediction.path, *_identity(prediction.path), prediction.status, prediction.reason, *values]
        # With escapes: a name need not be UTF-8, and Python's numbers are read back to the last bit.
        self._stream.write((json.dumps(line) + "\n").encode("ascii"))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._flushed = time.monotonic()


@contextmanager
def open_journal(table: Path, key: Mapping[str, Any], class_names: Sequence[str], *, fresh: bool) -> Iterator[Journal]:
    """The journal of a table that is being made, held by this process alone; gone when the table is whole.

    Args:
        table: what is made.
        key: of the model and how it is asked.
        class_names: in the order of the probabilities.
        fresh: whether to forget what was said before.

    Raises:
        ArtifactError: another process makes the same table, or the disk has no locks.
        FovealError: the folder cannot be written.
    """
    path = journal_of(table)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+b")
    except OSError as error:
        raise FovealError(
            f"{table} cannot be written: {error.strerror or error}.", fix="choose another --out."
        ) from error
    with stream:
        if not take_lock(stream.fileno(), path):
            raise ArtifactError(
                f"Another process is making {table}.", fix="wait for it to end, or choose another --out."
            )
        if fresh:
            stream.truncate(0)
        yield Journal(stream, key, class_names)
        path.unlink(missing_ok=True)


def journal_of(table: Path) -> Path:
    """Where the journal of a table lies."""
    return table.parent / f".{table.name[:200]}.journal"


def _identity(path: str) -> list[int]:
    """By what a file is known to be the same as before: bytes, and when it was changed, in nanoseconds."""
    try:
        status = os.stat(path)  # noqa: PTH116  Path would change how the name is spelled
    except (OSError, ValueError):
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]

"""Files on disk: durable writes, hashes, natural order, and text that is safe in a spreadsheet."""

import csv
import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from foveal.errors import FovealError

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE}
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts `2` before `10` and `cat` before `cat2`, and is total: equal only for equal texts.

    Digits compare as numbers and letters case-insensitively; the exact text breaks ties.
    """
    key: list[tuple[int, int, str]] = []
    for part in re.findall(r"[0-9]+|[^0-9]+", text):
        if part[0] in "0123456789":
            # By number of digits, then by the digits: Python refuses to turn thousands of digits into a number.
            digits = part.lstrip("0")
            key.append((1, len(digits), digits))
        else:
            key.append((2, 0, part.casefold()))
    return (*key, (0, 0, text))


def sha256_bytes(content: bytes) -> str:
    """The SHA-256 of `content` as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable; nothing where that cannot be, as on Windows and some network disks."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under its final name only when it is whole and on disk.

    The temporary file lies in the same folder, so that the final rename never crosses a file system.

    Raises:
        FovealError: the disk is full or the folder cannot be written; whatever stood there before still stands.
    """
    temporary = path.parent / f".{path.name[:32]}.{secrets.token_hex(6)}.partial"
    is_made, is_our_part = False, True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not `tempfile`, whose files only their owner can read: the user's umask decides.
        with temporary.open("xb") as stream:
            is_made, is_our_part = True, False
            yield stream
            is_our_part = True
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        # What the caller does between two writes may fail for reasons that are not this file's.
        if not is_our_part and error.errno not in _DISK_FAULTS:
            raise
        raise FovealError(
            f"{path} could not be written: {error.strerror or error}.",
            fix="free some space or choose another folder; what stood there before is untouched.",
        ) from error
    finally:
        if is_made:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text durably; see `atomic_writer`."""
    with atomic_writer(path) as stream:
        stream.write(text.encode("utf-8", errors="surrogateescape"))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON durably. NaN and infinity are refused: a value that is not defined is null."""
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON in readable letters; only what no file could hold as UTF-8 (parts of a name that is none) is escaped.

    NaN and infinity are refused: a value that is not defined is null.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=_encode)
    return _LONE_SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _encode(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    item: Callable[[], Any] | None = getattr(value, "item", None)
    if item is not None:
        return item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def read_json(path: Path) -> Any:
    """Read a UTF-8 JSON file.

    Raises:
        FovealError: the file is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FovealError(f"{path} does not exist.") from error
    except OSError as error:
        raise FovealError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FovealError(f"{path} is not JSON: {error}.") from error


def neutral_cell(value: Any) -> Any:
    """A table cell that no spreadsheet runs as a formula: such text gets a leading apostrophe.

    Source: OWASP, "CSV Injection". `plain_cell` takes the apostrophe off again.
    """
    if isinstance(value, str) and value.startswith((*_FORMULA_STARTS, "'")):
        return "'" + value
    return value


def plain_cell(text: str) -> str:
    """The text that `neutral_cell` was given."""
    if text.startswith("'") and text[1:].startswith((*_FORMULA_STARTS, "'")):
        return text[1:]
    return text


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV table durably, its text cells neutralised."""
    with atomic_writer(path) as stream:
        text = Utf8Lines(stream)
        writer = csv.writer(text)
        writer.writerow([neutral_cell(column) for column in columns])
        writer.writerows([neutral_cell(cell) for cell in row] for row in rows)


class Utf8Lines:
    """A text sink for the csv module over a binary stream that stays open afterwards."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text as UTF-8; bytes of a file name that are not UTF-8 come out as they were."""
        return self._stream.write(text.encode("utf-8", errors="surrogateescape"))

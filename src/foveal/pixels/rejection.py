"""Why there is nothing to see of an image: one error with a code from a closed set, and one line of words."""

import errno
import os
import stat
from typing import Literal, get_args

from foveal.errors import DataError

RejectionCode = Literal[
    "empty", "not_an_image", "format_not_allowed", "too_large", "truncated", "damaged", "unsupported", "bad_box"
]
REJECTION_CODES: tuple[RejectionCode, ...] = get_args(RejectionCode)

MAX_REASON_LENGTH = 300


class ImageRejectedError(DataError):
    """An image cannot be used. The message is the reason in one line and never holds a path.

    It is a fact of the content, so it may be stored beside the content's hash.

    Args:
        reason: what is wrong; made one line, control characters taken out.
        code: the kind of fault, for counting and for status codes.
    """

    def __init__(self, reason: str, code: RejectionCode) -> None:
        super().__init__(one_line(reason))
        self.code: RejectionCode = code

    def __reduce__(self) -> tuple[type["ImageRejectedError"], tuple[str, RejectionCode]]:
        # Without this, an error raised in a worker process cannot be rebuilt in its parent, which then hangs or breaks.
        return type(self), (self.message, self.code)


def refuse_no_file(status: os.stat_result) -> None:
    """Refuse what is no plain file before it is opened: opening a named pipe would wait for ever.

    Raises:
        OSError: it is a folder, a pipe, a device.
    """
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")


def reason_of(error: ImageRejectedError | OSError) -> str:
    """Why there is nothing to see of an image, as it stands in manifests, tables and answers; it never holds a path."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return f"cannot be read: {error.strerror or error}" if isinstance(error, OSError) else str(error)


def one_line(text: str) -> str:
    """`text` as one printable line of at most `MAX_REASON_LENGTH` characters."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * MAX_REASON_LENGTH])
    line = " ".join(printable.split())
    return line if len(line) <= MAX_REASON_LENGTH else line[: MAX_REASON_LENGTH - 1] + "…"

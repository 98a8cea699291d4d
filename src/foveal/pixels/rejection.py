"""Why an image is refused: one error with a code from a closed set, and one line of words."""

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


def one_line(text: str) -> str:
    """`text` as one printable line of at most `MAX_REASON_LENGTH` characters."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * MAX_REASON_LENGTH])
    line = " ".join(printable.split())
    return line if len(line) <= MAX_REASON_LENGTH else line[: MAX_REASON_LENGTH - 1] + "…"

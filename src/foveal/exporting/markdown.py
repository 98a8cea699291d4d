"""Markdown that shows text of others as it is, and never runs, links or breaks anything with it."""

import re
import unicodedata
from collections.abc import Sequence

_JOINERS = "\u200c\u200d"
"""Invisible, and needed by scripts and by emoji."""
_PUNCTUATION = re.compile(r"([!-%'-/:;=?@\[-`{-~])")

_ACTIVE = re.compile(r"([\\`*_\[\]{}|!#~$@]|^[-+=]|(?<=^\d)[.)](?=\s|$)|(?<=www)\.|:(?=//))")
"""What Markdown would act upon in a sentence; a full stop, a comma or a bracket in it does nothing."""


def plain(text: str) -> str:
    """Text of others, such as a class name, so that Markdown shows it letter by letter.

    CommonMark lets any ASCII punctuation be escaped by a backslash. What has no visible form, as a line break or a
    change of direction, is shown by its number, so that two names never look the same for it.
    """
    return _PUNCTUATION.sub(r"\\\1", visible(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def prose(text: str) -> str:
    """A sentence of foveal's own, or a version: shown as it is, and easy to read unrendered, with few escapes."""
    return _ACTIVE.sub(r"\\\1", visible(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(text: str) -> str:
    """Text of others as a code span, where it holds nothing that could end one."""
    return f"`{text}`" if re.fullmatch(r"[\w. +-]+", text) else plain(text)


def visible(text: str) -> str:
    """Text in one line, with the number in place of every character that has no visible form."""
    return "".join(f"[U+{ord(sign):04X}]" if _is_hidden(sign) else sign for sign in text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, num_words: int = 1) -> list[str]:
    """A table, a line a row; a blank line follows.

    Args:
        head: of the columns.
        rows: cells that are Markdown already.
        num_words: how many columns hold words; the others are flush right.
    """
    rule = [":--"] * num_words + ["--:"] * (len(head) - num_words)
    return [*(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)), ""]


def _is_hidden(sign: str) -> bool:
    return unicodedata.category(sign) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} and sign not in _JOINERS

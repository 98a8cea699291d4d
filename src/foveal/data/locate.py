"""Where the images of a table lie: each exists, is a plain file, and stays below the root unless asked otherwise."""

import os
import posixpath
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ALLOW_OUTSIDE = "--set data.allow_outside_root=true"
TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".parquet", ".pq"})
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
)
# From here on, one listing of a folder is cheaper than a question for each of its files.
_MANY_FILES = 32


@dataclass(frozen=True)
class Located:
    """What became of the paths of a table.

    Attributes:
        paths: with `/` between folders; relative to the root where they lie below it, else absolute.
        problems: what is wrong with a path, by its number; all others are plain files that exist.
        absent: numbers of the paths where nothing lies; these are among the problems.
    """

    paths: list[str]
    problems: dict[int, str]
    absent: set[int]


class Root:
    """A folder that samples lie below, and the question whether something leads out of it."""

    def __init__(self, folder: Path, *, allow_outside: bool) -> None:
        self.folder = os.fspath(folder.absolute())
        self.allow_outside = allow_outside
        self._real = os.path.realpath(self.folder)
        self._prefixes = tuple({_with_slash(_slashes(self.folder)), _with_slash(_slashes(self._real))})

    def relative(self, path: str) -> str | None:
        """The path below the root, tidied; None where it leads out by its own words.

        Where leading out is allowed, such a path comes back absolute.
        """
        text = _slashes(path)
        if posixpath.isabs(text) or os.path.isabs(path):  # noqa: PTH117
            text = posixpath.normpath(text)
            prefix = next((prefix for prefix in self._prefixes if text.startswith(prefix)), None)
            if prefix is not None:
                return text[len(prefix) :]
            return text if self.allow_outside else None
        if text.startswith(".") or "/." in text or "//" in text or text.endswith("/"):
            text = posixpath.normpath(text)
            if text == ".." or text.startswith("../"):
                return posixpath.normpath(posixpath.join(_slashes(self.folder), text)) if self.allow_outside else None
        return text

    def absolute(self, relative: str) -> str:
        """The path that the system opens."""
        return os.path.join(self.folder, relative) if relative else self.folder  # noqa: PTH118 - called a million times

    def holds(self, relative: str) -> bool:
        """Whether what lies at a path is below the root once every link is followed; true where all is allowed."""
        if self.allow_outside:
            return True
        real = _slashes(os.path.realpath(self.absolute(relative)))
        return _with_slash(real).startswith(_with_slash(_slashes(self._real)))


def locate(paths: Sequence[str], root: Root) -> Located:
    """Find the images of a table; nothing is opened, and nothing outside the root is even looked at unless allowed.

    Args:
        paths: as they stand in the table, relative to the root or absolute; repetitions cost little.
        root: where they lie.
    """
    tidy: dict[str, str | None] = {}
    for path in paths:
        if path not in tidy:
            tidy[path] = root.relative(path) if "\0" not in path else None
    by_folder: dict[str, set[str]] = {}
    for text in tidy.values():
        if text is not None:
            folder, _, name = text.rpartition("/")
            by_folder.setdefault("/" if text.startswith("/") and not folder else folder, set()).add(name)
    # The exact path as found on disk, or why there is none.
    found: dict[str, str] = {}
    faults: dict[str, str] = {}
    absent: set[str] = set()
    for folder, names in by_folder.items():
        _locate_in(folder, names, root, found, faults, absent)
    located, problems, absent_rows = list(paths), {}, set()
    for row, path in enumerate(paths):
        text = tidy[path]
        if text is None:
            wrong = (
                f"leads out of {root.folder}" if "\0" not in path else "holds a NUL character, as no file's name can"
            )
            problems[row] = f"path {path!r} {wrong}"
        elif text in faults:
            problems[row] = f"path {path!r} {faults[text]}"
            if text in absent:
                absent_rows.add(row)
        else:
            located[row] = found[text]
    return Located(located, problems, absent_rows)


def _locate_in(
    folder: str, names: Iterable[str], root: Root, found: dict[str, str], faults: dict[str, str], absent: set[str]
) -> None:
    prefix = _with_slash(folder) if folder else ""
    if not root.holds(folder):
        faults.update({prefix + name: f"lies behind a link that leads out of {root.folder}" for name in names})
        return
    listing = _list(root.absolute(folder)) if len(set(names)) > _MANY_FILES else None
    misses: list[str] = []
    for name in names:
        kind = listing.get(name) if listing is not None else _kind(root.absolute(prefix + name))
        if kind is None:
            misses.append(name)
            continue
        found[prefix + name] = prefix + name
        if fault := _fault(kind, prefix + name, root):
            faults[prefix + name] = fault
    if misses:
        _spelled_otherwise(prefix, misses, listing or _list(root.absolute(folder)) or {}, root, found, faults, absent)


def _fault(kind: str, path: str, root: Root) -> str:
    if kind == "link":
        if not root.holds(path):
            return f"is a link that leads out of {root.folder}"
        # Only now, since the target is inside, may it be looked at.
        try:
            kind = _kind_of_mode(os.stat(root.absolute(path)).st_mode)  # noqa: PTH116
        except OSError as error:
            return f"is a link that leads nowhere ({error.strerror})"
    words = {"file": "", "folder": "is a folder, not an image", "unreadable": "lies in a folder that may not be read"}
    return words.get(kind, "is no plain file")


def _spelled_otherwise(
    prefix: str,
    misses: Iterable[str],
    listing: dict[str, str],
    root: Root,
    found: dict[str, str],
    faults: dict[str, str],
    absent: set[str],
) -> None:
    """Names that exist in another Unicode form only, as archives from other systems leave them, are found too."""
    in_one_form = {unicodedata.normalize("NFC", name): name for name in listing}
    for name in misses:
        near = in_one_form.get(unicodedata.normalize("NFC", name))
        if near is None:
            faults[prefix + name] = "does not exist"
            absent.add(prefix + name)
        elif fault := _fault(listing[near], prefix + near, root):
            faults[prefix + name] = fault
        else:
            found[prefix + name] = prefix + near


def _list(folder: str) -> dict[str, str] | None:
    """What a folder holds, by name; None where it cannot be listed, so that each file is asked for by itself."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: _kind_of_entry(entry) for entry in entries}
    except OSError:
        return None


def _kind_of_entry(entry: "os.DirEntry[str]") -> str:
    if entry.is_symlink():
        return "link"
    return "file" if entry.is_file() else "folder" if entry.is_dir() else "other"


def _kind(path: str) -> str | None:
    try:
        return _kind_of_mode(os.lstat(path).st_mode)
    except PermissionError:
        return "unreadable"
    except OSError:  # nothing there; or a name that no file system takes, such as one of 300 bytes
        return None


def _kind_of_mode(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "link"
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def _slashes(path: str) -> str:
    return path.replace(os.sep, "/") if os.sep != "/" else path


def _with_slash(path: str) -> str:
    return path if path.endswith("/") else path + "/"

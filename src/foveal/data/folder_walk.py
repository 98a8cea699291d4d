"""One class folder, read at any depth: which files are images by their name, and which links are followed."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from foveal.data.locate import TABLE_SUFFIXES, Root
from foveal.types import Split

_CLUTTER = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"})
# Companions of images that nobody takes for one. All else is kept, and its content decides.
_NO_IMAGES = TABLE_SUFFIXES | frozenset(
    {
        ".txt",
        ".md",
        ".rst",
        ".log",
        ".xml",
        ".json",
        ".jsonl",
        ".yaml",
        ".yml",
        ".toml",
        ".ini",
        ".cfg",
        ".html",
        ".htm",
    }
    | {".npy", ".npz", ".mat", ".h5", ".hdf5", ".pkl", ".pickle", ".py", ".ipynb", ".sh", ".xls", ".xlsx", ".docx"}
)


def is_clutter(name: str) -> bool:
    """Whether a file or folder is what systems and tools leave behind, such as `.git`, `__MACOSX` or `Thumbs.db`."""
    return name.startswith(".") or name.lower() in _CLUTTER


@dataclass
class Rows:
    """Samples in the making, one list a column."""

    path: list[str] = field(default_factory=list)
    label: list[str] = field(default_factory=list)
    split: list[Split | None] = field(default_factory=list)
    status: list[str] = field(default_factory=list)
    reason: list[str | None] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ClassFolder:
    """A folder whose images are of one class.

    Attributes:
        path: below the root.
        label: its name.
        split: which the folder above it says.
    """

    path: str
    label: str
    split: Split | None


class Walk:
    """One class folder, read at any depth; real folders come first, and each folder is read once.

    Args:
        root: what holds it.
        top: the class folder.
        name: of its class.
        rows: to be added to.
    """

    def __init__(self, root: Root, top: ClassFolder, name: str, rows: Rows) -> None:
        self._root, self._top, self._name, self._rows = root, top, name, rows
        self._found: list[tuple[str, str | None]] = []
        self._pending: list[str] = []
        self._links: list[str] = []

    def run(self) -> None:
        """Read it; its samples and what is worth telling are added to the rows."""
        seen: set[tuple[int, int]] = set()
        if not self._root.holds(self._top.path):
            self._found.append((self._top.path, self._outside()))
        elif self._top_is_root():
            self._found.append((self._top.path, "is a link to a folder that it lies in"))
        else:
            self._pending.append(self._top.path)
        while self._pending or self._links:
            folder = self._pending.pop() if self._pending else self._links.pop(0)
            place = Path(self._root.absolute(folder))
            try:
                status = place.stat()
                # Bounds every loop of links, and keeps an image from coming in by two ways.
                if (status.st_dev, status.st_ino) in seen:
                    self._rows.notes.append(f"The link {folder!r} leads to a folder that was read already.")
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(place) as entries:
                    for entry in sorted(entries, key=lambda entry: entry.name):
                        if not is_clutter(entry.name):
                            self._take(entry, f"{folder}/{entry.name}")
            except PermissionError as error:
                self._rows.unreadable.append(f"{place}: {error.strerror}")
        for path, reason in sorted(self._found, key=lambda found: found[0]):
            self._add(path, reason)

    def _take(self, entry: "os.DirEntry[str]", path: str) -> None:
        if entry.is_symlink():
            self._take_link(entry, path)
        elif entry.is_dir():
            self._pending.append(path)
        elif not entry.is_file():
            self._found.append((path, "is neither a file nor a folder"))
        elif (suffix := os.path.splitext(entry.name)[1].lower()) in _NO_IMAGES:  # noqa: PTH122 - once a file
            self._rows.skipped[suffix] += 1
        else:
            self._found.append((path, None))

    def _take_link(self, entry: "os.DirEntry[str]", path: str) -> None:
        suffix = Path(entry.name).suffix.lower()
        if suffix in _NO_IMAGES:
            self._rows.skipped[suffix] += 1
        elif not self._root.holds(path):
            self._found.append((path, self._outside()))
        elif is_folder(entry) and self._leads_back(path):
            self._found.append((path, "is a link to a folder that it lies in"))
        elif is_folder(entry):
            self._links.append(path)
        elif Path(entry.path).is_file():
            self._found.append((path, None))
        else:
            self._found.append((path, "is a link that leads nowhere"))

    def _leads_back(self, path: str) -> bool:
        """Whether a link leads to the class folder or to one that it lies in, whose images are of other classes."""
        target, top = (os.path.realpath(self._root.absolute(each)) for each in (path, self._top.path))
        return os.path.commonpath([target, top]) == target

    def _top_is_root(self) -> bool:
        top = os.path.realpath(self._root.absolute(self._top.path))
        return os.path.commonpath([top, os.path.realpath(self._root.folder)]) == top

    def _outside(self) -> str:
        return "is a link that leads out of the data's folder; data.allow_outside_root=true would follow it"

    def _add(self, path: str, reason: str | None) -> None:
        if not is_text(path):
            path = path.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="backslashreplace")
            reason = "its name is not UTF-8; rename it"
        rows = self._rows
        rows.path.append(path)
        rows.label.append(self._name)
        rows.split.append(self._top.split)
        rows.status.append("ok" if reason is None else "quarantined")
        rows.reason.append(reason)


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a loop of links is no folder
        return False


def is_text(path: str) -> bool:
    """Whether a name is UTF-8."""
    if path.isascii():
        return True
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

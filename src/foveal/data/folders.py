"""Folders of class folders, with or without train, val and test above them."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from foveal.data.class_names import exclude_option, name_classes, shortened
from foveal.data.config import DataConfig
from foveal.data.locate import ALLOW_OUTSIDE, IMAGE_SUFFIXES, Root
from foveal.data.manifest import Manifest
from foveal.errors import DataError
from foveal.files import natural_key
from foveal.types import Split

SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".parquet", ".pq"})

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

Layout = Literal["folder", "split_folders"]


def is_clutter(name: str) -> bool:
    """Whether a file or folder is what systems and tools leave behind, such as `.git`, `__MACOSX` or `Thumbs.db`."""
    return name.startswith(".") or name.lower() in _CLUTTER


class _Tree:
    """What lies directly in a folder, clutter aside; of a link that leads out of the root, nothing."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.folder = Path(root.folder)

    def subfolders(self, path: str = "") -> list[str]:
        return self._names(path, folders=True)

    def files(self, path: str = "") -> list[str]:
        return self._names(path, folders=False)

    def images(self, path: str = "") -> list[str]:
        return [name for name in self.files(path) if Path(name).suffix.lower() in IMAGE_SUFFIXES]

    def holds_images(self, path: str) -> bool:
        """Whether a file with an image's name lies anywhere below; stops at the first and follows no links."""
        if not self.root.holds(path):
            return False
        for _, _, files in os.walk(self.root.absolute(path)):
            if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in files):
                return True
        return False

    def _names(self, path: str, *, folders: bool) -> list[str]:
        if not self.root.holds(path):
            return []
        place = self.root.absolute(path)
        try:
            with os.scandir(place) as entries:
                names = [entry.name for entry in entries if not is_clutter(entry.name) and _is_folder(entry) == folders]
        except OSError as error:
            raise DataError(
                f"{place} cannot be read: {error.strerror}.", fix="give yourself the right to read it."
            ) from error
        return sorted(names)


@dataclass
class _Rows:
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
class _ClassFolder:
    path: str  # below the root
    label: str
    split: Split | None


@dataclass(frozen=True)
class FoundFolders:
    """What folders hold.

    Attributes:
        manifest: a row for each file.
        layout: how they lie.
        notes: what is worth telling.
        empty_classes: names of class folders without an image.
    """

    manifest: Manifest
    layout: Layout
    notes: list[str]
    empty_classes: tuple[str, ...]


def read_folders(folder: Path, config: DataConfig, *, is_audit: bool = False) -> FoundFolders:
    """Every image below class folders, at any depth; nothing is opened.

    A link out of the folder, a link that leads nowhere, and a name that is no UTF-8 become quarantined rows.

    Args:
        folder: with the class folders.
        config: how to read it.
        is_audit: whether class folders without an image are named in the result, and not refused.

    Raises:
        DataError: the folder has no class folders or could be read in two ways, a class has no images, or a folder
            may not be read.
    """
    tree = _Tree(Root(folder, allow_outside=config.allow_outside_root))
    layout: Layout = _layout(tree) if config.format == "auto" else _stated(config)
    rows = _Rows()
    class_folders = list(_class_folders(tree, layout, rows))
    if not class_folders:
        raise _nothing_found(tree, layout)
    below = {each.path: tree.subfolders(each.path) for each in class_folders}
    if config.format == "auto":
        _refuse_ambiguity(tree, below)
    if all(names and not tree.images(path) for path, names in below.items()):
        first = class_folders[0].path
        rows.notes.append(
            f"All images lie deeper than the class folders; labels are names such as {class_folders[0].label!r}, "
            f"not names such as {below[first][0]!r} below it."
        )
    names = name_classes([each.label for each in class_folders], config)
    for class_folder in class_folders:
        name = names[class_folder.label]
        if name is not None:
            _Walk(tree.root, class_folder, name, rows).run()
    if rows.unreadable:
        raise DataError(
            "Folders may not be read.", problems=rows.unreadable, fix="give yourself the right to read them."
        )
    known = {name for name in names.values() if name is not None}
    empty = tuple(sorted(known - set(rows.label), key=natural_key))
    if empty and (not is_audit or len(empty) == len(known)):
        raise _no_images(tree, empty)
    if rows.skipped:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in rows.skipped.most_common())
        rows.notes.append(f"Files that are no images by their name were left out: {kinds}.")
    manifest = Manifest.build(
        folder, path=rows.path, label=rows.label, split=rows.split, status=rows.status, reason=rows.reason
    )
    return FoundFolders(manifest, layout, rows.notes, empty)


def _stated(config: DataConfig) -> Layout:
    if config.format == "folder":
        return "folder"
    if config.format == "split_folders":
        return "split_folders"
    raise DataError(f"DATA is a folder, and data.format={config.format} was stated.", fix="--set data.format=auto")


def _layout(tree: _Tree) -> Layout:
    """Tell a folder of class folders from one of train, val and test; a class may be called 'train', too."""
    folders = tree.subfolders()
    split_folders = [name for name in folders if name.lower() in SPLIT_NAMES]
    with_classes = [name for name in split_folders if tree.subfolders(name)]
    if not with_classes:
        if split_folders and len(split_folders) == len(folders) and any(tree.images(name) for name in split_folders):
            raise DataError(
                f"{tree.folder} holds {shortened(split_folders)}, with images but without class folders, so no labels.",
                fix="put the images of each class into a folder of its own, or give a table with path,label,split.",
            )
        return "folder"
    others = [name for name in folders if name not in split_folders and tree.holds_images(name)]
    if others:
        raise DataError(
            f"{tree.folder} can be read in two ways: {shortened(with_classes)} look like splits, "
            f"and {shortened(others)} beside them like classes.",
            fix="--set data.format=split_folders reads the splits, --set data.format=folder takes all as classes.",
        )
    return "split_folders"


def _class_folders(tree: _Tree, layout: Layout, rows: _Rows) -> Iterator[_ClassFolder]:
    if layout == "folder":
        _note_loose_images(tree, "", rows)
        for name in tree.subfolders():
            yield _ClassFolder(name, _label(name, tree.folder), None)
        return
    seen: dict[Split, str] = {}
    for name in tree.subfolders():
        split = SPLIT_NAMES.get(name.lower())
        if split is None:
            rows.notes.append(f"The folder {name!r} is no split and was left out.")
            continue
        if split in seen:
            raise DataError(
                f"{tree.folder} has two folders for {split}: {seen[split]!r} and {name!r}.", fix="make them one."
            )
        if not tree.root.holds(name):
            raise DataError(f"{tree.folder / name} is a link that leads out.", fix=f"if that is meant: {ALLOW_OUTSIDE}")
        seen[split] = name
        _note_loose_images(tree, name, rows)
        for inner in tree.subfolders(name):
            yield _ClassFolder(f"{name}/{inner}", _label(inner, tree.folder / name), split)


class _Walk:
    """One class folder, read at any depth; real folders come first, and each folder is read once."""

    def __init__(self, root: Root, top: _ClassFolder, name: str, rows: _Rows) -> None:
        self._root, self._top, self._name, self._rows = root, top, name, rows
        self._found: list[tuple[str, str | None]] = []
        self._pending: list[str] = []
        self._links: list[str] = []

    def run(self) -> None:
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
        elif _is_folder(entry) and self._leads_back(path):
            self._found.append((path, "is a link to a folder that it lies in"))
        elif _is_folder(entry):
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
        if not _is_text(path):
            path = path.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="backslashreplace")
            reason = "its name is not UTF-8; rename it"
        rows = self._rows
        rows.path.append(path)
        rows.label.append(self._name)
        rows.split.append(self._top.split)
        rows.status.append("ok" if reason is None else "quarantined")
        rows.reason.append(reason)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links is no folder
        return False


def _is_text(path: str) -> bool:
    if path.isascii():
        return True
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _label(name: str, parent: Path) -> str:
    if not _is_text(name):
        raise DataError(
            f"{parent} has a class folder whose name is not UTF-8: {os.fsencode(name)!r}.", fix="rename it."
        )
    return name


def _refuse_ambiguity(tree: _Tree, below: dict[str, list[str]]) -> None:
    """Refuse two layouts in which the folder level that names the class is probably another one.

    Args:
        tree: the data.
        below: the folders in each class folder.
    """
    only = next(iter(below))
    if len(below) == 1 and len(below[only]) > 1 and not tree.images(only):
        raise DataError(
            f"{tree.folder} holds the one folder {only!r}, and that one holds {shortened(below[only])}: "
            "either level could be the classes.",
            fix=f"give {tree.folder / only} as DATA; or --set data.format=folder if {only!r} is the only class.",
        )
    if all(any(name.lower() in SPLIT_NAMES for name in names) for names in below.values()):
        raise DataError(
            f"{tree.folder} has splits inside of its class folders: {only!r} holds {shortened(below[only])}; "
            "foveal reads splits that hold class folders.",
            fix="turn the levels round; or --set data.format=folder to take no notice of the splits.",
        )


def _no_images(tree: _Tree, empty: Sequence[str]) -> DataError:
    return DataError(
        f"{tree.folder} has class folders without a single image.",
        problems=[f"class {name!r}: 0 images" for name in empty],
        fix=f"add images, or leave them out: {exclude_option(empty)}{_table_hint(tree)}",
    )


def _nothing_found(tree: _Tree, layout: Layout) -> DataError:
    if layout == "split_folders":
        return DataError(
            f"{tree.folder} has no train/, val/ or test/ with class folders in them.", fix="--set data.format=auto"
        )
    files, images = tree.files(), tree.images()
    if images:
        came = f"{len(images)} images such as {images[0]!r}, but no class folders, so no labels"
    elif files:
        came = f"no folders, and the files {shortened(files, 5)}"
    else:
        came = "hidden files only" if any(tree.folder.iterdir()) else "nothing"
    return DataError(
        f"{tree.folder} should hold class folders, or train/ val/ test/ with class folders in them; it holds {came}.",
        fix=f"put the images of each class into a folder of their own, or give a table.{_table_hint(tree)}",
    )


def _table_hint(tree: _Tree) -> str:
    tables = [name for name in tree.files() if Path(name).suffix.lower() in TABLE_SUFFIXES]
    return f" There is a table in it: to read that, give {tree.folder / tables[0]} as DATA." if tables else ""


def _note_loose_images(tree: _Tree, path: str, rows: _Rows) -> None:
    images = tree.images(path)
    if images:
        first = f"{path}/{images[0]}" if path else images[0]
        rows.notes.append(f"{len(images)} images such as {first!r} lie in no class folder and were left out.")

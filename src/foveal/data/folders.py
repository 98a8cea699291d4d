"""Folders of class folders, with or without train, val and test above them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foveal.data.class_names import exclude_option, name_classes, shortened
from foveal.data.config import DataConfig
from foveal.data.folder_walk import ClassFolder, Rows, Walk, is_clutter, is_folder, is_text
from foveal.data.locate import ALLOW_OUTSIDE, IMAGE_SUFFIXES, TABLE_SUFFIXES, Root
from foveal.data.manifest import Manifest
from foveal.errors import DataError
from foveal.files import natural_key
from foveal.types import Split

SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

Layout = Literal["folder", "split_folders"]


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
                names = [entry.name for entry in entries if not is_clutter(entry.name) and is_folder(entry) == folders]
        except OSError as error:
            raise DataError(
                f"{place} cannot be read: {error.strerror}.", fix="give yourself the right to read it."
            ) from error
        return sorted(names)


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
    rows = Rows()
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
            Walk(tree.root, class_folder, name, rows).run()
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


def _class_folders(tree: _Tree, layout: Layout, rows: Rows) -> Iterator[ClassFolder]:
    if layout == "folder":
        _note_loose_images(tree, "", rows)
        for name in tree.subfolders():
            yield ClassFolder(name, _label(name, tree.folder), None)
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
            yield ClassFolder(f"{name}/{inner}", _label(inner, tree.folder / name), split)


def _label(name: str, parent: Path) -> str:
    if not is_text(name):
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


def _note_loose_images(tree: _Tree, path: str, rows: Rows) -> None:
    images = tree.images(path)
    if images:
        first = f"{path}/{images[0]}" if path else images[0]
        rows.notes.append(f"{len(images)} images such as {first!r} lie in no class folder and were left out.")

"""A folder that appears under its final name only when all of it is made and proven; until then nothing is touched."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from foveal.errors import ArtifactError, FovealError
from foveal.exported.opening import PARITY_FILE
from foveal.exported.spec import ONNX_FILES
from foveal.file_lock import HAS_LOCKS, take_lock
from foveal.files import fsync_folder
from foveal.model.bundle_spec import WEIGHTS_FILE

CARD_FILE = "README.md"
SCRIPT_FILE = "model.ts"
FILES = frozenset({*ONNX_FILES.values(), SCRIPT_FILE, PARITY_FILE, CARD_FILE, WEIGHTS_FILE, "config.json"})
"""All that exports of any kind hold."""

_OLD = "old"
_TRIES = 5


def check_target(out: Path, *, force: bool) -> None:
    """Refuse a folder that holds anything but an export of ours, which only `force` replaces.

    Raises:
        ArtifactError: it is a file, holds something else, or an export and `force` is not given.
    """
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise ArtifactError(f"{out} is no folder.", fix="choose another --out.")
    held = {path.name for path in out.iterdir()}
    foreign = sorted(held - FILES)
    if foreign or PARITY_FILE not in held:
        raise ArtifactError(
            f"{out} is not empty, and holds what no export has written: {', '.join((foreign or sorted(held))[:5])}.",
            fix="choose another --out; an export has a folder of its own.",
        )
    if not force:
        raise ArtifactError(f"{out} holds an export already.", fix="choose another --out, or replace it: --force")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when the block ends well, and is removed when it does not.

    A process that is killed leaves `out` as it was; what it left beside it, the next export there removes.

    Args:
        out: the folder to make or to replace; see `check_target`.

    Yields:
        The folder to fill.

    Raises:
        ArtifactError: the folder beside cannot be made, or `out` cannot be replaced.
    """
    target = Path(os.path.realpath(out))
    work = _work_folder(target, out)
    descriptor = _lock(work)
    try:
        _remove_leftovers(target, work)
        folder = work / "export"
        folder.mkdir()
        yield folder
        _sync(folder)
        _put_in_place(folder, target, work)
    finally:
        _remove(work, target)
        if descriptor is not None:
            os.close(descriptor)


def _work_folder(target: Path, out: Path) -> Path:
    work = target.parent / f".{target.name[:64]}.{secrets.token_hex(6)}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir()
    except OSError as error:
        raise ArtifactError(
            f"{out} cannot be written: {error.strerror or error}.", fix="choose another --out, or mend the permissions."
        ) from error
    return work


def _lock(folder: Path) -> int | None:
    """Hold the folder, so that no other export takes it for a leftover; None where folders cannot be opened."""
    if not HAS_LOCKS:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    with suppress(ArtifactError):  # where the disk has no locks, nobody removes leftovers either
        take_lock(descriptor, folder)
    return descriptor


def _remove_leftovers(target: Path, own: Path) -> None:
    """Remove what killed exports of this folder have left; those that are being worked on are locked."""
    if not HAS_LOCKS:
        return
    for left in target.parent.glob(f".{_escaped(target.name[:64])}.*.partial"):
        if left == own:
            continue
        with suppress(OSError, ArtifactError):
            descriptor = os.open(left, os.O_RDONLY)
            try:
                if take_lock(descriptor, left):
                    _remove(left, target)
            finally:
                os.close(descriptor)


def _remove(work: Path, target: Path) -> None:
    """Remove a work folder; an older export in it, put aside when its place was not filled after all, goes back."""
    if (work / _OLD).is_dir() and not target.exists():
        (work / _OLD).rename(target)
    shutil.rmtree(work, ignore_errors=True)


def _escaped(name: str) -> str:
    """A file name whose signs mean nothing to glob."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    fsync_folder(folder)


def _put_in_place(folder: Path, target: Path, work: Path) -> None:
    """Two renamings: the old folder away, the new one there. Another export may do the same in between."""
    for attempt in range(_TRIES):
        try:
            if target.exists():
                target.rename(work / (_OLD if attempt == 0 else f"{_OLD}-{attempt}"))
            folder.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) and folder.is_dir():
                continue
            raise ArtifactError(
                f"{target} could not be written: {error.strerror or error}.", fix="choose another --out."
            ) from error
        fsync_folder(target.parent)
        return
    raise FovealError(f"{target} is being written by several exports at once.", fix="choose another --out for each.")

"""Checkpoints that survive the moment they are written in.

A checkpoint is tensors and plain values only, so that it can be read without running anything. `last.ckpt` is
replaced atomically and durably, and the one before it stays beside it as `previous.ckpt`.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from foveal.errors import ArtifactError
from foveal.files import atomic_writer

FORMAT_VERSION = 1
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


def save_last(folder: Path, content: dict[str, Any]) -> None:
    """Write `last.ckpt`; what was there before becomes `previous.ckpt`."""
    last, previous = folder / LAST, folder / PREVIOUS
    if last.exists():
        aside = folder / f".{PREVIOUS}.{os.getpid()}"
        aside.unlink(missing_ok=True)
        try:
            os.link(last, aside)
        except OSError:  # a file system without hard links
            shutil.copyfile(last, aside)
        aside.replace(previous)
    save(last, content)


def save(path: Path, content: dict[str, Any]) -> None:
    """Write one checkpoint: in the same folder, flushed to the disk, then renamed.

    Raises:
        FovealError: the disk is full or the folder cannot be written; the old file is intact.
    """
    with atomic_writer(path) as stream:
        try:
            torch.save({"format_version": FORMAT_VERSION, **content}, stream)
        except RuntimeError as error:
            # On its way out of an error torch closes its archive, fails at that too, and so hides a full disk.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint, with everything but tensors and plain values refused.

    Raises:
        ArtifactError: it is missing, truncated, or not ours.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ArtifactError(f"There is no checkpoint {path}.") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive makes torch fail in a dozen ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ArtifactError(f"The checkpoint {path} is damaged or not foveal's: {reason}.") from error
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(f"The checkpoint {path} is not foveal's, or of another version of it.")
    return content


def is_begun(folder: Path) -> bool:
    """Whether a run has written a checkpoint to go on from, damaged or not."""
    return any((folder / name).exists() for name in (LAST, PREVIOUS))


def load_last(folder: Path) -> tuple[dict[str, Any], str]:
    """The newest whole checkpoint of a run.

    Returns:
        The checkpoint, and a sentence that is not empty where the newest was damaged and the one before was taken.

    Raises:
        ArtifactError: there is none that can be read.
    """
    try:
        return load(folder / LAST), ""
    except ArtifactError as newest:
        try:
            return load(folder / PREVIOUS), f"{newest.message} Going on from the one before it."
        except ArtifactError:
            raise ArtifactError(
                f"{folder} holds no checkpoint that can be read. {newest.message}",
                fix="start again without --resume (with --force for the same folder).",
            ) from newest

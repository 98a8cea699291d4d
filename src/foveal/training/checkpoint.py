"""Checkpoints that survive the moment they are written in.

A checkpoint is tensors and plain values only, so that it can be read without running anything. `last.ckpt` is
replaced atomically and durably, and the one before it stays beside it as `previous.ckpt`.

Where a training never moves most of its tensors, they are written once, as `frozen.ckpt`, and each checkpoint holds the
others and the hash of that file.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foveal.errors import ArtifactError
from foveal.files import atomic_writer, sha256_file

FORMAT_VERSION = 2
_WHOLE_VERSION = 1
"""Of a checkpoint that needs no other file."""
LAST, PREVIOUS, BEST, FROZEN = "last.ckpt", "previous.ckpt", "best.ckpt", "frozen.ckpt"
_STATES = ("model", "average")
"""What of a checkpoint's content may lack tensors that `frozen.ckpt` has."""
_OF_AVERAGE = "module."
"""What stands before a tensor's name in a weights' average."""

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers of as many bytes."""

Tensors = dict[str, torch.Tensor]


class Frozen:
    """The tensors that a training never moves, in a file of their own beside its checkpoints.

    They are compared with what is to be saved: a tensor that did move is written like any other.

    Args:
        folder: of the checkpoints.
        net: whose parameters without a gradient they are, and whose buffers.
        sha256: of the file, where the checkpoint that a run goes on from named it; else it is written now.

    Raises:
        FovealError: the disk is full or the folder cannot be written.
        ArtifactError: the file is missing or damaged.
    """

    def __init__(self, folder: Path, net: nn.Module, sha256: str = "") -> None:
        state = net.state_dict(keep_vars=True)
        if sha256:
            found = _read_frozen(folder, sha256)
            self._tensors = {name: tensor.to(state[name].device) for name, tensor in found.items() if name in state}
            self.sha256 = sha256
            return
        self._tensors = {name: tensor.detach().clone() for name, tensor in state.items() if not tensor.requires_grad}
        _write(folder / FROZEN, {"format_version": FORMAT_VERSION, "tensors": self._tensors})
        self.sha256 = sha256_file(folder / FROZEN)

    def left_out(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """A checkpoint's content with None for each tensor that the file has."""
        states = {key: self._moved(content[key]) for key in _STATES if content.get(key)}
        return {**content, **states, "frozen": self.sha256}

    def _moved(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
        kept = {name: self._tensors.get(name.removeprefix(_OF_AVERAGE)) for name in state}
        return {
            name: tensor if (other := kept[name]) is None or not _is_same(tensor, other) else None
            for name, tensor in state.items()
        }


def _is_same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal bit for bit."""
    if tensor.dtype != other.dtype or tensor.shape != other.shape:
        return False
    whole_numbers = _BITS.get(tensor.element_size())
    if tensor.device.type != "cpu" or whole_numbers is None:
        return torch.equal(tensor, other)
    # Numpy takes a third of the time of torch on one thread. Torch's count of a tensor's changes would cost nothing,
    # but a batch norm changes its statistics without it.
    one, two = (each.detach().view(whole_numbers).numpy() for each in (tensor, other))
    return bool((one == two).all())


def save_last(folder: Path, content: dict[str, Any], frozen: Frozen | None = None) -> None:
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
    save(last, content, frozen)


def save(path: Path, content: dict[str, Any], frozen: Frozen | None = None) -> None:
    """Write one checkpoint: in the same folder, flushed to the disk, then renamed.

    Args:
        path: where.
        content: tensors and plain values.
        frozen: tensors that need not be written, of the same folder.

    Raises:
        FovealError: the disk is full or the folder cannot be written; the old file is intact.
    """
    if frozen is None:
        _write(path, {"format_version": _WHOLE_VERSION, **content})
    else:
        _write(path, {"format_version": FORMAT_VERSION, **frozen.left_out(content)})


def _write(path: Path, content: dict[str, Any]) -> None:
    with atomic_writer(path) as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:
            # On its way out of an error torch closes its archive, fails at that too, and so hides a full disk.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint, whole, with everything but tensors and plain values refused.

    Raises:
        ArtifactError: it is missing, truncated, or not ours, or the file of its frozen tensors is.
    """
    content = _read(path)
    if content.get("frozen"):
        frozen = _read_frozen(path.parent, content["frozen"])
        for key in _STATES:
            if state := content.get(key):
                content[key] = {
                    name: frozen[name.removeprefix(_OF_AVERAGE)] if tensor is None else tensor
                    for name, tensor in state.items()
                }
    return content


def _read_frozen(folder: Path, sha256: str) -> Tensors:
    file = folder / FROZEN
    tensors: Tensors = _read(file)["tensors"]
    if sha256_file(file) != sha256:
        raise ArtifactError(f"The checkpoint {file} is damaged, or of another training.")
    return tensors


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ArtifactError(f"There is no checkpoint {path}.") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive makes torch fail in a dozen ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ArtifactError(f"The checkpoint {path} is damaged or not foveal's: {reason}.") from error
    if not isinstance(content, dict) or content.get("format_version") not in (_WHOLE_VERSION, FORMAT_VERSION):
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

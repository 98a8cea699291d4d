"""Files of named tensors, read without running anything that they bring along."""

import pickle
import warnings
from pathlib import Path

import torch

from foveal.errors import ArtifactError

_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
"""What torch's format before the zip begins with: a pickled number."""


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a file of named tensors: safetensors by content, else torch's format with everything but tensors refused.

    Raises:
        ArtifactError: the file is damaged, or holds something that would run code when loaded.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(32)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}.", fix="check the path.") from error
    # Eight bytes with the length of a header in JSON.
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            # Not mapped: a mapped file that someone cuts off ends the process without a word.
            return dict(load(path.read_bytes()))
        except (SafetensorError, OSError, ValueError) as error:
            raise ArtifactError(f"{path} is not a whole safetensors file: {error}.", fix="copy it again.") from error
    if not head.startswith((b"PK", _LEGACY_MAGIC)):
        if head.startswith(b"\x80"):
            raise _refused(path)
        raise ArtifactError(
            f"{path} is not a file of weights: it begins like neither safetensors nor a file of torch.",
            fix="give a .safetensors file, or what torch.save(model.state_dict(), ...) wrote.",
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # it reads them well, or refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path) from error
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make torch's reader raise nearly anything
        raise ArtifactError(f"{path} is not a file of weights: {first_line(error)}.", fix="copy it again.") from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    named = content.items() if isinstance(content, dict) else ()
    tensors = {name: value for name, value in named if isinstance(name, str) and isinstance(value, torch.Tensor)}
    if not tensors:
        raise ArtifactError(f"{path} holds no named tensors.", fix="save the model's state_dict().")
    return tensors


def _refused(path: Path) -> ArtifactError:
    return ArtifactError(
        f"{path} was refused: it holds more than tensors, and loading it could run code that it brings along.",
        fix="convert it to .safetensors where it was made; foveal never loads such a file.",
    )


def first_line(error: BaseException) -> str:
    """An error in one line, without the full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")

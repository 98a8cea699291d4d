"""Imports of optional libraries, with a message that says which extra brings them."""

import importlib
from importlib.util import find_spec
from types import ModuleType

from foveal.errors import MissingExtraError

LIBRARIES_OF_TRAIN = frozenset(
    ("torch", "torchvision", "timm", "lightning", "kornia", "sklearn", "pyarrow", "safetensors", "matplotlib", "jinja2")
)
"""What `foveal[train]` brings, by the names that are imported."""


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """The error to show where an import of ours failed for want of an extra; None where it failed otherwise."""
    library = (error.name or "").partition(".")[0]
    if library not in LIBRARIES_OF_TRAIN:
        return None
    return MissingExtraError(
        f"{library} is needed for this, and it is not installed.", fix="pip install 'foveal[train]'"
    )


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or say which extra holds it.

    Args:
        module: the importable name, such as `torch`.
        extra: the extra of foveal that installs it, such as `train`.
        purpose: what it is needed for, to finish the sentence "... is needed to".

    Raises:
        MissingExtraError: the module is not installed.
    """
    if find_spec(module.partition(".")[0]) is None:
        raise MissingExtraError(
            f"{module} is needed to {purpose}, and it is not installed.",
            fix=f"pip install 'foveal[{extra}]'",
        )
    return importlib.import_module(module)

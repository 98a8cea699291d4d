"""Imports of optional libraries, with a message that says which extra brings them."""

import importlib
from importlib.util import find_spec
from types import ModuleType

from foveal.errors import MissingExtraError


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

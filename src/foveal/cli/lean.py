"""What the command line keeps out of its process, because nothing here needs it."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from types import ModuleType

PANDAS = "pandas"


class _Absent(MetaPathFinder):
    """Says of pandas that it is not installed."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Refuse it, and leave all else to the other finders."""
        if fullname == PANDAS:
            raise ModuleNotFoundError(fullname, name=PANDAS)


def keep_pandas_out() -> None:
    """Let Arrow believe that there is no pandas, which it otherwise imports wherever there is one: a third of a second.

    Arrow asks once a process, when it makes its first array, so that the question is put to it here. Whoever imports
    pandas later gets it, and Arrow's own functions for data frames look for it again. This is for a process that is
    ours from its start to its end, and no part of the library: a notebook's Arrow knows its pandas.
    """
    if PANDAS in sys.modules or find_spec("pyarrow") is None:
        return
    absent = _Absent()
    sys.meta_path.insert(0, absent)
    try:
        importlib.import_module("pyarrow").array([])
    finally:
        sys.meta_path.remove(absent)

"""Runs to report on, and a browser to open reports with."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from foveal.run_folder import RunFolder

from .simulated_run import make_small_run


@pytest.fixture
def small_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """Make a run of generated images: `small_run(["a", "b"], num_each=40, **what_write_run_takes)`."""
    return partial(make_small_run, tmp_path, with_plots=False)

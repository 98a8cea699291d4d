"""The small run that the tests here look at."""

from collections.abc import Callable
from pathlib import Path

import pytest

from small_runs import quicken_plots, small_run


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_plots(monkeypatch)


@pytest.fixture
def trained(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run; see `small_runs.small_run`."""
    return small_run(make_images, tmp_path_factory)

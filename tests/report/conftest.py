"""Runs to report on, and a browser to open reports with."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from foveal.run_folder import RunFolder

from .simulated_run import make_small_run


@pytest.fixture
def small_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """Make a run of generated images: `small_run(["a", "b"], num_each=40, **what_write_run_takes)`."""
    return partial(make_small_run, tmp_path, with_plots=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium, headless and told to stay off the network."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    quiet = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=[*quiet, "--disable-sync"])
        yield chromium
        chromium.close()

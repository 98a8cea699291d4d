"""Where the real images are: FOVEAL_DATA names the folder; without it these tests are left out."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets."""
    named = os.environ.get("FOVEAL_DATA")
    if not named:
        pytest.skip("FOVEAL_DATA is not set")
    return Path(named)

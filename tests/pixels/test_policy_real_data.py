"""The pixel policy on real photographs."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from foveal.pixels.policy import decode


@pytest.mark.real_data
def test_real_photographs_are_what_pillow_shows() -> None:
    folder = os.environ.get("FOVEAL_DATA")
    if not folder:
        pytest.skip("FOVEAL_DATA does not name the folder of real images")
    paths = [*sorted(Path(folder).glob("sign_digits/*/*.JPG"))[::9], *sorted(Path(folder).glob("bccd/images/*"))[::5]]
    assert len(paths) >= 300
    num_plain = 0
    for path in paths:
        decoded = decode(path)
        with Image.open(path) as image:
            upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        assert decoded.pixels.shape == upright.shape
        if "ICC profile converted to sRGB" in decoded.notes:
            # Display P3 photographs: the colours move, a little.
            assert 0 < np.abs(decoded.pixels.astype(int) - upright).mean() < 16
        else:
            num_plain += 1
            assert np.array_equal(decoded.pixels, upright)
    assert num_plain >= 50

"""The `augment` section; apart from `augment`, which needs torch, so that reading a configuration does not."""

from typing import Literal, get_args

from pydantic import Field

from foveal.config import Section

PolicyName = Literal["none", "light", "medium", "heavy"]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)


class AugmentConfig(Section):
    """What is done to training images, never to those that validate or test."""

    policy: PolicyName = "light"
    """none; light: small shifts, turns, zooms and changes of light, right for nearly every domain; medium: more of
    the same, mirroring and erasing; heavy: strong, with blur and grey."""
    horizontal_flip: float | None = Field(default=None, ge=0.0, le=1.0)
    """Probability of mirroring left to right; not given, the policy decides (light 0, medium and heavy 0.5).
    Wrong for digits, letters and left-or-right questions."""
    vertical_flip: float = Field(default=0.0, ge=0.0, le=1.0)
    """Probability of mirroring top to bottom; right for cells, satellites and other pictures without an up."""

"""The `augment` section; apart from `augment`, which needs torch, so that reading a configuration does not."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from foveal.config import Section
from foveal.data.augment_operations_config import AnyOperation, ResizedCrop, check_listed

FusedPolicyName = Literal["none", "light", "medium", "heavy"]
AutomaticPolicyName = Literal["randaugment", "trivialaugment", "augmix"]
PolicyName = Literal["none", "light", "medium", "heavy", "randaugment", "trivialaugment", "augmix"]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
Fill = Literal["reflect", "edge", "black", "grey"]


class AugmentConfig(Section):
    """What is done to training images, never to those that validate or test."""

    policy: PolicyName = "light"
    """none; light: small shifts, turns, zooms and changes of light, right for nearly every domain; medium: more of
    the same, mirroring and erasing; heavy: strong, with blur and grey; randaugment (Cubuk et al. 2020): a few
    operations, drawn for each image, at one strength; trivialaugment (Müller and Hutter 2021): one operation at any
    strength; augmix (Hendrycks et al. 2020): three chains of operations, mixed with the image."""
    horizontal_flip: float | None = Field(default=None, ge=0.0, le=1.0)
    """Probability of mirroring left to right; not given, the policy decides (medium and heavy 0.5, all others 0).
    Wrong for digits, letters and left-or-right questions."""
    vertical_flip: float = Field(default=0.0, ge=0.0, le=1.0)
    """Probability of mirroring top to bottom; right for cells, satellites and other pictures without an up."""
    fill: Fill | None = None
    """What stands beyond an image's edge where a turn or shift brings it into view: the image reflected, its edge's
    pixels, black or grey; not given, the policy decides (grey for randaugment, trivialaugment and augmix, whose shifts
    are so long that a reflection shows an object twice; reflect for all others)."""
    randaugment_magnitude: float = Field(default=0.3, ge=0.0, le=1.0)
    """Strength of randaugment's operations, as a share of the strongest; 0.3 is the paper's 9 of 30."""
    randaugment_num: int = Field(default=2, ge=1, le=14)
    """Operations that randaugment does to each image, one after the other."""
    augmix_severity: float = Field(default=3.0, gt=0.1, le=10.0)
    """Largest strength of augmix's operations, of 10."""
    operations: tuple[AnyOperation, ...] = ()
    """An ordered list of operations instead of a policy, each with its name, probability and own keys;
    docs/augmentation.md has them all."""
    albumentations: str | None = None
    """A pipeline saved by `albumentations.save`, YAML or JSON, instead of a policy; needs the extra albumentations."""
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often each image comes in an epoch, by its own draw each time."""

    @model_validator(mode="before")
    @classmethod
    def _no_policy_beside_a_list(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and (given.get("operations") or given.get("albumentations") is not None):
            return {"policy": "none", **given}
        return given

    @field_validator("operations", mode="before")
    @classmethod
    def _all_problems_at_once(cls, value: Any) -> Any:
        return check_listed(value)

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if not (self.operations or self.albumentations is not None):
            return self
        what = "operations" if self.operations else "albumentations"
        problems = []
        if self.policy != "none":
            problems.append(f"policy: leave it out, or say none, where {what} says what is done; came {self.policy!r}")
        flips = [("horizontal_flip", self.horizontal_flip), ("vertical_flip", self.vertical_flip)]
        problems += [f"{name}: put the flip into {what} instead" for name, probability in flips if probability]
        if self.operations and self.albumentations is not None:
            problems.append("operations and albumentations: give one of the two")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def title(self) -> str:
        """The policy, or what stands in its place: operations, albumentations."""
        return "operations" if self.operations else "albumentations" if self.albumentations is not None else self.policy

    @property
    def filled_with(self) -> Fill:
        """What stands beyond an image's edge."""
        if self.fill is not None:
            return self.fill
        return "grey" if self.policy in get_args(AutomaticPolicyName) else "reflect"

    @property
    def is_off(self) -> bool:
        """Whether training sees what evaluation sees, every time."""
        return self.title == "none" and not self.horizontal_flip and not self.vertical_flip

    @property
    def random_window(self) -> bool:
        """Whether training takes a random square of an oblong image, or the middle one.

        A list says all that is done, so it moves only where the list has a random crop.
        """
        return self.policy != "none" or any(isinstance(each, ResizedCrop) for each in self.operations)

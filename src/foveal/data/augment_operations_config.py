"""The operations that `augment.operations` lists, each a section of its own, told apart by `name`.

Sizes on the image are shares of its side, so that a list means the same at every image size; where the field has a unit
of its own (the degrees of a turn, a kernel in pixels, OpenCV's hue), it is kept.
"""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, Union, get_args

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from foveal.config import Section

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Part = Annotated[float, Field(gt=0.0, le=1.0)]
Factor = Annotated[float, Field(gt=0.0, le=10.0)]
Degrees = Annotated[float, Field(ge=0.0, le=180.0)]
Levels = Annotated[float, Field(ge=0.0, le=255.0)]
OddPixels = Annotated[int, Field(ge=1, le=99)]


class OperationConfig(Section):
    """What every operation has. Two numbers in a list are the least and the most of a uniform draw."""

    name: str
    """Which operation."""
    probability: Share = 0.5
    """Share of the images that it is done to, each by its own draw."""

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        # The name says which operation this is, and is written out even where Python code left it to its default.
        self.__pydantic_fields_set__.add("name")
        for key, value in self:
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{key}: the least comes first, and came {list(value)}")
        return self


class HorizontalFlip(OperationConfig):
    """Left becomes right."""

    name: Literal["horizontal_flip"] = "horizontal_flip"
    """Which operation."""


class VerticalFlip(OperationConfig):
    """Top becomes bottom."""

    name: Literal["vertical_flip"] = "vertical_flip"
    """Which operation."""


class QuarterTurn(OperationConfig):
    """A turn by 0, 90, 180 or 270 degrees, each as often, without resampling. As albumentations' RandomRotate90."""

    name: Literal["quarter_turn"] = "quarter_turn"
    """Which operation."""


class Rotate(OperationConfig):
    """A turn about the middle. As albumentations' Rotate and torchvision's RandomRotation."""

    name: Literal["rotate"] = "rotate"
    """Which operation."""
    degrees: Degrees = 15.0
    """Largest turn either way, in degrees."""


class ShiftScaleRotate(OperationConfig):
    """Shift, zoom and turn in one. As albumentations' ShiftScaleRotate, whose defaults these are, but for the turn."""

    name: Literal["shift_scale_rotate"] = "shift_scale_rotate"
    """Which operation."""
    shift: Share = 0.0625
    """Largest shift along each axis, as a share of the side."""
    scale: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Largest change of size, as a share: 0.05 is 0.95 to 1.05."""
    degrees: Degrees = 15.0
    """Largest turn either way, in degrees."""


class Shear(OperationConfig):
    """Parallels stay parallel, right angles do not; about the middle. As torchvision's RandomAffine."""

    name: Literal["shear"] = "shear"
    """Which operation."""
    degrees: Annotated[float, Field(ge=0.0, le=60.0)] = 10.0
    """Largest slant along each axis either way, in degrees."""


class Zoom(OperationConfig):
    """Nearer or further about the middle."""

    name: Literal["zoom"] = "zoom"
    """Which operation."""
    factor: tuple[Factor, Factor] = (0.9, 1.1)
    """Least and largest magnification; above 1 is nearer."""


class ResizedCrop(OperationConfig):
    """A part of the image, stretched to all of it. As torchvision's RandomResizedCrop (Szegedy et al. 2015)."""

    name: Literal["resized_crop"] = "resized_crop"
    """Which operation."""
    scale: tuple[Part, Part] = (0.5, 1.0)
    """Least and largest share of the area. torchvision's default begins at 0.08, which often loses the object."""
    ratio: tuple[Factor, Factor] = (0.75, 1.3333333333333333)
    """Least and largest width over height, drawn uniformly by its logarithm."""


class GridDistortion(OperationConfig):
    """Columns and rows of a grid become wider and narrower. As albumentations' GridDistortion with `normalized`."""

    name: Literal["grid_distortion"] = "grid_distortion"
    """Which operation."""
    num_steps: Annotated[int, Field(ge=1, le=100)] = 5
    """Columns, and rows, of the grid."""
    limit: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Largest change of a column's width, as a share of it."""


class Elastic(OperationConfig):
    """Neighbouring places move alike, far ones do not. After Simard et al. 2003."""

    name: Literal["elastic"] = "elastic"
    """Which operation."""
    distance: Annotated[float, Field(ge=0.0, le=0.5)] = 0.02
    """How far places move along each axis (root mean square), as a share of the side."""
    smoothness: Annotated[float, Field(gt=0.0, le=1.0)] = 0.08
    """Standard deviation of the Gaussian that makes neighbours move alike, as a share of the side."""


class BrightnessContrast(OperationConfig):
    """Pixels times 1 ± contrast, plus ± brightness. As albumentations' RandomBrightnessContrast."""

    name: Literal["brightness_contrast"] = "brightness_contrast"
    """Which operation."""
    brightness: Share = 0.2
    """Largest amount that is added or taken away, as a share of the full range."""
    contrast: Share = 0.2
    """Largest change of the factor on all pixels, as a share."""


class ColorJitter(OperationConfig):
    """Brightness, contrast, saturation, then hue. As torchvision's ColorJitter, in this order always."""

    name: Literal["color_jitter"] = "color_jitter"
    """Which operation."""
    brightness: Share = 0.2
    """Largest change of brightness, as a share: 0.2 is 0.8 to 1.2 times."""
    contrast: Share = 0.2
    """Largest change of contrast about the image's mean grey, as a share."""
    saturation: Share = 0.2
    """Largest change of saturation, as a share."""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Largest shift of hue, as a share of the colour circle."""


class HueSaturationValue(OperationConfig):
    """Shifts in the HSV colour space, in OpenCV's units. As albumentations' HueSaturationValue."""

    name: Literal["hue_saturation_value"] = "hue_saturation_value"
    """Which operation."""
    hue: Annotated[float, Field(ge=0.0, le=90.0)] = 20.0
    """Largest shift of hue, in OpenCV's units of two degrees: 90 is half of the colour circle."""
    saturation: Levels = 30.0
    """Largest shift of saturation, in levels of 255."""
    value: Levels = 20.0
    """Largest shift of value, in levels of 255."""


class ChannelShift(OperationConfig):
    """Each colour channel is shifted by its own draw. As albumentations' RGBShift, Keras' channel_shift_range."""

    name: Literal["channel_shift"] = "channel_shift"
    """Which operation."""
    levels: Levels = 20.0
    """Largest shift either way, in levels of 255."""


class Grey(OperationConfig):
    """No colour, by ITU-R BT.601's weights, in three equal channels."""

    name: Literal["grey"] = "grey"
    """Which operation."""


class Gain(OperationConfig):
    """All pixels times a fixed factor, clipped at white. As OpenCV's convertScaleAbs."""

    name: Literal["gain"] = "gain"
    """Which operation."""
    factor: Factor = 1.5
    """What pixels are multiplied by."""


class Gamma(OperationConfig):
    """Pixels, within 0 to 1, to a power. As albumentations' RandomGamma, which counts in hundredths."""

    name: Literal["gamma"] = "gamma"
    """Which operation."""
    power: tuple[Factor, Factor] = (0.8, 1.2)
    """Least and largest exponent; above 1 is darker."""


class Autocontrast(OperationConfig):
    """Each channel is stretched from black to white. As Pillow's ImageOps.autocontrast."""

    name: Literal["autocontrast"] = "autocontrast"
    """Which operation."""


class Equalize(OperationConfig):
    """Each channel's histogram is made even. As Pillow's ImageOps.equalize."""

    name: Literal["equalize"] = "equalize"
    """Which operation."""


class Posterize(OperationConfig):
    """Fewer levels a channel. As Pillow's ImageOps.posterize."""

    name: Literal["posterize"] = "posterize"
    """Which operation."""
    bits: Annotated[int, Field(ge=1, le=8)] = 4
    """Bits that are kept of the eight of each channel."""


class Solarize(OperationConfig):
    """What is bright is inverted. As Pillow's ImageOps.solarize."""

    name: Literal["solarize"] = "solarize"
    """Which operation."""
    level: Levels = 128.0
    """Levels of 255 from which on a channel is inverted."""


class Sharpness(OperationConfig):
    """Between smooth and sharp. As Pillow's ImageEnhance.Sharpness."""

    name: Literal["sharpness"] = "sharpness"
    """Which operation."""
    factor: tuple[Annotated[float, Field(ge=0.0, le=10.0)], Annotated[float, Field(ge=0.0, le=10.0)]] = (0.5, 2.0)
    """Least and largest: 0 is smooth, 1 the image as it is, above 1 sharper."""


class GaussianBlur(OperationConfig):
    """Blur, with a kernel of a drawn odd size. As OpenCV's GaussianBlur and albumentations'."""

    name: Literal["gaussian_blur"] = "gaussian_blur"
    """Which operation."""
    kernel_px: tuple[OddPixels, OddPixels] = (3, 5)
    """Least and largest side of the kernel, in pixels, both odd; every odd number between them comes as often."""
    sigma_px: tuple[Annotated[float, Field(gt=0.0, le=50.0)], Annotated[float, Field(gt=0.0, le=50.0)]] | None = None
    """Least and largest standard deviation, in pixels; not given, it follows from the kernel as in OpenCV."""

    @model_validator(mode="after")
    def _kernel_is_odd(self) -> Self:
        if even := [side for side in self.kernel_px if side % 2 == 0]:
            raise ValueError(f"kernel_px: a kernel has an odd number of pixels, and came {even[0]}")
        return self


class GaussianNoise(OperationConfig):
    """Noise on every pixel and channel, of a drawn strength. As albumentations' GaussNoise."""

    name: Literal["gaussian_noise"] = "gaussian_noise"
    """Which operation."""
    sigma: tuple[Share, Share] = (0.02, 0.1)
    """Least and largest standard deviation, as a share of the full range."""


class Erasing(OperationConfig):
    """A black rectangle over a part of the image. After Zhong et al. 2020; as torchvision's RandomErasing."""

    name: Literal["erasing"] = "erasing"
    """Which operation."""
    scale: tuple[Part, Part] = (0.02, 0.15)
    """Least and largest share of the area."""
    ratio: tuple[Factor, Factor] = (0.3, 3.3)
    """Least and largest height over width, drawn uniformly by its logarithm."""


AnyOperation = Union[  # noqa: UP007  get_args needs the plain form
    HorizontalFlip, VerticalFlip, QuarterTurn, Rotate, ShiftScaleRotate, Shear, Zoom, ResizedCrop, GridDistortion,
    Elastic, BrightnessContrast, ColorJitter, HueSaturationValue, ChannelShift, Grey, Gain, Gamma, Autocontrast,
    Equalize, Posterize, Solarize, Sharpness, GaussianBlur, GaussianNoise, Erasing,
]  # fmt: skip
OPERATIONS: dict[str, type[OperationConfig]] = {
    each.model_fields["name"].default: each for each in get_args(AnyOperation)
}
"""Every operation that a list may hold, by name."""


def check_listed(value: Any) -> Any:
    """Validate a list of mappings, so that every problem of it is told at once and in words.

    Returns:
        The operations; `value` itself where it is no list.

    Raises:
        ValidationError: one line a problem, at the place in the list and the key where it is.
    """
    if not isinstance(value, list | tuple):
        return value
    operations, problems = [], []
    for place, item in enumerate(value):
        if isinstance(item, OperationConfig):
            operations.append(item)
            continue
        if wrong := _wrong_name(item):
            problems.append(_problem(wrong, (place,), item))
            continue
        model = OPERATIONS[item["name"]]
        try:
            operations.append(model.model_validate(item))
        except ValidationError as error:
            problems += [_problem(_words(model, each), (place, *each["loc"]), each["input"]) for each in error.errors()]
    if problems:
        raise ValidationError.from_exception_data("operations", problems)
    return tuple(operations)


def _wrong_name(item: Any) -> str:
    """What keeps an item from being an operation; empty where nothing does."""
    every = ", ".join(OPERATIONS)
    if not isinstance(item, Mapping):
        instead = f"; write {{name: {item}}}" if isinstance(item, str) and item in OPERATIONS else ""
        example = "{name: rotate, degrees: 12, probability: 0.5}"
        return f"expected an operation such as {example}, and came {item!r}{instead}"
    if "name" not in item:
        return f"name is required: one of {every}"
    name = item["name"]
    if isinstance(name, str) and name in OPERATIONS:
        return ""
    near = difflib.get_close_matches(str(name).lower(), OPERATIONS, n=2, cutoff=0.5)
    return (
        f"no such operation {name!r}; did you mean {' or '.join(near)}?"
        if near
        else (f"no such operation {name!r}; there are {every}")
    )


def _words(model: type[OperationConfig], detail: Mapping[str, Any]) -> str:
    if detail["type"] == "extra_forbidden":
        name, keys = model.model_fields["name"].default, [key for key in model.model_fields if key != "name"]
        near = difflib.get_close_matches(str(detail["loc"][-1]), keys, n=1, cutoff=0.6)
        return f"no such key; did you mean {near[0]}?" if near else f"no such key; {name} has {', '.join(keys)}"
    if detail["type"] == "value_error":
        return str(detail["msg"]).removeprefix("Value error, ")
    words = str(detail["msg"]).removeprefix("Input should be ").partition(", unable to")[0]
    words = "a list of two, as in [a, b]" if detail["type"] in {"tuple_type", "too_long"} else words
    return f"expected {words}, and came {detail['input']!r}"


def _problem(words: str, place: tuple[int | str, ...], came: Any) -> InitErrorDetails:
    # The words may hold braces, which a template would fill in.
    return InitErrorDetails(type=PydanticCustomError("value_error", "{words}", {"words": words}), loc=place, input=came)

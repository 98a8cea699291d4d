"""The `audit` section: which searches are made, and from where on something is told."""

from typing import Annotated

from pydantic import Field

from foveal.config import Section

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Luma = Annotated[float, Field(ge=0.0, le=1.0)]
Ratio = Annotated[float, Field(ge=1.0)]
BalancedAccuracy = Annotated[float, Field(ge=0.5, le=1.0)]


class QualityConfig(Section):
    """From where on a picture is told as one that says little; nearly all are relative to the rest of the data."""

    tiny_px: int = Field(default=32, ge=1)
    """Shorter side below which a picture is tiny, in pixels, if it also is below `tiny_share` of the usual one."""
    tiny_share: Share = 0.5
    """A tiny picture's shorter side is below this share of the median, of all pictures and of those of its class."""
    blank_contrast: Luma = 0.02
    """Standard deviation of the luma (0..0.5) below which a picture is blank, if it also is below 15 % of the
    median; below 0.008 it is blank in any case."""
    blurred_share: Share = 0.3
    """A blurred picture's sharpness is below this share of the median sharpness, and far out in its distribution."""
    dark_luma: Luma = 0.2
    """A dark picture's bright parts (mean luma plus two standard deviations) are below this, 0..1."""
    overexposed_luma: Luma = 0.85
    """An overexposed picture's dark parts (mean luma minus two standard deviations) are above this, 0..1."""
    odd_aspect: Ratio = 3.0
    """Longer side over shorter from which a shape is unusual, if it also is twice the median of the data."""
    binarised_values: int = Field(default=16, ge=2, le=256)
    """Largest number of distinct lumas of a picture that passes for a mask or a thresholded one."""
    grey_saturation: Luma = 0.01
    """Mean saturation below which a picture is grey, 0..1."""
    minority_share: Share = 0.2
    """Grey pictures among colour ones, or the reverse, are told one by one up to this share of all; above it, once."""
    whole_set_share: Share = 0.5
    """What holds for more than this share of all pictures is a property of the data, and told once."""


class ClassesConfig(Section):
    """From where on classes and splits are told as unequal or too small."""

    imbalance_ratio: Ratio = 3.0
    """Images of the largest class for each of the smallest from which classes are unequal; ten times is a warning."""
    min_originals: int = Field(default=20, ge=1)
    """Independent images below which the result for a class is hardly more than a guess."""
    originals_share: Share = 0.9
    """A class is smaller than it looks where its independent originals are fewer than this share of its files."""
    small_split_share: Share = 0.05
    """Share of all images below which val or test is unusually small."""
    large_split_share: Share = 0.4
    """Share of all images above which val or test is unusually large."""
    small_split_images: int = Field(default=50, ge=1)
    """Images below which the figures of val or test have wide intervals."""
    split_distance: Share = 0.1
    """Half the sum of the differences between the class shares of val or test and those of train, from which on they
    are told."""


class ShortcutConfig(Section):
    """When a class is told as one that the files' properties or the light give away."""

    file_accuracy: BalancedAccuracy = 0.8
    """Cross-validated balanced accuracy (chance: 0.5) of telling a class by size, format, bytes a pixel, colour mode
    and border, from which it is told."""
    light_accuracy: BalancedAccuracy = 0.85
    """The same for brightness, contrast and saturation, which may well belong to what is shown."""
    max_rows: int = Field(default=10_000, ge=100)
    """Samples that are looked at, drawn at random where there are more."""
    max_classes: int = Field(default=50, ge=2)
    """Classes that are looked at, the largest first."""


class AuditConfig(Section):
    """What an audit looks for, and from where on something is told."""

    near_duplicates: bool = True
    """Whether near duplicates are searched: re-encoded, resized, turned, mirrored, recoloured or cut copies."""
    copies_by_name: bool = True
    """Whether file names such as x_aug_3 or 'x (1)' tell which files are copies of one original."""
    deep: bool = False
    """Whether a network looks for pictures that do not belong and for wrong labels: the pretrained one of `model` where
    its weights are on this machine, else a quick one that is trained here."""
    num_folds: int = Field(default=5, ge=2, le=50)
    """Folds that cross-validation will want; a class with fewer independent images is told."""
    quality: QualityConfig = QualityConfig()
    """Pictures that say little."""
    classes: ClassesConfig = ClassesConfig()
    """Classes and splits."""
    shortcut: ShortcutConfig = ShortcutConfig()
    """Classes that can be told without looking at the picture."""

"""The `data` section: what is read, how it is split, and the square that the model sees."""

from typing import Annotated, Literal

from pydantic import Field

from foveal.config import Section

Auto = Literal["auto"]
Byte = Annotated[int, Field(ge=0, le=255)]
Side = Annotated[int, Field(ge=8, le=4096)]
Share = Annotated[float, Field(gt=0.5, le=1.0)]
NumThreads = Annotated[int, Field(ge=1, le=256)]


class ColumnsConfig(Section):
    """Names of the columns of a table, where they are not the standard ones."""

    path: str = "path"
    """Column with the image's path, relative to `data.images_root` or to the table's own folder."""
    label: str = "label"
    """Column with the class name or class id."""
    split: str = "split"
    """Column with train, val or test; may be absent."""
    group: str = "group"
    """Column whose equal values never straddle a split, such as a patient; may be absent."""
    fold: str = "fold"
    """Column with the fold number; may be absent."""
    xmin: str = "xmin"
    """Column with a box's left edge, in pixels."""
    ymin: str = "ymin"
    """Column with a box's top edge, in pixels."""
    xmax: str = "xmax"
    """Column with a box's right edge (exclusive), in pixels."""
    ymax: str = "ymax"
    """Column with a box's bottom edge (exclusive), in pixels."""


class DataConfig(Section):
    """What is read, how it is split, and how it becomes the square that the model sees."""

    format: Literal["auto", "folder", "split_folders", "csv", "parquet"] = "auto"
    """What DATA is; auto recognises it."""
    columns: ColumnsConfig = ColumnsConfig()
    """Names of a table's columns."""
    images_root: str | None = None
    """Folder that a table's paths are relative to; the table's own if not given, or what a manifest says."""
    class_names: str | None = None
    """File that gives names to label ids: one name a line, a CSV with id,name, or a JSON list or object."""
    exclude_classes: tuple[str, ...] = ()
    """Class names to leave out."""
    allow_outside_root: bool = False
    """Whether paths and links may lead out of the data's folder."""
    image_size: Side | Auto = "auto"
    """Side of the square that the model sees, in pixels; auto takes the model's own size, or one that fits the data."""
    fit: Literal["crop", "pad", "squash"] = "crop"
    """How an oblong image becomes a square: cut the middle, pad with the background, or squeeze."""
    crop_fraction: Share | Auto = "auto"
    """Share of the shorter side that the square keeps, with fit=crop; auto takes the model's own, or 0.95."""
    interpolation: Literal["auto", "bilinear", "bicubic", "lanczos"] = "auto"
    """Resampling filter; auto takes the model's own, or bicubic."""
    box_margin: float = Field(default=0.0, ge=0.0, le=2.0)
    """Margin added on each side of a box, as a share of the box's width and height."""
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    """Colour that transparent pixels and padding get: red, green and blue from 0 to 255."""
    ordered: bool = False
    """Whether the classes are grades in their sorted order, as of a disease; adds quadratic weighted kappa."""
    val_fraction: float = Field(default=0.15, gt=0.0, lt=0.5)
    """Share of the images that validate, where DATA brings no val: of those without a split, or else of train."""
    test_fraction: float = Field(default=0.15, gt=0.0, lt=0.5)
    """Share of the images that test, where DATA brings no test: of those without a split, or else of train."""
    leaks: Literal["report", "drop", "error"] = "report"
    """What training does where splits that DATA brings part images that belong together, as copies do: report the
    accuracy with and without them; drop those in train (and in val, where the other is in test); or end in an error."""
    num_workers: NumThreads | Auto = "auto"
    """Threads that decode images; auto takes one for each core, at most 16."""
    store: Literal["auto", "on", "off"] = "auto"
    """Whether decoded images are kept in the cache folder; auto does unless they are larger than the cap."""
    store_cap_gib: float = Field(default=20.0, gt=0.0)
    """Largest size of all stores in the cache folder together, in GiB; the least recently used go first."""


class ResolvedDataConfig(DataConfig):
    """The same with nothing left to find out."""

    format: Literal["folder", "split_folders", "csv", "parquet"]
    image_size: Side
    crop_fraction: Share
    interpolation: Literal["bilinear", "bicubic", "lanczos"]
    num_workers: NumThreads
    store: Literal["on", "off"]

"""The `split` section: how `foveal split` shares samples out."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from foveal.config import Section

Count = Annotated[int, Field(ge=1)]


class SplitConfig(Section):
    """How samples are grouped, drawn and shared out into train, val and test, or into folds."""

    method: Literal["stratified", "hashed"] = "stratified"
    """stratified: every part has its share of every class, to the image where that can be. hashed: the part of a group
    depends on its name and the seed alone, so that added images never move it; the shares are met on average."""
    folds: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Number of folds to share everything but test out into; not given, train and val are drawn."""
    group_by: str | None = None
    """Regular expression that is searched for in each path; images for which it captures the same text stay together.
    Counts the group named `group`, else the first group, else the whole match."""
    near_duplicates: bool = True
    """Whether copies that were resized, turned, mirrored or recoloured stay together; decodes the images."""
    per_class: Count | None = None
    """Images of each class to draw a balanced subset of; not given, all are kept."""
    total: Count | None = None
    """Images to draw a subset of that keeps the proportions of the classes; not given, all are kept."""
    test_fraction: float | None = Field(default=None, ge=0.0, lt=0.5)
    """Share of the images to hold out for test, where DATA brings no test; not given, that of `data.test_fraction`; 0
    holds none out."""
    given: Literal["keep", "redraw"] = "keep"
    """Whether splits and folds that DATA brings are kept, or drawn anew."""

    @field_validator("group_by")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from error
        if not value:
            raise ValueError("an empty expression matches everywhere and says nothing")
        return value

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.per_class is not None and self.total is not None:
            raise ValueError("per_class and total ask for two sizes of one subset; give one of them")
        return self

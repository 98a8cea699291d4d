"""summary.json of an audit as typed values; what is missing or null is empty, what is wrong is told."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from foveal.auditing.findings import Repair, Severity
from foveal.auditing.kinds import KINDS, Kind
from foveal.errors import ArtifactError
from foveal.files import read_json

FORMAT_VERSION = 1
NO_SPLIT = "all"
"""The name of the one split of data that have none."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_missing(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            return {name: _known(value) for name, value in values.items() if value is not None}
        return values


def _known(value: Any) -> Any:
    return {name: each for name, each in value.items() if each is not None} if isinstance(value, Mapping) else value


class ClassCounts(_Part):
    """One class: how many samples it has, how many of them are independent originals, and where they lie."""

    name: str
    num_images: int = 0
    num_originals: int | None = None
    num_quarantined: int = 0
    by_split: dict[str, int] = Field(default_factory=dict)
    originals_by_split: dict[str, int] = Field(default_factory=dict)

    @field_validator("by_split", "originals_by_split", mode="before")
    @classmethod
    def _name_no_split(cls, counts: Any) -> Any:
        """A split without a name is all of the data; JSON writes a null key as a word."""
        if not isinstance(counts, Mapping):
            return counts
        return {NO_SPLIT if name in (None, "", "null", "None") else name: value for name, value in counts.items()}


class SplitShare(_Part):
    """How large one split is; its share is 0..1 of all usable samples."""

    num_images: int = 0
    share: float | None = None


class SplitLeakage(_Part):
    """How many samples of a split have a copy in training; by class: samples, and those with a copy."""

    num_images: int = 0
    num_with_siblings_in_train: int = 0
    share: float | None = None
    by_class: dict[str, tuple[int, int]] = Field(default_factory=dict)

    @property
    def leaked(self) -> float:
        """The share of the split that has a copy in training, 0..1."""
        return self.num_with_siblings_in_train / self.num_images if self.num_images else self.share or 0.0


class Told(_Part):
    """All findings of one kind in one sentence."""

    finding: str
    severity: Severity = "note"
    num: int = 0
    repair: Repair = "none"
    sentence: str = ""

    @property
    def kind(self) -> Kind:
        """What findings of this kind are."""
        return kind_of(self.finding)


class Check(_Part):
    """One thing that was looked for, or why it was not."""

    check: str
    status: Literal["done", "skipped"] = "done"
    detail: str = ""


class Summary(_Part):
    """The whole of summary.json.

    Attributes:
        data, data_format, notes: what was audited, how it was read, and what was noticed in reading it.
        num_samples, num_usable, num_quarantined, num_files, num_originals: counts; None where not written.
        sizes: `width_px`, `height_px` and `aspect` to least, 5 %, median, 95 % and largest.
        formats, modes: name to number of samples.
        findings: one entry a kind, what matters first.
        seconds: stage to wall time.
        command: what was typed.
    """

    format_version: int = FORMAT_VERSION
    data: str = ""
    data_format: str = ""
    notes: tuple[str, ...] = ()
    num_samples: int | None = None
    num_usable: int | None = None
    num_quarantined: int | None = None
    num_files: int | None = None
    num_originals: int | None = None
    classes: tuple[ClassCounts, ...] = ()
    splits: dict[str, SplitShare] = Field(default_factory=dict)
    leakage: dict[str, SplitLeakage] = Field(default_factory=dict)
    sizes: dict[str, tuple[float | None, ...]] = Field(default_factory=dict)
    formats: dict[str, int] = Field(default_factory=dict)
    modes: dict[str, int] = Field(default_factory=dict)
    findings: tuple[Told, ...] = ()
    checks: tuple[Check, ...] = ()
    is_blocking: bool = False
    seconds: dict[str, float] = Field(default_factory=dict)
    command: str = ""

    @classmethod
    def of(cls, values: Any, *, source: str = "summary.json") -> Self:
        """Check what summary.json holds.

        Args:
            values: the parsed JSON.
            source: where it came from, for messages.

        Raises:
            ArtifactError: a value is of the wrong kind, or a newer foveal wrote it.
        """
        try:
            summary = cls.model_validate(values)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
            raise ArtifactError(
                f"{source} is no summary of an audit.", problems=problems, fix="run foveal audit again."
            ) from error
        if summary.format_version > FORMAT_VERSION:
            raise ArtifactError(
                f"{source} has format version {summary.format_version}, and this foveal reads up to {FORMAT_VERSION}.",
                fix="pip install --upgrade foveal",
            )
        return summary

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read summary.json.

        Raises:
            FovealError: the file is missing, cannot be read, or is not JSON.
            ArtifactError: as `of` does.
        """
        return cls.of(read_json(path), source=str(path))

    def told_of(self, severity: Severity) -> list[Told]:
        """The kinds of one severity."""
        return [told for told in self.findings if told.severity == severity]


def kind_of(name: str) -> Kind:
    """What a kind of finding is; one that this version does not know goes by its name."""
    return KINDS.get(name) or Kind(name.replace("_", " ").capitalize(), "sample", "", "")

"""`foveal preview`: what the augmentation does to real samples."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.api.preview_columns import Shown, draw_bands, heading
from foveal.data.augment import Operation
from foveal.data.batches import derive_seed
from foveal.data.ingest import Ingested, Recipe, ingest
from foveal.data.manifest import Manifest
from foveal.data.scan import scan
from foveal.data.sizes import peek_sizes
from foveal.errors import ArtifactError, ConfigError, DataError
from foveal.evaluation.drawing import shortened
from foveal.pixels.policy import Geometry, PixelPolicy
from foveal.progress import Progress, Silence
from foveal.report.contact_sheet import Band, Row, check_ending, draw_contact_sheet, write_picture
from foveal.training.config import Config, ResolvedConfig, read_config
from foveal.training.resolve import Facts, geometry_of, resolve

MAX_SAMPLES = 64
MAX_DRAWS = 12
_MIME_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


@dataclass(frozen=True)
class PreviewPlan:
    """What `preview --dry-run` shows.

    Attributes:
        picture: the file that would be written.
        policy: the augmentation that training would use; operations or albumentations, where these stand in its place.
        operations: what it does to an image, and how far.
        size_px: side of the square that the network sees.
        class_counts: images to draw from, by class; those of train, where DATA has a split.
        num_samples: rows that the picture would have.
    """

    picture: Path
    policy: str
    operations: tuple[Operation, ...]
    size_px: int
    class_counts: Mapping[str, int]
    num_samples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "picture": str(self.picture),
            "policy": self.policy,
            "operations": {operation.name: str(operation) for operation in self.operations},
            "size_px": self.size_px,
            "class_counts": dict(self.class_counts),
            "num_samples": self.num_samples,
        }

    def __str__(self) -> str:
        counts = [f"{shortened(name)}: {count:,}" for name, count in self.class_counts.items()]
        operations = ", ".join(f"{each.name} ({each})" for each in self.operations) or "nothing is changed"
        lines = [
            f"policy      {self.policy}: {operations}",
            f"samples     {self.num_samples} of {', '.join(counts[:12])}{', ...' if len(counts) > 12 else ''}",
            f"size        {self.size_px} x {self.size_px} px",
            f"writes to   {self.picture}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class PreviewResult:
    """A picture of samples before and after augmentation.

    Attributes:
        picture: the file.
        policy: the augmentation that training would use; operations or albumentations, where these stand in its place.
        operations: what it does to an image, and how far.
        size_px: side of the square that the network sees.
        samples: path below the data's root and class of each row, from top to bottom.
        num_unusable: samples that were looked at and cannot be used; others were taken in their place.
    """

    picture: Path
    policy: str
    operations: tuple[Operation, ...]
    size_px: int
    samples: tuple[tuple[str, str], ...]
    num_unusable: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "picture": str(self.picture),
            "policy": self.policy,
            "operations": {operation.name: str(operation) for operation in self.operations},
            "size_px": self.size_px,
            "samples": [{"path": path, "label": label} for path, label in self.samples],
            "num_unusable": self.num_unusable,
        }

    def _repr_html_(self) -> str:
        name = html.escape(str(self.picture))
        if not self.picture.is_file():
            return f"<p><code>{name}</code> is not there any more.</p>"
        content = base64.b64encode(self.picture.read_bytes()).decode("ascii")
        kind = _MIME_TYPES[self.picture.suffix.lower()]
        return f'<img alt="{name}" src="data:{kind};base64,{content}" style="max-width:100%">'


@dataclass(frozen=True)
class _Setting:
    """What is settled before anything is decoded.

    Attributes:
        config: as a training would have it.
        geometry: how an image becomes the square that the network sees.
        manifest: all of DATA.
        rows: int64 [n], the rows to draw from.
        origin: of those, in words.
        notes: what reading the data taught.
    """

    config: ResolvedConfig
    geometry: Geometry
    manifest: Manifest
    rows: NDArray[np.int64]
    origin: str
    notes: tuple[str, ...]

    @property
    def shown(self) -> Shown:
        """What is drawn from."""
        return Shown(self.config, self.geometry)


def preview(
    data: str | PathLike[str],
    out: str | PathLike[str],
    *,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    num_samples: int = 8,
    num_draws: int = 4,
    all_policies: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> PreviewResult:
    """Draw real samples as evaluation sees them, as training sees them, and under each operation alone.

    The samples go the way of a training: the same decoding, stored form, windows, and module on the batch. Nothing is
    left out but the normalisation.

    Args:
        data: as for `train`.
        out: the picture, ending in .png, .jpg, .jpeg or .webp.
        config: a configuration, or a YAML file of one; the defaults if not given.
        overrides: texts such as "augment.policy=medium", applied on top.
        num_samples: rows, drawn evenly from the classes, of train where DATA has a split.
        num_draws: what the policy makes of each sample, so many times over.
        all_policies: whether to show the draws of every policy, and no operation alone.
        force: whether to write over a file that is there already.
        progress: where to show it; nowhere if not given.

    Raises:
        ConfigError: keys or values are wrong, the ending of `out` is unknown, or `out` lies among the images.
        DataError: the data cannot be read, or no image of it can be used.
        ArtifactError: `out` is there already.

    Example:
        >>> import foveal
        >>> foveal.preview("photos", "grid.png", overrides=["augment.policy=medium"])  # doctest: +SKIP
    """
    progress, picture = progress or Silence(), Path(out)
    _check_wish(data, picture, num_samples, num_draws, force=force)
    setting = _settle(data, read_config(config, overrides))
    for note in setting.notes:
        progress.say(note)
    rows, num_unusable = _choose(setting, num_samples, progress)
    chosen = _ingest(setting, rows, progress)
    shown = setting.shown
    with torch.random.fork_rng(devices=[]):
        bands = draw_bands(shown, chosen.source, num_draws, all_policies=all_policies)
    paths, labels = chosen.manifest.column("path").tolist(), chosen.manifest.column("label").tolist()
    sheet_rows = [
        Row(label, path.rpartition("/")[2], [pixels[place] for _, columns in bands for _, pixels in columns])
        for place, (path, label) in enumerate(zip(paths, labels, strict=True))
    ]
    title, note = _words(setting, Path(data), len(rows), all_policies=all_policies)
    heads = [Band(name, tuple(column for column, _ in columns)) for name, columns in bands]
    write_picture(draw_contact_sheet(title, note, heads, sheet_rows), picture)
    return PreviewResult(
        picture,
        setting.config.augment.title,
        shown.operations,
        setting.geometry.size_px,
        tuple(zip(paths, labels, strict=True)),
        num_unusable,
    )


def plan_preview(
    data: str | PathLike[str],
    out: str | PathLike[str],
    *,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    num_samples: int = 8,
    num_draws: int = 4,
    force: bool = False,
) -> PreviewPlan:
    """What `preview` would draw: nothing is written, and only a few images are decoded.

    Raises:
        ConfigError: as `preview`.
        DataError: as `preview`.
        ArtifactError: as `preview`.
    """
    _check_wish(data, Path(out), num_samples, num_draws, force=force)
    setting = _settle(data, read_config(config, overrides))
    names = setting.manifest.class_names
    counts = np.bincount(setting.manifest.label_ids()[setting.rows], minlength=len(names)).tolist()
    return PreviewPlan(
        Path(out),
        setting.config.augment.title,
        setting.shown.operations,
        setting.geometry.size_px,
        dict(zip(names, counts, strict=True)),
        min(num_samples, len(setting.rows)),
    )


def _check_wish(data: str | PathLike[str], out: Path, num_samples: int, num_draws: int, *, force: bool) -> None:
    """Refuse what can be refused before DATA is read."""
    check_ending(out)
    problems = [
        f"{name}: from 1 to {most} was expected, and came {given}"
        for name, given, most in (("samples", num_samples, MAX_SAMPLES), ("draws", num_draws, MAX_DRAWS))
        if not 1 <= given <= most
    ]
    if problems:
        raise ConfigError("The picture cannot have this size.", problems=problems)
    if Path(data).is_dir() and out.resolve().is_relative_to(Path(data).resolve()):
        raise ConfigError(
            f"{out} lies in DATA, where it would be taken for one of the images.", fix="choose an --out beside DATA."
        )
    if out.is_dir():
        raise ArtifactError(f"{out} is a folder.", fix="choose another --out.")
    if out.exists() and not force:
        raise ArtifactError(f"{out} is there already.", fix="choose another --out, or write over it by --force.")


def _settle(data: str | PathLike[str], config: Config) -> _Setting:
    """Read DATA and resolve the configuration as `train` would, but for what only matters to the network."""
    train = config.train.model_copy(update={"device": "cpu", "precision": "fp32"})
    scanned = scan(fspath(data), config.data)
    manifest, sizes = scanned.manifest, peek_sizes(scanned.manifest)
    usable, trained = manifest.usable(), manifest.of_split("train")
    if not len(usable):
        raise DataError(f"{fspath(data)} has no usable image.", fix="add images, or mend those that are there.")
    rows, origin = (trained, "training samples") if len(trained) else (usable, "samples")
    facts = Facts(scanned.format, len(rows), len(usable), sizes.shorter_side_px, sizes.aspect)
    resolved = resolve(config.model_copy(update={"train": train}), facts)
    return _Setting(resolved, geometry_of(resolved), manifest, rows, origin, tuple(scanned.notes))


def _ingest(setting: _Setting, rows: NDArray[np.int64], progress: Progress) -> Ingested:
    """Decode some rows into the store that training will find them in."""
    config = setting.config.data
    return ingest(
        setting.manifest.take(rows),
        Recipe(setting.geometry, PixelPolicy(background=config.background), config.box_margin),
        keep_pixels=config.store == "on",
        cap_bytes=int(config.store_cap_gib * (1 << 30)),
        num_workers=config.num_workers,
        progress=progress,
    )


def _choose(setting: _Setting, num_samples: int, progress: Progress) -> tuple[NDArray[np.int64], int]:
    """Rows to show, int64 in the order of their classes, and how many had to be passed over.

    Raises:
        DataError: no image can be used.
    """
    labels = setting.manifest.label_ids()
    draw = np.random.Generator(np.random.PCG64(derive_seed(setting.config.seed, 3)))
    shuffled = draw.permutation(setting.rows)
    turns = draw.permutation(len(setting.manifest.class_names))
    is_unusable = np.zeros(len(setting.manifest), dtype=np.bool_)
    reasons: list[str] = []
    looked_at = num_samples
    while True:
        left = _by_turns(shuffled[~is_unusable[shuffled]], labels, turns)
        if not len(left):
            raise DataError("No image can be used.", problems=reasons, fix="mend the images, or add others.")
        # More at a time where much is broken, so that a million broken files are not looked at one by one.
        found = _ingest(setting, left[:looked_at], progress).manifest
        unusable = np.flatnonzero(~found.is_usable())
        why, paths = found.column("reason"), found.column("path")
        reasons += [f"{paths[place]}: {why[place]}" for place in unusable]
        is_unusable[left[unusable]] = True
        if not (unusable < num_samples).any():
            shown = left[:num_samples]
            return shown[np.lexsort((shown, labels[shown]))], int(is_unusable.sum())
        looked_at *= 2


def _by_turns(rows: NDArray[np.int64], labels: NDArray[np.int64], turns: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows in an order in which every class has its turn once in each round, as long as it has any."""
    by_class = rows[np.argsort(labels[rows], kind="stable")]
    of_class = labels[by_class]
    round_of = np.arange(len(by_class)) - np.searchsorted(of_class, of_class)
    return by_class[np.lexsort((np.argsort(turns)[of_class], round_of))]


def _words(setting: _Setting, data: Path, num_samples: int, *, all_policies: bool) -> tuple[str, str]:
    config, size = setting.config, setting.geometry.size_px
    name = data.resolve().name or str(data)
    name_of_policy = heading(config.augment)
    title = f"{name}: all policies" if all_policies else f"{name}: {name_of_policy[0].lower()}{name_of_policy[1:]}"
    of_all = f"{num_samples:,} of {len(setting.rows):,} {setting.origin}"
    note = f"{of_all}, seed {config.seed}, as the network sees them: {size} × {size} pixels."
    if all_policies:
        return title, note
    if config.augment.is_off:
        note += " The policy changes nothing."
    elif config.augment.title not in {"none", "albumentations"}:
        note += " An operation that goes two ways is shown alone by turns: one way in one row, the other in the next."
    return title, note

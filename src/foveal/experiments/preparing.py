"""From DATA to what a training begins with: read, checked, decoded, copies grouped, split."""

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from foveal.auditing.leak_policy import apply_leak_policy, with_copies_grouped
from foveal.auditing.look import with_copies
from foveal.data.augment_albumentations import albumentations_pipeline
from foveal.data.ingest import Ingested, Recipe, ingest
from foveal.data.manifest import Manifest
from foveal.data.scan import scan
from foveal.data.sizes import peek_sizes
from foveal.data.split import check_splittable, split
from foveal.data.store import PixelSource
from foveal.errors import DataError
from foveal.pixels.policy import PixelPolicy
from foveal.progress import Progress
from foveal.run_folder import WorkFolder
from foveal.training.config import Config, ResolvedConfig
from foveal.training.distillation import check_teacher
from foveal.training.logs import check_logs
from foveal.training.losses import make_criterion
from foveal.training.resolve import Facts, geometry_of, resolve
from foveal.types import SPLITS


@dataclass(frozen=True)
class Prepared:
    """What is known before anything is decoded.

    Attributes:
        config: with nothing left to find out.
        manifest: what was found, or what the run to be resumed holds.
        facts: what the configuration was resolved with; None for a run that goes on.
        notes: what reading the data taught, for a person.
    """

    config: ResolvedConfig
    manifest: Manifest
    facts: Facts | None = None
    notes: tuple[str, ...] = ()

    @property
    def resumed(self) -> bool:
        """Whether the data are those of a run that goes on: split already, and not to be anything else."""
        return self.facts is None


@dataclass(frozen=True)
class Settled:
    """Data that a training can begin with.

    Attributes:
        config: with nothing left to find out.
        manifest: decoded, copies in groups, every usable row in a split.
        source: the stored form of each row.
        sentence: what the data are, for a person.
    """

    config: ResolvedConfig
    manifest: Manifest
    source: PixelSource
    sentence: str


Draw = Callable[[Manifest, ResolvedConfig], Manifest]
"""Gives every usable row its split."""


def prepare(data: str | PathLike[str], config: Config) -> Prepared:
    """Read DATA's table or folders, check them, and resolve the configuration, before any decoding.

    Raises:
        DataError: all problems of the data that one look can find.
        ConfigError: the model, the device, a class with a weight, or the albumentations pipeline is not there.
    """
    check_logs(config.log)
    scanned = scan(fspath(data), config.data)
    manifest = scanned.manifest
    check_data(manifest, config)
    sizes = peek_sizes(manifest)
    num_samples, num_train = len(manifest.usable()), len(manifest.of_split("train"))
    if not num_train:
        num_train = round(num_samples * (1.0 - config.data.val_fraction - config.data.test_fraction))
    facts = Facts(scanned.format, num_train, num_samples, sizes.shorter_side_px, sizes.aspect)
    resolved = resolve(config, facts)
    # Before the decoding, which can take an hour: what else the configuration names may not be there.
    make_criterion(resolved.train, manifest.class_names, np.ones(len(manifest.class_names), dtype=np.int64))
    check_teacher(resolved.train.distillation, manifest.class_names, image_size=resolved.data.image_size)
    if resolved.augment.albumentations is not None:
        geometry = geometry_of(resolved)
        file = Path(resolved.augment.albumentations).expanduser()
        albumentations_pipeline(file, side_px=geometry.store_px, size_px=geometry.size_px)
    return Prepared(resolved, manifest, facts, tuple(scanned.notes))


def draw_split(manifest: Manifest, config: ResolvedConfig) -> Manifest:
    """Fill in the splits that DATA does not bring."""
    return split(
        manifest, val_fraction=config.data.val_fraction, test_fraction=config.data.test_fraction, seed=config.seed
    )


def settle(folder: WorkFolder, prepared: Prepared, progress: Progress, draw: Draw = draw_split) -> Settled:
    """Decode, group copies, split, and do what data.leaks says; each is timed in `folder`.

    Args:
        folder: whose stages are timed.
        prepared: what was found.
        progress: where to show it.
        draw: fills in the splits, and folds where there are any.

    Raises:
        DataError: what is left after decoding cannot be split or trained on, or has changed since the run began.
    """
    config = prepared.config
    for note in prepared.notes:
        progress.say(note)
        folder.log_event("note", message=note)
    ingested = decode_in(folder, config, prepared.manifest, progress)
    if prepared.resumed:
        refuse_changed(prepared.manifest, ingested.manifest, "run")
        manifest = ingested.manifest
        return Settled(config, manifest, ingested.source, _sentence(manifest, ingested))
    with folder.stage("find copies"):
        grouped = group_copies(config, ingested, progress)
    with folder.stage("split"):
        check_data(grouped, config)
        manifest, leaks = apply_leak_policy(draw(grouped, config), config.data.leaks)
    if leaks:
        progress.say(leaks)
        folder.log_event("leaks", message=leaks)
    return Settled(config, manifest, ingested.source, _sentence(manifest, ingested))


def changed_images(before: Manifest, after: Manifest) -> list[str]:
    """Images that are not what they were when the run began, each with what became of it; empty where all are.

    Args:
        before: rows of the run's manifest.
        after: the same rows after a decode pass now.
    """
    rows = before.usable()
    was, now = before.column("sha256"), after.column("sha256")
    usable, reasons, paths = after.is_usable(), after.column("reason"), before.absolute_paths()
    return [
        f"{paths[row]}: {'has other content now' if usable[row] else reasons[row]}"
        for row in rows.tolist()
        if not usable[row] or was[row] != now[row]
    ]


def check_data(manifest: Manifest, config: Config) -> None:
    """Refuse data that cannot be split and trained on.

    Raises:
        DataError: there are too few classes, or images of one.
    """
    if len(manifest.class_names) < 2:
        raise DataError(
            f"A classifier needs at least two classes, and the data has {len(manifest.class_names)}: "
            f"{', '.join(manifest.class_names) or 'none'}.",
            fix="give a folder with one folder a class, or a table with a label column.",
        )
    check_splittable(manifest, val_fraction=config.data.val_fraction, test_fraction=config.data.test_fraction)


def recipe_of(config: ResolvedConfig) -> Recipe:
    """How files become stored forms."""
    return Recipe(geometry_of(config), PixelPolicy(background=config.data.background), config.data.box_margin)


def decode(config: ResolvedConfig, manifest: Manifest, progress: Progress) -> Ingested:
    """The decode pass, as a configuration wants it; what is in the store is not decoded again."""
    return ingest(
        manifest,
        recipe_of(config),
        keep_pixels=config.data.store == "on",
        cap_bytes=int(config.data.store_cap_gib * (1 << 30)),
        num_workers=config.data.num_workers,
        progress=progress,
    )


def decode_in(folder: WorkFolder, config: ResolvedConfig, manifest: Manifest, progress: Progress) -> Ingested:
    """The decode pass as a stage of a folder, with its event."""
    with folder.stage("decode"):
        ingested = decode(config, manifest, progress)
        folder.log_event("decode", num_decoded=ingested.num_decoded, num_from_store=ingested.num_from_store)
    return ingested


def refuse_changed(before: Manifest, after: Manifest, what: str) -> None:
    """Refuse to go on with data that is not what it was.

    Args:
        before: as the folder has it.
        after: as it was read again.
        what: what is to go on.

    Raises:
        DataError: samples have changed.
    """
    if changed := changed_images(before, after):
        raise DataError(
            f"{len(changed)} of {len(before.usable())} samples have changed since the {what} began, so it cannot go on "
            "as if it had not been interrupted.",
            problems=changed,
            fix="bring the old images back, or start anew with --force.",
        )


def group_copies(config: ResolvedConfig, ingested: Ingested, progress: Progress) -> Manifest:
    """The decoded manifest, copies of each other sharing a group."""
    looked = with_copies(
        ingested,
        near_duplicates=config.audit.near_duplicates,
        num_workers=config.data.num_workers,
        progress=progress,
    )
    return with_copies_grouped(ingested.manifest, looked.clusters, config.audit)


def _sentence(manifest: Manifest, ingested: Ingested) -> str:
    counts = ", ".join(f"{len(manifest.of_split(name)):,} {name}" for name in SPLITS)
    quarantined = len(manifest) - len(manifest.usable())
    sentence = f"Data: {counts}; {len(manifest.class_names)} classes; "
    sentence += f"{ingested.num_decoded:,} files decoded, {ingested.num_from_store:,} known already."
    if quarantined:
        sentence += f" {quarantined:,} row(s) quarantined; the report says why."
    return sentence

"""Data that many trainings share: read, decoded, grouped and split once."""

from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.data.ingest import Recipe
from foveal.data.manifest import Manifest
from foveal.data.store import PixelSource
from foveal.experiments.preparing import (
    Draw,
    Prepared,
    Settled,
    decode,
    decode_in,
    draw_split,
    prepare,
    recipe_of,
    refuse_changed,
    settle,
)
from foveal.files import natural_key, read_json
from foveal.model.bundle import BUNDLE_FILE, Bundle, EnsembleBundle
from foveal.progress import Progress
from foveal.run_folder import ExperimentFolder, is_run_folder
from foveal.training.config import Config, ResolvedConfig
from foveal.training.resolve import Facts, resolve
from foveal.types import SPLITS


class SharedData:
    """The data of an experiment, for any number of trainings with configurations of their own.

    Args:
        config: what the data were read and split with.
        manifest: decoded, copies in groups, every usable row in a split.
        facts: what configurations are resolved with.
        source: the stored form of each row, as `config` wants it.
        progress: where to show a decode pass for another stored form.
    """

    def __init__(
        self, config: ResolvedConfig, manifest: Manifest, facts: Facts, source: PixelSource, progress: Progress
    ) -> None:
        self.config, self.manifest, self.facts = config, manifest, facts
        self._progress = progress
        self._sources: dict[tuple[Recipe, str], PixelSource] = {(recipe_of(config), config.data.store): source}

    @classmethod
    def prepare(
        cls,
        data: str | PathLike[str],
        config: Config,
        folder: ExperimentFolder,
        progress: Progress,
        draw: Draw = draw_split,
    ) -> "SharedData":
        """Read, decode, group and split DATA, and keep the result in `folder`; where it lies there, take it up.

        An experiment that goes on keeps its split, whatever DATA would give now, and wants its images as they were.

        Args:
            data: as for `train`.
            config: of the reading and the split; what trainings add comes with `settled`.
            folder: prepared, and held by this process.
            progress: where to show it.
            draw: fills in the splits, and folds where there are any; tried before anything is decoded.

        Raises:
            ConfigError: as `train`.
            DataError: the data is not what training needs, or has changed since the experiment began.
        """
        with folder.stage("scan"):
            prepared = prepare(data, config)
        facts = prepared.facts
        if facts is None:
            raise ValueError("data that was just read has facts")
        if folder.manifest.is_file():
            return cls._taken_up(folder, prepared, facts, progress)
        draw(prepared.manifest, prepared.config)  # what cannot be shared out is refused before any work
        settled = settle(folder, prepared, progress, draw)
        settled.manifest.write(folder.manifest)
        progress.say(settled.sentence)
        return cls(settled.config, settled.manifest, facts, settled.source, progress)

    @classmethod
    def _taken_up(cls, folder: ExperimentFolder, prepared: Prepared, facts: Facts, progress: Progress) -> "SharedData":
        manifest = Manifest.read(folder.manifest)
        ingested = decode_in(folder, prepared.config, manifest, progress)
        refuse_changed(manifest, ingested.manifest, "experiment")
        return cls(prepared.config, ingested.manifest, facts, ingested.source, progress)

    def settled(
        self, config: Config, *, manifest: Manifest | None = None, rows: NDArray[np.int64] | None = None
    ) -> Settled:
        """What one training begins with; files are decoded only where it wants them in another form.

        Args:
            config: of the training; of `data` only what concerns the pixels counts, the rest is settled.
            manifest: the same rows with other splits, such as those of a fold; the shared ones if not given.
            rows: int64 [n], the rows that take part; all if not given.

        Raises:
            ConfigError: a key or value does not suit the data or the machine.
        """
        manifest = self.manifest if manifest is None else manifest
        chosen = manifest if rows is None else manifest.take(rows)
        num_train = len(chosen.of_split("train"))
        resolved = resolve(config, replace(self.facts, num_train=num_train, num_samples=len(chosen.usable())))
        source = self._source(resolved)
        counts = ", ".join(f"{len(chosen.of_split(name)):,} {name}" for name in SPLITS if len(chosen.of_split(name)))
        sentence = f"Data: {counts}; {len(chosen.class_names)} classes."
        return Settled(resolved, chosen, source if rows is None else Selected(source, rows), sentence)

    def _source(self, config: ResolvedConfig) -> PixelSource:
        key = (recipe_of(config), config.data.store)
        if key not in self._sources:
            self._sources[key] = decode(config, self.manifest, self._progress).source
        return self._sources[key]


class Selected:
    """Some rows of a source, renumbered.

    Args:
        source: stored forms by row number.
        rows: int64 [n], which of them, in the new order.
    """

    def __init__(self, source: PixelSource, rows: NDArray[np.int64]) -> None:
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        return self._source[int(self._rows[row])]


def runs_in(path: Path) -> list[Path]:
    """The run folders of an experiment, in natural order of their names."""
    folder = path / "runs"
    found = [run for run in folder.iterdir() if is_run_folder(run)] if folder.is_dir() else []
    return sorted(found, key=lambda run: natural_key(run.name))


def run_behind(path: Path, bundle: Bundle | EnsembleBundle) -> Path | None:
    """The run of an experiment that its bundle is a copy of; None where the bundle was made of several."""
    return next((run for run in runs_in(path) if _has_weights(run, bundle)), None)


def _has_weights(run: Path, bundle: Bundle | EnsembleBundle) -> bool:
    description = run / "bundle" / BUNDLE_FILE
    return description.is_file() and bool(read_json(description).get("files") == dict(bundle.spec.files))

"""`foveal compare`: one table and page: quality, size, latency, training time, paired tests."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from foveal.api.opening import refuse_inside
from foveal.data.config import DataConfig
from foveal.data.manifest import Manifest
from foveal.data.scan import scan
from foveal.errors import ConfigError, DataError
from foveal.evaluation.evaluate import align_labels, rows_of_split
from foveal.experiments.compare.answers import Question, own_images
from foveal.experiments.compare.comparison import compare_models
from foveal.experiments.compare.models import Entry, find_models
from foveal.experiments.compare.result import Comparison
from foveal.files import sha256_file
from foveal.metrics import shown
from foveal.model.bundle import BUNDLE_FILE
from foveal.progress import Progress, Silence
from foveal.report.compare_page import build_compare_page
from foveal.run_folder import ExperimentFolder
from foveal.training.config import Config, read_config
from foveal.types import SPLITS, Split


@dataclass(frozen=True)
class CompareResult:
    """A finished comparison.

    Attributes:
        folder: with summary.json, models.csv and the page.
        comparison: rows, pairs, means over repetitions.
        report: the page to open.
    """

    folder: Path
    comparison: Comparison
    report: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"folder": str(self.folder), "report": str(self.report), **self.comparison.to_dict()}

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(row['name'])}</td><td>{shown(row['accuracy'])}</td>"
            f"<td>{shown(row['macro_f1'])}</td><td>{row['bundle_mib']:.2f}</td></tr>"
            for row in self.comparison.rows
        )
        head = "<tr><th>model</th><th>accuracy</th><th>macro F1</th><th>MiB</th></tr>"
        told = "".join(f"<li>{html.escape(pair.sentence)}</li>" for pair in self.comparison.pairs)
        return f"<p>{html.escape(self.comparison.headline)}</p><table>{head}{rows}</table><ul>{told}</ul>"


@dataclass(frozen=True)
class ComparePlan:
    """What `compare --dry-run` shows.

    Attributes:
        models: name, kind and path of each.
        split: which images are asked about.
        num_images: by model, as far as is known without decoding.
        to_evaluate: models without predictions of that split, which would be evaluated.
        counted_looks: those of them whose run would count it as a look.
        folder: where the result would go.
    """

    models: Sequence[tuple[str, str, Path]]
    split: str
    num_images: Sequence[int]
    to_evaluate: Sequence[str]
    counted_looks: Sequence[str]
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "models": [{"name": name, "kind": kind, "path": str(path)} for name, kind, path in self.models],
            "split": self.split,
            "num_images": list(self.num_images),
            "to_evaluate": list(self.to_evaluate),
            "counted_looks": list(self.counted_looks),
            "folder": str(self.folder),
        }

    def __str__(self) -> str:
        width = max(len(name) for name, _, _ in self.models)
        lines = [
            f"{name:<{width}}  {kind:<9}  {number:,} {self.split} images"
            for (name, kind, _), number in zip(self.models, self.num_images, strict=True)
        ]
        lines.append(f"to evaluate: {', '.join(self.to_evaluate) or 'none; all predictions lie ready'}")
        if self.counted_looks:
            lines.append(f"counted as a look at the {self.split} split: {', '.join(self.counted_looks)}")
        return "\n".join([*lines, f"writes to   {self.folder}"])


def compare(
    models: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    data: str | PathLike[str] | None = None,
    split: Split = "test",
    out: str | PathLike[str] = "comparison",
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    seed: int = 0,
    timing: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> CompareResult:
    """Compare models on the same images: quality, costs, and whether these images can tell them apart.

    Predictions that lie in the runs are read; nothing looks at a split anew that was evaluated before. Where there are
    none the model is evaluated now, and its run counts the look.

    Args:
        models: runs, bundles, and folders of other verbs; a cross-validation is the vote of its folds.
        data: labelled images to evaluate all on; the runs' own, if not given. Where they bring no split, all are taken.
        split: which split.
        out: where to write; the same models and settings go on there, others are refused.
        config: a configuration, or a YAML file of one, that says how `data` is read.
        overrides: texts such as "data.columns.label=cell_type", on top of it.
        device: auto, cpu, cuda or mps; the CPU is timed in any case.
        seed: of the resampling.
        timing: whether latency and throughput are measured.
        force: whether to remove another comparison in `out`.
        progress: where to show it.

    Raises:
        ArtifactError: something is no model, or is damaged, or `out` cannot be written.
        DataError: the models were evaluated on different images, or the images cannot be had.
        ConfigError: a key or value is wrong, or `out` holds a comparison of something else.
    """
    progress = progress or Silence()
    entries, images, data_config = _prepare(models, data, split, config, overrides)
    folder = ExperimentFolder(Path(out))
    if data is not None:
        refuse_inside(folder.path, data)
    folder.prepare()
    with folder.lock():
        folder.begin("compare", _settings(entries, images, data, split, seed), force=force)
        question = Question(split, images, data_config, folder.path / "evaluation", device, seed)
        named = None if data is None else fspath(data)
        comparison = compare_models(entries, question, folder, progress, data=named, is_timed=timing)
        with folder.stage("report"):
            page = build_compare_page(comparison, folder.path)
    return CompareResult(folder.path, comparison, page)


def plan_comparison(
    models: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    data: str | PathLike[str] | None = None,
    split: Split = "test",
    out: str | PathLike[str] = "comparison",
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> ComparePlan:
    """What `compare` would do: nothing is decoded, written or counted as a look.

    Raises:
        FovealError: as `compare`, but for what only decoding or reading predictions can show.
    """
    entries, images, _ = _prepare(models, data, split, config, overrides)
    of_each = [images if images is not None else own_images(entry, entries) for entry in entries]
    new = [entry for entry in entries if images is not None or entry.evaluation(split) is None]
    return ComparePlan(
        models=[(entry.name, entry.kind, entry.path) for entry in entries],
        split=split,
        num_images=[0 if manifest is None else len(manifest.of_split(split)) for manifest in of_each],
        to_evaluate=[entry.name for entry in new],
        counted_looks=[entry.name for entry in new if images is None and entry.home is not None],
        folder=Path(out),
    )


def _prepare(
    models: str | PathLike[str] | Sequence[str | PathLike[str]],
    data: str | PathLike[str] | None,
    split: Split,
    config: Config | str | PathLike[str] | None,
    overrides: Sequence[str],
) -> tuple[list[Entry], Manifest | None, DataConfig]:
    """The models, and the images that all are asked about; refuses what can be refused before an image is decoded."""
    if split not in SPLITS:
        raise ConfigError(f"--split {split}: expected one of {', '.join(SPLITS)}.")
    if data is None and (config is not None or overrides):
        raise ConfigError(
            "--config and --set say how --data is read, and there is none.",
            fix="give --data DATA; or leave them out to compare the runs on their own images.",
        )
    entries = find_models([models] if isinstance(models, str | PathLike) else models)
    if data is not None:
        settings = read_config(config, overrides)
        images = scan(fspath(data), settings.data).manifest
        if not (images.split_codes() >= 0).any():
            images = images.with_columns(split=[split] * len(images))
        rows = rows_of_split(images, split)
        for entry in entries:
            align_labels(images.take(rows), entry.class_names)
        return entries, images, settings.data
    lost = [entry for entry in entries if own_images(entry, entries) is None]
    if lost:
        raise DataError(
            "A bundle by itself brings no images to compare it on, and no run here was made with those of these.",
            problems=[str(entry.path) for entry in lost],
            fix="give the run instead of its bundle, or --data DATA.",
        )
    return entries, None, DataConfig()


def _settings(
    entries: Sequence[Entry], images: Manifest | None, data: str | PathLike[str] | None, split: str, seed: int
) -> dict[str, Any]:
    """What makes this comparison the same as another."""
    return {
        "models": {str(entry.path.resolve()): sha256_file(entry.bundle.path / BUNDLE_FILE) for entry in entries},
        "data": None if data is None else fspath(data),
        "images": None if images is None else images.fingerprint(),
        "split": split,
        "seed": seed,
    }

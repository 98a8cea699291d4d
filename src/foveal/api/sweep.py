"""`foveal train --sweep`: one training for every value of some keys, on one split."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from foveal.api.opening import refuse_inside
from foveal.errors import ConfigError
from foveal.experiments.preparing import draw_split, prepare
from foveal.experiments.shared_data import SharedData
from foveal.experiments.summary import Row
from foveal.experiments.sweep.axes import Axis, Point, axes_of, points_of
from foveal.experiments.sweep.result import Swept
from foveal.experiments.sweep.sweeping import VERB, sweep_in
from foveal.experiments.sweep.words import sentences_of
from foveal.files import read_json
from foveal.progress import Progress, Silence
from foveal.report.page import build_report
from foveal.report.sweep_page import write_sweep_page
from foveal.run_folder import ExperimentFolder
from foveal.training.config import Config, read_config
from foveal.training.processes import place_told
from foveal.types import SPLITS

Sweep = Sequence[str] | Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to.

    Attributes:
        folder: the experiment, with its runs.
        best: the value that validation chooses, by key; empty where all failed.
        best_run: its run with the first seed; None where all failed.
        rows: one a run, with the figures of the test split, and `val_` those of validation.
        values: one a value: its mean and standard deviation over the seeds.
        sentences: what there is to know.
        report: the page.
        summary: the figures for scripts.
    """

    folder: Path
    best: Mapping[str, Any]
    best_run: Path | None
    rows: Sequence[Row]
    values: Sequence[Row]
    sentences: tuple[str, ...]
    report: Path
    summary: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "folder": str(self.folder),
            "best": dict(self.best),
            "best_run": str(self.best_run) if self.best_run else None,
            "sentences": list(self.sentences),
            "report": str(self.report),
            "summary": str(self.summary),
            "values": list(self.values),
            "rows": list(self.rows),
        }

    def _repr_html_(self) -> str:
        keys = ("val_accuracy", "val_macro_f1", "accuracy", "macro_f1")
        head = "".join(f"<th>{html.escape(text)}</th>" for text in ("value", *keys))
        body = "".join(
            f"<tr><td>{html.escape(str(row['name']))}</td>"
            + "".join(f"<td>{_cell(row, key)}</td>" for key in keys)
            + "</tr>"
            for row in self.values
        )
        told = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.sentences)
        return f"{told}<table><tr>{head}</tr>{body}</table>"


@dataclass(frozen=True)
class SweepPlan:
    """What `train --sweep --dry-run` shows.

    Attributes:
        names: of the values, in order.
        seeds: that each is trained with.
        num_images: usable images a split, as far as known without decoding.
        out: the folder, if one was given.
    """

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    num_images: Mapping[str, int]
    out: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "values": list(self.names),
            "seeds": list(self.seeds),
            "num_runs": len(self.names) * len(self.seeds),
            "num_images": dict(self.num_images),
            "out": str(self.out) if self.out else None,
        }

    def __str__(self) -> str:
        images = ", ".join(f"{count:,} {split}" for split, count in self.num_images.items())
        lines = [
            f"runs        {len(self.names) * len(self.seeds)}: {len(self.names)} values, {len(self.seeds)} seeds",
            *(f"            {name}" for name in self.names[:20]),
            *([f"            and {len(self.names) - 20} more"] if len(self.names) > 20 else []),
            f"seeds       {', '.join(map(str, self.seeds))}",
            f"images      {images}",
            f"writes to   {self.out or '--out DIR'}",
        ]
        return "\n".join(lines)


def sweep(
    data: str | PathLike[str],
    out: str | PathLike[str],
    *,
    sweep: Sweep,
    seeds: Sequence[int] | None = None,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> SweepResult:
    """Train once for every value, or combination of values, and each seed; the images are read and split once.

    The same call again goes on where an earlier one was stopped; with further values or seeds it trains these as well.

    Args:
        data: as for `train`.
        out: the experiment's folder.
        sweep: texts such as "optim.lr=1e-4,1e-3", or keys with lists of values; `train_images` sweeps over the number
            of training images.
        seeds: of the trainings, not of the split; that of the configuration if not given.
        config: everything else: a configuration, or a YAML file of one.
        overrides: texts such as "train.epochs=8", applied on top.
        force: whether to start anew in a folder that holds an experiment.
        progress: where to show it; nowhere if not given.

    Raises:
        ConfigError: keys or values are wrong, or decide of the split; all at once.
        DataError: the data is not what training needs, or has fewer training images than are asked for.
        ArtifactError: `out` cannot be written or holds something else, or the starting weights cannot be had.
        InterruptedRunError: Ctrl-C or SIGTERM, after a checkpoint was written.

    Example:
        >>> import foveal
        >>> foveal.sweep("photos", "sweeps/lr", sweep={"optim.lr": [1e-4, 1e-3]}, seeds=[0, 1, 2])  # doctest: +SKIP
    """
    progress = progress or Silence()
    base, axes, points, chosen_seeds = _asked(sweep, seeds, config, overrides)
    folder = ExperimentFolder(Path(out))
    refuse_inside(folder.path, data)
    if place_told() is not None:
        raise ConfigError(
            "A sweep starts its trainings by itself, and cannot be one of several processes.",
            fix="start it alone; train.devices=N lets each of its trainings have N devices of this machine.",
        )
    folder.prepare()
    with folder.lock():
        folder.begin(VERB, _settings(data, base), force=force)
        shared = SharedData.prepare(data, base, folder, progress)
        with folder.stage("runs"):
            swept = sweep_in(folder, shared, axes, points, chosen_seeds, progress)
        with folder.stage("report"):
            best = None if swept.best is None else swept.values[swept.best]
            if best is not None:
                build_report(best.runs[0].run)
            report = write_sweep_page(folder, swept)
    return _result(folder, swept, report)


def plan_sweep(
    data: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    sweep: Sweep,
    seeds: Sequence[int] | None = None,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> SweepPlan:
    """What `sweep` would do; nothing is written or decoded.

    Raises:
        ConfigError: as `sweep`.
        DataError: as `sweep`.
    """
    base, _, points, chosen = _asked(sweep, seeds, config, overrides)
    prepared = prepare(data, base)
    manifest = draw_split(prepared.manifest, prepared.config)
    return SweepPlan(
        names=tuple(point.name for point in points),
        seeds=chosen,
        num_images={name: len(manifest.of_split(name)) for name in SPLITS},
        out=None if out is None else Path(out),
    )


def _asked(
    sweep: Sweep,
    seeds: Sequence[int] | None,
    config: Config | str | PathLike[str] | None,
    overrides: Sequence[str],
) -> tuple[Config, list[Axis], list[Point], tuple[int, ...]]:
    base, axes = read_config(config, overrides), axes_of(sweep)
    chosen = (base.seed,) if seeds is None else tuple(seeds)
    if not chosen or len(set(chosen)) < len(chosen) or not all(isinstance(each, int) and each >= 0 for each in chosen):
        raise ConfigError(f"seeds={list(chosen)}: expected different whole numbers, at least one.")
    return base, axes, points_of(axes, base), chosen


def _settings(data: str | PathLike[str], base: Config) -> dict[str, Any]:
    """What decides what comes out; values and seeds may be added later."""
    given = base.model_dump(mode="json", exclude_unset=True)
    for section, key in (("data", "num_workers"), ("train", "device")):
        given.get(section, {}).pop(key, None)
    return {"data": str(Path(data).resolve()), "config": {key: value for key, value in given.items() if value != {}}}


def _result(folder: ExperimentFolder, swept: Swept, report: Path) -> SweepResult:
    summary = read_json(folder.summary)
    best = None if swept.best is None else swept.values[swept.best]
    return SweepResult(
        folder=folder.path,
        best={} if best is None else dict(best.point.values),
        best_run=None if best is None else best.runs[0].run.path,
        rows=summary["rows"],
        values=summary["values"],
        sentences=tuple(sentences_of(swept)),
        report=report,
        summary=folder.summary,
    )


def _cell(row: Row, key: str) -> str:
    mean, std = row["mean"].get(key), row["std"].get(key)
    if mean is None:
        return "–"
    return f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"

"""`foveal tune`: trials over a search space, and the winner against the default on the test split."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from foveal.api.opening import refuse_inside
from foveal.config import load
from foveal.errors import ConfigError, InterruptedRunError
from foveal.experiments.tune.ending import BEST, DEFAULT, StudyEnd, is_better_high
from foveal.experiments.tune.opening import Begun, TuneSettings, begun_with, check_settings
from foveal.experiments.tune.space import SearchSpace
from foveal.experiments.tune.space_file import make_space, read_space
from foveal.experiments.tune.trials import PrunerName, SamplerName, shuffled_grid
from foveal.experiments.tune.tuning import tune as run_study
from foveal.file_lock import locked_in_turn
from foveal.metrics import shown
from foveal.progress import Progress, Silence
from foveal.report.page import build_report
from foveal.report.tune_page import build_tune_page
from foveal.run_folder import ExperimentFolder
from foveal.training.config import Config, read_config

NUM_SHOWN = 10


@dataclass(frozen=True)
class TuneResult:
    """A study, as this worker leaves it.

    Attributes:
        folder: of the study.
        trials: a row a trial: `number, state, figure, values, ...`, and the validation metrics of complete ones.
        monitor: the figure that trials are compared by.
        end: the winner against the default; None where another worker brings the study to its end.
        report: the page to open; None without an end.
        notes: what there is to say besides.
    """

    folder: Path
    trials: tuple[Mapping[str, Any], ...]
    monitor: str
    end: StudyEnd | None
    report: Path | None
    notes: tuple[str, ...]

    @property
    def best_values(self) -> Mapping[str, Any]:
        """What the winner was given; empty without an end."""
        return dict(self.end.best["values"]) if self.end is not None else {}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        end = self.end
        return {
            "study": str(self.folder),
            "monitor": self.monitor,
            "trials": [dict(row) for row in self.trials],
            "notes": list(self.notes),
            "report": None if self.report is None else str(self.report),
            "bundle": None if end is None else str(end.bundle),
            "best_config": None if end is None else str(end.config),
            "best": None if end is None else end.best["name"],
            "best_values": dict(self.best_values),
            "comparison": None if end is None else end.comparison.to_dict(),
            "sentences": [] if end is None else list(end.sentences),
        }

    def table(self) -> list[list[str]]:
        """The best trials, a row each, for a person."""
        sign = -1.0 if is_better_high(self.monitor) else 1.0
        complete = [row for row in self.trials if row["state"] == "complete"]
        complete.sort(key=lambda row: (sign * row["figure"], row["number"]))
        rows = [["trial", self.monitor, "epoch", "values"]]
        for row in complete[:NUM_SHOWN]:
            values = ", ".join(
                f"{name}={f'{value:.4g}' if isinstance(value, float) else value}"
                for name, value in row["values"].items()
            )
            rows.append([str(row["number"]), f"{row['figure']:.4f}", str(row["best_epoch"]), values])
        return rows

    def _repr_html_(self) -> str:
        head, *body = self.table()
        table = f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"
        table += "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in body)
        sentences = self.end.sentences if self.end is not None else self.notes
        said = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
        return f"<p>Study <code>{html.escape(str(self.folder))}</code></p><table>{table}</table><ul>{said}</ul>"


@dataclass(frozen=True)
class TunePlan:
    """What `tune --dry-run` shows.

    Attributes:
        num_trials: how many the study would have; None where the hours decide.
        grid_size: number of points of the grid; None without one.
        monitor: the figure that trials are compared by.
        dimensions: what would be chosen from, in words, by name.
        sampler: how values would be chosen.
        pruner: how trials without hope would be found.
    """

    num_trials: int | None
    grid_size: int | None
    monitor: str
    dimensions: Mapping[str, str]
    sampler: str
    pruner: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "num_trials": self.num_trials,
            "grid_size": self.grid_size,
            "monitor": self.monitor,
            "dimensions": dict(self.dimensions),
            "sampler": self.sampler,
            "pruner": self.pruner,
        }

    def __str__(self) -> str:
        number = "as many as the hours hold" if self.num_trials is None else f"{self.num_trials:,}"
        grid = "" if self.grid_size is None else f", of a grid of {self.grid_size:,} points"
        width = max(map(len, self.dimensions))
        lines = [
            f"trials      {number}{grid}; then the default and the winner in full",
            f"sampler     {self.sampler}; pruner {self.pruner}",
            f"chosen by   {self.monitor} of the best epoch",
            *(f"  {name:<{width}}  {words}" for name, words in self.dimensions.items()),
        ]
        return "\n".join(lines)


def tune(
    data: str | PathLike[str] | None = None,
    out: str | PathLike[str] = "study",
    *,
    space: Mapping[str, Any] | str | PathLike[str] | None = None,
    trials: int | None = None,
    hours: float | None = None,
    sampler: SamplerName | None = None,
    pruner: PrunerName | None = None,
    storage: str | None = None,
    resume: bool = False,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> TuneResult:
    """Try out values over a search space, retrain the best, and compare it with the default on the test split.

    Trials are judged by `train.early_stopping.monitor` on validation alone. The same call again goes on where the
    study was, until it has its trials; several processes may make it at once, and then share the trials.

    Args:
        data: as for `train`; not needed to resume.
        out: the study's folder.
        space: a YAML file with a line a key, or the same as a mapping; not needed to resume.
        trials: how many the study is to have in all, whoever ran them.
        hours: for how long this call begins or goes on with trials.
        sampler: tpe (Bergstra et al. 2011), random, or grid over all choices and steps; tpe if not given.
        pruner: median, asha (Li et al. 2020) or none: what ends trials without hope; median if not given.
        storage: URL of a PostgreSQL database that several machines see; a SQLite file in the folder if not given.
        resume: whether there must be a study to go on with, which then needs nothing said again.
        config: the configuration around the space, and the default to compare with.
        overrides: texts such as "train.epochs=8", applied on top.
        force: whether to start anew in a folder that holds a study.
        progress: where to show it; nowhere if not given.

    Raises:
        ConfigError: keys, values or the space are wrong, or not those that the study was begun with; all at once.
        DataError: the data is not what training needs, or has changed since the study began.
        ArtifactError: `out` cannot be written or holds something else; the storage is damaged or out of reach.
        TrainingError: no trial comes to anything.
        InterruptedRunError: Ctrl-C or SIGTERM; the same call goes on.

    Example:
        >>> import foveal
        >>> space = {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}}
        >>> foveal.tune("photos", "studies/lr", space=space, trials=20)  # doctest: +SKIP
    """
    folder = ExperimentFolder(Path(out))
    if resume and force:
        raise ConfigError("--resume goes on with a study and --force starts it anew.", fix="give one of them.")
    begun = begun_with(folder) if resume else None
    settings = _settings(begun, trials, hours, sampler, pruner, storage)
    around = _around(begun, config, overrides)
    chosen = _space(begun, space, around)
    images = data if data is not None else begun.data if begun is not None else None
    if images is None:
        raise ConfigError("tune needs DATA, or --resume with the --out of a study.", fix="see foveal tune --help.")
    refuse_inside(folder.path, images)
    shown_to = progress or Silence()
    try:
        outcome = run_study(images, folder, chosen, settings, shown_to, force=force)
        report = None if outcome.end is None else _pages(folder, shown_to)
    except InterruptedRunError as stopped:
        raise stopped.reworded(
            fix="the same command goes on with the study, trial and epoch where they were."
        ) from stopped
    monitor = around.train.early_stopping.monitor
    return TuneResult(folder.path, outcome.trials, monitor, outcome.end, report, outcome.notes)


def _pages(folder: ExperimentFolder, progress: Progress) -> Path:
    """The pages of the default, of the winner and of the study; one worker at a time writes them."""
    with locked_in_turn(folder.path / ".end.lock", f"writing the pages of {folder.path}", progress.say):
        for name in (DEFAULT, BEST):
            run = folder.run(name)
            if not run.report.is_file():
                with run.stage("report"):
                    build_report(run)
        return build_tune_page(folder)


def plan_tune(
    space: Mapping[str, Any] | str | PathLike[str],
    *,
    trials: int | None = None,
    hours: float | None = None,
    sampler: SamplerName | None = None,
    pruner: PrunerName | None = None,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> TunePlan:
    """What `tune` would do: the space as it was read, and the number of trials. No image is read, nothing is written.

    Raises:
        ConfigError: as `tune`.
    """
    around = read_config(config, overrides)
    chosen = _space(None, space, around)
    settings = _settings(None, trials, hours, sampler, pruner, None)
    check_settings(around, settings)
    grid_size = len(shuffled_grid(chosen, around.seed)) if settings.sampler == "grid" else None
    bounds = [bound for bound in (trials, grid_size) if bound is not None]
    words = {}
    for dimension in chosen.dimensions():
        if dimension.kind == "categorical":
            words[dimension.name] = "one of " + ", ".join(map(str, dimension.choices))
        else:
            step = f", in steps of {dimension.step:g}" if dimension.step not in (None, 1.0) else ""
            log = ", logarithmic" if dimension.log else ""
            words[dimension.name] = f"{dimension.kind} from {dimension.low:g} to {dimension.high:g}{step}{log}"
    return TunePlan(
        min(bounds) if bounds else None,
        grid_size,
        around.train.early_stopping.monitor,
        words,
        settings.sampler,
        settings.pruner,
    )


def _settings(
    begun: Begun | None,
    trials: int | None,
    hours: float | None,
    sampler: SamplerName | None,
    pruner: PrunerName | None,
    storage: str | None,
) -> TuneSettings:
    """What is asked for, on top of what the study was begun with."""
    settings = TuneSettings() if begun is None else begun.settings
    if trials is not None or hours is not None:
        settings = replace(settings, num_trials=trials, hours=hours)
    if begun is not None and storage is None and settings.storage is not None and ":***@" in settings.storage:
        raise ConfigError(
            f"The study is kept in {settings.storage}, whose password is written nowhere.",
            fix="give --storage with it, beside --resume.",
        )
    given: dict[str, Any] = {"sampler": sampler, "pruner": pruner, "storage": storage}
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


def _around(begun: Begun | None, config: Config | str | PathLike[str] | None, overrides: Sequence[str]) -> Config:
    if begun is None or config is not None:
        return read_config(config, overrides)
    return load(Config, None, overrides, base=begun.base, is_shared=True)


def _space(begun: Begun | None, space: Mapping[str, Any] | str | PathLike[str] | None, around: Config) -> SearchSpace:
    if space is None and begun is not None:
        return make_space(begun.lines, around)
    if space is None:
        raise ConfigError(
            "tune needs a search space.",
            fix="give --space FILE, with lines such as optim.lr: {type: float, low: 1e-4, high: 1e-2, log: true}.",
        )
    return make_space(space, around) if isinstance(space, Mapping) else read_space(Path(space), around)


def verdict_line(result: TuneResult) -> str:
    """The verdict with both accuracies, in a line."""
    if result.end is None:
        return ""
    default, tuned = result.end.default_metrics["test"], result.end.best_metrics["test"]
    return f"Test accuracy: default {shown(default.accuracy)}, tuned {shown(tuned.accuracy)}."

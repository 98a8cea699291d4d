"""`foveal probe`: classical heads on the features of a frozen backbone, and the best of them as a bundle."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from foveal.api.opening import refuse_inside
from foveal.errors import ConfigError
from foveal.experiments.preparing import draw_split, prepare
from foveal.experiments.probe.heads import HEADS
from foveal.experiments.probe.probing import check_backbones, fixed_config
from foveal.experiments.probe.probing import probe as carry_out
from foveal.experiments.probe.result import ProbeOutcome, ProbeTask, read_outcome, winner_folder
from foveal.extras import require
from foveal.files import read_json
from foveal.metrics import shown
from foveal.model.bundle import is_bundle, read_bundle
from foveal.model.config import each_name
from foveal.progress import Progress, Silence
from foveal.report.page import build_report
from foveal.report.probe_page import Asked, build_probe_page, next_commands
from foveal.run_folder import ExperimentFolder, RunFolder
from foveal.training.config import Config, read_config
from foveal.types import SPLITS


@dataclass(frozen=True)
class ProbeResult:
    """A finished probe.

    Attributes:
        folder: with summary.json, the page, the runs and the bundle.
        rows: a head and size each: the keys of metrics.json on test, and facts of the fit.
        winner: the name of the row that validation chose.
        sentences: the verdict first.
        report: the page to open.
        bundle: the winner, deployable.
        run: the winner's run folder.
        next_commands: what to type next.
    """

    folder: Path
    rows: Sequence[Mapping[str, Any]]
    winner: str
    sentences: Sequence[str]
    report: Path
    bundle: Path
    run: Path
    next_commands: Sequence[str]

    @property
    def best(self) -> Mapping[str, Any]:
        """The winner's row."""
        return next(row for row in self.rows if row["name"] == self.winner)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "folder": str(self.folder),
            "report": str(self.report),
            "bundle": str(self.bundle),
            "run": str(self.run),
            "winner": self.winner,
            "sentences": list(self.sentences),
            "rows": [dict(row) for row in self.rows],
        }

    def table(self) -> list[str]:
        """A line a head, the best on validation first."""
        rows = sorted(self.rows, key=lambda row: int(row["place"]))
        width = max(len(row["name"]) for row in rows)
        lines = [f"{'':{width}}  train  val    test   seconds"]
        for row in rows:
            figures = "  ".join(f"{shown(row[f'{split}_accuracy']):<5}" for split in SPLITS)
            lines.append(f"{row['name']:{width}}  {figures}  {row['fit_seconds']:.1f}")
        return lines

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("head", "train", "val", "test", "seconds"))
        body = "".join(
            f"<tr><td>{html.escape(row['name'])}</td>"
            + "".join(f"<td>{shown(row[f'{split}_accuracy'])}</td>" for split in SPLITS)
            + f"<td>{row['fit_seconds']:.1f}</td></tr>"
            for row in sorted(self.rows, key=lambda row: int(row["place"]))
        )
        told = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.sentences)
        return f"<ul>{told}</ul><table><tr>{head}</tr>{body}</table>"


@dataclass(frozen=True)
class ProbePlan:
    """What `probe --dry-run` shows.

    Attributes:
        backbones: names of the zoo.
        sizes: sides of the square in pixels.
        heads: which are fitted.
        skipped: what is left out, each with why.
        num_images: images a split, as far as known without decoding.
        class_names: the classes.
        folder: where the result would go.
    """

    backbones: Sequence[str]
    sizes: Sequence[int]
    heads: Sequence[str]
    skipped: Sequence[str]
    num_images: Mapping[str, int]
    class_names: Sequence[str]
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "backbones": list(self.backbones),
            "sizes": list(self.sizes),
            "heads": list(self.heads),
            "skipped": list(self.skipped),
            "num_images": dict(self.num_images),
            "class_names": list(self.class_names),
            "folder": str(self.folder),
        }

    def __str__(self) -> str:
        counts = ", ".join(f"{number:,} {split}" for split, number in self.num_images.items())
        lines = [
            f"images      {counts}; {len(self.class_names)} classes",
            f"backbones   {', '.join(self.backbones)}, frozen",
            f"sizes       {', '.join(f'{size} px' for size in self.sizes)}",
            f"heads       {', '.join(HEADS[name].title for name in self.heads)}",
            f"writes to   {self.folder}",
            *self.skipped,
        ]
        return "\n".join(lines)


def probe(
    data: str | PathLike[str],
    out: str | PathLike[str] = "probe",
    *,
    backbone: str | Sequence[str] = (),
    sizes: int | Sequence[int] = (),
    heads: str | Sequence[str] = (),
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> ProbeResult:
    """Fit classical heads on a frozen backbone's features; the best on validation becomes a bundle.

    The same call again goes on with a probe that was interrupted.

    Args:
        data: as for `train`.
        out: folder for the summary, the page, the winner's run and its bundle.
        backbone: a name of the zoo, or several; that of the configuration if not given.
        sizes: sides of the square in pixels, each tried; that of the configuration if not given.
        heads: of logistic, knn, svm, forest and xgboost; all that are installed if not given.
        config: a configuration, or a YAML file of one; the defaults if not given.
        overrides: texts such as "model.weights=runs/first", applied on top.
        force: whether to start anew in a folder that holds a probe with other settings.
        progress: where to show it; nowhere if not given.

    Raises:
        ConfigError: a key, a value or a head's name is wrong; or `out` holds a probe with other settings.
        DataError: the data is not what training needs; all problems at once.
        ArtifactError: `out` cannot be written or holds something else, or the backbone's weights cannot be had.
        MissingExtraError: a head was asked for whose library is not installed.

    Example:
        >>> import foveal
        >>> foveal.probe("photos", backbone="resnet18", sizes=[96, 128])  # doctest: +SKIP
    """
    progress = progress or Silence()
    chosen, task = _asked(backbone, sizes, heads, config, overrides)
    file = None if config is None or isinstance(config, Config) else fspath(config)
    asked: Asked = (fspath(data), file, overrides)
    folder = ExperimentFolder(Path(out))
    refuse_inside(folder.path, data)
    folder.prepare()
    with folder.lock():
        folder.begin("probe", _settings(data, chosen, task), force=force)
        outcome = read_outcome(folder)
        if outcome is not None and folder.report.is_file():
            progress.say("The probe had come to its end already; nothing is left to fit.")
            return _result(folder, outcome, asked)
        check_backbones(chosen, task)
        outcome = carry_out(data, chosen, task, folder, progress)
        with folder.stage("report"):
            build_report(RunFolder(winner_folder(folder, outcome)))
            build_probe_page(outcome, folder, read_json(folder.summary)["skipped"], asked=asked)
    return _result(folder, outcome, asked)


def plan_probe(
    data: str | PathLike[str],
    out: str | PathLike[str] = "probe",
    *,
    backbone: str | Sequence[str] = (),
    sizes: int | Sequence[int] = (),
    heads: str | Sequence[str] = (),
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> ProbePlan:
    """What `probe` would do with this data; nothing is written, and only a few images are decoded.

    Raises:
        ConfigError: as `probe`.
        DataError: as `probe`.
        MissingExtraError: as `probe`.
    """
    chosen, task = _asked(backbone, sizes, heads, config, overrides)
    prepared = prepare(data, chosen)
    manifest = draw_split(prepared.manifest, prepared.config)
    return ProbePlan(
        backbones=task.backbones or chosen.model.names,
        sizes=task.sizes or (prepared.config.data.image_size,),
        heads=task.heads,
        skipped=task.skipped,
        num_images={name: len(manifest.of_split(name)) for name in SPLITS},
        class_names=manifest.class_names,
        folder=Path(out),
    )


def _asked(
    backbone: str | Sequence[str],
    sizes: int | Sequence[int],
    heads: str | Sequence[str],
    config: Config | str | PathLike[str] | None,
    overrides: Sequence[str],
) -> tuple[Config, ProbeTask]:
    """The configuration as a probe has it, and what is to be tried.

    Raises:
        ConfigError: something of it is wrong; all at once.
        MissingExtraError: a head was asked for whose library is not installed.
    """
    given = read_config(config, overrides)
    backbones = tuple(dict.fromkeys((backbone,) if isinstance(backbone, str) else backbone))
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    heads = (heads,) if isinstance(heads, str) else heads
    problems = [
        f"--sizes: {size!r}, and whole numbers from 8 to 4096 px are possible"
        for size in sizes
        if not isinstance(size, int) or not 8 <= size <= 4096
    ]
    problems += [f"--heads: {name!r} is none of {', '.join(HEADS)}" for name in heads if name not in HEADS]
    problems += ["--backbone: a name is empty"] if any(not name.strip() for name in backbones) else []
    own = [start for start in given.model.starts if start not in ("pretrained", "none")]
    if own and len(backbones) > 1:
        problems.append(
            f"model.weights={own[0]}: weights of one's own fit one backbone, and {len(backbones)} are asked for"
        )
    if problems:
        raise ConfigError("This cannot be probed.", problems=problems, fix="see foveal probe --help")
    if not backbones and len(own) == 1 and "name" not in given.model.model_fields_set:
        given = _named_by_bundle(given, Path(own[0]).expanduser())
    wanted, skipped = [], []
    for name in dict.fromkeys(heads or HEADS):
        needs = HEADS[name].needs
        if needs is not None and heads:
            require(needs[0], extra=needs[1], purpose=f"fit the head {name}")
        if needs is not None and find_spec(needs[0]) is None:
            skipped.append(
                f"{HEADS[name].title} is left out, since it is not installed: pip install 'foveal[{needs[1]}]'."
            )
        else:
            wanted.append(name)
    return fixed_config(given), ProbeTask(backbones, tuple(dict.fromkeys(sizes)), tuple(wanted), tuple(skipped))


def _named_by_bundle(config: Config, path: Path) -> Config:
    """The configuration with the backbone of the bundle that its weights are of, where they are of one."""
    if not is_bundle(path):
        return config
    name = read_bundle(path).spec.architecture.name
    return config.model_copy(update={"model": config.model.model_copy(update={"name": name})})


def _settings(data: str | PathLike[str], config: Config, task: ProbeTask) -> dict[str, Any]:
    """What decides what comes out, for the folder to remember."""
    return {
        "data": str(Path(fspath(data)).resolve()) if Path(fspath(data)).exists() else fspath(data),
        "backbones": list(task.backbones or each_name(config.model.name)),
        "sizes": list(task.sizes),
        "heads": list(task.heads),
        "config": config.model_dump(mode="json", exclude={"data": {"num_workers"}, "train": {"device"}}),
    }


def _result(folder: ExperimentFolder, outcome: ProbeOutcome, asked: Asked) -> ProbeResult:
    return ProbeResult(
        folder=folder.path,
        rows=outcome.rows,
        winner=outcome.winner,
        sentences=outcome.sentences,
        report=folder.report,
        bundle=folder.bundle,
        run=winner_folder(folder, outcome),
        next_commands=next_commands(outcome, folder, asked),
    )

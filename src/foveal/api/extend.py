"""`foveal extend`: add classes to a trained model."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from foveal.api.opening import refuse_inside
from foveal.data.manifest import Manifest
from foveal.data.scan import scan
from foveal.errors import ArtifactError, ConfigError
from foveal.experiments.extend.config import extended_config
from foveal.experiments.extend.cost import Cost
from foveal.experiments.extend.data import join
from foveal.experiments.extend.extension import SUMMARY_FILE, Extended, Wish, begin, extend_in
from foveal.metrics import SplitMetrics
from foveal.model.bundle import read_bundle
from foveal.model.grow import check_growable
from foveal.progress import Progress, Silence
from foveal.report.extend_page import write_extend_page
from foveal.report.heatmaps import draw_heatmaps
from foveal.report.page import build_report
from foveal.run_folder import RunFolder, is_run_folder
from foveal.training.config import Config, read_config

Replay = int | Literal["all", "none"]


@dataclass(frozen=True)
class ExtendResult:
    """A model with further classes.

    Attributes:
        run: the new run folder.
        metrics: of the extended model, by split.
        before: of the old model, on the old classes' test images.
        cost: what the new classes cost the old ones, class by class.
        sentences: the same in words, the cost first.
        notes: what was done with the data.
        page: before and after.
        report: the run's own page.
        bundle: the deployable folder.
        summary: the figures for scripts.
    """

    run: Path
    metrics: Mapping[str, SplitMetrics]
    before: SplitMetrics
    cost: Cost
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    page: Path
    report: Path
    bundle: Path
    summary: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "run": str(self.run),
            "page": str(self.page),
            "report": str(self.report),
            "bundle": str(self.bundle),
            "summary": str(self.summary),
            "sentences": list(self.sentences),
            "notes": list(self.notes),
            "cost": self.cost.to_dict(),
            "before": self.before.model_dump(mode="json"),
            "metrics": {split: metrics.model_dump(mode="json") for split, metrics in self.metrics.items()},
        }

    def _repr_html_(self) -> str:
        told = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.sentences)
        return f"<p>Run <code>{html.escape(str(self.run))}</code></p>{told}{self.metrics['test']._repr_html_()}"


@dataclass(frozen=True)
class ExtendPlan:
    """What `extend --dry-run` shows.

    Attributes:
        model: the old bundle.
        old_classes: what it knows.
        new_classes: what it would learn.
        num_old: old images in all splits.
        num_new: new images, as far as known without decoding.
        replay: what of the old training images would be trained on again.
        distill: weight of the old model's answers.
        out: the run folder, if one was given.
        config: what the training would be resolved from.
    """

    model: Path
    old_classes: tuple[str, ...]
    new_classes: tuple[str, ...]
    num_old: int
    num_new: int
    replay: Replay
    distill: float
    out: Path | None
    config: Config

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "model": str(self.model),
            "old_classes": list(self.old_classes),
            "new_classes": list(self.new_classes),
            "num_old": self.num_old,
            "num_new": self.num_new,
            "replay": self.replay,
            "distill": self.distill,
            "out": str(self.out) if self.out else None,
            "config": self.config.model_dump(mode="json", exclude_unset=True),
        }

    def __str__(self) -> str:
        lines = [
            f"model       {self.model}",
            f"knows       {len(self.old_classes)}: {', '.join(self.old_classes[:12])}",
            f"learns      {len(self.new_classes)}: {', '.join(self.new_classes[:12])}",
            f"images      {self.num_old:,} old, {self.num_new:,} new",
            f"replay      {self.replay}" + (" a class" if isinstance(self.replay, int) else ""),
            f"distil      {self.distill:g}",
            f"writes to   {self.out or '--out RUN2'}",
        ]
        return "\n".join(lines)


def extend(
    model: str | PathLike[str],
    data: str | PathLike[str],
    out: str | PathLike[str],
    *,
    old: str | PathLike[str] | None = None,
    replay: Replay = "all",
    distill: float = 0.0,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> ExtendResult:
    """Add the classes of new images to a trained model, and measure what they cost the old ones.

    The same call again goes on where an earlier one was stopped.

    Args:
        model: a run, or a bundle of one network.
        data: images of the new classes, as DATA of `train`; more images of old classes are welcome.
        out: the new run folder.
        old: the images that the model was trained on; those of the run if not given.
        replay: old training images of each class to train on again: "all", a number, or "none".
        distill: weight of the old model's answers on all training images; 0 for none.
        config: on top of the old configuration: a configuration, or a YAML file of one.
        overrides: texts such as "train.epochs=8", applied on top.
        force: whether to start anew in a folder that holds an extension or a run.
        progress: where to show it; nowhere if not given.

    Raises:
        ConfigError: keys or values are wrong, or the model's head cannot be given further classes.
        DataError: the new data has no new class, or the old images are not at hand; all problems at once.
        ArtifactError: the model is damaged, or `out` cannot be written or holds something else.
        TrainingError: the loss is not finite, or memory ran out.
        InterruptedRunError: Ctrl-C or SIGTERM, after a checkpoint was written.

    Example:
        >>> import foveal
        >>> foveal.extend("runs/eight", "photos/two-more", "runs/ten")  # doctest: +SKIP
    """
    wish, run = _wish(model, data, old, replay, distill, config, overrides), RunFolder(Path(out))
    _check_apart(run, wish)
    run.prepare()
    with run.lock():
        begin(run, wish, force=force)
        extended = extend_in(run, wish, progress or Silence())
        with run.stage("heatmaps"):
            draw_heatmaps(run)
        with run.stage("report"):
            report = build_report(run)
            page = write_extend_page(run, extended, old_model=Path(model))
    return _result(run, extended, page, report)


def plan_extension(
    model: str | PathLike[str],
    data: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    old: str | PathLike[str] | None = None,
    replay: Replay = "all",
    distill: float = 0.0,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> ExtendPlan:
    """What `extend` would do; nothing is written or decoded.

    Raises:
        ConfigError: as `extend`.
        DataError: as `extend`, as far as it shows without decoding.
        ArtifactError: the model is damaged.
    """
    wish = _wish(model, data, old, replay, distill, config, overrides)
    path = Path(wish.old)
    was = Manifest.read(path) if path.name == "manifest.parquet" else scan(str(path), wish.config.data).manifest
    new = scan(str(data), wish.config.data).manifest
    joined = join(was, new)
    names, known = joined.manifest.class_names, wish.bundle.spec.class_names
    check_growable(wish.bundle, names)
    return ExtendPlan(
        model=wish.bundle.path,
        old_classes=known,
        new_classes=tuple(name for name in names if name not in known),
        num_old=len(was.usable()),
        num_new=len(joined.manifest.usable()) - len(was.usable()),
        replay=replay,
        distill=distill,
        out=None if out is None else Path(out),
        config=extended_config(wish.bundle, wish.config, distill=distill),
    )


def _wish(
    model: str | PathLike[str],
    data: str | PathLike[str],
    old: str | PathLike[str] | None,
    replay: Replay,
    distill: float,
    config: Config | str | PathLike[str] | None,
    overrides: Sequence[str],
) -> Wish:
    if replay not in ("all", "none") and (not isinstance(replay, int) or replay < 1):
        raise ConfigError(f"replay={replay}: expected all, none, or a number of images of each class.")
    if not 0 <= distill < math.inf:
        raise ConfigError(f"distill={distill:g}: a weight is a number, and not negative; 0 is off.")
    bundle = read_bundle(Path(model))
    if old is None:
        run = bundle.path.parent
        if not is_run_folder(run):
            raise ConfigError(
                f"{model} does not hold the images that its bundle was trained on; without them nobody can tell what "
                "the new classes cost.",
                fix="give them with --old DATA, best as the manifest of its run: --old RUN/manifest.parquet.",
            )
        old = run / "manifest.parquet"
    per_class = None if replay == "all" else 0 if replay == "none" else replay
    return Wish(bundle, data, old, per_class, distill, read_config(config, overrides))


def _check_apart(run: RunFolder, wish: Wish) -> None:
    place = run.path.resolve()
    if place in (wish.bundle.path.resolve(), wish.bundle.path.parent.resolve()):
        raise ArtifactError(f"{run.path} is the old model itself.", fix="choose another --out.")
    for images in (wish.data, wish.old):
        refuse_inside(run.path, images)


def _result(run: RunFolder, extended: Extended, page: Path, report: Path) -> ExtendResult:
    return ExtendResult(
        run=run.path,
        metrics=extended.outcome.metrics,
        before=extended.before,
        cost=extended.cost,
        sentences=tuple(extended.sentences()),
        notes=extended.notes,
        page=page,
        report=report,
        bundle=run.bundle,
        summary=run.path / SUMMARY_FILE,
    )

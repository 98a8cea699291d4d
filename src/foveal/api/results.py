"""What the verbs return: typed, printable, and at home in a notebook."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # predict returns its result where no torch is installed
    from foveal.evaluation.robustness import Robustness
    from foveal.evaluation.tta import TtaGain
    from foveal.metrics import SplitMetrics


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        run: the run folder.
        metrics: by split.
        best_epoch: the epoch whose weights the bundle holds, counted from 1.
        report: the page to open.
        bundle: the deployable folder.
    """

    run: Path
    metrics: "Mapping[str, SplitMetrics]"
    best_epoch: int
    report: Path
    bundle: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "run": str(self.run),
            "report": str(self.report),
            "bundle": str(self.bundle),
            "best_epoch": self.best_epoch,
            "metrics": {split: metrics.model_dump(mode="json") for split, metrics in self.metrics.items()},
        }

    def _repr_html_(self) -> str:
        parts = "".join(metrics._repr_html_() for metrics in self.metrics.values())
        return f"<p>Run <code>{html.escape(str(self.run))}</code>, best epoch {self.best_epoch}</p>{parts}"


@dataclass(frozen=True)
class EvaluateResult:
    """What an evaluation measured and where it lies.

    Attributes:
        metrics: of the split.
        folder: with metrics.json, predictions.parquet and plots.
        report: the run's page, made anew; None where a bundle was evaluated on other data.
        num_looks: how often this split of the run has been evaluated by now; 0 where that is not counted.
        tta: what test-time augmentation gains and costs; None where none was asked for.
        tta_folder: with metrics.json, predictions.parquet and plots of the classifier with it, and tta.json.
        robustness: what is left of the accuracy on corrupted images; None where that was not asked for.
        robustness_folder: with robustness.json, plots/robustness.svg and an example.
    """

    metrics: "SplitMetrics"
    folder: Path
    report: Path | None
    num_looks: int
    tta: "TtaGain | None" = None
    tta_folder: Path | None = None
    robustness: "Robustness | None" = None
    robustness_folder: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "folder": str(self.folder),
            "report": str(self.report) if self.report else None,
            "num_looks": self.num_looks,
            "metrics": self.metrics.model_dump(mode="json"),
            "tta": self.tta.model_dump(mode="json") if self.tta else None,
            "tta_folder": str(self.tta_folder) if self.tta_folder else None,
            "robustness": self.robustness.model_dump(mode="json") if self.robustness else None,
            "robustness_folder": str(self.robustness_folder) if self.robustness_folder else None,
        }

    def _repr_html_(self) -> str:
        beyond = [each.sentence for each in (self.tta, self.robustness) if each]
        return self.metrics._repr_html_() + "".join(f"<p>{html.escape(each)}</p>" for each in beyond)


@dataclass(frozen=True)
class EvaluatePlan:
    """What `evaluate --dry-run` shows.

    Attributes:
        model: the run or bundle.
        split: the split that would be measured.
        num_images: usable images of it, as far as known without decoding.
        class_counts: images of each of the model's classes.
        folder: where the result would go.
        counts_as_look: whether this would count as a look at the run's split.
        num_passes: how often the network would see each image, over all views and corruptions.
    """

    model: Path
    split: str
    num_images: int
    class_counts: Mapping[str, int]
    folder: Path
    counts_as_look: bool
    num_passes: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "model": str(self.model),
            "split": self.split,
            "num_images": self.num_images,
            "class_counts": dict(self.class_counts),
            "folder": str(self.folder),
            "counts_as_look": self.counts_as_look,
            "num_passes": self.num_passes,
        }

    def __str__(self) -> str:
        counts = ", ".join(f"{name}: {count:,}" for name, count in self.class_counts.items())
        lines = [
            f"model       {self.model}",
            f"split       {self.split}, {self.num_images:,} images"
            + (f", each seen {self.num_passes} times" if self.num_passes > 1 else ""),
            f"classes     {counts}",
            f"writes to   {self.folder}" + (", counted as a look at the split" if self.counts_as_look else ""),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class PredictPlan:
    """What `predict --dry-run` shows.

    Attributes:
        model: the run or bundle.
        num_inputs: files that the inputs stand for.
        class_names: the classes that would be told apart.
        format: of the table.
        table: the file that would be written, or None for stdout.
        num_views: views of each image that would be classified.
    """

    model: Path
    num_inputs: int
    class_names: tuple[str, ...]
    format: str
    table: Path | None
    num_views: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "model": str(self.model),
            "num_inputs": self.num_inputs,
            "num_views": self.num_views,
            "class_names": list(self.class_names),
            "format": self.format,
            "table": str(self.table) if self.table else None,
        }

    def __str__(self) -> str:
        names = ", ".join(self.class_names[:12]) + (", ..." if len(self.class_names) > 12 else "")
        lines = [
            f"model       {self.model}",
            f"inputs      {self.num_inputs:,} files" + (f", {self.num_views} views each" if self.num_views > 1 else ""),
            f"classes     {len(self.class_names)}: {names}",
            f"writes to   {self.table or 'stdout'}, {self.format}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class PredictResult:
    """How a prediction over many inputs went.

    Attributes:
        num_ok: inputs that were classified.
        num_failed: inputs that were not; the reasons are in the table.
        num_kept: inputs of the above that an earlier run, which was stopped, had done already.
        table: the file that was written, or None where rows went to stdout.
        class_counts: images predicted as each class.
        first_failures: the first inputs that failed, each with its reason.
    """

    num_ok: int
    num_failed: int
    table: Path | None
    class_counts: Mapping[str, int]
    num_kept: int = 0
    first_failures: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "num_ok": self.num_ok,
            "num_failed": self.num_failed,
            "num_kept": self.num_kept,
            "table": str(self.table) if self.table else None,
            "class_counts": dict(self.class_counts),
            "first_failures": [{"path": path, "reason": reason} for path, reason in self.first_failures],
        }

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{count:,}</td></tr>" for name, count in self.class_counts.items()
        )
        failed = f", {self.num_failed:,} failed" if self.num_failed else ""
        head = "<tr><th>class</th><th>images</th></tr>"
        return f"<p>{self.num_ok:,} images classified{failed}</p><table>{head}{rows}</table>"

"""What the verbs return: typed, printable, and at home in a notebook."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    metrics: Mapping[str, SplitMetrics]
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
    """

    metrics: SplitMetrics
    folder: Path
    report: Path | None
    num_looks: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "folder": str(self.folder),
            "report": str(self.report) if self.report else None,
            "num_looks": self.num_looks,
            "metrics": self.metrics.model_dump(mode="json"),
        }

    def _repr_html_(self) -> str:
        return self.metrics._repr_html_()


@dataclass(frozen=True)
class PredictResult:
    """How a prediction over many inputs went.

    Attributes:
        num_ok: inputs that were classified.
        num_failed: inputs that were not; the reasons are in the table.
        table: the file that was written, or None where rows went to stdout.
        class_counts: images predicted as each class.
    """

    num_ok: int
    num_failed: int
    table: Path | None
    class_counts: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "num_ok": self.num_ok,
            "num_failed": self.num_failed,
            "table": str(self.table) if self.table else None,
            "class_counts": dict(self.class_counts),
        }

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{count:,}</td></tr>" for name, count in self.class_counts.items()
        )
        failed = f", {self.num_failed:,} failed" if self.num_failed else ""
        head = "<tr><th>class</th><th>images</th></tr>"
        return f"<p>{self.num_ok:,} images classified{failed}</p><table>{head}{rows}</table>"

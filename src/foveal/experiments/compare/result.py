"""What a comparison comes to, in rows, pairs and sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveal.experiments.compare.answers import Aligned
from foveal.experiments.summary import Row
from foveal.metrics import PairedComparison, SplitMetrics, shown

MAIN_COLUMNS = (
    "name", "kind", "architecture", "image_size_px", "num_parameters", "num_macs", "bundle_mib",
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy",
    "split", "num_images", "num_right", "num_wrong", "accuracy", "accuracy_low", "accuracy_high", "balanced_accuracy",
    "macro_precision", "macro_recall", "macro_f1", "log_loss", "ece",
    "latency_cpu_p50_ms", "latency_cpu_p95_ms", "network_cpu_p50_ms", "network_cpu_p95_ms", "images_per_second_cpu",
    "joules_per_1000_images_cpu",
    "latency_gpu_p50_ms", "latency_gpu_p95_ms", "network_gpu_p50_ms", "network_gpu_p95_ms", "images_per_second_gpu",
    "joules_per_1000_images_gpu",
    "train_wall_seconds", "train_cpu_seconds", "total_wall_seconds", "total_cpu_seconds", "path",
)  # fmt: skip
"""The columns of models.csv."""


@dataclass(frozen=True)
class Pair:
    """Two models on the images that neither was trained on."""

    first: str
    second: str
    paired: PairedComparison

    @property
    def sentence(self) -> str:
        """Better, worse, or cannot be told apart; the better one first."""
        if self.paired.verdict == "worse":
            return self.paired.swapped().sentence(self.second, self.first)
        return self.paired.sentence(self.first, self.second)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = self.paired.to_dict()
        return {
            **found,
            "first": self.first,
            "second": self.second,
            "first_metrics": found["first"],
            "second_metrics": found["second"],
            "sentence": self.sentence,
        }


@dataclass(frozen=True)
class Repeated:
    """Models that repeat each other: the folds of a cross-validation, or runs that differ by their seed alone.

    Attributes:
        name: what they are called together.
        members: their names.
        mean: of every figure that all have.
        std: its standard deviation (n - 1); None for figures that one of them lacks.
    """

    name: str
    members: tuple[str, ...]
    mean: Mapping[str, Any]
    std: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"name": self.name, "members": list(self.members), "mean": dict(self.mean), "std": dict(self.std)}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Models side by side on the same images.

    Attributes:
        split: of which the images are.
        data: the images that all were evaluated on, as they were given; None for the runs' own.
        rows: one a model: the keys of metrics.json, and what it costs; see `MAIN_COLUMNS`.
        metrics: by model.
        aligned: what every model says of every image.
        pairs: each pair of models that was tested, the p-values corrected for their number.
        repeated: means over models that repeat each other.
        front: models of which no other is both at least as accurate and at least as fast.
        notes: what there is to know about these figures.
        machine: what they were timed on.
    """

    split: str
    data: str | None
    rows: Sequence[Row]
    metrics: Mapping[str, SplitMetrics]
    aligned: Aligned
    pairs: Sequence[Pair]
    repeated: Sequence[Repeated]
    front: Sequence[str]
    notes: Sequence[str]
    machine: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        """The models, in the order in which they were given."""
        return [row["name"] for row in self.rows]

    @property
    def headline(self) -> str:
        """The comparison in one sentence: which is best, or which cannot be told from the best."""
        tested = {name for pair in self.pairs for name in (pair.first, pair.second)}
        if len(self.pairs) == 1:
            return f"{self.pairs[0].sentence}."
        ranked = [row for row in self.rows if row["name"] in tested] or list(self.rows)
        best = max(ranked, key=lambda row: row["accuracy"])["name"]
        alike = [name for name in self._not_worse_than(best) if name in tested]
        accuracy, bounds = self.metrics[best].accuracy, self.metrics[best].confidence_intervals.get("accuracy")
        figure = shown(accuracy) + (f" [{shown(bounds[0])}, {shown(bounds[1])}]" if bounds else "")
        if len(ranked) == 1:
            return f"{best}: {self.metrics[best].sentence()}."
        images = f"{len(self.aligned):,} {'image' if len(self.aligned) == 1 else 'images'}"
        if not alike:
            return f"{best} is better than each of the other {len(ranked) - 1} models: {figure} on {images}."
        rest = len(ranked) - 1 - len(alike)
        others = "" if not rest else "; it is better than the other" + (f" {rest}" if rest > 1 else "")
        told = f"these {images} cannot tell it from {_listed(alike)}{others}"
        return f"{best} has the highest accuracy, {figure}, but {told}."

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "verb": "compare",
            "split": self.split,
            "data": self.data,
            "num_images": len(self.aligned),
            "headline": self.headline,
            "rows": [dict(row) for row in self.rows],
            "repeated": [each.to_dict() for each in self.repeated],
            "comparisons": [pair.to_dict() for pair in self.pairs],
            "correction": "Holm" if len(self.pairs) > 1 else None,
            "pareto_front": list(self.front),
            "notes": list(self.notes),
            "machine": dict(self.machine),
        }

    def _not_worse_than(self, best: str) -> list[str]:
        """Models that were tested against the best, and were not found to be worse."""
        found = []
        for pair in self.pairs:
            if best in (pair.first, pair.second):
                other = pair.second if best == pair.first else pair.first
                wanted = "worse" if best == pair.first else "better"
                if pair.paired.verdict != wanted:
                    found.append(other)
        return found


def _listed(names: Sequence[str], most: int = 4) -> str:
    if len(names) > most:
        return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} others"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

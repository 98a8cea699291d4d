"""`metrics.json`: what is known of a model on one split, as a typed, frozen object."""

import html
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from foveal.errors import ArtifactError
from foveal.files import read_json, write_json

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Correlation = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
Loss = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]

# The metrics that estimate quality, and so have an interval; in the order in which they are shown.
QUALITY_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "weighted_f1",
    "top_3_accuracy",
    "top_5_accuracy",
    "macro_roc_auc",
    "cohen_kappa",
    "quadratic_weighted_kappa",
    "matthews_correlation",
    "log_loss",
    "brier",
    "ece",
)


class Frozen(BaseModel):
    """Figures as a file holds them: closed, and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassMetrics(Frozen):
    """One class against the rest.

    Attributes:
        name: the class.
        support: images of the class in the split.
        precision: the share of images taken for the class that are of it; null without support or never predicted.
        recall: the share of images of the class that were found; null without support.
        f1: the harmonic mean of both; null without support.
        roc_auc: the area under the ROC curve against all other images; null without images on both sides.
    """

    name: str
    support: Count
    precision: Share | None
    recall: Share | None
    f1: Share | None
    roc_auc: Share | None


class Leakage(Frozen):
    """What images with near-duplicates or group members in training did to the figure.

    Attributes:
        num_test_images_with_siblings_in_train: images of this split that have one.
        accuracy_without_them: the accuracy on the images that have none; null where no image is left.
    """

    num_test_images_with_siblings_in_train: Count
    accuracy_without_them: Share | None


class Latency(Frozen):
    """Milliseconds one image takes, median and 95th percentile."""

    p50: Loss
    p95: Loss


class SplitMetrics(Frozen):
    """Everything measured on one split; `metrics.json` holds exactly these keys.

    A value is null where it has none, and `undefined` says why; it is never NaN, and never 0 for want of a value.

    Attributes:
        split: "train", "val" or "test".
        num_images: n, how many images the figures rest on.
        accuracy: the share of images whose most probable class is the true one.
        balanced_accuracy: the mean recall over the classes with support.
        macro_precision: the mean precision over the classes with support; one never predicted counts as 0.
        macro_recall: the same number as `balanced_accuracy`.
        macro_f1: the mean F1 over the classes with support.
        weighted_f1: the mean F1 weighted by support.
        top_3_accuracy: the share of images whose true class is among the three most probable; null up to 3 classes.
        top_5_accuracy: the same for five; null up to 5 classes.
        macro_roc_auc: the mean over the classes of the area under the ROC curve, one against the rest.
        cohen_kappa: agreement beyond chance, up to 1.
        quadratic_weighted_kappa: the same, with the squared distance of ordered classes; null unless they are ordered.
        matthews_correlation: -1..1, of any number of classes.
        log_loss: mean negative log-probability of the true class, in nats.
        brier: mean squared error of the probabilities, 0..2; halved to 0..1 with two classes.
        ece: expected calibration error over 15 bins, 0..1.
        majority_baseline_accuracy: the accuracy of always guessing the class that is largest in training.
        temperature: what the logits were divided by.
        ece_before_temperature: `ece` with a temperature of 1.
        log_loss_before_temperature: `log_loss` with a temperature of 1.
        confidence_intervals: the 95 % interval, [low, high], of each metric that has one; see `intervals`.
        per_class: one entry a class, in the order of `class_names`.
        confusion_matrix: counts, [true][predicted].
        class_names: in the order of the model's outputs.
        leakage: null where it was not looked for.
        latency_ms: null where it was not measured.
        undefined: the reason for every null, by dotted key, and for every metric without an interval
            ("confidence_intervals.accuracy").
    """

    split: str
    num_images: Annotated[int, Field(ge=1)]
    accuracy: Share | None
    balanced_accuracy: Share | None
    macro_precision: Share | None
    macro_recall: Share | None
    macro_f1: Share | None
    weighted_f1: Share | None
    top_3_accuracy: Share | None
    top_5_accuracy: Share | None
    macro_roc_auc: Share | None
    cohen_kappa: Correlation | None
    quadratic_weighted_kappa: Correlation | None
    matthews_correlation: Correlation | None
    log_loss: Loss | None
    brier: Loss | None
    ece: Share | None
    majority_baseline_accuracy: Share | None
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    ece_before_temperature: Share | None
    log_loss_before_temperature: Loss | None
    confidence_intervals: dict[str, tuple[Finite, Finite]]
    per_class: tuple[ClassMetrics, ...]
    confusion_matrix: tuple[tuple[Count, ...], ...]
    class_names: tuple[str, ...]
    leakage: Leakage | None
    latency_ms: Latency | None
    undefined: dict[str, str]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        size = len(self.class_names)
        if len(set(self.class_names)) != size:
            raise ValueError("class_names: two classes have the same name")
        if tuple(row.name for row in self.per_class) != self.class_names:
            raise ValueError("per_class: expected one entry for each of class_names, in that order")
        if len(self.confusion_matrix) != size or any(len(row) != size for row in self.confusion_matrix):
            raise ValueError(f"confusion_matrix: expected {size} rows of {size}")
        if sum(map(sum, self.confusion_matrix)) != self.num_images:
            raise ValueError("confusion_matrix: expected its counts to add up to num_images")
        for key, (low, high) in self.confidence_intervals.items():
            if key not in QUALITY_METRICS or low > high:
                raise ValueError(f"confidence_intervals.{key}: expected the low and high end of a metric")
        without_reason = [key for key in self.nulls() if not self.undefined.get(key)]
        if without_reason:
            raise ValueError(f"undefined: no reason for the null of {', '.join(without_reason)}")
        return self

    def nulls(self) -> list[str]:
        """The dotted key of every null."""
        keys = [key for key in type(self).model_fields if getattr(self, key) is None]
        for row in self.per_class:
            keys += [f"per_class.{row.name}.{key}" for key in type(row).model_fields if getattr(row, key) is None]
        if self.leakage is not None and self.leakage.accuracy_without_them is None:
            keys.append("leakage.accuracy_without_them")
        return keys

    def with_latency(self, p50_ms: float, p95_ms: float) -> Self:
        """The same metrics with the time that one image takes, in milliseconds."""
        reasons = {key: reason for key, reason in self.undefined.items() if key != "latency_ms"}
        return self.model_copy(update={"latency_ms": Latency(p50=p50_ms, p95=p95_ms), "undefined": reasons})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read `metrics.json`.

        Raises:
            ArtifactError: its content is not what foveal writes; all faults at once.
            FovealError: the file is missing or is not JSON.
        """
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            raise ArtifactError(
                f"{path} does not hold the metrics of a split as foveal writes them.",
                problems=[": ".join(filter(None, (_dotted(e["loc"]), e["msg"]))) for e in error.errors()],
                fix="write it anew with `foveal evaluate`.",
            ) from error

    def write(self, path: Path) -> None:
        """Write `metrics.json` durably.

        Raises:
            FovealError: the file cannot be written.
        """
        write_json(path, self.model_dump(mode="json"))

    def sentence(self) -> str:
        """The result in one line: "0.96 [0.93, 0.98] on 315 test images; guessing the largest class gives 0.10"."""
        images = "image" if self.num_images == 1 else "images"
        words = f"{self._with_interval('accuracy')} on {self.num_images:,} {self.split} {images}"
        if self.majority_baseline_accuracy is not None:
            words += f"; guessing the largest class gives {shown(self.majority_baseline_accuracy)}"
        return words

    def _with_interval(self, key: str) -> str:
        value = shown(getattr(self, key))
        if key not in self.confidence_intervals:
            return value
        low, high = self.confidence_intervals[key]
        return f"{value} [{shown(low)}, {shown(high)}]"

    def _repr_html_(self) -> str:
        rows = []
        for key in (*QUALITY_METRICS, "majority_baseline_accuracy"):
            value, reason = getattr(self, key), self.undefined.get(key, "")
            cells = (key, html.escape(reason) if value is None else self._with_interval(key))
            rows.append(f"<tr><td>{cells[0]}</td><td>{cells[1]}</td></tr>")
        caption = f"{html.escape(self.split)}: {self.num_images:,} images, {len(self.class_names):,} classes"
        head = "<tr><th>metric</th><th>value [95 % interval]</th></tr>"
        return f"<table><caption>{caption}</caption><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def shown(value: float | None) -> str:
    """A figure for people: two decimals, and more where two would turn "nearly" into 0.00 or 1.00."""
    if value is None:
        return "undefined"
    for decimals in (2, 3, 4):
        text = f"{value:.{decimals}f}"
        if float(text) not in (0.0, 1.0) or float(text) == value:
            return text
    return f"{value:.2g}" if abs(value) < 0.5 else "0.9999" if value < 1 else "1.0001"


def _dotted(location: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in location)

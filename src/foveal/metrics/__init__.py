"""Classification metrics with intervals, in pure numpy."""

from foveal.metrics.calibration import (
    NUM_ECE_BINS,
    TEMPERATURE_BOUNDS,
    ReliabilityBins,
    brier,
    ece,
    fit_temperature,
    log_loss,
    reliability_bins,
    softmax,
    top_k_accuracy,
)
from foveal.metrics.classification import (
    EPOCH_METRICS,
    class_metrics,
    confusion_matrix,
    confusion_metrics,
    epoch_metrics,
)
from foveal.metrics.curves import RocCurve, macro_roc_auc, roc_auc_by_class, roc_curve
from foveal.metrics.intervals import Intervals, bootstrap_intervals, wilson_interval
from foveal.metrics.paired import PairedComparison, compare_every_pair, compare_paired, holm
from foveal.metrics.split_metrics import QUALITY_METRICS, ClassMetrics, Latency, Leakage, SplitMetrics, shown
from foveal.metrics.summary import summarise

__all__ = [
    "EPOCH_METRICS",
    "NUM_ECE_BINS",
    "QUALITY_METRICS",
    "TEMPERATURE_BOUNDS",
    "ClassMetrics",
    "Intervals",
    "Latency",
    "Leakage",
    "PairedComparison",
    "ReliabilityBins",
    "RocCurve",
    "SplitMetrics",
    "bootstrap_intervals",
    "brier",
    "class_metrics",
    "compare_every_pair",
    "compare_paired",
    "confusion_matrix",
    "confusion_metrics",
    "ece",
    "epoch_metrics",
    "fit_temperature",
    "holm",
    "log_loss",
    "macro_roc_auc",
    "reliability_bins",
    "roc_auc_by_class",
    "roc_curve",
    "shown",
    "softmax",
    "summarise",
    "top_k_accuracy",
    "wilson_interval",
]

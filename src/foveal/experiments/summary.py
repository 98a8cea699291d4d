"""`summary.json`: what an experiment came to, a row a fold, trial, member or model, for scripts to read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveal.files import write_json
from foveal.metrics import SplitMetrics

Row = dict[str, Any]


def metrics_row(name: str, metrics: SplitMetrics, **facts: Any) -> Row:
    """One row: the keys of metrics.json for a split, under a name, with what else is known.

    Args:
        name: of the fold, trial, member or model.
        metrics: of one split.
        **facts: plain values, such as seconds or a path.
    """
    return {"name": name, **facts, **metrics.model_dump(mode="json")}


def mean_and_std(rows: Sequence[Mapping[str, Any]]) -> tuple[Row, Row]:
    """Mean and standard deviation (n - 1) of every number that all rows have; none where there is one row only.

    A figure that is null in some row is null in both: a mean over the others would be of other folds.
    """
    keys = [key for key in rows[0] if all(_is_number_or_none(row.get(key, "")) for row in rows)] if rows else []
    mean: Row = {}
    std: Row = {}
    for key in keys:
        values = [row[key] for row in rows]
        known = None not in values
        mean[key] = float(np.mean(values)) if known else None
        std[key] = float(np.std(values, ddof=1)) if known and len(values) > 1 else None
    return mean, std


def write_summary(path: Path, verb: str, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """Write `summary.json` durably.

    Args:
        path: where to.
        verb: what wrote it.
        rows: see `metrics_row`.
        **more: plain values beside them, such as `mean`, `std`, `sentences`.
    """
    write_json(path, {"verb": verb, "rows": [dict(row) for row in rows], **more})


def _is_number_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))

"""`foveal predict`: classes and probabilities for any number of images."""

import sys
from collections import Counter
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import IO

from foveal.api.opening import open_predictor, refuse_unfinished
from foveal.api.results import PredictPlan, PredictResult
from foveal.machine import num_threads
from foveal.model.bundle import open_bundle
from foveal.pixels.views import views_of
from foveal.predictions import expand_inputs, open_table, table_format
from foveal.progress import Progress, Silence


def predict(
    model: str | PathLike[str],
    inputs: Sequence[str | PathLike[str]],
    *,
    out: str | PathLike[str] | None = None,
    format: str | None = None,
    tta: str = "none",
    device: str = "auto",
    batch_size: int = 32,
    stdin: IO[str] | None = None,
    stdout: IO[str] | None = None,
    progress: Progress | None = None,
) -> PredictResult:
    """Predict files, folders, globs or a list on stdin into one table, in order; a bad file fails in its own row.

    For predictions as objects, from paths, PIL images, arrays or bytes, take `foveal.Predictor`.

    Args:
        model: a run or a bundle.
        inputs: files, folders, glob patterns, or "-" for a list of paths on stdin.
        out: the table to write; its ending says the format. None writes rows to `stdout`.
        format: csv, jsonl or parquet, where the ending does not say.
        tta: test-time augmentation: none, flip, dihedral, crops5 or a number of views of each image.
        device: auto, cpu, cuda or mps.
        batch_size: images that are computed together.
        stdin: where "-" reads from; the process's own if not given.
        stdout: where rows go without `out`; the process's own if not given.
        progress: where to show it.

    Raises:
        ArtifactError: the model is no bundle, or a damaged one.
        ConfigError: the format is not said, the device is not there, or there is no such test-time augmentation.
        DataError: a folder or a pattern holds no file.

    Example:
        >>> import foveal
        >>> foveal.predict("runs/signs", ["photos"], out="p.csv").num_ok  # doctest: +SKIP
        206
    """
    target = None if out is None else Path(out)
    kind = table_format(target, format)
    predictor = open_predictor(model, device=device, batch_size=batch_size, num_workers=num_threads(), tta=tta)
    counts: Counter[str] = Counter()
    num_failed = 0
    paths = expand_inputs([fspath(text) for text in inputs], stdin or sys.stdin)
    with (
        (progress or Silence()).bar("Predicting", 0, "images") as bar,
        open_table(target, kind, predictor.class_names, stdout or sys.stdout) as table,
    ):
        for prediction in predictor.stream(paths):
            table.add(prediction)
            bar.advance()
            if prediction.status == "ok":
                counts[prediction.predicted] += 1
            else:
                num_failed += 1
    class_counts = {name: counts[name] for name in predictor.class_names if counts[name]}
    return PredictResult(counts.total(), num_failed, target, class_counts)


def plan_prediction(
    model: str | PathLike[str],
    inputs: Sequence[str | PathLike[str]],
    *,
    out: str | PathLike[str] | None = None,
    format: str | None = None,
    tta: str = "none",
    stdin: IO[str] | None = None,
) -> PredictPlan:
    """What `predict` would do: the inputs are counted and the bundle is checked, and nothing is opened or written.

    Raises:
        ArtifactError: as `predict`.
        ConfigError: as `predict`.
        DataError: as `predict`.
    """
    target = None if out is None else Path(out)
    kind = table_format(target, format)
    num_views = len(views_of(tta))
    refuse_unfinished(Path(model))
    bundle = open_bundle(Path(model))
    num_inputs = sum(1 for _ in expand_inputs([fspath(text) for text in inputs], stdin or sys.stdin))
    return PredictPlan(Path(model), num_inputs, bundle.spec.class_names, kind, target, num_views)

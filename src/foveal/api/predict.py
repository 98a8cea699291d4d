"""`foveal predict`: classes and probabilities for any number of images."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import IO, Any

from foveal.api.opening import Engine, open_any_predictor, refuse_unfinished
from foveal.api.results import PredictPlan, PredictResult
from foveal.exported.opening import is_export, open_export
from foveal.machine import num_threads
from foveal.model.bundle import open_bundle
from foveal.pixels.views import views_of
from foveal.prediction import ImagePredictor, Prediction
from foveal.prediction_journal import Journal, open_journal
from foveal.predictions import expand_inputs, open_table, table_format
from foveal.progress import Progress, Silence

MOST_FAILURES_NAMED = 3
"""Files whose reasons are told at the end; the table has all."""


def predict(
    model: str | PathLike[str],
    inputs: Sequence[str | PathLike[str]],
    *,
    out: str | PathLike[str] | None = None,
    format: str | None = None,
    tta: str = "none",
    engine: Engine = "auto",
    device: str = "auto",
    batch_size: int = 32,
    force: bool = False,
    stdin: IO[str] | None = None,
    stdout: IO[str] | None = None,
    progress: Progress | None = None,
) -> PredictResult:
    """Predict files, folders, globs or a list on stdin into one table, in order; a bad file fails in its own row.

    With `out`, a call that was stopped can be made again, and takes up what the stopped one had done.

    For predictions as objects, from paths, PIL images, arrays or bytes, take `foveal.Predictor`.

    Args:
        model: a run, a bundle or an exported model.
        inputs: files, folders, glob patterns, or "-" for a list of paths on stdin.
        out: the table to write; its ending says the format. None writes rows to `stdout`.
        format: csv, jsonl or parquet, where the ending does not say.
        tta: test-time augmentation: none, flip, dihedral, crops5 or a number of views of each image.
        engine: torch or onnx; auto takes onnx for exported models and torch for the others. A run or bundle on onnx is
            exported on the way, once.
        device: auto, cpu, cuda or mps, for torch.
        batch_size: images that are computed together.
        force: predict all anew, also what a stopped call had done.
        stdin: where "-" reads from; the process's own if not given.
        stdout: where rows go without `out`; the process's own if not given.
        progress: where to show it.

    Raises:
        ArtifactError: the model is no bundle, or a damaged one; or another process makes the same table.
        ConfigError: the format is not said, the device is not there, or there is no such test-time augmentation.
        DataError: a folder or a pattern holds no file.
        ExportError: it cannot be exported for the engine onnx.
        MissingExtraError: the engine is not installed.

    Example:
        >>> import foveal
        >>> foveal.predict("runs/signs", ["photos"], out="p.csv").num_ok  # doctest: +SKIP
        206
    """
    target = None if out is None else Path(out)
    kind = table_format(target, format)
    progress = progress or Silence()
    predictor = open_any_predictor(
        model,
        engine=engine,
        device=device,
        batch_size=batch_size,
        num_workers=num_threads(),
        tta=tta,
        progress=progress,
    )
    paths = expand_inputs([fspath(text) for text in inputs], stdin or sys.stdin)
    counts: Counter[str] = Counter()
    num_failed, failures = 0, list[tuple[str, str]]()
    with (
        _journal(target, _key(predictor, tta), predictor, fresh=force) as journal,
        progress.bar("Predicting", 0, "images") as bar,
        open_table(target, kind, predictor.class_names, stdout or sys.stdout) as table,
    ):
        for prediction in _predictions(predictor, journal, paths):
            table.add(prediction)
            bar.advance()
            if prediction.status == "ok":
                counts[prediction.predicted] += 1
            else:
                num_failed += 1
                failures += [(prediction.path, prediction.reason)] if num_failed <= MOST_FAILURES_NAMED else []
    num_kept = journal.num_kept if journal else 0
    if num_kept:
        progress.say(
            f"{num_kept:,} of these had been predicted before the last run was stopped; they were not done again."
        )
    class_counts = {name: counts[name] for name in predictor.class_names if counts[name]}
    return PredictResult(counts.total(), num_failed, target, class_counts, num_kept, tuple(failures))


@contextmanager
def _journal(
    table: Path | None, key: dict[str, Any], predictor: ImagePredictor, *, fresh: bool
) -> Iterator[Journal | None]:
    """The journal of a table; none for rows that go to stdout."""
    if table is None:
        yield None
        return
    with open_journal(table, key, predictor.class_names, fresh=fresh) as journal:
        yield journal


def _predictions(predictor: ImagePredictor, journal: Journal | None, paths: Iterable[str]) -> Iterator[Prediction]:
    return predictor.stream(paths) if journal is None else journal.resumed(paths, predictor.stream)


def _key(predictor: ImagePredictor, tta: str) -> dict[str, Any]:
    """What has to be the same for earlier predictions to count: the model to the last bit, and how it is asked."""
    return {"model": predictor.identity, "tta": tta, "class_names": list(predictor.class_names)}


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
    path = Path(model)
    class_names = open_export(path).spec.class_names if is_export(path) else open_bundle(path).spec.class_names
    num_inputs = sum(1 for _ in expand_inputs([fspath(text) for text in inputs], stdin or sys.stdin))
    return PredictPlan(path, num_inputs, class_names, kind, target, num_views)

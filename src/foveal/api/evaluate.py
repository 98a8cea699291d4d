"""`foveal evaluate`: metrics with intervals, plots, worst errors."""

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.api.results import EvaluateResult
from foveal.config import load
from foveal.data.config import DataConfig
from foveal.data.ingest import Ingested, Recipe, ingest
from foveal.data.manifest import Manifest
from foveal.data.scan import scan
from foveal.data.split import straddling
from foveal.errors import ConfigError
from foveal.evaluation.evaluate import majority_class, measure, predict_split, write_evaluation
from foveal.inference import Predictor
from foveal.progress import Progress, Silence
from foveal.report.page import build_report
from foveal.run_folder import RunFolder, is_run_folder, open_run
from foveal.training.config import Config, ResolvedConfig
from foveal.training.resolve import num_cpus
from foveal.types import SPLITS, Split


def evaluate(
    model: str | PathLike[str],
    data: str | PathLike[str] | None = None,
    *,
    split: Split = "test",
    out: str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> EvaluateResult:
    """Measure a run on one of its own splits, or a run or bundle on other labelled data.

    Every look at a run's test split is counted in the run: a test that decides is a test no longer.

    Args:
        model: a run or a bundle.
        data: labelled images to measure on; the run's own, if not given. Where they bring no split, all are taken.
        split: which split.
        out: where to write; the run's own evaluation folder, or `evaluation` for other data.
        overrides: texts such as "data.columns.label=cell_type", for reading `data`.
        device: auto, cpu, cuda or mps.
        seed: of the bootstrap.
        progress: where to show it.

    Raises:
        ArtifactError: the model is neither run nor bundle, or is damaged.
        DataError: the data cannot be read, or has classes that the model does not know.
        ConfigError: a key or value is wrong.
    """
    progress = progress or Silence()
    if split not in SPLITS:
        raise ConfigError(f"--split {split}: expected one of {', '.join(SPLITS)}.")
    path = Path(model)
    predictor = Predictor(path, device=device)
    run = open_run(path) if data is None or is_run_folder(path) else None
    if data is None:
        return _evaluate_own(RunFolder(path), predictor, split, out, seed, progress)
    config = load(Config, None, overrides).data
    found = scan(fspath(data), config).manifest
    if not (found.split_codes() >= 0).any():
        found = found.with_columns(split=[split] * len(found))
    ingested = _decode(found, predictor, config, progress)
    train = Manifest.read(run.manifest) if run else None
    said = predict_split(predictor, ingested.manifest, ingested.source, split, num_workers=num_cpus())
    metrics = measure(
        said,
        ingested.manifest,
        predictor,
        majority_class=majority_class(train, predictor.class_names) if train else None,
        siblings_in_train=_seen_in_training(ingested.manifest, train)[said.rows] if train else None,
        seed=seed,
    )
    folder = Path(out) if out else Path("evaluation") / split
    write_evaluation(folder, said, metrics, ingested.manifest, predictor.bundle.spec.temperature)
    return EvaluateResult(metrics, folder, None, 0)


def _evaluate_own(
    run: RunFolder,
    predictor: Predictor,
    split: Split,
    out: str | PathLike[str] | None,
    seed: int,
    progress: Progress,
) -> EvaluateResult:
    config = load(ResolvedConfig, run.config).data
    ingested = _decode(Manifest.read(run.manifest), predictor, config, progress)
    manifest = ingested.manifest
    said = predict_split(predictor, manifest, ingested.source, split, num_workers=num_cpus())
    metrics = measure(
        said,
        manifest,
        predictor,
        majority_class=majority_class(manifest, predictor.class_names),
        siblings_in_train=straddling(manifest)[said.rows] if split != "train" else None,
        seed=seed,
    )
    folder = Path(out) if out else run.evaluation(split)
    write_evaluation(folder, said, metrics, manifest, predictor.bundle.spec.temperature)
    num_looks = run.count_look(split, "evaluate")
    return EvaluateResult(metrics, folder, build_report(run), num_looks)


def _decode(manifest: Manifest, predictor: Predictor, config: DataConfig, progress: Progress) -> Ingested:
    """The data as the bundle wants it, whatever its own configuration says of sizes."""
    spec = predictor.bundle.spec
    recipe = Recipe(spec.preprocessing.geometry(), spec.preprocessing.policy(), spec.training_data.box_margin)
    return ingest(
        manifest,
        recipe,
        keep_pixels=config.store != "off",
        cap_bytes=int(config.store_cap_gib * (1 << 30)),
        num_workers=num_cpus(),
        progress=progress,
    )


def _seen_in_training(manifest: Manifest, train: Manifest) -> NDArray[np.bool_]:
    """Which rows have the same bytes as an image that the model was trained on."""
    seen = train.column("sha256")[train.of_split("train")]
    found: NDArray[np.bool_] = np.isin(manifest.column("sha256").astype(str), seen.astype(str))
    return found

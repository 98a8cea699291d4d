"""One run, from prepared data to an evaluated bundle: the unit that every experiment is made of."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

from foveal.auditing.leak_policy import apply_leak_policy, with_copies_grouped
from foveal.auditing.look import with_copies
from foveal.config import dump_yaml
from foveal.data.augment import Augmentation
from foveal.data.batches import Batches, TrainingBatches
from foveal.data.ingest import Ingested, Recipe, ingest
from foveal.data.manifest import Manifest
from foveal.data.scan import scan
from foveal.data.sizes import peek_sizes
from foveal.data.split import check_splittable, split, straddling
from foveal.errors import DataError, FovealError
from foveal.evaluation.evaluate import SplitLogits, calibrate, majority_class, measure, predict_split, write_evaluation
from foveal.files import read_json, write_json, write_text
from foveal.inference import Predictor
from foveal.metrics import SplitMetrics
from foveal.model.build import Classifier, build
from foveal.model.bundle import BundleSpec, read_bundle, update_bundle, write_bundle
from foveal.model.costs import summarise
from foveal.model.weights import WeightsOrigin, load_weights
from foveal.pixels.policy import PixelPolicy
from foveal.progress import Progress
from foveal.run_folder import RunFolder, describe_environment
from foveal.training import checkpoint
from foveal.training.config import Config, ResolvedConfig
from foveal.training.fit import TrainingData, fit
from foveal.training.resolve import Facts, architecture_of, geometry_of, resolve
from foveal.types import SPLITS, Split

HEADLINES = ("accuracy", "balanced_accuracy", "macro_f1", "macro_roc_auc", "log_loss", "ece")
"""Metrics that a bundle carries with it, for each split."""


@dataclass(frozen=True)
class Prepared:
    """What is settled before anything is decoded.

    Attributes:
        config: with nothing left to find out.
        manifest: what was found, or what the run to be resumed holds.
        notes: what reading the data taught, for a person.
        resumed: whether the run goes on from its last checkpoint.
    """

    config: ResolvedConfig
    manifest: Manifest
    notes: tuple[str, ...] = ()
    resumed: bool = False


@dataclass(frozen=True)
class Outcome:
    """A finished run: its metrics by split, and the epoch that the bundle holds, counted from 1."""

    metrics: Mapping[str, SplitMetrics]
    best_epoch: int


def prepare(data: str | PathLike[str], config: Config) -> Prepared:
    """Read DATA's table or folders, check them, and resolve the configuration, before any decoding.

    Raises:
        DataError: all problems of the data that one look can find.
        ConfigError: the model or device does not exist.
    """
    scanned = scan(fspath(data), config.data)
    manifest = scanned.manifest
    _check(manifest, config)
    sizes = peek_sizes(manifest)
    num_samples, num_train = len(manifest.usable()), len(manifest.of_split("train"))
    if not num_train:
        num_train = round(num_samples * (1.0 - config.data.val_fraction - config.data.test_fraction))
    facts = Facts(scanned.format, num_train, num_samples, sizes.shorter_side_px, sizes.aspect)
    return Prepared(resolve(config, facts), manifest, tuple(scanned.notes))


def draw_split(manifest: Manifest, config: ResolvedConfig) -> Manifest:
    """Fill in the splits that DATA does not bring."""
    return split(
        manifest, val_fraction=config.data.val_fraction, test_fraction=config.data.test_fraction, seed=config.seed
    )


def execute(run: RunFolder, prepared: Prepared, progress: Progress) -> Outcome:
    """Decode, split, train, bundle and evaluate; everything is written to `run`.

    Raises:
        DataError: what is left after decoding cannot be split or trained on, or has changed since the run began.
        ArtifactError: the starting weights cannot be had.
        TrainingError: the loss is not finite, or memory ran out.
        InterruptedRunError: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    config = prepared.config
    if prepared.resumed and (done := _finished(run)):
        progress.say("The run had come to its end already; nothing is left to train.")
        return done
    for note in prepared.notes:
        progress.say(note)
        run.log_event("note", message=note)
    # A run that was killed before its first checkpoint starts from the weights again, as it did then.
    resume = any((run.checkpoints / name).exists() for name in (checkpoint.LAST, checkpoint.PREVIOUS))
    # Before the decoding, which can take an hour: weights may be out of reach, and images too small for the network.
    with run.stage("build model"):
        classifier, origin = _start(config, prepared.manifest, from_checkpoint=resume)
        summary = summarise(classifier, prepared.manifest.class_names)
    with run.stage("decode"):
        ingested = _decode(prepared, progress)
        run.log_event("decode", num_decoded=ingested.num_decoded, num_from_store=ingested.num_from_store)
    with run.stage("find copies"):
        grouped = ingested.manifest if prepared.resumed else _group_copies(config, ingested, progress)
    with run.stage("split"):
        manifest = _settle_split(prepared, grouped)
    if not prepared.resumed:
        manifest = _settle_leaks(run, config, manifest, progress)
    progress.say(_data_sentence(manifest, ingested))
    if not prepared.resumed:
        progress.say(origin.sentence())
        _write_start(run, config, manifest, summary, origin)
    with run.stage("train"):
        position = fit(classifier, _training_data(config, manifest, ingested), config, run, progress, resume=resume)
    with run.stage("bundle"):
        _bundle(run, config, manifest, classifier)
    with run.stage("evaluate"):
        metrics = _evaluate(run, config, manifest, ingested, progress)
    run.log_event("done", best_epoch=position.best_epoch)
    return Outcome(metrics, position.best_epoch)


def changed_images(before: Manifest, after: Manifest) -> list[str]:
    """Images that are not what they were when the run began, each with what became of it; empty where all are.

    Args:
        before: rows of the run's manifest.
        after: the same rows after a decode pass now.
    """
    rows = before.usable()
    was, now = before.column("sha256"), after.column("sha256")
    usable, reasons, paths = after.is_usable(), after.column("reason"), before.absolute_paths()
    return [
        f"{paths[row]}: {'has other content now' if usable[row] else reasons[row]}"
        for row in rows.tolist()
        if not usable[row] or was[row] != now[row]
    ]


def _finished(run: RunFolder) -> Outcome | None:
    """What a run came to, if it has done all its work; the bundle gets its metrics last of all."""
    if not all((run.evaluation(name) / "metrics.json").is_file() for name in SPLITS):
        return None
    # What is damaged by now counts as not done, and is made again.
    with suppress(FovealError):
        if read_bundle(run.bundle).spec.metrics:
            best_epoch = int(checkpoint.load(run.checkpoints / checkpoint.BEST)["epoch"])
            metrics: dict[str, SplitMetrics] = {
                name: SplitMetrics.read(run.evaluation(name) / "metrics.json") for name in SPLITS
            }
            return Outcome(metrics, best_epoch)
    return None


def _check(manifest: Manifest, config: Config) -> None:
    if len(manifest.class_names) < 2:
        raise DataError(
            f"A classifier needs at least two classes, and the data has {len(manifest.class_names)}: "
            f"{', '.join(manifest.class_names) or 'none'}.",
            fix="give a folder with one folder a class, or a table with a label column.",
        )
    check_splittable(manifest, val_fraction=config.data.val_fraction, test_fraction=config.data.test_fraction)


def _decode(prepared: Prepared, progress: Progress) -> Ingested:
    config = prepared.config.data
    return ingest(
        prepared.manifest,
        Recipe(geometry_of(prepared.config), PixelPolicy(background=config.background), config.box_margin),
        keep_pixels=config.store == "on",
        cap_bytes=int(config.store_cap_gib * (1 << 30)),
        num_workers=config.num_workers,
        progress=progress,
    )


def _group_copies(config: ResolvedConfig, ingested: Ingested, progress: Progress) -> Manifest:
    """The decoded manifest, copies of each other sharing a group."""
    looked = with_copies(
        ingested,
        near_duplicates=config.audit.near_duplicates,
        num_workers=config.data.num_workers,
        progress=progress,
    )
    return with_copies_grouped(ingested.manifest, looked.clusters, config.audit)


def _settle_leaks(run: RunFolder, config: ResolvedConfig, manifest: Manifest, progress: Progress) -> Manifest:
    """Do what data.leaks says; a split that was drawn here has none, for groups are never cut."""
    manifest, told = apply_leak_policy(manifest, config.data.leaks)
    if told:
        progress.say(told)
        run.log_event("leaks", message=told)
    return manifest


def _settle_split(prepared: Prepared, decoded: Manifest) -> Manifest:
    if prepared.resumed:
        if changed := changed_images(prepared.manifest, decoded):
            raise DataError(
                f"{len(changed)} of {len(prepared.manifest.usable())} samples have changed since the run began, so it "
                "cannot go on as if it had not been interrupted.",
                problems=changed,
                fix="bring the old images back, or start anew with --force.",
            )
        return decoded
    _check(decoded, prepared.config)
    return draw_split(decoded, prepared.config)


def _data_sentence(manifest: Manifest, ingested: Ingested) -> str:
    counts = ", ".join(f"{len(manifest.of_split(name)):,} {name}" for name in SPLITS)
    quarantined = len(manifest) - len(manifest.usable())
    sentence = f"Data: {counts}; {len(manifest.class_names)} classes; "
    sentence += f"{ingested.num_decoded:,} files decoded, {ingested.num_from_store:,} known already."
    if quarantined:
        sentence += f" {quarantined:,} row(s) quarantined; the report says why."
    return sentence


def _start(config: ResolvedConfig, manifest: Manifest, *, from_checkpoint: bool) -> tuple[Classifier, WeightsOrigin]:
    """The classifier with its starting weights; those are not needed where a checkpoint holds all of them."""
    import torch

    torch.manual_seed(config.seed)
    classifier = build(architecture_of(config, len(manifest.class_names)))
    weights = "none" if from_checkpoint else config.model.weights
    return classifier, load_weights(classifier, config.model.name, weights)


def _write_start(
    run: RunFolder, config: ResolvedConfig, manifest: Manifest, summary: str, origin: WeightsOrigin
) -> None:
    write_json(run.env, describe_environment(seed=config.seed, device=config.train.device))
    write_text(run.model_summary, summary)
    write_json(run.weights_origin, {"source": origin.source, "tag": origin.tag, "licence": origin.licence})
    manifest.write(run.manifest)
    run.log_event("start", weights=origin.sentence())
    # Written last: a folder with a configuration is a run that can be resumed.
    write_text(run.config, dump_yaml(config))


def _training_data(config: ResolvedConfig, manifest: Manifest, ingested: Ingested) -> TrainingData:
    geometry, labels = geometry_of(config), manifest.label_ids()
    train_rows, val_rows = manifest.of_split("train"), manifest.of_split("val")
    # Threads that slice the store are only a help; those that decode are the work itself.
    num_workers = 1 if config.data.store == "on" else config.data.num_workers
    return TrainingData(
        train=TrainingBatches(
            ingested.source,
            train_rows,
            labels[train_rows],
            side_px=geometry.store_px,
            batch_size=config.train.batch_size,
            seed=config.seed,
            random_window=config.augment.policy != "none",
            num_workers=num_workers,
        ),
        val=Batches(
            ingested.source,
            val_rows,
            labels[val_rows],
            geometry,
            batch_size=config.train.batch_size,
            num_workers=num_workers,
        ),
        augmentation=Augmentation(config.augment, side_px=geometry.store_px, size_px=geometry.size_px),
        class_names=manifest.class_names,
        paths=manifest.absolute_paths(),
        train_labels=labels[train_rows],
    )


def _bundle(run: RunFolder, config: ResolvedConfig, manifest: Manifest, classifier: Classifier) -> None:
    """Write the best epoch's weights with all that a prediction needs; the temperature follows with the evaluation."""
    best = checkpoint.load(run.checkpoints / checkpoint.BEST)
    geometry = geometry_of(config)
    spec: dict[str, Any] = {
        "architecture": {"name": classifier.architecture.name, "dropout": classifier.architecture.dropout},
        "class_names": manifest.class_names,
        "preprocessing": {
            "policy_version": PixelPolicy().version,
            "max_pixels": PixelPolicy().max_pixels,
            "size_px": geometry.size_px,
            "store_px": geometry.store_px,
            "fit": geometry.fit,
            "interpolation": geometry.interpolation,
            "background": geometry.background,
            "mean": classifier.architecture.mean,
            "std": classifier.architecture.std,
        },
        "temperature": 1.0,
        "ordered": config.data.ordered,
        "training_data": {
            "fingerprint": manifest.fingerprint(),
            "num_images": {name: len(manifest.of_split(name)) for name in SPLITS},
            "box_margin": config.data.box_margin,
        },
        "weights": run.read_weights_origin(),
    }
    write_bundle(run.bundle, spec, best["model"])


def _evaluate(
    run: RunFolder, config: ResolvedConfig, manifest: Manifest, ingested: Ingested, progress: Progress
) -> dict[str, SplitMetrics]:
    """Fit the temperature on validation, then measure every split with the bundle as it will be deployed."""
    predictor = Predictor(run.bundle, device=config.train.device)
    num_workers = config.data.num_workers
    said: dict[Split, SplitLogits] = {}
    with progress.bar("Evaluating", len(SPLITS), "splits") as bar:
        for name in SPLITS:
            said[name] = predict_split(predictor, manifest, ingested.source, name, num_workers=num_workers)
            bar.advance()
    spec: BundleSpec = update_bundle(run.bundle, temperature=calibrate(said["val"]))
    predictor = Predictor(run.bundle, device=config.train.device)
    metrics: dict[str, SplitMetrics] = {}
    guess = majority_class(manifest, predictor.class_names)
    for name in SPLITS:
        metrics[name] = measure(
            said[name],
            manifest,
            predictor,
            majority_class=guess,
            siblings_in_train=straddling(manifest)[said[name].rows] if name != "train" else None,
            seed=config.seed,
        )
        write_evaluation(run.evaluation(name), said[name], metrics[name], manifest, spec.temperature)
        _count_look(run, name)
    headlines = {
        name: {key: [getattr(found, key), found.confidence_intervals.get(key)] for key in HEADLINES}
        for name, found in metrics.items()
    }
    update_bundle(run.bundle, metrics=headlines)
    return metrics


def _count_look(run: RunFolder, split: Split) -> None:
    """Count the look that belongs to the training; once, however often the evaluation was killed and made again."""
    looks = read_json(run.looks) if run.looks.exists() else {}
    if not any(look["verb"] == "train" for look in looks.get(split, [])):
        run.count_look(split, "train")

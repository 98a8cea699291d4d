"""One run, from prepared data to an evaluated bundle: the unit that every experiment is made of."""

from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from foveal.auditing.leak_policy import apply_leak_policy, with_copies_grouped
from foveal.auditing.look import with_copies
from foveal.config import dump_yaml, load
from foveal.data.augment import Augmentation
from foveal.data.augment_albumentations import albumentations_pipeline
from foveal.data.batches import Batches, PerImage, TrainingBatches
from foveal.data.ingest import Ingested, Recipe, ingest
from foveal.data.manifest import Manifest
from foveal.data.scan import scan
from foveal.data.sizes import peek_sizes
from foveal.data.split import check_splittable, split
from foveal.errors import DataError
from foveal.experiments.outcome import Outcome, bundle_best, evaluate_run, finished
from foveal.experiments.together import together
from foveal.files import write_json, write_text
from foveal.model.build import Classifier, build
from foveal.model.costs import summarise
from foveal.model.freeze import apply_every_freeze, apply_freeze, freeze_at
from foveal.model.weights import WeightsOrigin, load_weights
from foveal.pixels.policy import Geometry, PixelPolicy
from foveal.progress import Progress, Silence
from foveal.run_folder import RunFolder, describe_environment
from foveal.training import checkpoint
from foveal.training.config import Config, ResolvedConfig
from foveal.training.fit import fit
from foveal.training.frozen_features import features_can_be_cached, with_features
from foveal.training.logs import Logs, check_logs, open_logs
from foveal.training.losses import make_criterion
from foveal.training.processes import Place, Processes, device_of_leader, joined
from foveal.training.resolve import Facts, architecture_of, geometry_of, resolve
from foveal.training.state import TrainingData
from foveal.types import SPLITS


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


def prepare(data: str | PathLike[str], config: Config) -> Prepared:
    """Read DATA's table or folders, check them, and resolve the configuration, before any decoding.

    Raises:
        DataError: all problems of the data that one look can find.
        ConfigError: the model, the device, a class with a weight, or the albumentations pipeline is not there.
    """
    check_logs(config.log)
    scanned = scan(fspath(data), config.data)
    manifest = scanned.manifest
    _check(manifest, config)
    sizes = peek_sizes(manifest)
    num_samples, num_train = len(manifest.usable()), len(manifest.of_split("train"))
    if not num_train:
        num_train = round(num_samples * (1.0 - config.data.val_fraction - config.data.test_fraction))
    facts = Facts(scanned.format, num_train, num_samples, sizes.shorter_side_px, sizes.aspect)
    resolved = resolve(config, facts)
    # Before the decoding, which can take an hour: what else the configuration names may not be there.
    make_criterion(resolved.train, manifest.class_names, np.ones(len(manifest.class_names), dtype=np.int64))
    if resolved.augment.albumentations is not None:
        geometry = geometry_of(resolved)
        file = Path(resolved.augment.albumentations).expanduser()
        albumentations_pipeline(file, side_px=geometry.store_px, size_px=geometry.size_px)
    return Prepared(resolved, manifest, tuple(scanned.notes))


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
    if prepared.resumed and (done := finished(run)):
        progress.say("The run had come to its end already; nothing is left to train.")
        return done
    for note in prepared.notes:
        progress.say(note)
        run.log_event("note", message=note)
    # A run that was killed before its first checkpoint starts from the weights again, as it did then.
    resume = checkpoint.is_begun(run.checkpoints)
    # Before the decoding, which can take an hour: weights may be out of reach, and images too small for the network.
    with run.stage("build model"):
        classifier, origin = _start(config, prepared.manifest, from_checkpoint=resume)
        apply_every_freeze(classifier, config.model)  # before the decoding as well: there may be no such layers
        apply_freeze(classifier, freeze_at(config.model, 0))
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
    with together(config, run) as processes, _logs(run, config, progress, resumed=resume) as logs:
        with run.stage("train"):
            data = _training_data(run, config, manifest, ingested, processes)
            if config.model.freeze == "all":
                data = _with_features(run, config, manifest, ingested, classifier, data, progress)
            position = fit(
                classifier,
                data,
                config,
                run,
                progress,
                resume=processes.agree(resume),
                processes=processes,
                logs=logs,
            )
        with run.stage("bundle"):
            bundle_best(run, config, manifest, classifier)
        with run.stage("evaluate"):
            metrics = evaluate_run(run, config, manifest, ingested, progress, logs)
    run.log_event("done", best_epoch=position.best_epoch)
    return Outcome(metrics, position.best_epoch)


def _logs(run: RunFolder, config: ResolvedConfig, progress: Progress, *, resumed: bool) -> Logs:
    """The logs that the configuration asks for, named after the run folder."""
    return open_logs(
        config.log,
        run,
        name=run.path.resolve().name,
        hyperparameters=config.model_dump(mode="json"),
        resumed=resumed,
        say=progress.say,
    )


def follow(run: RunFolder, place: Place) -> None:
    """Take part in a training that another process leads; returns when the leader has evaluated it.

    The leader has read, decoded and split the data by then; here the store is looked up, or filled on another machine.

    Raises:
        FovealError: as `execute`.
    """
    device = device_of_leader(place)
    if device is None:
        return
    with joined(place, device) as processes:
        config, manifest = load(ResolvedConfig, run.config), Manifest.read(run.manifest)
        ingested = _decode(Prepared(config, manifest, resumed=True), Silence())
        # The start is the leader's, which is sent to all.
        classifier, _ = _start(config, manifest, from_checkpoint=True)
        data = _training_data(run, config, manifest, ingested, processes)
        fit(classifier, data, config, run, Silence(), resume=processes.agree(False), processes=processes)


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


def _check(manifest: Manifest, config: Config) -> None:
    if len(manifest.class_names) < 2:
        raise DataError(
            f"A classifier needs at least two classes, and the data has {len(manifest.class_names)}: "
            f"{', '.join(manifest.class_names) or 'none'}.",
            fix="give a folder with one folder a class, or a table with a label column.",
        )
    check_splittable(manifest, val_fraction=config.data.val_fraction, test_fraction=config.data.test_fraction)


def _recipe(config: ResolvedConfig) -> Recipe:
    """How files become stored forms."""
    return Recipe(geometry_of(config), PixelPolicy(background=config.data.background), config.data.box_margin)


def _decode(prepared: Prepared, progress: Progress) -> Ingested:
    config = prepared.config.data
    return ingest(
        prepared.manifest,
        _recipe(prepared.config),
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


def _with_features(
    run: RunFolder,
    config: ResolvedConfig,
    manifest: Manifest,
    ingested: Ingested,
    classifier: Classifier,
    data: TrainingData,
    progress: Progress,
) -> TrainingData:
    """The training on a frozen backbone's features, each computed once, where nothing changes them."""
    num_images = len(manifest.of_split("train")) + len(manifest.of_split("val"))
    if reason := features_can_be_cached(config, classifier, num_images):
        progress.say(f"The frozen backbone is computed anew in every epoch: {reason}.")
        return data
    if checkpoint.is_begun(run.checkpoints):
        # A run that goes on was built with random weights, and the features are those of its own.
        classifier.net.load_state_dict(checkpoint.load_last(run.checkpoints)[0]["model"])
    return with_features(data, classifier, config, manifest, ingested.source, _recipe(config), progress)


def _pipeline(run: RunFolder, config: ResolvedConfig, geometry: Geometry) -> PerImage | None:
    """What albumentations does to each image, from the run's own copy of the pipeline."""
    if config.augment.albumentations is None:
        return None
    file = run.pipeline(config.augment.albumentations)
    return albumentations_pipeline(file, side_px=geometry.store_px, size_px=geometry.size_px)


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
    return classifier, load_weights(classifier, config.model.name, weights, class_names=manifest.class_names)


def starting_classifier(config: ResolvedConfig, manifest: Manifest) -> Classifier:
    """The classifier as the first epoch finds it: with its starting weights, and frozen what is frozen.

    Raises:
        ArtifactError: the starting weights cannot be had.
        ConfigError: there are fewer layers or stages than `model.freeze` asks for.
    """
    classifier, _ = _start(config, manifest, from_checkpoint=False)
    apply_freeze(classifier, freeze_at(config.model, 0))
    return classifier


def _write_start(
    run: RunFolder, config: ResolvedConfig, manifest: Manifest, summary: str, origin: WeightsOrigin
) -> None:
    write_json(run.env, describe_environment(seed=config.seed, device=config.train.device))
    write_text(run.model_summary, summary)
    write_json(run.weights_origin, {"source": origin.source, "tag": origin.tag, "licence": origin.licence})
    manifest.write(run.manifest)
    if config.augment.albumentations is not None:
        pipeline = Path(config.augment.albumentations).expanduser()
        write_text(run.pipeline(pipeline), pipeline.read_text(encoding="utf-8"))
    run.log_event("start", weights=origin.sentence())
    # Written last: a folder with a configuration is a run that can be resumed.
    write_text(run.config, dump_yaml(config))


def _training_data(
    run: RunFolder, config: ResolvedConfig, manifest: Manifest, ingested: Ingested, processes: Processes
) -> TrainingData:
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
            batch_size=config.train.batch_size * config.train.accumulate,
            seed=config.seed,
            random_window=config.augment.random_window,
            size_px=geometry.size_px,
            num_workers=num_workers,
            sampling=config.train.sampling,
            repeats=config.augment.repeats,
            per_image=_pipeline(run, config, geometry),
            rank=processes.rank,
            num_ranks=processes.num_ranks,
        ),
        val=Batches(
            ingested.source,
            val_rows,
            labels[val_rows],
            geometry,
            batch_size=config.train.batch_size,
            num_workers=num_workers,
            rank=processes.rank,
            num_ranks=processes.num_ranks,
        ),
        augmentation=Augmentation(config.augment, side_px=geometry.store_px, size_px=geometry.size_px),
        class_names=manifest.class_names,
        paths=manifest.absolute_paths(),
        train_labels=labels[train_rows],
    )

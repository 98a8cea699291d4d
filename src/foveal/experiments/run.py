"""One run, from prepared data to an evaluated bundle: the unit that every experiment is made of."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from foveal.config import dump_yaml, load
from foveal.data.augment import Augmentation
from foveal.data.augment_albumentations import albumentations_pipeline
from foveal.data.batches import Batches, PerImage, TrainingBatches
from foveal.data.manifest import Manifest
from foveal.experiments.outcome import Outcome, bundle_best, evaluate_run, finished
from foveal.experiments.preparing import Prepared, Settled, decode, recipe_of, settle
from foveal.experiments.together import together
from foveal.files import write_json, write_text
from foveal.model.build import Classifier, build
from foveal.model.costs import summarise
from foveal.model.freeze import apply_every_freeze, apply_freeze, freeze_at
from foveal.model.weights import WeightsOrigin, load_weights
from foveal.pixels.policy import Geometry
from foveal.progress import Progress, Silence
from foveal.run_folder import RunFolder, describe_environment
from foveal.training import checkpoint
from foveal.training.config import ResolvedConfig
from foveal.training.distillation import read_teacher
from foveal.training.fit import fit
from foveal.training.frozen_features import features_can_be_cached, with_features
from foveal.training.logs import Logs, open_logs
from foveal.training.processes import Place, Processes, device_of_leader, joined
from foveal.training.resolve import architecture_of, geometry_of
from foveal.training.state import TrainingData
from foveal.types import SPLITS, Split

AfterEpoch = Callable[[Mapping[str, Any]], None]
"""What is told each epoch's row of metrics.csv, and may end the training by an exception."""


def execute(run: RunFolder, prepared: Prepared, progress: Progress) -> Outcome:
    """Decode, split, train, bundle and evaluate; everything is written to `run`.

    Raises:
        FovealError: as `settle` and `carry_out`.
    """
    if prepared.resumed and (done := finished(run)):
        progress.say("The run had come to its end already; nothing is left to train.")
        return done
    # Before the decoding, which can take an hour: weights may be out of reach, and images too small for the network.
    with run.stage("build model"):
        start = begin(run, prepared.config, prepared.manifest)
    return carry_out(run, settle(run, prepared, progress), progress, start=start)


class Start:
    """A classifier as its training finds it.

    Attributes:
        classifier: with its starting weights, and frozen what is frozen.
        summary: its layers and costs, as text.
        origin: where its weights came from.
    """

    def __init__(self, config: ResolvedConfig, manifest: Manifest, *, from_checkpoint: bool) -> None:
        self.classifier, self.origin = _start(config, manifest, from_checkpoint=from_checkpoint)
        apply_every_freeze(self.classifier, config.model)  # all of them: there may be no such layers
        apply_freeze(self.classifier, freeze_at(config.model, 0))
        self.summary = summarise(self.classifier, manifest.class_names)


def begin(run: RunFolder, config: ResolvedConfig, manifest: Manifest) -> Start:
    """Build the classifier of a run, with its starting weights, or for those of its checkpoint.

    Raises:
        ArtifactError: the starting weights cannot be had.
        ConfigError: there are fewer layers or stages than `model.freeze` asks for.
    """
    # A run that was killed before its first checkpoint starts from the weights again, as it did then.
    return Start(config, manifest, from_checkpoint=checkpoint.is_begun(run.checkpoints))


def carry_out(
    run: RunFolder,
    settled: Settled,
    progress: Progress,
    *,
    start: Start | None = None,
    splits: Sequence[Split] = SPLITS,
    with_plots: bool = True,
    after_epoch: AfterEpoch | None = None,
) -> Outcome:
    """Train, bundle and evaluate; goes on where the run was, if it was begun.

    Args:
        run: prepared, and held by this process.
        settled: the data and the configuration.
        progress: where to show it.
        start: the classifier to train; built here if not given.
        splits: which are evaluated, validation among them; one that is left out is not looked at.
        with_plots: whether the evaluation is drawn.
        after_epoch: told each epoch's row.

    Raises:
        ArtifactError: the starting weights cannot be had.
        TrainingError: the loss is not finite, or memory ran out.
        InterruptedRunError: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    config, manifest = settled.config, settled.manifest
    resume = checkpoint.is_begun(run.checkpoints)
    if start is None:
        with run.stage("build model"):
            start = begin(run, config, manifest)
    classifier = start.classifier
    if not run.config.is_file():
        progress.say(settled.sentence)
        progress.say(start.origin.sentence())
        _write_start(run, settled, start)
    with together(config, run) as processes, _logs(run, config, progress, resumed=resume) as logs:
        with run.stage("train"):
            data = _training_data(run, settled, processes)
            if config.model.freeze == "all":
                data = _with_features(run, settled, classifier, data, progress)
            position = fit(
                classifier,
                data,
                config,
                run,
                progress,
                resume=processes.agree(resume),
                processes=processes,
                logs=logs,
                after_epoch=after_epoch,
            )
        with run.stage("bundle"):
            bundle_best(run, config, manifest, classifier)
        with run.stage("evaluate"):
            metrics = evaluate_run(run, settled, progress, logs, splits, with_plots=with_plots)
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
        settled = Settled(config, manifest, decode(config, manifest, Silence()).source, "")
        # The start is the leader's, which is sent to all.
        classifier, _ = _start(config, manifest, from_checkpoint=True)
        data = _training_data(run, settled, processes)
        fit(classifier, data, config, run, Silence(), resume=processes.agree(False), processes=processes)


def starting_classifier(config: ResolvedConfig, manifest: Manifest) -> Classifier:
    """The classifier as the first epoch finds it: with its starting weights, and frozen what is frozen.

    Raises:
        ArtifactError: the starting weights cannot be had.
        ConfigError: there are fewer layers or stages than `model.freeze` asks for.
    """
    classifier, _ = _start(config, manifest, from_checkpoint=False)
    apply_freeze(classifier, freeze_at(config.model, 0))
    return classifier


def _start(config: ResolvedConfig, manifest: Manifest, *, from_checkpoint: bool) -> tuple[Classifier, WeightsOrigin]:
    """The classifier with its starting weights; those are not needed where a checkpoint holds all of them."""
    import torch

    torch.manual_seed(config.seed)
    classifier = build(architecture_of(config, len(manifest.class_names)))
    weights = "none" if from_checkpoint else config.model.weights
    return classifier, load_weights(classifier, config.model.name, weights, class_names=manifest.class_names)


def _write_start(run: RunFolder, settled: Settled, start: Start) -> None:
    config, origin = settled.config, start.origin
    write_json(run.env, describe_environment(seed=config.seed, device=config.train.device))
    write_text(run.model_summary, start.summary)
    write_json(run.weights_origin, {"source": origin.source, "tag": origin.tag, "licence": origin.licence})
    settled.manifest.write(run.manifest)
    if config.augment.albumentations is not None:
        pipeline = Path(config.augment.albumentations).expanduser()
        write_text(run.pipeline(pipeline), pipeline.read_text(encoding="utf-8"))
    run.log_event("start", weights=origin.sentence())
    # Written last: a folder with a configuration is a run that can be resumed.
    write_text(run.config, dump_yaml(config))


def _training_data(run: RunFolder, settled: Settled, processes: Processes) -> TrainingData:
    config, manifest = settled.config, settled.manifest
    geometry, labels = geometry_of(config), manifest.label_ids()
    train_rows, val_rows = manifest.of_split("train"), manifest.of_split("val")
    # Threads that slice the store are only a help; those that decode are the work itself.
    num_workers = 1 if config.data.store == "on" else config.data.num_workers
    return TrainingData(
        train=TrainingBatches(
            settled.source,
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
            settled.source,
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
        teacher=read_teacher(config.train.distillation, manifest.class_names, image_size=config.data.image_size),
    )


def _with_features(
    run: RunFolder, settled: Settled, classifier: Classifier, data: TrainingData, progress: Progress
) -> TrainingData:
    """The training on a frozen backbone's features, each computed once, where nothing changes them."""
    config, manifest = settled.config, settled.manifest
    num_images = len(manifest.of_split("train")) + len(manifest.of_split("val"))
    if reason := features_can_be_cached(config, classifier, num_images):
        progress.say(f"The frozen backbone is computed anew in every epoch: {reason}.")
        return data
    if checkpoint.is_begun(run.checkpoints):
        # A run that goes on was built with random weights, and the features are those of its own.
        classifier.net.load_state_dict(checkpoint.load_last(run.checkpoints)[0]["model"])
    return with_features(data, classifier, config, manifest, settled.source, recipe_of(config), progress)


def _pipeline(run: RunFolder, config: ResolvedConfig, geometry: Geometry) -> PerImage | None:
    """What albumentations does to each image, from the run's own copy of the pipeline."""
    if config.augment.albumentations is None:
        return None
    file = run.pipeline(config.augment.albumentations)
    return albumentations_pipeline(file, side_px=geometry.store_px, size_px=geometry.size_px)

"""Further classes for a trained model: the head grown, fine-tuned on new and old data, measured before and after."""

import json
import os
import shutil
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from foveal.auditing.leak_policy import apply_leak_policy
from foveal.config import load
from foveal.data.manifest import Manifest
from foveal.data.scan import scan
from foveal.data.sizes import peek_sizes
from foveal.data.store import PixelSource
from foveal.errors import ArtifactError, ConfigError, DataError, InterruptedRunError
from foveal.evaluation.evaluate import groups_of, measure, predict_split, write_evaluation
from foveal.experiments.extend.config import check_geometry, extended_config
from foveal.experiments.extend.cost import Cost, measure_cost, read_answers
from foveal.experiments.extend.data import Joined, join, replayed, share_out
from foveal.experiments.outcome import Outcome, finished
from foveal.experiments.preparing import Prepared, Settled, changed_images, decode_in, draw_split, group_copies, settle
from foveal.experiments.run import carry_out
from foveal.experiments.run_files import clear, sweep
from foveal.experiments.shared_data import Selected
from foveal.experiments.summary import metrics_row, write_summary
from foveal.files import read_json, to_json, write_json
from foveal.inference import Predictor
from foveal.metrics import SplitMetrics
from foveal.model.bundle import Bundle
from foveal.model.grow import check_growable
from foveal.progress import Progress
from foveal.run_folder import RunFolder, differences, is_run_folder
from foveal.training.config import Config, ResolvedConfig
from foveal.training.distillation import check_teacher
from foveal.training.logs import check_logs
from foveal.training.losses import make_criterion
from foveal.training.resolve import Facts, resolve
from foveal.types import SPLITS

VERB = "extend"
SETTINGS_FILE = "extend.json"
SUMMARY_FILE = "summary.json"
PAGE_FILE = "extend.html"
BEFORE_FOLDER = "before"
"""What the old model says of the old classes' test images, written as an evaluation is."""


@dataclass(frozen=True)
class Wish:
    """What an extension is made from.

    Attributes:
        bundle: the old model.
        data: the new images.
        old: the old images and their splits: the manifest of its run, or other DATA.
        replay: old training images of each class to train on again, 0 for none; None for all.
        distill: weight of the old model's answers; 0 for none.
        config: what is asked for on top of the old configuration.
    """

    bundle: Bundle
    data: str | PathLike[str]
    old: str | PathLike[str]
    replay: int | None
    distill: float
    config: Config

    def settings(self) -> dict[str, Any]:
        """What decides what comes out, as plain values; not what the machine decides."""
        given = self.config.model_dump(mode="json", exclude_unset=True)
        for section, key in (("data", "num_workers"), ("train", "device")):
            given.get(section, {}).pop(key, None)
        return {
            "model": str(self.bundle.path.resolve()),
            "model_sha256": dict(self.bundle.spec.files),
            "data": str(Path(self.data).resolve()),
            "old": str(Path(self.old).resolve()),
            "replay": "all" if self.replay is None else self.replay,
            "distill": self.distill,
            "config": {section: values for section, values in given.items() if values != {}},
        }


@dataclass(frozen=True)
class Extended:
    """What came of an extension.

    Attributes:
        outcome: of the training, as of any run.
        before: the old model on the old classes' test images.
        cost: what the new classes cost the old ones.
        notes: what was done with the data, for a person.
    """

    outcome: Outcome
    before: SplitMetrics
    cost: Cost
    notes: tuple[str, ...]

    def sentences(self) -> list[str]:
        """What there is to know, the cost first."""
        return [self.cost.sentence(), *self.cost.further_sentences()]


def extend_in(run: RunFolder, wish: Wish, progress: Progress) -> Extended:
    """Bring an extension to its end, from wherever it is; nothing that was done is done again.

    Args:
        run: prepared, held by this process, and this wish's: new, or begun by it before.
        wish: what is wanted.
        progress: where to show it.

    Raises:
        FovealError: as `train`; or the new data has no new class, or the old images are not at hand.
    """
    outcome = finished(run) if is_run_folder(run.path) else None
    if outcome is None:
        settled = _taken_up(run, progress) if is_run_folder(run.path) else _settled(run, wish, progress)
        try:
            outcome = carry_out(run, settled, progress)
        except InterruptedRunError as stopped:
            raise stopped.reworded(fix="the same command goes on where it stopped.") from stopped
    with run.stage("before and after"):
        extended = _measured(run, outcome)
    _write_summary(run, extended)
    return extended


def read_notes(run: RunFolder) -> tuple[str, ...]:
    """What was done with the data of an extension."""
    return tuple(read_json(run.path / SETTINGS_FILE).get("notes", ()))


def _taken_up(run: RunFolder, progress: Progress) -> Settled:
    config, manifest = load(ResolvedConfig, run.config), Manifest.read(run.manifest)
    sweep(run)
    return settle(run, Prepared(config, manifest), progress)


def _settled(run: RunFolder, wish: Wish, progress: Progress) -> Settled:
    """Read, decode, group, share out and choose; then ask the old model."""
    with run.stage("scan"):
        old = _read_old(wish)
        scanned = scan(str(wish.data), wish.config.data)
        joined = join(old, scanned.manifest)
        check_growable(wish.bundle, joined.manifest.class_names)
        config = extended_config(wish.bundle, wish.config, distill=wish.distill)
        resolved, facts = _resolved(config, joined.manifest, wish.bundle)
    notes = [*scanned.notes, *joined.notes]
    ingested = decode_in(run, resolved, joined.manifest, progress)
    _refuse_changed(joined, ingested.manifest)
    with run.stage("find copies"):
        grouped = group_copies(resolved, ingested, progress)
    with run.stage("split"):
        manifest, told = _shared_out(Joined(grouped, joined.num_old), wish, resolved)
        rows, replay = replayed(manifest, joined.is_old, wish.replay, seed=resolved.seed)
        chosen, is_old = manifest.take(rows), joined.is_old[rows]
    notes += [*told, replay]
    source: PixelSource = Selected(ingested.source, rows)
    final = resolve(config, _facts(facts, num_train=len(chosen.of_split("train"))))
    for note in notes:
        progress.say(note)
        run.log_event("note", message=note)
    with run.stage("before"):
        _ask_before(run, wish, final, chosen.take(is_old), Selected(source, np.flatnonzero(is_old)))
    write_json(run.path / SETTINGS_FILE, {"verb": VERB, "asked": wish.settings(), "notes": notes})
    counts = ", ".join(f"{len(chosen.of_split(name)):,} {name}" for name in SPLITS)
    return Settled(final, chosen, source, f"Data: {counts}; {len(chosen.class_names)} classes.")


def _read_old(wish: Wish) -> Manifest:
    """The old images, with their splits where they have them."""
    path = Path(wish.old)
    manifest = Manifest.read(path) if path.name == "manifest.parquet" else scan(str(path), wish.config.data).manifest
    names, spec = manifest.class_names, wish.bundle.spec
    unknown = [name for name in names if name not in spec.class_names]
    missing = [name for name in spec.class_names if name not in names]
    if unknown or missing:
        raise DataError(
            f"{path} is not what {wish.bundle.path} was trained on: its classes differ.",
            problems=[f"class {name!r}: the model does not know it" for name in unknown]
            + [f"class {name!r}: the data does not have it" for name in missing],
            fix="give the images that the model was trained on with --old; further classes come with --data.",
        )
    return manifest


def _resolved(config: Config, manifest: Manifest, bundle: Bundle) -> tuple[ResolvedConfig, Facts]:
    """The configuration as far as the decoding needs it; how many images train is not known yet."""
    check_logs(config.log)
    sizes, num = peek_sizes(manifest), len(manifest.usable())
    facts = Facts("parquet", num, num, sizes.shorter_side_px, sizes.aspect)
    resolved = resolve(config, facts)
    check_geometry(resolved, bundle)
    names = manifest.class_names
    make_criterion(resolved.train, names, np.ones(len(names), dtype=np.int64))
    check_teacher(resolved.train.distillation, names, image_size=resolved.data.image_size)
    return resolved, facts


def _facts(facts: Facts, *, num_train: int) -> Facts:
    return Facts(facts.data_format, num_train, facts.num_samples, facts.median_side_px, facts.median_aspect)


def _refuse_changed(joined: Joined, decoded: Manifest) -> None:
    rows = np.flatnonzero(joined.is_old)
    before, after = joined.manifest.take(rows), decoded.take(rows)
    if any(content is None for content in before.column("sha256")[before.usable()]):
        return  # data that was just read for the first time
    if changed := changed_images(before, after):
        raise DataError(
            f"{len(changed)} of {len(before.usable())} old images are not what the model was trained and tested on.",
            problems=changed,
            fix="bring the old images back, or give them with --old.",
        )


def _shared_out(joined: Joined, wish: Wish, config: ResolvedConfig) -> tuple[Manifest, list[str]]:
    """Splits for old rows that have none, then for the new ones; and what is to be said of it."""
    notes, manifest, rows = [], joined.manifest, np.flatnonzero(joined.is_old)
    old = manifest.take(rows)
    codes = old.split_codes()[old.usable()]
    if not all((codes == number).any() for number in range(len(SPLITS))) or (codes < 0).any():
        old = draw_split(Manifest(old.table, old.images_root, wish.bundle.spec.class_names), config)
        splits = manifest.column("split")
        splits[rows] = old.column("split")
        manifest = manifest.with_columns(split=splits)
    seen = Manifest(old.table, old.images_root, wish.bundle.spec.class_names)
    if seen.fingerprint() != wish.bundle.spec.training_data.fingerprint:
        notes.append(
            "The old images and their splits are not exactly those that the model was trained on, so its test images "
            "may be among those that it learnt from, and its figures from before may flatter it. The manifest of its "
            "run would settle that: --old RUN/manifest.parquet."
        )
    shared = share_out(
        Joined(manifest, joined.num_old),
        wish.bundle.spec.class_names,
        val_fraction=config.data.val_fraction,
        test_fraction=config.data.test_fraction,
        seed=config.seed,
    )
    settled, leaks = apply_leak_policy(shared.manifest, config.data.leaks)
    return settled, [*notes, *shared.notes, *([leaks] if leaks else [])]


def _ask_before(run: RunFolder, wish: Wish, config: ResolvedConfig, old: Manifest, source: PixelSource) -> None:
    """Measure the old model on the old classes' test images, as any evaluation does."""
    predictor = Predictor(wish.bundle.path, device=config.train.device)
    said = predict_split(predictor, old, [source], "test", num_workers=config.data.num_workers)
    metrics = measure(said, old, predictor, majority_class=None, siblings_in_train=None, seed=config.seed)
    write_evaluation(run.path / BEFORE_FOLDER, said, metrics, old, predictor.temperature)
    whose = RunFolder(wish.bundle.path.parent)
    if is_run_folder(whose.path) and os.access(whose.path, os.W_OK):
        whose.count_look("test", VERB)


def _measured(run: RunFolder, outcome: Outcome) -> Extended:
    config, manifest = load(ResolvedConfig, run.config), Manifest.read(run.manifest)
    folder = run.path / BEFORE_FOLDER
    before = SplitMetrics.read(folder / "metrics.json")
    after = read_answers(run.evaluation("test") / "predictions.parquet", outcome.metrics["test"].class_names)
    groups = groups_of(manifest, manifest.of_split("test"))
    asked = read_answers(folder / "predictions.parquet", before.class_names)
    cost = measure_cost(asked, after, groups, seed=config.seed)
    return Extended(outcome, before, cost, read_notes(run))


def _write_summary(run: RunFolder, extended: Extended) -> None:
    after = extended.outcome.metrics["test"]
    rows = [
        metrics_row("before", extended.before, images="test images of the old classes"),
        metrics_row("after", after, images="all test images", best_epoch=extended.outcome.best_epoch),
    ]
    write_summary(
        run.path / SUMMARY_FILE,
        VERB,
        rows,
        sentences=extended.sentences(),
        notes=list(extended.notes),
        cost=extended.cost.to_dict(),
    )


def begin(run: RunFolder, wish: Wish, *, force: bool) -> None:
    """Take a folder for an extension: the same one goes on in it, and another is refused.

    Args:
        run: prepared, and held by this process.
        wish: what is wanted.
        force: whether to start anew where an extension or a run lies.

    Raises:
        ConfigError: it holds an extension with other settings.
        ArtifactError: it holds something else.
    """
    asked = json.loads(to_json(wish.settings()))
    settings = run.path / SETTINGS_FILE
    held = read_json(settings) if settings.is_file() else {}
    is_ours = isinstance(held, dict) and held.get("verb") == VERB
    # A start that was refused, as for a wrong path, left nothing that a corrected command could spoil.
    if is_ours and is_run_folder(run.path) and not force:
        if problems := differences(held["asked"], asked):
            raise ConfigError(
                f"{run.path} holds an extension that was begun with other settings.",
                problems=problems,
                fix="give the same settings to go on with it, choose another --out, or start anew by --force.",
            )
        return
    foreign = sorted(path.name for path in run.path.iterdir() if path.name not in {".lock", "log.jsonl"})
    if foreign and not is_ours and not (force and is_run_folder(run.path)):
        raise ArtifactError(
            f"{run.path} is not empty, and holds no extension of foveal: {', '.join(foreign[:5])}.",
            fix="choose another --out.",
        )
    clear(run)
    for name in (SUMMARY_FILE, PAGE_FILE):
        (run.path / name).unlink(missing_ok=True)
    shutil.rmtree(run.path / BEFORE_FOLDER, ignore_errors=True)
    write_json(settings, {"verb": VERB, "asked": asked})

"""What models say of images that they did not train on, fold by fold: by a frozen backbone, or a quick model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from foveal.data.augment import Augmentation
from foveal.data.batches import Batches, TrainingBatches, derive_seed
from foveal.data.store import PixelSource
from foveal.errors import InterruptedRunError
from foveal.extras import require
from foveal.inference import predict_logits
from foveal.metrics import fit_temperature, log_loss, softmax
from foveal.model.build import build
from foveal.model.features import pooled_features
from foveal.pixels.policy import Geometry, to_square
from foveal.progress import Bar, Progress, Silence
from foveal.run_folder import RunFolder
from foveal.training.config import Config, ResolvedConfig
from foveal.training.fit import fit
from foveal.training.resolve import Facts, architecture_of, geometry_of, resolve
from foveal.training.state import TrainingData

QUICK_MODEL = "test_resnet"
"""A residual network of 0.4 million parameters, the smallest of timm's that learns well from a random start."""
NUM_FOLDS = 4
MAX_QUICK_PX, MIN_QUICK_PX = 64, 32
MAX_TRAINING_ROWS = 30_000
"""Images that a fold's model is trained on; more would take longer and find little more."""

_QUICK_STEPS = 400
_LEAST_EPOCHS, _MOST_EPOCHS = 4, 40
_BATCH_SIZE = 128
_KEPT_BYTES = 512 << 20
_PENALTIES = (0.01, 0.1, 1.0)
_ABSENT_LOGIT = -20.0

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class OutOfFold:
    """What was said of each image by a model that had not seen it or a copy of it.

    Attributes:
        logits: float64 [n, classes], finite, not yet calibrated.
        features: for each network that was trained here, the places that it was asked about, int64 [m], and what it
            saw there, float32 [m, features], which means nothing beside another network's.
    """

    logits: NDArray[np.float64]
    features: tuple[tuple[Integers, NDArray[np.float32]], ...] = ()


class Shrunk:
    """The square of each image at a small side, made when first asked for and kept up to half a GiB.

    Args:
        source: stored forms by row number.
        geometry: what they were stored with.
        side_px: side of the squares.
    """

    def __init__(self, source: PixelSource, geometry: Geometry, side_px: int) -> None:
        self._source, self._geometry, self._side_px = source, geometry, side_px
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self._most = _KEPT_BYTES // (3 * side_px * side_px)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        row = int(row)
        if (kept := self._kept.get(row)) is not None:
            return kept
        square = Image.fromarray(to_square(self._source[row], self._geometry))
        side = (self._side_px, self._side_px)
        shrunk = np.asarray(square if square.size == side else square.resize(side, Image.Resampling.BICUBIC))
        if len(self._kept) < self._most:
            self._kept[row] = shrunk
        return shrunk


def by_quick_model(
    source: PixelSource,
    geometry: Geometry,
    rows: Integers,
    labels: Integers,
    folds: Integers,
    *,
    config: Config,
    progress: Progress,
) -> OutOfFold:
    """Train a small network from a random start on all folds but one, for each fold, and ask it about that one.

    Args:
        source: stored forms by row number.
        geometry: what they were stored with.
        rows: int64 [n], row numbers.
        labels: int64 [n], class numbers, every one from 0 on.
        folds: int64 [n], fold numbers; what belongs together is in one.
        config: for its seed, device, augmentation and threads.
        progress: where to show it.

    Raises:
        TrainingError: memory ran out.
        InterruptedRunError: Ctrl-C or SIGTERM.
    """
    quick = _quick_config(config, geometry, int((folds != 0).sum()), len(rows))
    shape, num_classes = geometry_of(quick), int(labels.max()) + 1
    shrunk = Shrunk(source, geometry, shape.store_px)
    device = torch.device(quick.train.device)
    logits = np.zeros((len(rows), num_classes))
    features = []
    num_folds = int(folds.max()) + 1
    most_rows = min(MAX_TRAINING_ROWS, int((folds != 0).sum()))
    total = num_folds * quick.train.epochs * max(1, most_rows // quick.train.batch_size)
    with progress.bar("Training quick models", total, "steps") as bar:
        for fold in range(num_folds):
            seeded = quick.model_copy(update={"seed": derive_seed(config.seed, 11, fold) % 2**32})
            held, used = np.flatnonzero(folds == fold), _drawn(np.flatnonzero(folds != fold), seeded.seed)
            torch.manual_seed(seeded.seed)
            classifier = build(architecture_of(seeded, num_classes))
            data = _training_data(shrunk, rows, labels, used, held, seeded)
            with TemporaryDirectory(prefix="foveal-quick-") as folder, _told_as_audit():
                run = RunFolder(Path(folder))
                run.prepare()
                fit(classifier, data, seeded, run, _Within(bar))
            # The last epoch's weights and not the best one's: the held-out labels must have no say in them.
            batches = Batches(shrunk, rows[held], labels[held], shape, batch_size=_BATCH_SIZE)
            said = [found.cpu().numpy() for _, found in predict_logits(classifier, batches, device)]
            logits[held] = np.concatenate(said)
            features.append((held, pooled_features(classifier, batches, device)))
    return OutOfFold(logits, tuple(features))


def by_features(features: NDArray[np.float32], labels: Integers, folds: Integers, *, seed: int) -> OutOfFold:
    """Fit a logistic regression on a frozen backbone's features, on all folds but one, for each fold.

    Its penalty is the one of three whose out-of-fold probabilities fit best.

    Args:
        features: float32 [n, values], of a backbone that never saw these labels.
        labels: int64 [n], class numbers, every one from 0 on.
        folds: int64 [n], fold numbers; what belongs together is in one.
        seed: decides which images are drawn where there are very many.
    """
    sklearn = require("sklearn.linear_model", extra="train", purpose="find labels that are probably wrong")
    spread = features.std(axis=0)
    scaled = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    tried: list[tuple[float, NDArray[np.float64]]] = []
    for penalty in _PENALTIES:
        logits = np.zeros((len(labels), int(labels.max()) + 1))
        for fold in range(int(folds.max()) + 1):
            held, used = np.flatnonzero(folds == fold), _drawn(np.flatnonzero(folds != fold), seed)
            model = sklearn.LogisticRegression(C=1.0 / (penalty * features.shape[1]), max_iter=1000)
            model.fit(scaled[used], labels[used])
            logits[held[:, None], model.classes_] = model.predict_log_proba(scaled[held])
            absent = np.setdiff1d(np.arange(logits.shape[1]), model.classes_)
            logits[held[:, None], absent] = _ABSENT_LOGIT
        tried.append((log_loss(labels, softmax(logits, fit_temperature(logits, labels))), logits))
    best = min(tried, key=lambda pair: pair[0])[1]
    return OutOfFold(best)


def _quick_config(config: Config, geometry: Geometry, num_train: int, num_samples: int) -> ResolvedConfig:
    """A short training of a small network, on the user's device and with the user's augmentation."""
    size_px = min(MAX_QUICK_PX, max(MIN_QUICK_PX, geometry.size_px))
    num_train = min(MAX_TRAINING_ROWS, num_train)
    # At least a dozen steps an epoch, so that a small set is not passed over in three.
    batch_size = max(8, min(64, 8 * (num_train // 96)))
    epochs = round(_QUICK_STEPS * batch_size / max(1, num_train))
    wish = Config.model_validate(
        {
            "seed": config.seed,
            "data": {"image_size": size_px, "num_workers": config.data.num_workers, "store": "off"},
            # A pipeline from a file is made for images of the user's size, and these are smaller.
            "augment": config.augment.model_dump() | {"albumentations": None, "repeats": 1},
            "model": {"name": QUICK_MODEL, "weights": "none"},
            "train": {
                "epochs": max(_LEAST_EPOCHS, min(_MOST_EPOCHS, epochs)),
                "batch_size": batch_size,
                "precision": "fp32",
                "device": config.train.device,
                "checkpoint_minutes": 1e6,
            },
        }
    )
    return resolve(wish, Facts("folder", num_train, num_samples, size_px, 1.0))


def _training_data(
    shrunk: Shrunk, rows: Integers, labels: Integers, used: Integers, held: Integers, config: ResolvedConfig
) -> TrainingData:
    shape = geometry_of(config)
    # A look at a few images an epoch is all that the loop needs; nothing is chosen by it.
    few = held[: config.train.batch_size]
    return TrainingData(
        train=TrainingBatches(
            shrunk,
            rows[used],
            labels[used],
            side_px=shape.store_px,
            batch_size=config.train.batch_size,
            seed=config.seed,
            num_workers=config.data.num_workers,
        ),
        val=Batches(shrunk, rows[few], labels[few], shape, batch_size=_BATCH_SIZE),
        augmentation=Augmentation(config.augment, side_px=shape.store_px, size_px=shape.size_px),
        class_names=tuple(str(number) for number in range(int(labels.max()) + 1)),
        paths=[Path(str(row)) for row in range(int(rows.max()) + 1)],
        train_labels=labels[used],
    )


def _drawn(places: Integers, seed: int) -> Integers:
    """So many of the places as a fold's model is trained on."""
    if len(places) <= MAX_TRAINING_ROWS:
        return places
    return np.sort(np.random.default_rng(seed).choice(places, MAX_TRAINING_ROWS, replace=False))


class _Within(Silence):
    """A training within a larger piece of work: its steps count there, and its sentences are dropped."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    @contextmanager
    def bar(self, description: str, total: int, unit: str) -> Iterator[Bar]:
        del description, total, unit
        yield self._bar


@contextmanager
def _told_as_audit() -> Iterator[None]:
    """A signal stops the audit; there is no run to go on with."""
    try:
        yield
    except InterruptedRunError as error:
        raise error.reworded(
            message="Stopped in the deep checks; nothing of them is kept.",
            fix="start the audit again; without --deep it does not train.",
        ) from error

"""`foveal train DATA --check`: about a minute of questions to a set-up, before hours are spent on it.

Source of the idea of most of them: A. Karpathy, "A Recipe for Training Neural Networks", 2019.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.data.batches import derive_seed
from foveal.data.manifest import Manifest
from foveal.errors import DataError
from foveal.experiments.check.data import CheckData, read_check_data
from foveal.experiments.check.network import look_at_network
from foveal.experiments.check.result import Checked, CheckResult, Verdict
from foveal.metrics import wilson_interval
from foveal.model.build import Classifier
from foveal.progress import Progress, Silence
from foveal.training.config import ResolvedConfig
from foveal.training.lr_range import NUM_STEPS, LrRange, run_range_test
from foveal.training.rehearsal import Integers, Rehearsal

FIRST_LOSS, NETWORK, LEARNING_RATE = "first loss", "network", "learning rate"
ONE_BATCH, TRUE_LABELS, SHUFFLED_LABELS = "one batch", "labels", "shuffled labels"

BUDGET_SECONDS = 75.0
_CPU_BATCH, _MOST_BATCH, _LEAST_BATCH = 32, 128, 16
_ONE_BATCH_STEPS, _LEARNING_STEPS, _MOST_ROUNDS = 60, 40, 3
_FIRST_LOSS_IMAGES = 256
_PERMUTATIONS = 1999
_LIKELY = 0.005
"""Probability under which a result is not put down to chance."""

Floats = NDArray[np.float64]


def check(
    manifest: Manifest,
    classifier: Classifier,
    config: ResolvedConfig,
    progress: Progress | None = None,
    *,
    out: Path | None = None,
) -> CheckResult:
    """Draw a bounded part of the data, and ask of the set-up what a minute can tell.

    Args:
        manifest: what `prepare` found; at most 1,300 of its images are decoded.
        classifier: as the training would start with it; left as it is.
        config: with nothing left to find out.
        progress: where to show it.
        out: folder for `check.json` and `lr_range.svg`; nothing is written if not given.

    Raises:
        DataError: too few images can be read.
        FovealError: `out` cannot be written to.
    """
    progress = progress or Silence()
    result = check_classifier(classifier, read_check_data(manifest, config, progress), config, progress)
    return replace(result, files=result.write(out)) if out is not None else result


def check_classifier(
    classifier: Classifier, data: CheckData, config: ResolvedConfig, progress: Progress | None = None
) -> CheckResult:
    """Ask of a classifier that is at hand, one of your own making perhaps, what a minute can tell.

    Args:
        classifier: from pixels in 0..1 to logits, with what is frozen frozen; left as it is.
        data: images to try it on.
        config: with nothing left to find out.
        progress: where to show it.

    Raises:
        DataError: the classifier has another number of outputs than there are classes.
    """
    progress, began = progress or Silence(), time.perf_counter()
    if (num_outputs := classifier.architecture.num_classes) != len(data.class_names):
        raise DataError(
            f"The classifier has {num_outputs} outputs, and the data {len(data.class_names)} classes.",
            fix="build it for the classes of the data.",
        )
    rehearsal = Rehearsal(classifier, data.images, data.labels, config, batch_size=_most_batch(config, data))
    with rehearsal.undone(), progress.bar("Checking", 5 * _LEARNING_STEPS + NUM_STEPS, "steps") as bar:
        rehearsal.batch_size = _affordable_batch(rehearsal, data)
        asked = _Questions(rehearsal, data, config, bar.advance)
        checks, lr_range = asked.all()
    return CheckResult(
        checks=checks,
        lr_range=lr_range,
        lr=config.optim.lr,
        num_train=data.num_train,
        num_val=len(data.val),
        batch_size=rehearsal.batch_size,
        seconds=time.perf_counter() - began,
    )


class _Questions:
    """The checks, in the order in which each can use what the ones before it found."""

    def __init__(
        self, rehearsal: Rehearsal, data: CheckData, config: ResolvedConfig, advance: Callable[[], None]
    ) -> None:
        self.rehearsal, self.data, self.config, self.advance = rehearsal, data, config, advance
        self.lr = config.optim.lr
        self.usable_lr = self.lr

    def all(self) -> tuple[tuple[Checked, ...], LrRange]:
        first = self.first_loss()
        network = look_at_network(self.rehearsal, self.data, min(self.lr, 1e-3))
        found = run_range_test(self.rehearsal, self.data.train, advance=self.advance)
        place = found.place(self.lr)
        # The labels are to be judged, and not the learning rate once more.
        if place in {"too high", "too low"} and found.usable is not None:
            self.usable_lr = found.usable
        rate = self.learning_rate(found)
        one_batch = self.one_batch(found)
        labels, num_steps = self.true_labels()
        shuffled = self.shuffled_labels(num_steps)
        return (first, network, rate, one_batch, labels, shuffled), found

    def first_loss(self) -> Checked:
        """The loss before the first step, from a random head."""
        chance = math.log(len(self.data.class_names))
        self.rehearsal.begin(self.lr, fresh_head=True)
        rows = np.random.default_rng(derive_seed(self.config.seed, 23)).permutation(self.data.train)
        loss = self.rehearsal.first_loss(rows[:_FIRST_LOSS_IMAGES])
        far = loss - chance
        expected = f"near ln({len(self.data.class_names)}) = {chance:.2f}, the loss of an even guess."
        figures = {"loss": loss if math.isfinite(loss) else None, "chance": chance}
        if not math.isfinite(loss):
            change = "look for pixels or weights that are not finite, and lower train.precision to fp32."
            return Checked(FIRST_LOSS, "fault", f"The first loss is {loss}.", expected, change, figures)
        found = f"The first loss from a random head is {loss:.2f}, {abs(far):.2f} {'above' if far > 0 else 'below'} "
        found += f"that of an even guess, ln({len(self.data.class_names)}) = {chance:.2f}."
        if far > max(2.0, 1.5 * chance):
            change = (
                "the logits are far too large at the start: the last layer's weights, or what goes into it, are not "
                "scaled as the network expects (normalisation, a missing pooling or norm)."
            )
            return Checked(FIRST_LOSS, "fault", found, expected, change, figures)
        if far > max(0.5, 0.3 * chance):
            change = (
                "the first steps only undo confident wrong guesses; optim.warmup_epochs or a smaller start of the "
                "last layer helps."
            )
            return Checked(FIRST_LOSS, "warning", found, expected, change, figures)
        if far < -max(0.3, 0.2 * chance):
            change = "a random head cannot know the classes; look whether the logits or the loss are what they should."
            return Checked(FIRST_LOSS, "warning", found, expected, change, figures)
        return Checked(FIRST_LOSS, "ok", found, expected, "", figures)

    def learning_rate(self, found: LrRange) -> Checked:
        """Where the configured rate lies in the range test."""
        expected = "between where the loss begins to fall and where it is lowest."
        place = found.place(self.lr)
        figures = {
            "lr": self.lr,
            "suggestion": found.suggestion,
            "lowest_good": found.lowest_good,
            "highest_good": found.highest_good,
            "runs_away": found.runs_away,
        }
        if place == "too high" and found.suggestion is None and found.usable is not None:
            said = f"optim.lr={self.lr:g} is too high: from {found.runs_away:.1e} on the loss is above where it began."
            return Checked(LEARNING_RATE, "fault", said, expected, f"set optim.lr={found.usable:.1e}.", figures)
        if found.suggestion is None or found.highest_good is None or found.lowest_good is None:
            said = f"The loss fell at no learning rate, so nothing can be said of optim.lr={self.lr:g}."
            change = "see the other checks: labels that say nothing, or a network that cannot learn, look like this."
            return Checked(LEARNING_RATE, "unclear", said, expected, change, figures)
        good = f"the good range is {found.lowest_good:.1e} to {found.highest_good:.1e}, and the loss falls fastest at "
        good += f"{found.suggestion:.1e}"
        if place == "too high":
            is_beyond = self.lr > 2.0 * found.highest_good or self.lr >= (found.runs_away or math.inf)
            said = f"optim.lr={self.lr:g} is too high: {good}."
            change = f"set optim.lr={found.suggestion:.1e}."
            return Checked(LEARNING_RATE, "fault" if is_beyond else "warning", said, expected, change, figures)
        if place == "too low":
            said = f"optim.lr={self.lr:g} is too low: {good}."
            change = f"set optim.lr={found.suggestion:.1e}, or train for much longer."
            return Checked(LEARNING_RATE, "warning", said, expected, change, figures)
        return Checked(LEARNING_RATE, "ok", f"optim.lr={self.lr:g} can be used: {good}.", expected, "", figures)

    def one_batch(self, found: LrRange) -> Checked:
        """Whether a few images can be learnt by heart."""
        rows = _different(self.data, max(2, min(16, self.rehearsal.batch_size)), self.config.seed)
        accuracy, num_steps = self.learn_by_heart(rows, self.lr)
        expected = "accuracy 1.0: a network that cannot learn a few images by heart learns nothing else either."
        figures = {"num_images": len(rows), "accuracy": accuracy, "num_steps": num_steps, "lr": self.lr}
        said = (
            f"{len(rows)} images were learnt to accuracy {accuracy:.2f} in {num_steps} steps at optim.lr={self.lr:g}."
        )
        if accuracy == 1.0:
            return Checked(ONE_BATCH, "ok", said, expected, "", figures)
        if self.usable_lr != self.lr:
            other, steps = self.learn_by_heart(rows, self.usable_lr)
            figures |= {"accuracy_at_suggestion": other, "suggestion": self.usable_lr}
            if other == 1.0:
                said += f" At {self.usable_lr:.1e} they were learnt to 1.00 in {steps} steps."
                return Checked(ONE_BATCH, "warning", said, expected, f"set optim.lr={self.usable_lr:.1e}.", figures)
        change = (
            "the network, its loss or what is frozen (model.freeze) keeps it from learning; or the same picture has "
            "two labels. See the other checks."
        )
        worst: Verdict = "unclear" if accuracy > 0.8 and found.suggestion is not None else "fault"
        return Checked(ONE_BATCH, worst, said, expected, change, figures)

    def learn_by_heart(self, rows: Integers, lr: float) -> tuple[float, int]:
        """The best accuracy on one batch, and after how many steps."""
        self.rehearsal.begin(lr)
        labels, best = self.data.labels[rows], 0.0
        for number in range(_ONE_BATCH_STEPS):
            loss, logits = self.rehearsal.step(rows, labels, lr)
            self.advance()
            best = max(best, float((logits.argmax(dim=1).cpu().numpy() == labels).mean()))
            if best == 1.0 or not math.isfinite(loss):
                return best, number
        return best, _ONE_BATCH_STEPS

    def true_labels(self) -> tuple[Checked, int]:
        """Whether a short training learns anything that holds for validation, and after how many steps."""
        data, val_labels = self.data, self.data.labels[self.data.val]
        self.rehearsal.begin(self.usable_lr, fresh_head=True)
        for number in range(_MOST_ROUNDS):
            self.train_on(data.labels, first_step=number * _LEARNING_STEPS)
            logits = self.rehearsal.logits(data.val, data.train)
            probability = chance_of(logits, val_labels, seed=self.config.seed)
            if probability <= _LIKELY:
                break
        num_steps = (number + 1) * _LEARNING_STEPS
        majority, right, interval = _against_majority(logits, val_labels)
        figures = {"accuracy": right, "interval": interval, "majority": majority, "p_value": probability}
        figures |= {"num_steps": num_steps, "lr": self.usable_lr}
        said = f"After {num_steps} steps {right:.2f} [{interval[0]:.2f}, {interval[1]:.2f}] of {len(val_labels):,} "
        said += f"validation images are right; always the same guess gives {majority:.2f}."
        expected = "better than the same guess for all."
        if probability <= _LIKELY:
            return Checked(TRUE_LABELS, "ok", said, expected, "", figures), num_steps
        if not _could_tell(len(val_labels), majority):
            change = f"nothing: {len(val_labels)} validation images are too few to tell."
            return Checked(TRUE_LABELS, "unclear", said, expected, change, figures), num_steps
        said = f"The labels look shuffled, or the model cannot learn them. {said}"
        change = (
            "look at images beside their labels (foveal audit DATA); see whether the table's rows belong to its "
            "files, and data.class_names to its ids. Very hard data looks the same after so few steps."
        )
        return Checked(TRUE_LABELS, "fault", said, expected, change, figures), num_steps

    def shuffled_labels(self, num_steps: int) -> Checked:
        """Whether a training on labels that say nothing knows those of validation all the same."""
        data, val_labels = self.data, self.data.labels[self.data.val]
        self.rehearsal.begin(self.usable_lr, fresh_head=True)
        self.train_on(shuffled(data.labels, self.config.seed), first_step=0)
        logits = self.rehearsal.logits(data.val, data.train)
        probability = chance_of(logits, val_labels, seed=self.config.seed)
        majority, right, interval = _against_majority(logits, val_labels)
        figures = {"accuracy": right, "interval": interval, "majority": majority, "p_value": probability}
        figures |= {"num_copies": len(data.copies), "num_steps": num_steps}
        expected = "no better than the same guess for all, and no validation image that is trained on as well."
        said = (
            f"Trained on shuffled labels, {right:.2f} [{interval[0]:.2f}, {interval[1]:.2f}] of validation is right; "
        )
        said += f"always the same guess gives {majority:.2f}."
        if len(data.copies):
            said += f" {len(data.copies):,} of {len(val_labels):,} validation images are copies of training images."
            change = "the validation set leaks: foveal audit DATA lists the pairs, and data.leaks=drop leaves them out."
            return Checked(SHUFFLED_LABELS, "fault", said, expected, change, figures)
        if interval[0] > majority and probability <= _LIKELY:
            change = "validation knows something that the labels did not teach: look how it is made and measured."
            return Checked(SHUFFLED_LABELS, "fault", said, expected, change, figures)
        return Checked(SHUFFLED_LABELS, "ok", said, expected, "", figures)

    def train_on(self, labels: Integers, *, first_step: int) -> None:
        train = self.data.train
        self.rehearsal.short_training(train, labels[train], self.usable_lr, _LEARNING_STEPS, first_step=first_step)
        for _ in range(_LEARNING_STEPS):
            self.advance()


def chance_of(logits: Floats, labels: Integers, *, seed: int) -> float:
    """How often labels that have nothing to do with the images would be as probable to the model as these are.

    A permutation test of the mean log probability of the true class: it finds a little knowledge sooner than the
    accuracy does, also where classes are rare.

    Args:
        logits: float64 [n, classes]; where one is not finite, the model knows nothing.
        labels: int64 [n], class numbers.
        seed: of the permutations.

    Returns:
        The p-value, 1 / 2000 to 1.
    """
    if not np.isfinite(logits).all():
        return 1.0
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    # One image of wild logits must not decide: an answer counts no worse than a thousandth of an even guess.
    log_probabilities = np.maximum(log_probabilities, -math.log(1000.0 * logits.shape[1]))
    draw, rows = np.random.default_rng(seed), np.arange(len(labels))
    observed = log_probabilities[rows, labels].sum()
    drawn = [log_probabilities[rows, draw.permutation(labels)].sum() for _ in range(_PERMUTATIONS)]
    return float((1 + np.count_nonzero(np.array(drawn) >= observed - 1e-9)) / (1 + _PERMUTATIONS))


def shuffled(labels: Integers, seed: int) -> Integers:
    """Labels that say nothing of the true ones: each class's images get all labels in the shares of the whole.

    A plain shuffle leaves each class with some labels more than others by chance, and a network that tells the classes
    apart learns these.
    """
    draw = np.random.default_rng(derive_seed(seed, 24))
    # Along the images in order of their class, small hands of labels are dealt, each with the shares of the whole.
    order = draw.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    num_spread = int(np.sqrt(len(labels))) or 1
    pool = np.sort(labels)
    dealt = np.concatenate([draw.permutation(pool[start::num_spread]) for start in range(num_spread)])
    given = np.empty_like(labels)
    given[order] = dealt
    return given


def _against_majority(logits: Floats, labels: Integers) -> tuple[float, float, tuple[float, float]]:
    """The accuracy of the best constant guess, the model's accuracy, and its interval."""
    right = int((logits.argmax(axis=1) == labels).sum())
    majority = float(np.bincount(labels).max()) / len(labels)
    return majority, right / len(labels), wilson_interval(right, len(labels))


def _could_tell(num_images: int, majority: float) -> bool:
    """Whether a model half-way between the same guess and perfection would stand out among so many images."""
    half_way = 0.5 * (1.0 + majority)
    return wilson_interval(half_way * num_images, num_images, 1.0 - 2.0 * _LIKELY)[0] > majority


def _different(data: CheckData, most: int, seed: int) -> Integers:
    """Places of training images of as many classes as can be, no two of the same pixels."""
    order = np.random.default_rng(derive_seed(seed, 25)).permutation(data.train)
    labels = data.labels[order]
    turn = np.empty(len(order), dtype=np.int64)
    for label in np.unique(labels):
        turn[labels == label] = np.arange(np.count_nonzero(labels == label))
    chosen: dict[bytes, int] = {}
    for row in order[np.argsort(turn, kind="stable")].tolist():
        chosen.setdefault(data.images[row].tobytes(), row)
        if len(chosen) == most:
            break
    return np.array(list(chosen.values()), dtype=np.int64)


def _most_batch(config: ResolvedConfig, data: CheckData) -> int:
    most = _CPU_BATCH if config.train.device == "cpu" else _MOST_BATCH
    return max(1, min(most, config.train.batch_size, data.num_train))


def _affordable_batch(rehearsal: Rehearsal, data: CheckData) -> int:
    """Fewer images a step where the network is so slow that the checks would take much more than a minute."""
    rehearsal.begin(1e-6)
    rows = data.train[: rehearsal.batch_size]
    taken = []
    for _ in range(3):  # the first one sets things up, and another process may get in the way of any
        start = time.perf_counter()
        rehearsal.step(rows, data.labels[rows], 1e-6)
        taken.append(time.perf_counter() - start)
    needed = min(taken) * (NUM_STEPS + 3 * _LEARNING_STEPS)
    size = rehearsal.batch_size
    while needed > BUDGET_SECONDS and size > _LEAST_BATCH:
        size, needed = max(_LEAST_BATCH, size // 2), needed / 2
    return size

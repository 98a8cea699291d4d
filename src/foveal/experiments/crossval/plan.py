"""Which images each fold of a cross-validation trains on, chooses by and is measured on.

The test split is kept aside first: the same images that a training of the same data and seed would hold out. All others
are shared out into folds, by class and never through what belongs together. Each fold is held out once; of the others
a part, drawn in the same way, is the inner validation that the epoch and the temperature are chosen by. Nothing is
chosen by a held-out fold, so that its figures are those of images that nobody has looked at.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.leak_policy import apply_leak_policy
from foveal.data.batches import derive_seed
from foveal.data.class_names import exclude_option
from foveal.data.folds import draw_folds
from foveal.data.grouping import names_by_pattern, regroup
from foveal.data.manifest import Manifest
from foveal.data.split import siblings, split
from foveal.errors import ConfigError, DataError
from foveal.training.config import Config, ResolvedConfig
from foveal.types import SPLITS

DEFAULT_FOLDS = 5
_LEAST_OUTSIDE = 2
"""Independent groups of each class that a fold needs outside of it: one to train on, and one to choose by."""
_INNER_SALT, _REPEAT_SALT = 41, 43

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """One training of a cross-validation.

    Attributes:
        repeat: which draw of the folds, from 1.
        number: which of its folds is held out, from 1; in the manifest they are counted from 0.
        name: of its run folder.
        manifest: all rows of the data, with the splits of this training: test is the held-out fold.
        rows: int64 [n], the rows that take part: all usable ones that are not kept aside for the test.
        seed: of the training.
        leaks: what is to be said of images that belong together with held-out ones; empty where there are none.
    """

    repeat: int
    number: int
    name: str
    manifest: Manifest
    rows: Integers
    seed: int
    leaks: str = ""


def draw_of(num_folds: int | None, repeats: int) -> Callable[[Manifest, ResolvedConfig], Manifest]:
    """What `SharedData.prepare` draws with; see `keep_test_aside`."""
    return partial(keep_test_aside, num_folds=num_folds, repeats=repeats)


def keep_test_aside(manifest: Manifest, config: Config, *, num_folds: int | None = None, repeats: int = 1) -> Manifest:
    """Test, and the others in folds from 0 on; what the data bring is kept.

    Args:
        manifest: where possible with copies in groups.
        config: its sections `data` and `split` say how much is kept aside and how it is drawn; with
            `split.test_fraction=0`, or where the data give every image a fold and none to test, nothing is.
        num_folds: how many; None takes the folds of the data, or 5.
        repeats: how often folds will be drawn.

    Returns:
        The same rows; all usable ones are in train, with a fold, or in test.

    Raises:
        ConfigError: the data bring another number of folds than is asked for, or bring folds and are to be redrawn.
        DataError: a class is too small for so many folds.
    """
    wish = config.split
    if wish.given == "redraw":
        nothing = [None] * len(manifest)
        manifest = manifest.with_columns(split=nothing, fold=nothing)
    if wish.group_by:
        manifest = regroup(manifest, names=names_by_pattern(manifest, wish.group_by))
    manifest = _with_test(manifest, config)
    given = _given_folds(manifest)
    num_given = int(given.max(initial=-1)) + 1
    if num_given:
        _check_given(num_given, num_folds, repeats)
    folds = num_given or num_folds or DEFAULT_FOLDS
    drawn = draw_folds(manifest, folds, seed=config.seed, method=wish.method, known=given if num_given else None)
    _check_learnable(drawn, folds)
    return drawn


def folds_of(manifest: Manifest, config: Config, repeats: int = 1) -> list[Fold]:
    """Every training of a cross-validation, in order; the same for the same manifest and configuration.

    Args:
        manifest: as from `keep_test_aside`.
        config: its seed, its share of validation, and what is done about leaks.
        repeats: how often folds are drawn; the first draw is the manifest's.

    Raises:
        DataError: images belong together across folds that the data bring, and `data.leaks` refuses that.
    """
    num_folds = int(manifest.column("fold")[manifest.of_split("train")].max()) + 1
    found = []
    for repeat in range(1, repeats + 1):
        seed = config.seed if repeat == 1 else derive_seed(config.seed, _REPEAT_SALT, repeat) % 2**32
        drawn = manifest
        if repeat > 1:
            without = manifest.with_columns(fold=[None] * len(manifest))
            drawn = draw_folds(without, num_folds, seed=seed, method=config.split.method)
        prefix = f"repeat-{repeat}-" if repeats > 1 else ""
        found += [
            _fold(drawn, config, repeat, number, f"{prefix}fold-{number}", seed) for number in range(1, num_folds + 1)
        ]
    return found


def _fold(manifest: Manifest, config: Config, repeat: int, number: int, name: str, seed: int) -> Fold:
    rows = manifest.of_split("train")
    is_held = manifest.column("fold")[rows] == number - 1
    # Of the other folds by themselves: siblings of held-out rows, in folds that the data bring, must not join those.
    others = rows[~is_held]
    nothing = [None] * len(others)
    inner = split(
        manifest.take(others).with_columns(split=nothing),
        val_fraction=config.data.val_fraction,
        test_fraction=0.0,
        seed=derive_seed(seed, _INNER_SALT, number) % 2**32,
        method=config.split.method,
    )
    splits = np.full(len(manifest), None, dtype=object)
    splits[rows[is_held]] = "test"
    splits[others] = np.array(SPLITS, dtype=object)[inner.split_codes()]
    divided, leaks = apply_leak_policy(manifest.with_columns(split=splits), config.data.leaks)
    return Fold(repeat, number, name, divided, rows, seed, leaks)


def _with_test(manifest: Manifest, config: Config) -> Manifest:
    """Every usable row in train or test."""
    usable, codes = manifest.is_usable(), manifest.split_codes()
    has_test = bool((usable & (codes == 2)).any())
    fraction = config.data.test_fraction if config.split.test_fraction is None else config.split.test_fraction
    in_folds = bool((_given_folds(manifest)[usable] >= 0).all())
    if has_test or (fraction and not in_folds):
        # Validation is drawn as well, so that test is what a training would keep aside, to the image.
        divided = split(
            manifest,
            val_fraction=config.data.val_fraction,
            test_fraction=fraction or config.data.test_fraction,
            seed=config.seed,
            method=config.split.method,
        )
        codes = divided.split_codes()
    names = np.array(["train", "test"], dtype=object)[(codes == 2).astype(np.int64)]
    return manifest.with_columns(split=np.where(usable, names, None))


def _given_folds(manifest: Manifest) -> Integers:
    """The folds that the data bring, numbered from 0 on, int64 [rows]; -1 in test and where there is none."""
    fold = manifest.column("fold")
    known = ~np.isnan(fold) & manifest.is_usable() & (manifest.split_codes() != 2)
    given = np.full(len(manifest), -1)
    given[known] = np.unique(fold[known], return_inverse=True)[1]
    return given


def _check_given(num_given: int, num_folds: int | None, repeats: int) -> None:
    problems = []
    if num_given < 2:
        problems.append("the column fold holds one number only, and at least two folds are needed")
    elif num_folds not in (None, num_given):
        problems.append(f"--folds: {num_folds} are asked for, and the column fold holds {num_given}")
    if repeats > 1:
        problems.append(f"--repeats: {repeats} draws are asked for, and folds that are given are not drawn")
    if problems:
        raise ConfigError(
            "DATA brings folds of its own, in the column fold.",
            problems=problems,
            fix="leave --folds and --repeats out to take its folds, or draw anew: --set split.given=redraw",
        )


def _check_learnable(manifest: Manifest, num_folds: int) -> None:
    """Outside of every fold each class needs something to train on and something to choose by."""
    rows, labels, names = manifest.of_split("train"), manifest.label_ids(), manifest.class_names
    fold = manifest.column("fold")[rows].astype(np.int64)
    held = np.unique(np.stack([siblings(manifest)[rows], labels[rows], fold]), axis=1)
    num_groups = np.zeros((num_folds, len(names)), dtype=np.int64)
    np.add.at(num_groups, (held[2], held[1]), 1)
    there, outside = num_groups.sum(axis=0), num_groups.sum(axis=0) - num_groups
    short = np.flatnonzero((there > 0) & (outside < _LEAST_OUTSIDE).any(axis=0))
    if short.size:
        raise DataError(
            f"{len(short)} of {len(names)} classes are too small for these {num_folds} folds: outside of each fold a "
            "class needs an image to train on and one to choose the epoch by, which do not belong together.",
            problems=[
                f"class {names[i]!r}: {there[i]} independent groups in all, and {outside[:, i].min()} of them outside "
                f"of fold {int(outside[:, i].argmin()) + 1}"
                for i in short
            ],
            fix="add images; or leave these classes out: " + exclude_option(names[i] for i in short),
        )

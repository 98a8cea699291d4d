"""Classes that can be told without looking at the picture: by file, size, border or light alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.checked import Checked
from foveal.auditing.config import ShortcutConfig
from foveal.auditing.findings import Finding, Severity
from foveal.auditing.tree import grow
from foveal.data.facts import Facts
from foveal.data.manifest import Manifest
from foveal.data.stratify import mixed, stratify

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Family = Literal["file", "box", "light"]

NUM_FOLDS = 3
MIN_INDEPENDENT = 9
"""Independent samples that a class needs for three folds to say anything."""
_MAX_LEAVES, _MIN_LEAF_ROWS = 64, 3
_ERRORS_OFF = 1.64
_NEARLY_AS_GOOD = 0.7
_MAX_NAMED = 3

_BEGINNINGS: Mapping[Family, str] = {
    "file": "The file alone gives {name} away",
    "box": "The box and its rim alone give {name} away",
    "light": "The light alone gives {name} away",
}
_ENDS: Mapping[Family, str] = {
    "file": "",
    "box": " Scaling to one size hides this from a model.",
    "light": " This may well belong to what is shown.",
}


@dataclass(frozen=True)
class _Fact:
    """One fact, or two that belong together, of the rows that are looked at.

    Attributes:
        name: in words.
        values: float64 [rows, numbers].
        words: object [rows], where the fact is a name or a size; None where it is a measure.
        unit: of a measure.
    """

    name: str
    family: Family
    values: Floats
    words: NDArray[np.object_] | None = None
    unit: str = ""


def shortcuts(
    manifest: Manifest, facts: Facts, components: Integers, config: ShortcutConfig, *, seed: int = 0
) -> Checked:
    """Cross-validate a small model that sees the file's properties, or the light, and never the picture.

    The model is a decision tree of up to 64 leaves that weighs all classes alike (L. Breiman et al., "Classification
    and Regression Trees", 1984), in three folds that are stratified by class and cut nothing that belongs together.
    What counts for a class is the balanced accuracy of telling it from all others, the mean of its recall and of the
    others' share that is not taken for it: 0.5 by chance. A class is told where that exceeds the limit by more than
    its own uncertainty could make.

    Size, format, bytes a pixel, colour mode and the border are of the file: a model learns them in place of what is
    shown, so they are warnings. Brightness, contrast and saturation may be of what is shown, as in stained cells, so
    they are notes. A box's size, shape and rim are a person's choice and a note, too.

    A tree finds what a threshold or a few can tell. What is shared by several classes is hardly told, and a shortcut in
    the picture itself, such as a ruler or a stamp, never.

    Args:
        manifest: gives class, colour mode and the size of the photograph.
        facts: of its rows.
        components: int64 [rows], what belongs together.
        config: limits, and how much is looked at.
        seed: decides folds and the draw of rows.
    """
    rows = np.flatnonzero(facts.is_known & manifest.is_usable())
    labels = manifest.label_ids()
    rows, left_out = _chosen(rows, labels, components, config, seed)
    if not rows.size:
        return Checked(
            "shortcut",
            skipped=f"It takes two classes of at least {MIN_INDEPENDENT} independent images each to try whether one "
            "can be told by its files.",
        )
    known, of_row = np.unique(labels[rows], return_inverse=True)
    identities = mixed(rows.astype(np.uint64), seed)
    folds = stratify(components[rows], of_row, identities, [1 / NUM_FOLDS] * NUM_FOLDS, seed=seed)
    every = _facts(manifest, facts, rows)
    findings = []
    for family in ("file", "box", "light"):
        chosen = [fact for fact in every if fact.family == family and len(np.unique(fact.values, axis=0)) > 1]
        if chosen:
            trial = _Trial(of_row, folds, len(known))
            findings += _tell(trial, chosen, family, [manifest.class_names[number] for number in known], config)
    findings.sort(key=lambda each: (each.severity != "warning", -(each.value or 0.0)))
    scope = f"{len(rows):,} images of {len(known):,} classes were looked at"
    scope += f"; {left_out:,} classes were left out, being too many or too small." if left_out else "."
    return Checked("shortcut", findings, scope=scope)


def _chosen(
    rows: Integers, labels: Integers, components: Integers, config: ShortcutConfig, seed: int
) -> tuple[Integers, int]:
    """The rows to look at, in order, about as many of each class, and the number of classes that are left out."""
    num_classes = int(labels.max(initial=0)) + 1
    kinds = np.unique(components[rows] * num_classes + labels[rows])
    independent = np.bincount(kinds % num_classes, minlength=num_classes)
    present = int(np.count_nonzero(independent))
    large = np.argsort(-independent, kind="stable")[: config.max_classes]
    large = large[independent[large] >= MIN_INDEPENDENT]
    if large.size < 2:
        return np.empty(0, dtype=np.int64), present
    rows = rows[np.isin(labels[rows], large)]
    if len(rows) > config.max_rows:
        # In a random order, the first of each class up to the quota that keeps the sum below the cap.
        order = rows[np.argsort(mixed(rows.astype(np.uint64), seed + 1), kind="stable")]
        order = order[np.argsort(labels[order], kind="stable")]
        counts = np.bincount(labels[order], minlength=num_classes)
        place = np.arange(len(order)) - (np.cumsum(counts) - counts)[labels[order]]
        rows = np.sort(order[place < _quota(counts, config.max_rows)])
    return rows, present - int(large.size)


def _quota(counts: Integers, cap: int) -> int:
    """The largest number of each class with which all together stay within the cap."""
    low, high = 1, int(counts.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(counts, middle).sum() <= cap else (low, middle - 1)
    return low


class _Trial:
    """Labels and folds, and what a tree makes of some facts in them."""

    def __init__(self, labels: Integers, folds: Integers, num_classes: int) -> None:
        self.labels, self.folds, self.num_classes = labels, folds, num_classes
        self.counts = np.bincount(labels, minlength=num_classes)

    def balanced_accuracy(self, facts: Sequence[_Fact]) -> tuple[Floats, Floats]:
        """Of telling each class from the others, and its standard error; both float64 [classes]."""
        values = np.concatenate([fact.values for fact in facts], axis=1).astype(np.float32)
        said = np.empty(len(self.labels), dtype=np.int64)
        for fold in range(NUM_FOLDS):
            held_out = self.folds == fold
            tree = grow(values[~held_out], self.labels[~held_out], max_leaves=_MAX_LEAVES, min_leaf_rows=_MIN_LEAF_ROWS)
            said[held_out] = tree.predict(values[held_out])
        hits = np.bincount(self.labels[said == self.labels], minlength=self.num_classes)
        taken = np.bincount(said, minlength=self.num_classes)
        recall, others = hits / self.counts, len(self.labels) - self.counts
        spared = 1 - (taken - hits) / others
        # Add-two, so that a perfect hit rate on few is not taken for a certain one.
        error = [(p * n + 1) / (n + 2) for p, n in ((recall, self.counts), (spared, others))]
        variance = error[0] * (1 - error[0]) / self.counts + error[1] * (1 - error[1]) / others
        return (recall + spared) / 2, np.sqrt(variance) / 2


def _tell(
    trial: _Trial, facts: Sequence[_Fact], family: Family, names: Sequence[str], config: ShortcutConfig
) -> list[Finding]:
    limit = config.file_accuracy if family == "file" else config.light_accuracy
    severity: Severity = "warning" if family == "file" else "note"
    value, error = trial.balanced_accuracy(facts)
    told = np.flatnonzero((value >= limit) & (value - _ERRORS_OFF * error > (limit + 0.5) / 2))
    if not told.size:
        return []
    alone = [trial.balanced_accuracy([fact])[0] for fact in facts] if len(facts) > 1 else [value]
    findings = []
    for number in told.tolist():
        singles = sorted(zip((each[number] for each in alone), range(len(facts)), strict=True), reverse=True)
        enough = 0.5 + _NEARLY_AS_GOOD * (value[number] - 0.5)
        best = [facts[place] for single, place in singles[:_MAX_NAMED] if single >= enough] or [facts[singles[0][1]]]
        evidence = "; ".join(_evidence(fact, trial.labels == number) for fact in best)
        start = _BEGINNINGS[family].format(name=repr(names[number]))
        detail = f"{start} with a balanced accuracy of {value[number]:.2f} (chance: 0.50): {evidence}.{_ENDS[family]}"
        findings.append(Finding("shortcut", severity, label=names[number], value=float(value[number]), detail=detail))
    return findings


def _evidence(fact: _Fact, of_class: NDArray[np.bool_]) -> str:
    """What sets a class apart in one fact, in words."""
    if fact.words is not None:
        values, counts = np.unique(fact.words[of_class].astype(str), return_counts=True)
        usual = str(values[np.argmax(counts)])
        share = float(counts.max() / counts.sum())
        others = float(np.mean(fact.words[~of_class].astype(str) == usual))
        if abs(share - others) >= 0.5:
            return f"{fact.name} {usual} of {_percent(share)}, and of {_percent(others)} of the others"
    middles = [np.median(fact.values[chosen], axis=0) for chosen in (of_class, ~of_class)]
    if fact.unit == "px":
        return "median {} {:,.0f} × {:,.0f} px, of the others {:,.0f} × {:,.0f} px".format(
            fact.name, *middles[0], *middles[1]
        )
    if fact.words is not None:
        return f"{fact.name}, most often {usual}"
    # Of two numbers, the one that differs more for its spread.
    spread = np.maximum(fact.values.std(axis=0), 1e-9)
    place = int(np.argmax(np.abs(middles[0] - middles[1]) / spread))
    name = fact.name if place == 0 else f"{fact.name.partition(' ')[0]} contrast"
    return f"median {name} {middles[0][place]:.2f}, of the others {middles[1][place]:.2f}"


def _facts(manifest: Manifest, facts: Facts, rows: Integers) -> list[_Fact]:
    boxed = bool(np.isfinite(manifest.column("xmin")[rows]).any())
    of_frame: Family = "box" if boxed else "file"
    width, height = facts.width_px[rows], facts.height_px[rows]
    # The bytes are the whole file's, so they are set against the whole photograph.
    area = (manifest.column("width") * manifest.column("height"))[rows] if boxed else width * height
    density = facts.num_bytes[rows] / np.maximum(area, 1)
    measures = {
        name: facts.measure(name)[rows].astype(np.float64)
        for name in ("border_brightness", "border_contrast", "brightness", "contrast", "saturation")
    }
    sizes = np.array([f"{w:.0f} × {h:.0f} px" for w, h in zip(width, height, strict=True)], dtype=object)
    formats, modes = facts.format[rows], manifest.column("mode")[rows]

    def measured(name: str, family: Family, *values: Floats) -> _Fact:
        return _Fact(name, family, np.nan_to_num(np.stack(values, axis=1), posinf=0.0, neginf=0.0))

    return [
        _Fact("size", of_frame, np.stack([width, height], axis=1), sizes, "px"),
        measured("width over height", of_frame, width / np.maximum(height, 1)),
        _Fact("format", "file", _coded(formats), formats),
        _Fact("colour mode", "file", _coded(modes), modes),
        measured("bytes a pixel", "file", density),
        measured("border brightness", of_frame, measures["border_brightness"], measures["border_contrast"]),
        measured("brightness", "light", measures["brightness"]),
        measured("contrast", "light", measures["contrast"]),
        measured("saturation", "light", measures["saturation"]),
    ]


def _coded(words: NDArray[np.object_]) -> Floats:
    _, codes = np.unique(words.astype(str), return_inverse=True)
    return codes.astype(np.float64)[:, None]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"

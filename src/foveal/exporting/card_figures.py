"""The figures of a model card: what was measured of each split and class, and what was proven of the file."""

from collections.abc import Sequence
from typing import Any

from foveal.evaluation.latency_figures import LEAST_SAMPLES
from foveal.exporting.card_facts import CardFacts
from foveal.exporting.markdown import plain, prose, table
from foveal.exporting.parity_facts import AccuracyPair, Parity
from foveal.exporting.speed import TITLES, Speed
from foveal.metrics import QUALITY_METRICS, SplitMetrics, shown

_WORDS = {
    "roc_auc": "ROC AUC",
    "f1": "F1",
    "ece": "expected calibration error",
    "brier": "Brier",
}


def figures(facts: CardFacts) -> list[str]:
    """What was measured, by split and by class, and how far the probabilities can be believed."""
    lines = ["## Figures", ""]
    if not facts.splits:
        return [*lines, *_headline(facts), *_calibration(facts)]
    splits = list(facts.splits.values())
    lines += ["In brackets: 95% intervals, by resampling images (whole groups where images share one).", ""]
    rows = [["images", *(f"{metrics.num_images:,}" for metrics in splits)]]
    rows += [
        [_in_words(key), *(_cell(metrics, key) for metrics in splits)]
        for key in QUALITY_METRICS
        if any(getattr(metrics, key) is not None for metrics in splits)
    ]
    baseline = "always guessing the largest class"
    rows.append([baseline, *(_shown(metrics.majority_baseline_accuracy) for metrics in splits)])
    lines += table(["", *(metrics.split for metrics in splits)], rows)
    lines += _undefined(splits)
    tested = facts.splits.get("test") or splits[-1]
    return [*lines, *_by_class(facts, tested), *_calibration(facts)]


def _in_words(key: str) -> str:
    for name, words in _WORDS.items():
        key = key.replace(name, words)
    return key.replace("_", " ")


def _cell(metrics: SplitMetrics, key: str) -> str:
    return _with_bounds(getattr(metrics, key), metrics.confidence_intervals.get(key))


def _with_bounds(value: float | None, bounds: Sequence[float] | None) -> str:
    return _shown(value) + (f" [{shown(bounds[0])}, {shown(bounds[1])}]" if value is not None and bounds else "")


def _shown(value: float | None) -> str:
    return "-" if value is None else shown(value)


def _undefined(splits: Sequence[SplitMetrics]) -> list[str]:
    """Why a figure of the table is missing in one split and not in another."""
    lines = [
        f"- {_in_words(key)}, {metrics.split}: {prose(metrics.undefined.get(key, 'undefined'))}."
        for metrics in splits
        for key in QUALITY_METRICS
        if getattr(metrics, key) is None and any(getattr(each, key) is not None for each in splits)
    ]
    return [*lines, ""] if lines else []


def _headline(facts: CardFacts) -> list[str]:
    """Of a bundle alone: the few figures that it carries."""
    held = facts.spec.metrics
    if not held:
        return ["Not known: the bundle carries none, and the run was not at hand when this card was written.", ""]
    splits = list(held)
    keys = list(dict.fromkeys(key for split in splits for key in held[split]))
    rows = [[_in_words(key), *(_of_bundle(held[split].get(key)) for split in splits)] for key in keys]
    return [
        *table(["", *splits], rows),
        "In brackets: 95% intervals. The figures by class, and what guessing gives, are not known: the run was not at "
        "hand when this card was written.",
        "",
    ]


def _of_bundle(held: Any) -> str:
    value, bounds = held if isinstance(held, list | tuple) else (held, None)
    return _with_bounds(value, bounds)


def _by_class(facts: CardFacts, metrics: SplitMetrics) -> list[str]:
    intervals = facts.by_class.get(metrics.split, ())
    rows = []
    for at, each in enumerate(metrics.per_class):
        own = intervals[at] if intervals else None
        cells = [
            _with_bounds(getattr(each, key), getattr(own, key) if own else None)
            for key in ("precision", "recall", "f1")
        ]
        rows.append([plain(each.name), f"{each.support:,}", *cells])
    lines = [
        f"### Each class of the {metrics.split} split",
        "",
        *table(["class", "images", "precision", "recall", "F1"], rows),
    ]
    if not intervals:
        lines += ["Without intervals: which images share a group is not known any more.", ""]
    return lines


def _calibration(facts: CardFacts) -> list[str]:
    lines = [
        "### Calibration",
        "",
        f"Logits are divided by {facts.spec.temperature:.4g} (the temperature, fitted on the validation split) before "
        "the softmax.",
    ]
    for split, metrics in facts.splits.items():
        if split != "train" and metrics.ece is not None:
            before = metrics.ece_before_temperature
            lines += [
                f"On {split}, the probability of the predicted class is off by {shown(metrics.ece)} on average "
                "(expected calibration error)"
                + ("." if before is None else f", and by {shown(before)} without the temperature.")
            ]
    return [*lines, ""]


def parity_part(parity: Parity | None) -> list[str]:
    """What was proven of the file before it was written; nothing where nothing was compared."""
    if parity is None:
        return []
    share, (low, high) = parity.agreement.share, parity.agreement.interval
    kind = "images" if parity.is_real else "squares of generated noise"
    lines = [
        "## Proof that the file says what the bundle says",
        "",
        f"Before it was written, the file and the bundle were asked about {parity.num_images:,} {kind}: the same class "
        f"for {parity.agreement.count:,}, a share of {shown(share)} [{shown(low)}, {shown(high)}]; probabilities "
        f"differ by {parity.max_difference:.2g} at most and by {parity.mean_difference:.2g} on average.",
        "",
    ]
    if check := parity.image_input:
        lines += [
            f"The resize within the graph against Pillow's, on {check.num_images:,} images of their own sizes: "
            f"probabilities differ by {check.max_difference:.2g} at most.",
            "",
        ]
    if parity.accuracy is not None:
        pairs: list[tuple[str, str, AccuracyPair]] = [("all", "", parity.accuracy)]
        pairs += [(each.split, each.seen, each) for each in parity.splits]
        rows = [
            [words, prose(seen), f"{pair.num_images:,}", _with_bounds(pair.bundle, pair.bundle_interval),
             _with_bounds(pair.file, pair.file_interval)]
            for words, seen, pair in pairs
        ]  # fmt: skip
        lines += table(["split", "", "images", "accuracy of the bundle", "of the file"], rows, num_words=2)
    if parity.classes:
        rows = [
            [plain(each.name), f"{each.num_images:,}", *map(_shown, (each.agreement, each.bundle, each.file))]
            for each in parity.classes
        ]
        lines += table(["class", "images", "same answer", "recall of the bundle", "of the file"], rows)
    if sentence := parity.paired_sentence:
        lines.append(prose(f"{sentence[:1].upper()}{sentence[1:]}."))
    return [*lines, *map(prose, parity.notes), ""]


def speed_part(speed: Speed | None) -> list[str]:
    """How fast each engine was, on the machine that exported; nothing where nothing was timed."""
    if speed is None:
        return []
    has_p95 = speed.num_images >= LEAST_SAMPLES["p95"]  # of fewer it would be the slowest of them
    rows = [
        [TITLES[each.name], f"{each.one_p50_ms:.1f}", *([f"{each.one_p95_ms:.1f}"] if has_p95 else []),
         f"{each.with_decoding_p50_ms:.1f}", f"{each.batch_images_per_second:,.0f}", f"{each.size_mib:.1f}",
         f"{each.time_ratio:.2f} [{each.time_ratio_interval[0]:.2f}, {each.time_ratio_interval[1]:.2f}]"]
        for each in speed.engines
    ]  # fmt: skip
    head = ["engine", "p50 ms", *(["p95 ms"] if has_p95 else []), "with decoding p50 ms",
            f"images/s in batches of {speed.batch_size}", "MiB", f"time / {TITLES[speed.engines[0].name]}"]  # fmt: skip
    threads = "1 thread" if speed.num_threads == 1 else f"{speed.num_threads} threads"
    return [
        "## Speed on one machine",
        "",
        f"{prose(speed.machine)}, {threads}, {speed.num_images:,} images one by one, in turns. Another machine "
        "has other figures: `foveal bench BUNDLE` measures there.",
        "",
        *table(head, rows),
        *(prose(words) for words in (speed.sentence, speed.advice) if words),
        "",
    ]

"""What an evaluation measures beyond the plain figure: other views of the same images, and images gone wrong."""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.data.store import PixelSource
from foveal.evaluation.evaluate import BATCH_SIZE, SplitLogits, rows_of_split
from foveal.evaluation.plots import PLOT_NAMES
from foveal.evaluation.robustness import EXAMPLES_FOLDER, ROBUSTNESS_FILE, Robustness, Wrap, measure_robustness
from foveal.evaluation.robustness_plots import PLOT_FILE, draw_robustness, example_path, write_examples
from foveal.evaluation.sources import Stored
from foveal.evaluation.tta import TTA_FILE, Cost, TtaGain, tta_words
from foveal.files import write_text
from foveal.inference import Predictor
from foveal.machine import num_cpus
from foveal.metrics import SplitMetrics, compare_paired, shown, softmax
from foveal.pixels.corruptions import CORRUPTIONS, NUM_STRENGTHS
from foveal.pixels.views import MAX_VIEWS, TTA_WAYS, views_of
from foveal.progress import Progress

ROUND_IMAGES = 16
MIN_ROUNDS, MAX_ROUNDS = 2, 200
ROUNDS_SECONDS = 4.0
"""Rounds of timing go on for so long at most, once there were `MIN_ROUNDS` of them."""


def num_passes(tta: str, corruptions: tuple[str, ...]) -> int:
    """How often the network sees each image in an evaluation."""
    num_views = len(views_of(tta))
    return 1 + (num_views if num_views > 1 else 0) + num_views * NUM_STRENGTHS * len(corruptions)


def compare_views(
    plain: Predictor,
    augmented: Predictor,
    stored: Stored,
    plain_said: tuple[SplitLogits, SplitMetrics],
    augmented_said: tuple[SplitLogits, SplitMetrics],
    *,
    tta: str,
    groups: NDArray[np.int64] | None,
    seed: int,
) -> TtaGain:
    """What test-time augmentation gains and costs.

    Args:
        plain: the classifier without it.
        augmented: the classifier with it.
        stored: the split's pixels.
        plain_said: what the one says of the split, and the metrics of that.
        augmented_said: the same of the other; the same images in the same order.
        tta: how it augments.
        groups: the group of each image, int64 [n]; None where each stands for itself.
        seed: of the intervals.
    """
    said = plain_said[0]
    first, second = (softmax(each.logits.astype(np.float64), plain.temperature) for each in (said, augmented_said[0]))
    found = compare_paired(said.labels, first, second, groups=groups, seed=seed)
    rows = rows_of_split(stored.manifest, said.split)
    plain_ms, tta_ms = time_side_by_side(plain, augmented, stored.sources, rows, num_workers=num_cpus())
    verdict, ratio = found.sentence("the model as it is", f"the model with {tta_words(tta)}"), tta_ms / plain_ms
    return TtaGain(
        tta=tta,
        num_views=len(augmented.views),
        split=said.split,
        num_images=found.num_images,
        plain=dict(found.first),
        augmented=dict(found.second),
        gain=dict(found.differences),
        intervals=dict(found.intervals),
        undefined=dict(found.undefined),
        mcnemar_p=found.mcnemar_p,
        verdict=found.verdict,
        sentence=f"{verdict[0].upper()}{verdict[1:]}; an image takes {shown(ratio)} times as long.",
        cost=Cost(
            plain_ms=plain_ms,
            tta_ms=tta_ms,
            ratio=ratio,
            plain_latency_ms=plain_said[1].latency_ms,
            tta_latency_ms=augmented_said[1].latency_ms,
        ),
    )


def time_side_by_side(
    plain: Predictor,
    augmented: Predictor,
    sources: Sequence[PixelSource],
    rows: NDArray[np.int64],
    *,
    num_workers: int,
) -> tuple[float, float]:
    """Milliseconds for one stored image without and with test-time augmentation.

    Both take the same images in turn, round after round, so that whatever else the machine does meets both.

    Args:
        plain: without.
        augmented: with.
        sources: stored forms by row number, one for each member.
        rows: int64 [n], the images; some of them are taken.
        num_workers: threads that prepare batches.

    Returns:
        The fastest round of each.
    """
    chosen = rows[np.linspace(0, len(rows) - 1, min(ROUND_IMAGES, len(rows))).astype(int)]

    def milliseconds(predictor: Predictor) -> float:
        start = time.perf_counter()
        predictor.logits(sources, chosen, batch_size=BATCH_SIZE, num_workers=num_workers)
        return 1000.0 * (time.perf_counter() - start) / len(chosen)

    for predictor in (plain, augmented):  # the first pass pays for kernels and caches
        milliseconds(predictor)
    rounds: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while len(rounds) < MIN_ROUNDS or (len(rounds) < MAX_ROUNDS and time.perf_counter() - begin < ROUNDS_SECONDS):
        rounds.append((milliseconds(plain), milliseconds(augmented)))
    # The fastest round of each: whatever else the machine does can only make one slower.
    plain_ms, tta_ms = (min(each[place] for each in rounds) for place in (0, 1))
    return plain_ms, tta_ms


def evaluate_corrupted(
    predictor: Predictor,
    stored: Stored,
    said: SplitLogits,
    corruptions: tuple[str, ...],
    *,
    tta: str,
    paths: NDArray[Any],
    groups: NDArray[np.int64] | None,
    seed: int,
    folder: Path,
    progress: Progress,
) -> Robustness:
    """Measure a classifier on corrupted images, and write the figures, the curves and one image as an example.

    Args:
        predictor: the classifier.
        stored: the split's pixels.
        said: what it says of the images as they are.
        corruptions: which of `CORRUPTIONS`.
        tta: how the classifier augments.
        paths: str [n], of the images.
        groups: the group of each image, int64 [n]; None where each stands for itself.
        seed: of the intervals.
        folder: where `robustness.json`, `plots/robustness.svg` and `corrupted/` go.
        progress: where to show it.
    """
    rows = rows_of_split(stored.manifest, said.split)

    def classify(wrap: Wrap) -> NDArray[np.float32]:
        sources = [wrap(source) for source in stored.sources]
        return predictor.logits(sources, rows, batch_size=BATCH_SIZE, num_workers=num_cpus())

    found, example = measure_robustness(
        classify,
        said.logits,
        said.labels,
        corruptions,
        split=said.split,
        paths=paths,
        groups=groups,
        tta=tta,
        seed=seed,
        progress=progress,
    )
    row = int(rows[example])
    found.write(folder / ROBUSTNESS_FILE)
    write_text(folder / "plots" / PLOT_FILE, draw_robustness(found))
    write_examples(folder, stored.sources[0][row], row, corruptions)
    return found


def files_beyond(evaluation: Path, splits: Iterable[str]) -> Iterator[Path]:
    """What an evaluation may have written beyond each split's plain figures, by name.

    Args:
        evaluation: a run's folder of evaluations.
        splits: the splits that may have been evaluated.
    """
    for split in splits:
        yield from _robustness_files(evaluation / split)
        for tta in (*TTA_WAYS, *map(str, range(2, MAX_VIEWS + 1))):
            folder = evaluation / f"{split}-tta-{tta}"
            if folder.is_dir():
                yield from (folder / name for name in ("metrics.json", "predictions.parquet", TTA_FILE))
                yield from (folder / "plots" / f"{name}.svg" for name in PLOT_NAMES)
                yield from _robustness_files(folder)


def _robustness_files(folder: Path) -> Iterator[Path]:
    yield folder / ROBUSTNESS_FILE
    yield folder / "plots" / PLOT_FILE
    if (folder / EXAMPLES_FOLDER).is_dir():
        yield example_path(folder, CORRUPTIONS[0], 0)
        for name in CORRUPTIONS:
            yield from (example_path(folder, name, strength) for strength in range(1, NUM_STRENGTHS + 1))

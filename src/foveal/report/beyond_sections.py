"""What a run's page shows of test-time augmentation and of corrupted images, where either has been measured."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.evaluation.drawing import split_name
from foveal.evaluation.robustness import ROBUSTNESS_FILE, Robustness
from foveal.evaluation.robustness_plots import PLOT_FILE, draw_robustness, example_path
from foveal.evaluation.tta import TTA_FILE, TtaGain, tta_words
from foveal.files import natural_key
from foveal.pixels.corruptions import NUM_STRENGTHS
from foveal.report.numbers import MISSING, counted, fine, interval, share, with_interval
from foveal.report.sections import Plot
from foveal.report.tables import METRIC_NAMES, Cell, Row, Table
from foveal.report.thumbnails import Thumbnail
from foveal.run_folder import RunFolder
from foveal.types import SPLITS

SHOWS = {
    "noise": "white noise",
    "blur": "out of focus",
    "jpeg": "saved as a small JPEG",
    "darker": "too little light",
    "brighter": "too much light",
    "contrast": "little contrast",
    "saturation": "colours fading to grey",
    "resize": "from few pixels",
}
"""Each corruption as a person would meet it."""

_TINY_PX = 48
_IMBALANCED = 0.6
"""Where the largest class has more than such a share of the images, each accuracy gets its balanced one beside it."""


@dataclass(frozen=True)
class Strip:
    """One corruption: its name and what it is, and the example's picture with the accuracy at each strength."""

    name: str
    what: str
    pictures: list[tuple[Thumbnail, str, str, str]]


@dataclass(frozen=True)
class Corruptions:
    """The robustness of one split, for the template."""

    split: str
    tta: str
    sentence: str
    kept: str
    plot: Plot
    strips: list[Strip]
    example: str


def beyond(run: RunFolder) -> dict[str, Any]:
    """The template's values: gains of test-time augmentation, and robustness, test first."""
    gains = [TtaGain.read(folder / TTA_FILE) for folder in _tta_folders(run)]
    folders = [*(run.evaluation(split) for split in reversed(SPLITS)), *_tta_folders(run)]
    return {
        "gains": [gain.sentence for gain in gains],
        "gain_table": _gain_table(gains) if gains else None,
        "corruptions": [_corruptions(folder) for folder in folders if (folder / ROBUSTNESS_FILE).is_file()],
    }


def _tta_folders(run: RunFolder) -> list[Path]:
    found: list[Path] = []
    for split in reversed(SPLITS):
        start = run.evaluation(split)
        here = [path for path in start.parent.glob(f"{split}-tta-*") if (path / TTA_FILE).is_file()]
        found += sorted(here, key=lambda path: natural_key(path.name))
    return found


def _gain_table(gains: list[TtaGain]) -> Table:
    keys = ("accuracy", "macro_f1", "log_loss")
    rows = []
    for gain in gains:
        cells = []
        for key in keys:
            bounds = gain.intervals.get(key)
            cells.append(
                Cell(f"{fine(gain.plain[key])} → {fine(gain.augmented[key])}", _signed(gain.gain[key], bounds))
            )
        cost, plain, tta = gain.cost, gain.cost.plain_latency_ms, gain.cost.tta_latency_ms
        cells.append(Cell(f"{cost.ratio:.2f} ×", f"{cost.plain_ms:.3g} → {cost.tta_ms:.3g} ms"))
        cells.append(Cell(f"{plain.p50:.3g} → {tta.p50:.3g} ms" if plain and tta else MISSING))
        rows.append(Row(tta_words(gain.tta), f"{counted(gain.num_views, 'view')}, {split_name(gain.split)}", cells))
    head = [
        "Way",
        *(METRIC_NAMES[key][0] for key in keys),
        "Time an image, in batches",
        "One image alone, median",
    ]
    caption = "Without → with test-time augmentation, on the same images; the gain with its paired 95 % interval below"
    return Table(caption, head, rows, [])


def _signed(value: float, bounds: tuple[float, float] | None) -> str:
    text = _with_sign(value)
    return text if bounds is None else f"{text} [{_with_sign(bounds[0])}, {_with_sign(bounds[1])}]"


def _with_sign(value: float) -> str:
    """Three decimals with a sign, but for nothing at all."""
    rounded = round(value, 3)
    return f"{rounded:+.3f}" if rounded else "0.000"


def _corruptions(folder: Path) -> Corruptions:
    found = Robustness.read(folder / ROBUSTNESS_FILE)
    where = f"{split_name(found.split)} split, {counted(found.num_images, 'image')}"
    label = f"Accuracy by strength of {counted(len(found.curves), 'corruption')}: {where}; the table has the numbers"
    kept = f"The mean accuracy over all of them is {with_interval(found.mean.accuracy, found.mean.interval)}"
    if found.kept.share is not None:
        kept += f"; as a share of the clean accuracy {with_interval(found.kept.share, found.kept.interval)}"
    drawn = folder / "plots" / PLOT_FILE
    svg = drawn.read_text(encoding="utf-8") if drawn.is_file() else draw_robustness(found)
    return Corruptions(
        split=found.split,
        tta="" if found.tta == "none" else tta_words(found.tta),
        sentence=found.sentence,
        kept=f"{kept}. The balanced accuracy, in which rare classes count as much, goes from "
        f"{share(found.clean.balanced_accuracy)} to {share(found.mean.balanced_accuracy)} in the mean.",
        plot=Plot.of(svg, prefix=f"{folder.name}-robustness", label=label),
        strips=[
            Strip(curve.name, SHOWS[curve.name], list(_pictures(folder, found, at)))
            for at, curve in enumerate(found.curves)
        ],
        example=found.example,
    )


def _pictures(folder: Path, found: Robustness, at: int) -> Iterator[tuple[Thumbnail, str, str, str]]:
    """Picture, accuracy, interval and balanced accuracy, from the image as it is to the strongest."""
    curve = found.curves[at]
    points = [found.clean, *curve.by_strength]
    for strength in range(NUM_STRENGTHS + 1):
        point = points[strength]
        bounds = "" if point.interval is None else interval(point.interval)
        balanced = f"balanced {share(point.balanced_accuracy)}" if found.guess > _IMBALANCED else ""
        yield _picture(example_path(folder, curve.name, strength)), share(point.accuracy), bounds, balanced


def _picture(path: Path) -> Thumbnail:
    if not path.is_file():
        return Thumbnail(problem="the picture is not there any more")
    from PIL import Image

    with Image.open(path, formats=("WEBP",)) as picture:
        is_tiny = max(picture.size) < _TINY_PX
    uri = f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
    return Thumbnail(uri, is_tiny=is_tiny)

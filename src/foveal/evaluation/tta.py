"""What test-time augmentation gains on a split, and what it costs in time; both measured on the same images."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from foveal.evaluation.figures_file import FiguresFile
from foveal.metrics import Latency
from foveal.metrics.split_metrics import Finite, Frozen
from foveal.pixels.views import views_of

TTA_FILE = "tta.json"


class Cost(Frozen):
    """Milliseconds for one image, without test-time augmentation and with it.

    Attributes:
        plain_ms: of the stored images in batches, without; the fastest of several rounds of both in turn.
        tta_ms: with it.
        ratio: how many times as long it takes with it.
        plain_latency_ms: for one image alone, decoding included, without; null where it was not measured.
        tta_latency_ms: with it.
    """

    plain_ms: Finite
    tta_ms: Finite
    ratio: Finite
    plain_latency_ms: Latency | None
    tta_latency_ms: Latency | None


class TtaGain(FiguresFile):
    """`tta.json`: the same images without test-time augmentation and with it.

    Attributes:
        tta: how it was augmented.
        num_views: views of each image.
        split: which images.
        num_images: how many.
        plain: accuracy, balanced accuracy, macro F1 and log loss without it.
        augmented: the same with it.
        gain: the second less the first; for the log loss, less is better.
        intervals: the 95 % interval of each gain that has one, paired.
        undefined: why the others have none.
        mcnemar_p: of McNemar's test.
        verdict: whether it is better with it or worse, or cannot be told.
        sentence: the gain and the cost in one line.
        cost: in time.
    """

    made_by: ClassVar[str] = "--tta"

    tta: str
    num_views: Annotated[int, Field(ge=1)]
    split: str
    num_images: Annotated[int, Field(ge=1)]
    plain: dict[str, Finite]
    augmented: dict[str, Finite]
    gain: dict[str, Finite]
    intervals: dict[str, tuple[Finite, Finite]]
    undefined: dict[str, str]
    mcnemar_p: Finite
    verdict: str
    sentence: str
    cost: Cost


def tta_name(tta: str) -> str:
    """The one spelling of a test-time augmentation, as folders are named after it; `none` for a single view.

    Raises:
        ConfigError: there is none like that.
    """
    if len(views_of(tta)) == 1:
        return "none"
    text = str(tta).strip().lower()
    return str(int(text)) if text.isdigit() else text


def tta_words(tta: str) -> str:
    """As it is called within a sentence."""
    return f"{tta} views" if tta.isdigit() else tta


def tta_folder(folder: Path, tta: str, *, inside: bool) -> Path:
    """Where the result with test-time augmentation goes: inside the plain one's folder, or beside it."""
    return folder / f"tta-{tta}" if inside else folder.with_name(f"{folder.name}-tta-{tta}")

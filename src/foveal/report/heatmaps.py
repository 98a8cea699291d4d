"""Heatmaps of a run's worst errors, made once at the end of training for its report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from foveal.evaluation.predictions import Predictions
from foveal.explaining.explainer import Explainer
from foveal.explaining.explanation import Explanation
from foveal.explaining.methods import METHOD_NAMES
from foveal.explaining.pictures import overlay
from foveal.files import read_json, sha256_file, write_json
from foveal.pixels.policy import ImageRejectedError, crop_box, decode
from foveal.report import words
from foveal.report.contents import Evaluated, RunContents, read_run
from foveal.report.thumbnails import Thumbnail, encoded
from foveal.run_folder import RunFolder

NUM_WORST = 12
"""Of the errors that the network was surest of, so many are shown."""
MAX_SECONDS = 5.0
"""After so long no further map is begun; a large network on a CPU gets fewer."""


@dataclass(frozen=True)
class Heatmaps:
    """What a report shows beside its worst errors.

    Attributes:
        words: how they were made, or why there are none; empty where nothing was tried.
        pictures: by sample id and predicted class.
    """

    words: str = ""
    pictures: Mapping[tuple[str, str], Thumbnail] = field(default_factory=dict)


def worst_errors(said: Predictions) -> list[int]:
    """Places of the errors with the most probable wrong answers, the worst first."""
    surest = np.argsort(-said.probability, kind="stable")
    return [int(at) for at in surest[~said.right[surest]][:NUM_WORST]]


def draw_heatmaps(run: RunFolder) -> None:
    """Make the maps of the worst errors of the judged split and keep them beside its metrics.

    Whatever goes wrong is written down for the report to say, and does not stop it: a run is whole without heatmaps.
    """
    contents = read_run(run)
    judged = words.judged(contents)
    if judged is None or not (worst := worst_errors(judged.predictions)):
        return
    try:
        found = _drawn(contents, judged, worst)
    # Any network of the zoo may do what nobody thought of, and a day of training stands behind the report.
    except Exception as error:  # noqa: BLE001
        message = f"Heatmaps of the worst errors could not be made: {str(error) or type(error).__name__}"
        run.log_event("heatmaps_failed", message=message, error=type(error).__name__)
        found = {"words": message, "pictures": []}
    write_json(run.heatmaps(judged.metrics.split), found)


def read_heatmaps(run: RunFolder, split: str) -> Heatmaps:
    """What `draw_heatmaps` kept of a split; nothing where it never ran.

    Raises:
        FovealError: the file is not JSON.
    """
    path = run.heatmaps(split)
    if not path.is_file():
        return Heatmaps()
    content = read_json(path)
    pictures = {
        (each["sample_id"], each["predicted"]): Thumbnail(each["uri"], is_tiny=each["is_tiny"])
        for each in content["pictures"]
    }
    return Heatmaps(content["words"], pictures)


def _drawn(run: RunContents, judged: Evaluated, worst: Sequence[int]) -> dict[str, Any]:
    explainer = Explainer(run.run.bundle, device="cpu", batch_size=1, num_workers=1)
    said, names = judged.predictions, judged.metrics.class_names
    pictures, start, num_tried = [], perf_counter(), 0
    for place in worst:
        if num_tried and perf_counter() - start > MAX_SECONDS:
            break
        num_tried += 1
        for explanation in _explained(run, explainer, said.sample_ids[place], names[said.predicted[place]]):
            picture = encoded(Image.fromarray(overlay(explanation)))
            pictures.append(
                {
                    "sample_id": said.sample_ids[place],
                    "predicted": explanation.explained,
                    "uri": picture.uri,
                    "is_tiny": picture.is_tiny,
                }
            )
    method, layers = METHOD_NAMES[explainer.method], ", ".join(dict.fromkeys(explainer.layers))
    of_class = " for the class that it was taken for" if explainer.is_of_a_class else ""
    rest = "" if num_tried == len(worst) else f"; for the first {num_tried} of {len(worst)} alone, as it takes long"
    text = f"Beside each, where the network looked{of_class}: {method} at {layers}{rest}. Dark is what it never saw."
    return {"words": text if pictures else "", "pictures": pictures}


def _explained(run: RunContents, explainer: Explainer, sample_id: str, class_name: str) -> Iterator[Explanation]:
    """The explanation of a sample as it was evaluated; none where its image is gone or has changed."""
    rows = np.flatnonzero(run.manifest.column("sample_id") == sample_id)
    if not len(rows):
        return
    row = run.manifest.take(rows[:1])
    (path,), (box,), (sha256,) = row.absolute_paths(), row.boxes(), row.table["sha256"].to_pylist()
    try:
        if sha256 is not None and sha256_file(path) != sha256:
            return
        pixels = decode(path, explainer.predictor.looks[0][1]).pixels
        if box is not None:
            pixels = crop_box(pixels, box, float(run.section("data").get("box_margin", 0.0)))
    except (OSError, ImageRejectedError):
        return  # the thumbnail beside it says why
    yield from (each for each in explainer.stream([pixels], class_name=class_name) if each.is_ok)

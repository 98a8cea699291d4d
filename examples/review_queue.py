"""Put the images of a folder in the order in which a person should look at them: the least certain first.

    python examples/review_queue.py runs/first new_photos queue.csv

Files that cannot be used come before all others, with their reason.
"""

import csv
import sys
from collections.abc import Iterable
from pathlib import Path

import foveal
from foveal.files import neutral_cell
from foveal.prediction import Prediction


def doubt(prediction: Prediction) -> float:
    """How close the two most probable classes are, 0..1; more than 1 for a file that could not be used."""
    if prediction.status != "ok":
        return 2.0
    second, first = sorted(prediction.probabilities)[-2:]
    return float(1.0 - (first - second))


def write_queue(model: Path, images: Iterable[Path], table: Path) -> None:
    """Predict all images and write them to a CSV table, in the order of doubt."""
    predictor = foveal.Predictor(model)
    queue = sorted(predictor.stream(images), key=doubt, reverse=True)
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "predicted", "probability", "reason"])
        for each in queue:
            number = f"{each.probability:.4f}" if each.status == "ok" else ""
            # Names come from the images' owners, and a spreadsheet would run one that begins with "=".
            writer.writerow([neutral_cell(each.path), neutral_cell(each.predicted), number, neutral_cell(each.reason)])


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python examples/review_queue.py RUN_OR_BUNDLE FOLDER QUEUE.csv")
    run, folder, target = map(Path, sys.argv[1:])
    write_queue(run, sorted(path for path in folder.rglob("*") if path.is_file()), target)

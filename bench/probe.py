"""A probe with five classical heads beside three epochs of fine-tuning the same backbone, in turns, in one process.

Both begin with the images decoded and in the store. The probe starts without any features there, and all of its work is
counted: features, every point of every grid, the figures with their intervals, the bundle, the page. Of the training
only its epochs are. Prints the seconds of each, their ratio, and what both say of the test images. Target: the probe
costs less than three epochs.

    python bench/probe.py ../shared/data/sign_digits
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import foveal
from foveal.data.cache import cache_folder
from foveal.data.store_maps import FEATURE_SUFFIX
from foveal.files import read_json
from foveal.run_folder import RunFolder
from frozen_features import quick_weights, subset_of
from measuring import ratios
from recording import Record, add_out, print_table, with_spread

TARGET_EPOCHS = 3
STAGES = ("features", "fit", "evaluate", "compare", "bundle", "report")
"""Of a probe: all but the reading and the decoding, which a training has too."""


def forget_features() -> None:
    """Take the features out of the store, so that they are computed again; the decoded images stay."""
    for shard in cache_folder().rglob(f"*{FEATURE_SUFFIX}"):
        shard.unlink()


def probe(
    images: Path, settings: list[str], scratch: Path, *heads: str
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The seconds of each stage of a probe without features at hand, and its rows."""
    out = Path(tempfile.mkdtemp(dir=scratch)) / "probe"
    forget_features()
    done = foveal.probe(images, out, heads=heads, overrides=settings)
    timings = read_json(out / "timings.json")
    return {stage: timings[stage]["wall_seconds"] for stage in STAGES}, [dict(row) for row in done.rows]


def epochs(images: Path, settings: list[str], scratch: Path) -> tuple[float, float | None]:
    """The seconds of three epochs of fine-tuning, validation included, and the accuracy on test."""
    run = RunFolder(Path(tempfile.mkdtemp(dir=scratch)) / "run")
    done = foveal.train(images, run.path, overrides=[*settings, f"train.epochs={TARGET_EPOCHS}"])
    return read_json(run.timings)["train"]["wall_seconds"], done.metrics["test"].accuracy


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument(
        "--weights", default="none", help="a run, a bundle or a file, none, or quick (see frozen_features.py)"
    )
    parser.add_argument("--num-images", type=int, default=0, help="of the data set; 0, the default, for all")
    parser.add_argument("--size-px", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other setting")
    add_out(parser, "probe")
    wanted = parser.parse_args()
    record = Record("probe", wanted.out)
    seconds: dict[str, list[float]] = {"probe": [], f"{TARGET_EPOCHS} epochs": []}
    stages: dict[str, list[float]] = {stage: [] for stage in STAGES}
    rows: list[dict[str, Any]] = []
    fine_tuned: float | None = None
    with tempfile.TemporaryDirectory(prefix="foveal-bench-") as name:
        scratch = Path(name)
        os.environ["FOVEAL_CACHE_DIR"] = str(scratch / "cache")
        weights = wanted.weights
        if weights == "quick":
            run = quick_weights(wanted.model, wanted.size_px, 3000, 4, scratch)
            weights = "none" if run is None else str(run)
        settings = [f"model.name={wanted.model}", f"model.weights={weights}", f"data.image_size={wanted.size_px}"]
        settings += ["train.device=cpu", *wanted.set]
        images = subset_of(wanted.images, wanted.num_images or None, scratch)
        probe(images, settings, scratch, "knn")  # decodes the images, and warms up
        for _ in range(wanted.rounds):
            took, rows = probe(images, settings, scratch)
            of_epochs, fine_tuned = epochs(images, settings, scratch)
            seconds["probe"].append(sum(took.values()))
            seconds[f"{TARGET_EPOCHS} epochs"].append(of_epochs)
            for stage in STAGES:
                stages[stage].append(took[stage])
        shutil.rmtree(scratch, ignore_errors=True)
    share = ratios(seconds["probe"], seconds[f"{TARGET_EPOCHS} epochs"])
    print(f"{wanted.model} at {wanted.size_px} px, {rows[0]['num_features']} features, weights: {wanted.weights}.\n")
    print_table(
        ("what", "seconds"), [(what, with_spread(values)) for what, values in (*seconds.items(), *stages.items())]
    )
    print()
    heads = sorted(rows, key=lambda row: row["place"])
    print_table(
        ("head", "seconds", "accuracy on test"),
        [(row["head"], f"{row['fit_seconds']:.1f}", f"{row['test_accuracy']:.3f}") for row in heads]
        + [(f"{TARGET_EPOCHS} epochs", with_spread(seconds[f"{TARGET_EPOCHS} epochs"]), f"{fine_tuned:.3f}")],
    )
    verdict = "met" if median(share) < 1.0 else "MISSED"
    print(f"\nTarget: the probe costs less than {TARGET_EPOCHS} epochs: {with_spread(share)} of them, {verdict}.")
    record.write(
        {
            "model": wanted.model,
            "size_px": wanted.size_px,
            "weights": wanted.weights,
            "seconds": seconds,
            "stages": stages,
            "share": share,
            "heads": {row["head"]: [row["fit_seconds"], row["test_accuracy"]] for row in heads},
            "fine_tuned_accuracy": fine_tuned,
        }
    )


if __name__ == "__main__":
    main()

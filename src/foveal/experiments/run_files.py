"""The files of a run by name: what is removed when one starts anew, and what a killed one leaves half-written."""

from pathlib import Path

from foveal.evaluation.beyond import files_beyond
from foveal.evaluation.plots import PLOT_NAMES
from foveal.run_folder import RunFolder
from foveal.training import checkpoint
from foveal.types import SPLITS

PLACES = ("checkpoints", "bundle", "evaluation", "logs")
"""Folders within a run."""
CHECKPOINTS = (checkpoint.LAST, checkpoint.PREVIOUS, checkpoint.BEST, checkpoint.FROZEN)
_RUN_PLOTS = ("class_distribution", "curves_loss", "curves_accuracy", "curves_macro_f1", "curves_lr")


def files_of(run: RunFolder) -> list[Path]:
    """Every file of a run, by name, whether it is there or not; but for the lock."""
    files = [run.config, run.env, run.manifest, run.log, run.metrics, run.timings, run.model_summary, run.report]
    files += [run.checkpoints / name for name in CHECKPOINTS]
    files += [run.pipeline(f"any.{suffix}") for suffix in ("yaml", "yml", "json")]
    files += [run.weights_origin, run.bundle / "bundle.json", run.bundle / "model.safetensors", run.looks]
    files += [run.path / "evaluation" / f"{name}.svg" for name in _RUN_PLOTS]
    for split in SPLITS:
        folder = run.evaluation(split)
        files += [folder / "metrics.json", folder / "predictions.parquet", run.heatmaps(split)]
        files += [folder / "plots" / f"{name}.svg" for name in PLOT_NAMES]
    files += files_beyond(run.path / "evaluation", SPLITS)
    return files


def clear(run: RunFolder) -> None:
    """Remove what an earlier run left, by name: nothing that foveal did not write is ever touched."""
    for file in files_of(run):
        file.unlink(missing_ok=True)
    sweep(run)


def sweep(run: RunFolder) -> None:
    """Remove the halves of files that a killed process was writing; the lock says that nobody writes now."""
    halves = [half for file in files_of(run) for half in file.parent.glob(f".{file.name[:32]}.*.partial")]
    for half in (*halves, *run.checkpoints.glob(f".{checkpoint.PREVIOUS}.*")):
        half.unlink(missing_ok=True)

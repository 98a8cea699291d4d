"""One run of an experiment: done already, begun and gone on with, or started."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from foveal.config import load
from foveal.errors import ConfigError
from foveal.experiments.outcome import Outcome, finished
from foveal.experiments.preparing import Settled
from foveal.experiments.run import AfterEpoch, carry_out
from foveal.experiments.run_files import clear, sweep
from foveal.progress import Progress
from foveal.run_folder import RunFolder, is_run_folder
from foveal.training.config import ResolvedConfig
from foveal.types import SPLITS, Split

_OF_THE_MACHINE = {"data": {"num_workers"}, "train": {"device"}}
"""Keys that may differ when a run goes on, on another machine say."""


def train_in(
    run: RunFolder,
    settled: Settled,
    progress: Progress,
    *,
    splits: Sequence[Split] = SPLITS,
    with_plots: bool = True,
    after_epoch: AfterEpoch | None = None,
) -> Outcome:
    """Bring a run to its end, from wherever it is; nothing that was done is done again.

    Args:
        run: its folder; made where it is missing.
        settled: the data and the configuration.
        progress: where to show it.
        splits: which are evaluated, validation among them.
        with_plots: whether the evaluation is drawn.
        after_epoch: told each new epoch's row of metrics.csv, and may end the training by an exception.

    Raises:
        ConfigError: the run was begun with another configuration.
        ArtifactError: the folder cannot be written, or another process works in it.
        TrainingError: the loss is not finite, or memory ran out.
        InterruptedRunError: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    run.prepare()
    with run.lock():
        if not is_run_folder(run.path):
            clear(run)
        else:
            held = load(ResolvedConfig, run.config)
            if _fixed(held) != _fixed(settled.config):
                raise ConfigError(
                    f"The run {run.path} was begun with another configuration.",
                    fix="choose another --out, or start anew by --force.",
                )
            if done := finished(run, splits):
                return done
            sweep(run)
            settled = replace(settled, config=held)
        return carry_out(run, settled, progress, splits=splits, with_plots=with_plots, after_epoch=after_epoch)


def _fixed(config: ResolvedConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=_OF_THE_MACHINE)

"""Logs besides the run folder: figures, images and matrices to TensorBoard, W&B and MLflow, as `log.to` says.

A log is a guest of the training. What it lacks is told before any work; once the training is under way, a log that
fails is told once, left out, and never ends the run.
"""

import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from foveal.errors import ConfigError, FovealError, MissingExtraError
from foveal.files import read_json, write_json
from foveal.run_folder import RunFolder
from foveal.training.config import LogConfig
from foveal.training.log_backends import BACKENDS, Backend, Start, Told, first_line, flatten

FOLDER = "logs"
"""Of the run folder: what the logs keep there."""
TOLD = "told.json"
"""In it: what each log has been told already."""
MAX_IMAGES = 64
"""More at once are no help to anybody who looks."""
_MODULES = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    # MLflow's client without its server needs the last two for a local database, and does not bring them.
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}
_OFFLINE = ("offline", "dryrun", "disabled")


def check_logs(config: LogConfig) -> None:
    """Make sure, before any data is read, that all logs that are asked for can be written.

    Raises:
        MissingExtraError: libraries are not installed; all of them at once.
        ConfigError: W&B is asked for, is to send, and knows no key.
    """
    wanted = [name for name in BACKENDS if name in config.to]
    missing = {name: [module for module in _MODULES[name] if find_spec(module) is None] for name in wanted}
    extras = [name for name in wanted if missing[name]]
    if extras:
        raise MissingExtraError(
            f"log.to asks for {', '.join(extras)}, and what that needs is not installed.",
            problems=[f"log.to={name} needs {', '.join(missing[name])}" for name in extras],
            fix=f"pip install 'foveal[{','.join(extras)}]', or take them out of log.to.",
        )
    if "wandb" in wanted and os.environ.get("WANDB_MODE", "").lower() not in _OFFLINE:
        _check_wandb_key()


def _check_wandb_key() -> None:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    with _kept_off_stdout():
        wandb = import_module("wandb")
        # The user's own settings may say offline, too.
        if str(wandb.setup().settings.mode).lower() in _OFFLINE:
            return
        knows_key = wandb.login(prompt=False, verify=False)
    if not knows_key:
        raise ConfigError(
            "log.to asks for wandb, and W&B knows no key of yours.",
            fix="wandb login, or export WANDB_API_KEY=..., or, to send nothing, export WANDB_MODE=offline",
        )


class Logs:
    """All logs of a run; a context manager that closes them, as failed where an error passes through.

    Every method can be called again with what was told before, as a resumed run does: nothing is logged twice.

    Args:
        run: the run's folder; not given, nothing is logged anywhere.
        say: where a log that fails is told.
    """

    def __init__(self, run: RunFolder | None = None, say: Callable[[str], None] = lambda _: None) -> None:
        self._run, self._say = run, say
        self._told: dict[str, Told] = {}
        self._backends: dict[str, Backend] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """The logs that work, by their names in log.to."""
        return tuple(self._backends)

    def open(self, config: LogConfig, *, name: str, hyperparameters: Mapping[str, Any], resumed: bool) -> None:
        """Open the logs of `config`; one that cannot be opened is told and left out."""
        if self._run is None:
            return
        wanted = [backend for backend in BACKENDS if backend in config.to]
        folder = self._run.path / FOLDER
        self._told = self._read_told() if resumed else {}
        if not resumed:
            (folder / TOLD).unlink(missing_ok=True)
        for backend in wanted:
            told = self._told.setdefault(backend, Told())
            start = Start(
                folder, config.project, name, hyperparameters, resumed, told, self._save_told, self._say_and_note
            )
            with self._forgiving(backend):
                self._backends[backend] = BACKENDS[backend][1](start)
                self._save_told()

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Log the figures of one epoch: a row of metrics.csv, `epoch` counted from 1 in it.

        A resumed run gives all rows that it has: those that were logged already are passed over, and the one is made
        up for that the process was killed before.
        """
        number = int(row["epoch"])
        figures = _figures({_grouped(key): value for key, value in row.items() if key != "epoch"})
        for name, backend, told in self._all():
            if number > told.epoch:
                with self._forgiving(name):
                    backend.epoch(figures, number)
                    told.epoch = number
                    self._save_told()

    def images(self, tag: str, images: NDArray[np.uint8], captions: Sequence[str] = ()) -> None:
        """Log images once under a tag, the first 64 of them.

        Args:
            tag: such as "training images".
            images: uint8 [n, h, w, 3].
            captions: one an image, or none at all.
        """
        images, captions = images[:MAX_IMAGES], captions[:MAX_IMAGES]
        if len(images):
            self._once(f"images/{tag}", lambda backend, epoch: backend.images(tag, images, captions, epoch))

    def confusion_matrix(self, split: str, counts: NDArray[np.int64], class_names: Sequence[str]) -> None:
        """Log a split's confusion matrix once.

        Args:
            split: such as "test".
            counts: int64 [c, c], true classes in rows, predicted ones in columns.
            class_names: in the order of rows and columns.
        """
        self._once(
            f"confusion/{split}", lambda backend, epoch: backend.confusion_matrix(split, counts, class_names, epoch)
        )

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Log what the run came to, such as {"test": {"accuracy": 0.9}}: all numbers in it, nested or not."""
        figures = _figures(flatten(metrics, "/"))
        self._once("summary", lambda backend, epoch: backend.summary(figures, epoch))

    def close(self, *, failed: bool = False) -> None:
        """Let each log send what is left."""
        for name, backend, _ in self._all():
            with self._forgiving(name):
                backend.close(failed=failed)
        self._backends.clear()

    def _once(self, tag: str, act: Callable[[Backend, int], None]) -> None:
        for name, backend, told in self._all():
            if tag not in told.tags:
                with self._forgiving(name):
                    act(backend, told.epoch)
                    told.tags.append(tag)
                    self._save_told()

    def _all(self) -> list[tuple[str, Backend, Told]]:
        return [(name, backend, self._told[name]) for name, backend in self._backends.items()]

    @contextmanager
    def _forgiving(self, name: str) -> Iterator[None]:
        """Whatever fails within: say it once and go on without this log; its words to stdout go to stderr."""
        try:
            with _kept_off_stdout():
                yield
        except Exception as error:  # noqa: BLE001 - three foreign libraries; and none of them may end a training
            self._backends.pop(name, None)
            self._say_and_note(
                f"{BACKENDS[name][0]} failed, and the run goes on without it: {first_line(error)} "
                f"({type(error).__name__}). All figures are in metrics.csv."
            )

    def _say_and_note(self, text: str) -> None:
        self._say(text)
        if self._run is not None:
            self._run.log_event("warning", message=text)

    def _read_told(self) -> dict[str, Told]:
        path = self._run.path / FOLDER / TOLD if self._run else None
        if path is None or not path.exists():
            return {}
        try:
            return {name: Told(**told) for name, told in read_json(path).items()}
        except (FovealError, TypeError, AttributeError):
            self._say_and_note(f"{path} is damaged, so that what was logged before may be logged again.")
            return {}

    def _save_told(self) -> None:
        if self._run is not None:
            write_json(self._run.path / FOLDER / TOLD, {name: asdict(told) for name, told in self._told.items()})


def open_logs(
    config: LogConfig,
    run: RunFolder,
    *,
    name: str,
    hyperparameters: Mapping[str, Any],
    resumed: bool,
    say: Callable[[str], None],
) -> Logs:
    """Open all logs that `log.to` names, besides csv, which the loop writes itself.

    Args:
        config: the section `log`.
        run: the run's folder.
        name: of the run, as people will see it beside others.
        hyperparameters: the resolved configuration as nested plain values.
        resumed: whether the run goes on; then the same run is continued in each log. Otherwise what an earlier run
            left in the folder of logs is forgotten, and TensorBoard's files in it are removed.
        say: where a log that fails is told.
    """
    logs = Logs(run, say)
    logs.open(config, name=name, hyperparameters=hyperparameters, resumed=resumed)
    return logs


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    """What is a finite number; figures that are not defined are left out, and no 0 takes their place."""
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
    }


def _grouped(column: str) -> str:
    """`train_loss` as train/loss: all three draw what stands before a slash in one group."""
    side, _, figure = column.partition("_")
    return f"{side}/{figure}" if side in ("train", "val", "test") and figure else column


@contextmanager
def _kept_off_stdout() -> Iterator[None]:
    """What foreign code prints goes to stderr, for stdout is the verb's result; its warnings are for its makers."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

"""TensorBoard, Weights & Biases and MLflow behind one shape; each keeps figures, images and matrices in its own way.

None of them is told to report on its use, and W&B's and MLflow's own reports about it are switched off, unless the
user has switched them on in the environment.
"""

import importlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from foveal.training.log_pictures import confusion_picture, contact_sheet

SECONDS_TO_FINISH = 120
"""How long W&B may take for the rest of its upload, where WANDB_FINISH_TIMEOUT does not say; what is left stays on the
disk."""
SECONDS_TO_START = 30
"""How long W&B's server may take to answer, where WANDB_INIT_TIMEOUT does not say; then the run is kept offline."""
SECONDS_TO_DISK = 0.5
"""How long W&B may keep rows in memory."""
_MLFLOW_PARAMS_AT_ONCE, _MLFLOW_METRICS_AT_ONCE = 100, 1000
_MLFLOW_LONGEST_VALUE = 6000
_NOT_IN_MLFLOW_NAMES = re.compile(r"[^\w\-./ ]")
_NUM_MATRIX_CELLS = 2500


@dataclass
class Told:
    """What a log has been told already, so that a resumed run tells it nothing twice.

    Attributes:
        key: the run's own name there, such as W&B's id.
        epoch: the last epoch whose figures it has, counted from 1.
        tags: the images and matrices that it has.
    """

    key: str = ""
    epoch: int = 0
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Start:
    """What a log is opened with.

    Attributes:
        folder: the run's folder of logs.
        project: the project or experiment.
        name: of the run, for people.
        hyperparameters: nested, values plain.
        resumed: whether the run goes on.
        told: what the log has been told; its `key` and `epoch` are set by the log itself.
        save: keeps `told` in the run folder.
        say: tells a person.
    """

    folder: Path
    project: str
    name: str
    hyperparameters: Mapping[str, Any]
    resumed: bool
    told: Told
    save: Callable[[], None]
    say: Callable[[str], None]


class Backend(Protocol):
    """One place where figures go. Names of figures are as people group them there: `val/loss`, `test/accuracy`."""

    def epoch(self, figures: Mapping[str, float], epoch: int) -> None:
        """Figures of one epoch, counted from 1."""

    def images(self, tag: str, images: NDArray[np.uint8], captions: Sequence[str], epoch: int) -> None:
        """Images, uint8 [n, h, w, 3], with a caption each or none at all."""

    def confusion_matrix(self, split: str, counts: NDArray[np.int64], class_names: Sequence[str], epoch: int) -> None:
        """Counts, int64 [c, c], true classes in rows."""

    def summary(self, figures: Mapping[str, float], epoch: int) -> None:
        """What the run came to."""

    def close(self, *, failed: bool) -> None:
        """Send what is left."""


class TensorBoard:
    """Event files in RUN/logs/tensorboard, so that `tensorboard --logdir` finds all runs below a folder."""

    def __init__(self, start: Start) -> None:
        module = importlib.import_module("torch.utils.tensorboard")
        folder = start.folder / "tensorboard"
        if not start.resumed:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        # What was written after the last epoch that is known to be whole is hidden: it will be written again.
        purge_step = start.told.epoch + 1 if start.resumed else None
        self._writer = module.SummaryWriter(str(folder), purge_step=purge_step)
        if not start.resumed:
            self._write_hyperparameters(start.hyperparameters)
        self._writer.flush()

    def _write_hyperparameters(self, hyperparameters: Mapping[str, Any]) -> None:
        # Not `add_hparams`, which makes a second run for them.
        summary = importlib.import_module("torch.utils.tensorboard.summary")
        values = {
            key: value if isinstance(value, bool | int | float | str) else _as_text(value)
            for key, value in flatten(hyperparameters, ".").items()
            if value is not None
        }
        figures = dict.fromkeys(("val/loss", "val/accuracy", "val/macro_f1", "test/accuracy", "test/macro_f1"))
        for part in summary.hparams(values, figures):
            self._writer.file_writer.add_summary(part)

    def epoch(self, figures: Mapping[str, float], epoch: int) -> None:
        """Write one point of each curve."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def images(self, tag: str, images: NDArray[np.uint8], captions: Sequence[str], epoch: int) -> None:
        """Write all on one sheet, for TensorBoard has no captions."""
        self._writer.add_image(f"images/{tag}", contact_sheet(images, captions), epoch, dataformats="HWC")
        self._writer.flush()

    def confusion_matrix(self, split: str, counts: NDArray[np.int64], class_names: Sequence[str], epoch: int) -> None:
        """Write it as a picture."""
        picture = confusion_picture(counts, class_names, f"{split}, {counts.sum():,} images")
        self._writer.add_image(f"confusion/{split}", picture, epoch, dataformats="HWC")
        self._writer.flush()

    def summary(self, figures: Mapping[str, float], epoch: int) -> None:
        """Write each as a point at the last epoch."""
        self.epoch(figures, epoch)

    def close(self, *, failed: bool) -> None:
        """Close the file; TensorBoard knows no failed runs."""
        del failed
        self._writer.close()


class WeightsAndBiases:
    """A run of W&B, whose id lies in the run folder; its x axis is the epoch, not its own count of calls."""

    def __init__(self, start: Start) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._wandb = importlib.import_module("wandb")
        if not start.told.key:
            start.told.key = secrets.token_hex(5)
            start.save()
        self._run = self._open(start)
        if start.resumed:
            # Online, the server knows best; offline, there is no more than what the run folder remembers.
            start.told.epoch = max(start.told.epoch, int(self._run.summary.get("epoch") or 0))
        self._run.define_metric("epoch", hidden=True)
        self._run.define_metric("*", step_metric="epoch")

    def _open(self, start: Start) -> Any:
        settings: dict[str, Any] = {"silent": True, "console": "off", "finish_timeout_raises": True}
        # Otherwise a process that is killed takes up to 15 seconds of rows with it.
        if "x_transaction_log_flush_interval" in self._wandb.Settings.model_fields:
            settings["x_transaction_log_flush_interval"] = SECONDS_TO_DISK
        if "WANDB_FINISH_TIMEOUT" not in os.environ:
            settings["finish_timeout"] = SECONDS_TO_FINISH
        if "WANDB_INIT_TIMEOUT" not in os.environ:
            settings["init_timeout"] = SECONDS_TO_START
        start.folder.mkdir(exist_ok=True)
        wanted = {
            "project": start.project,
            "id": start.told.key,
            "resume": "allow",
            "name": start.name,
            "config": dict(start.hyperparameters),
            "dir": str(start.folder),
            # A notebook may have a run of its own under way.
            "reinit": "create_new",
            "settings": self._wandb.Settings(**settings),
        }
        try:
            return self._wandb.init(**wanted)
        except self._wandb.errors.CommError as error:
            if self._wandb.run is not None:  # the user's own, which would be ended
                raise
            self._wandb.teardown()  # it holds the id for as long as it tries
            run = self._wandb.init(**{**wanted, "mode": "offline"})
            start.say(
                f"W&B cannot be reached ({first_line(error)}); the run is kept in {start.folder / 'wandb'}, and "
                f"`wandb sync` sends it."
            )
            return run

    def epoch(self, figures: Mapping[str, float], epoch: int) -> None:
        """Log one row of the history."""
        self._run.log({**figures, "epoch": epoch})

    def images(self, tag: str, images: NDArray[np.uint8], captions: Sequence[str], epoch: int) -> None:
        """Log each image with its caption."""
        texts: Sequence[str | None] = captions or [None] * len(images)
        shown = [self._wandb.Image(image, caption=text) for image, text in zip(images, texts, strict=True)]
        self._run.log({f"images/{tag}": shown, "epoch": epoch})

    def confusion_matrix(self, split: str, counts: NDArray[np.int64], class_names: Sequence[str], epoch: int) -> None:
        """Log it as W&B's own chart with its table; of very many classes only the cells that are not empty."""
        # As `wandb.plot.confusion_matrix` does, which would take every image's label instead of the counts.
        cells = np.ndindex(counts.shape) if counts.size <= _NUM_MATRIX_CELLS else map(tuple, np.argwhere(counts))
        rows = [[class_names[true], class_names[said], int(counts[true, said])] for true, said in cells]
        columns = ["Actual", "Predicted", "nPredictions"]
        chart = self._wandb.plot_table(
            data_table=self._wandb.Table(columns=columns, data=rows),
            vega_spec_name="wandb/confusion_matrix/v1",
            fields={column: column for column in columns},
            string_fields={"title": split},
        )
        self._run.log({f"confusion/{split}": chart, "epoch": epoch})

    def summary(self, figures: Mapping[str, float], epoch: int) -> None:
        """Set the figures of the run in the table of runs."""
        del epoch
        self._run.summary.update(dict(figures))

    def close(self, *, failed: bool) -> None:
        """Wait for the upload, but not for ever."""
        self._run.finish(exit_code=1 if failed else 0)


class MLflow:
    """A run of MLflow: on the server that the environment names, else in `mlflow.db` beside the run folder."""

    def __init__(self, start: Start) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # A server that is gone would hold up the training for minutes with every epoch.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        mlflow = importlib.import_module("mlflow")
        self._entities = importlib.import_module("mlflow.entities")
        # They tell on stderr of every table that they make, and of errors that come as exceptions, too.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        beside = start.folder.parent.resolve().parent
        if mlflow.is_tracking_uri_set():
            uri, artifacts = mlflow.get_tracking_uri(), None
        else:
            uri, artifacts = f"sqlite:///{beside / 'mlflow.db'}", (beside / "mlartifacts").as_uri()
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        self._run_id = self._open(start, artifacts)

    def _open(self, start: Start, artifacts: str | None) -> str:
        if start.told.key and (run := self._find(start.told.key)):
            start.told.epoch = int(run.data.metrics.get("epoch", 0))
            self._client.update_run(start.told.key, status="RUNNING")
            return start.told.key
        run = self._client.create_run(self._experiment(start.project, artifacts), run_name=start.name)
        # What another server, or a database that is gone, was told counts for nothing here.
        start.told.key, start.told.epoch, start.told.tags = str(run.info.run_id), 0, []
        start.save()
        values = {key: _as_text(value) for key, value in flatten(start.hyperparameters, ".").items()}
        params = [
            self._entities.Param(_mlflow_name(key), value[:_MLFLOW_LONGEST_VALUE]) for key, value in values.items()
        ]
        for first in range(0, len(params), _MLFLOW_PARAMS_AT_ONCE):
            self._client.log_batch(start.told.key, params=params[first : first + _MLFLOW_PARAMS_AT_ONCE])
        return start.told.key

    def _find(self, run_id: str) -> Any:
        """The run of that id; None where the server knows none, or it was deleted there."""
        exceptions = importlib.import_module("mlflow.exceptions")
        try:
            run = self._client.get_run(run_id)
        except exceptions.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _experiment(self, name: str, artifacts: str | None) -> str:
        if (found := self._client.get_experiment_by_name(name)) is None:
            exceptions = importlib.import_module("mlflow.exceptions")
            try:
                return str(self._client.create_experiment(name, artifact_location=artifacts))
            except exceptions.MlflowException:
                # Another run may have made it a moment ago.
                if (found := self._client.get_experiment_by_name(name)) is None:
                    raise
        return str(found.experiment_id)

    def epoch(self, figures: Mapping[str, float], epoch: int) -> None:
        """Log all figures at once, the epoch among them: it tells a resumed run how far the log is."""
        self.summary({**figures, "epoch": epoch}, epoch)

    def images(self, tag: str, images: NDArray[np.uint8], captions: Sequence[str], epoch: int) -> None:
        """Keep a sheet of all as an artifact, for MLflow has no captions."""
        del epoch
        self._client.log_image(self._run_id, contact_sheet(images, captions), f"images/{_file_name(tag)}.png")

    def confusion_matrix(self, split: str, counts: NDArray[np.int64], class_names: Sequence[str], epoch: int) -> None:
        """Keep it as a picture and as numbers."""
        del epoch
        picture = confusion_picture(counts, class_names, f"{split}, {counts.sum():,} images")
        self._client.log_image(self._run_id, picture, f"confusion/{_file_name(split)}.png")
        content = {"class_names": list(class_names), "confusion_matrix": counts.tolist()}
        self._client.log_text(self._run_id, json.dumps(content), f"confusion/{_file_name(split)}.json")

    def summary(self, figures: Mapping[str, float], epoch: int) -> None:
        """Log each at the last epoch."""
        now_ms = int(1000 * time.time())
        metrics = [self._entities.Metric(_mlflow_name(name), value, now_ms, epoch) for name, value in figures.items()]
        for first in range(0, len(metrics), _MLFLOW_METRICS_AT_ONCE):
            self._client.log_batch(self._run_id, metrics=metrics[first : first + _MLFLOW_METRICS_AT_ONCE])

    def close(self, *, failed: bool) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


BACKENDS: dict[str, tuple[str, Callable[[Start], Backend]]] = {
    "tensorboard": ("TensorBoard", TensorBoard),
    "wandb": ("W&B", WeightsAndBiases),
    "mlflow": ("MLflow", MLflow),
}
"""By the name in log.to: how people call it, and what opens it."""


def flatten(tree: Mapping[str, Any], separator: str, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, the keys joined."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, separator, f"{prefix}{key}{separator}")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _mlflow_name(name: str) -> str:
    """A name that MLflow takes: letters, digits and a few signs."""
    return _NOT_IN_MLFLOW_NAMES.sub("_", name)


def _file_name(tag: str) -> str:
    return _mlflow_name(tag).replace("/", "_").replace(" ", "_")


def first_line(error: BaseException) -> str:
    """What an error says, on one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

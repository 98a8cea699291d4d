"""What is logged elsewhere is read back with each library's own eyes; a log that fails ends nothing."""

import contextlib
import gc
import importlib.util
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveal.errors import ConfigError, InterruptedRunError, MissingExtraError
from foveal.run_folder import RunFolder
from foveal.training import logs as module
from foveal.training.config import LogConfig
from foveal.training.log_pictures import confusion_picture, contact_sheet
from foveal.training.logs import Logs, check_logs, open_logs
from small_runs import events

# It is used before MLflow is imported, which would otherwise start a thread that reports.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
needs_tensorboard = pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="needs foveal[tensorboard]")
needs_wandb = pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="needs foveal[wandb]")
needs_mlflow = pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="needs foveal[mlflow]")
each_log = pytest.mark.parametrize(
    "name",
    [
        pytest.param("tensorboard", marks=needs_tensorboard),
        pytest.param("wandb", marks=needs_wandb),
        pytest.param("mlflow", marks=needs_mlflow),
    ],
)

NAMES = ("2", "a $b$", "Ж/<i>")
COUNTS = np.array([[5, 1, 0], [2, 7, 0], [0, 0, 3]], dtype=np.int64)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 20, 24, 3)).astype(np.uint8)
CAPTIONS = [f"true 2, said {name}" for name in (*NAMES, "x", "y")]
HYPERPARAMETERS = {"seed": 3, "optim": {"lr": 0.01, "momentum": None, "name": "sgd"}, "log": {"to": ["csv"]}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run folder, with no account and no server of whoever runs the tests in sight."""
    for name in os.environ:
        if name.startswith(("WANDB_", "MLFLOW_")) and name != "MLFLOW_DISABLE_TELEMETRY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    folder = RunFolder(tmp_path / "runs ä" / "first")
    folder.prepare()
    return folder


@pytest.fixture(scope="module", autouse=True)
def _end_the_service_of_wandb() -> Iterator[None]:
    """W&B starts a process for all runs, and does not wait for it to end."""
    yield
    if "wandb" in sys.modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            sys.modules["wandb"].teardown()
            gc.collect()


def row(epoch: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "val_macro_f1": 0.1 * epoch,
        "val_top_3_accuracy": None,
        "lr": 1e-3,
    }


def opened(run: RunFolder, *names: str, resumed: bool = False, said: list[str] | None = None) -> Logs:
    config = LogConfig(to=("csv", *names), project="signs")
    say = [].append if said is None else said.append
    return open_logs(config, run, name="first", hyperparameters=HYPERPARAMETERS, resumed=resumed, say=say)


def wandb_records(run: RunFolder) -> Iterator[Any]:
    """All records of all offline runs in their order; as in LevelDB's log, there are blocks of 32 KiB."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # what a run's end does not wait for, the end of the process does
    for file in sorted((run.path / "logs" / "wandb").glob("offline-run-*/*.wandb")):
        content, place, parts = file.read_bytes(), 7, b""
        while place + 7 <= len(content):
            if 32768 - place % 32768 < 7:
                place += 32768 - place % 32768
                continue
            length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
            parts += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last part
                yield wandb_internal_pb2.Record.FromString(parts)
                parts = b""


def wandb_history(run: RunFolder) -> list[dict[str, Any]]:
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(run)
        if record.HasField("history")
    ]


def mlflow_run(run: RunFolder, number: int = 1) -> Any:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.path.parent / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("signs").experiment_id])
    assert len(runs) == number
    return client, runs[0]


def points(run: RunFolder, name: str, figure: str) -> list[tuple[int, float]]:
    """Epoch and value of every point of a curve, as a person would see it there."""
    if name == "wandb":
        rows = wandb_history(run)
        return [(int(row["epoch"]), round(row[figure], 6)) for row in rows if figure in row]
    if name == "mlflow":
        client, found = mlflow_run(run)
        return [(point.step, round(point.value, 6)) for point in client.get_metric_history(found.info.run_id, figure)]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "logs" / "tensorboard")).Reload()
    known = events.Tags()["scalars"]
    return [(point.step, round(point.value, 6)) for point in events.Scalars(figure)] if figure in known else []


@each_log
def test_figures_come_back_and_what_is_not_defined_is_left_out(
    name: str, run: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    with opened(run, name, said=said) as logs:
        for epoch in (1, 2, 3):
            logs.epoch(row(epoch))
        logs.summary({"test": {"accuracy": 0.75, "ece": None, "per_class": [1], "by": {"deep": np.float64(2)}}})
    assert points(run, name, "train/loss") == [(1, 1.0), (2, 0.5), (3, 0.333333)]
    assert points(run, name, "val/macro_f1") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert points(run, name, "lr") == [(1, 0.001), (2, 0.001), (3, 0.001)]
    assert points(run, name, "val/top_3_accuracy") == []
    if name == "wandb":
        items = [item for record in wandb_records(run) for item in record.summary.update]
        summary = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
        assert (summary["test/accuracy"], summary["test/by/deep"]) == (0.75, 2.0)
        assert "test/ece" not in summary
    else:
        assert points(run, name, "test/accuracy") == [(3, 0.75)]
        assert points(run, name, "test/by/deep") == [(3, 2.0)]
        assert points(run, name, "test/ece") == []
    assert (said, capfd.readouterr()) == ([], ("", ""))


@each_log
def test_a_resumed_run_goes_on_in_the_same_run_and_nothing_is_doubled(name: str, run: RunFolder) -> None:
    with contextlib.suppress(InterruptedRunError), opened(run, name) as logs:
        logs.images("training images", IMAGES)
        logs.epoch(row(1))
        logs.epoch(row(2))
        raise InterruptedRunError("Ctrl-C", signal_number=2, fix="")
    # The checkpoint knows of three epochs: the process was killed before it logged the third.
    with opened(run, name, resumed=True) as logs:
        logs.images("training images", IMAGES)
        for epoch in (1, 2, 3, 4):
            logs.epoch(row(epoch))
        logs.confusion_matrix("test", COUNTS, NAMES)
        logs.confusion_matrix("test", COUNTS, NAMES)
        logs.summary({"test": {"accuracy": 0.5}})
    with opened(run, name, resumed=True) as logs:  # killed while it was evaluated: all is told again
        for epoch in (1, 2, 3, 4):
            logs.epoch(row(epoch))
        logs.confusion_matrix("test", COUNTS, NAMES)
        logs.summary({"test": {"accuracy": 0.5}})
    assert points(run, name, "train/loss") == [(1, 1.0), (2, 0.5), (3, 0.333333), (4, 0.25)]
    if name == "wandb":
        assert len({record.run.run_id for record in wandb_records(run) if record.HasField("run")}) == 1
        assert sum("images/training images" in "".join(row) for row in wandb_history(run)) == 1
        assert sum("confusion/test" in "".join(row) for row in wandb_history(run)) == 1
    if name == "mlflow":
        assert mlflow_run(run)[1].info.status == "FINISHED"  # one run, or it could not be unpacked
    # Started anew in the same folder, nothing of it is taken for known.
    with opened(run, name) as logs:
        logs.epoch(row(1))
        assert logs.names == (name,)
    if name == "tensorboard":
        assert points(run, name, "train/loss") == [(1, 1.0)]


@needs_tensorboard
def test_tensorboard_has_hyperparameters_images_and_matrix_and_hides_what_came_after(run: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    with opened(run, "tensorboard") as logs:
        logs.images("worst errors", IMAGES, CAPTIONS)
        logs.confusion_matrix("test", COUNTS, NAMES)
        logs.epoch(row(1))
        told = (run.path / "logs" / "told.json").read_bytes()
        logs.epoch(row(2))
    folder = run.path / "logs" / "tensorboard"
    events_of = EventAccumulator(str(folder)).Reload()
    assert set(events_of.Tags()["images"]) == {"images/worst errors", "confusion/test"}
    (sheet,) = events_of.Images("images/worst errors")
    assert (sheet.width, sheet.height) == (3 * (6 * 24 + 4), 2 * (6 * 20 + 4 + 16))
    content = events_of.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert (values["optim.lr"].number_value, values["optim.name"].string_value) == (0.01, "sgd")
    assert values["log.to"].string_value == '["csv"]'
    assert "optim.momentum" not in values
    # Killed after the second point was written and before that was noted: the point is written again, and seen once.
    (run.path / "logs" / "told.json").write_bytes(told)
    with opened(run, "tensorboard", resumed=True) as logs:
        logs.epoch(row(2))
    assert points(run, "tensorboard", "train/loss") == [(1, 1.0), (2, 0.5)]


@needs_wandb
def test_wandb_has_configuration_images_with_captions_and_its_own_matrix(run: RunFolder) -> None:
    with opened(run, "wandb") as logs:
        logs.images("worst errors", IMAGES, CAPTIONS)
        logs.confusion_matrix("test", COUNTS, NAMES)
        logs.epoch(row(1))
    records = list(wandb_records(run))
    (start,) = [record.run for record in records if record.HasField("run")]
    assert (start.project, start.display_name) == ("signs", "first")
    config = {item.key: json.loads(item.value_json) for item in start.config.update}
    assert config["optim"] == HYPERPARAMETERS["optim"]
    history = wandb_history(run)
    assert [row[key] for row in history if (key := "images/worst errors/captions") in row] == [CAPTIONS]
    (files,) = (run.path / "logs" / "wandb").glob("offline-run-*/files")
    assert len(list(files.glob("media/images/**/*.png"))) == 5
    (table,) = files.glob("media/table/**/*.table.json")
    rows = json.loads(table.read_text())["data"]
    assert {(true, said): count for true, said, count in rows} == {
        (NAMES[i], NAMES[j]): COUNTS[i, j] for i in range(3) for j in range(3)
    }
    # The x axis is the epoch, however often anything was logged.
    axes = {record.metric.glob_name or record.metric.name: record.metric.step_metric for record in records}
    assert axes["*"] == "epoch"


@needs_mlflow
def test_mlflow_has_parameters_pictures_and_numbers_beside_the_run_folder(run: RunFolder) -> None:
    many = {f"key{number}": number for number in range(150)}
    config = LogConfig(to=("mlflow",), project="signs")
    with open_logs(
        config, run, name="first", hyperparameters={**HYPERPARAMETERS, "many": many}, resumed=False, say=print
    ) as logs:
        logs.images("worst errors", IMAGES, CAPTIONS)
        logs.confusion_matrix("test", COUNTS, NAMES)
        logs.epoch(row(1))
        logs.summary({"test": {"f1 of a<b>$ Ж": 0.5}})
    _, found = mlflow_run(run)
    assert found.data.params["optim.lr"] == "0.01"
    assert found.data.params["optim.momentum"] == "null"
    assert len(found.data.params) == 5 + 150
    assert found.info.run_name == "first"
    assert found.data.metrics["test/f1 of a_b__ Ж"] == 0.5
    artifacts = run.path.parent / "mlartifacts" / found.info.run_id / "artifacts"
    content = json.loads((artifacts / "confusion" / "test.json").read_text())
    assert (content["confusion_matrix"], content["class_names"]) == (COUNTS.tolist(), list(NAMES))
    assert (artifacts / "confusion" / "test.png").stat().st_size > 1000
    assert (artifacts / "images" / "worst_errors.png").stat().st_size > 1000
    # Going on with another database, which does not know the run: a new one holds all of it.
    told = run.path / "logs" / "told.json"
    told.write_text(told.read_text().replace(found.info.run_id, "0" * 32))
    with opened(run, "mlflow", resumed=True) as logs:
        logs.epoch(row(1))
        logs.epoch(row(2))
    client, _ = mlflow_run(run, number=2)
    new_id = json.loads(told.read_text())["mlflow"]["key"]
    assert [point.step for point in client.get_metric_history(new_id, "train/loss")] == [1, 2]


@needs_mlflow
def test_mlflow_of_the_environment_comes_first_and_a_failed_run_is_one(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'theirs.db'}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError), opened(run, "mlflow") as logs:
        logs.epoch({**row(1), "lr": 1 / 0})
    client = MlflowClient(f"sqlite:///{tmp_path / 'theirs.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("signs").experiment_id])
    assert found.info.status == "FAILED"
    assert not (run.path.parent / "mlflow.db").exists()


def break_log(name: str, run: RunFolder) -> None:
    """Pull the rug from under a log that is open."""
    if name == "mlflow":
        with sqlite3.connect(run.path.parent / "mlflow.db") as database:
            database.execute("DROP TABLE metrics")
    elif name == "wandb":
        children = " ".join(file.read_text() for file in Path("/proc/self/task").glob("*/children")).split()
        (service,) = [int(pid) for pid in children if "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text()]
        os.kill(service, signal.SIGKILL)
        time.sleep(0.5)


BROKEN = """
import sys, pathlib
sys.path[:0] = sys.argv[2:]
import training.test_logs as tests
run = tests.RunFolder(pathlib.Path(sys.argv[1]))
said = []
with tests.opened(run, "wandb", "mlflow", said=said) as logs:
    logs.epoch(tests.row(1))
    for name in ("wandb", "mlflow"):
        tests.break_log(name, run)
    for epoch in range(2, 6):
        logs.epoch(tests.row(epoch))
        logs.images(f"again {epoch}", tests.IMAGES)
    assert logs.names == ()
print(len(said), *said, sep="\\n")
"""


KILLED = """
import os, pathlib, signal, sys, time
sys.path[:0] = sys.argv[3:]
import training.test_logs as tests
logs = tests.opened(tests.RunFolder(pathlib.Path(sys.argv[1])), sys.argv[2])
for epoch in (1, 2):
    logs.epoch(tests.row(epoch))
time.sleep(1.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


@each_log
def test_killed_without_a_word_all_that_was_logged_is_there_and_not_twice(name: str, run: RunFolder) -> None:
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(run.path), name, str(Path(__file__).parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    said: list[str] = []
    with opened(run, name, resumed=True, said=said) as logs:
        for epoch in (1, 2, 3):
            logs.epoch(row(epoch))
    assert said == []
    assert points(run, name, "train/loss") == [(1, 1.0), (2, 0.5), (3, 0.333333)]


@needs_wandb
@needs_mlflow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the service of W&B by /proc")
def test_logs_that_break_are_told_once_and_the_run_goes_on_and_ends(run: RunFolder) -> None:
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BROKEN, str(run.path), str(tests)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    number, first, second = done.stdout.splitlines()
    assert number == "2"
    assert first.startswith("W&B failed, and the run goes on without it: ")
    assert second.startswith("MLflow failed, and the run goes on without it: ")
    assert [event["message"] for event in events(run.path, "warning")] == [first, second]
    # On its way out W&B complains on stderr that its service is gone; MLflow is quiet.
    assert "sqlalchemy" not in done.stderr


@needs_tensorboard
def test_a_log_that_cannot_be_opened_is_told_and_the_others_work(run: RunFolder) -> None:
    (run.path / "logs").mkdir()
    (run.path / "logs" / "tensorboard").write_text("in the way")
    said: list[str] = []
    names = ["tensorboard"] + (["mlflow"] if importlib.util.find_spec("mlflow") else [])
    with opened(run, *names, said=said) as logs:
        logs.epoch(row(1))
        assert logs.names == tuple(names[1:])
    (line,) = said
    assert line.startswith("TensorBoard failed, and the run goes on without it: ")
    assert "metrics.csv" in line


def test_a_damaged_memory_of_what_was_told_is_said(run: RunFolder) -> None:
    (run.path / "logs").mkdir()
    (run.path / "logs" / "told.json").write_text('{"wandb": {"key": ')
    said: list[str] = []
    with opened(run, resumed=True, said=said) as logs:
        logs.epoch(row(1))
    assert ["may be logged again" in line for line in said] == [True]


def test_csv_alone_opens_nothing_and_writes_nothing(run: RunFolder) -> None:
    with opened(run) as logs:
        logs.epoch(row(1))
        logs.images("x", IMAGES)
        logs.confusion_matrix("test", COUNTS, NAMES)
        logs.summary({"a": 1.0})
    assert not (run.path / "logs").exists()
    with Logs() as none:  # as in all processes of a distributed run but the first
        none.epoch(row(1))


def test_all_that_is_missing_is_told_at_once_before_any_work(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"mlflow", "sqlalchemy"}
    monkeypatch.setattr(module, "find_spec", lambda name: object() if name in there else None)
    with pytest.raises(MissingExtraError) as caught:
        check_logs(LogConfig(to=("csv", "wandb", "mlflow", "tensorboard")))
    assert set(caught.value.problems) == {
        "log.to=tensorboard needs tensorboard",
        "log.to=wandb needs wandb",
        "log.to=mlflow needs alembic",
    }
    assert "foveal[tensorboard,wandb,mlflow]" in caught.value.fix
    check_logs(LogConfig())


@needs_wandb
def test_wandb_without_a_key_is_refused_before_any_work_and_asks_nobody(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_logs(LogConfig(to=("wandb",)))  # offline
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.delenv("WANDB_MODE")
    import wandb

    wandb.teardown()
    with pytest.raises(ConfigError, match="knows no key") as caught:
        check_logs(LogConfig(to=("wandb",)))
    assert "WANDB_MODE=offline" in caught.value.fix
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()
    check_logs(LogConfig(to=("wandb",)))
    wandb.teardown()


@needs_wandb
def test_a_wandb_that_does_not_answer_is_told_and_the_run_is_kept_offline(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    for key, value in {"BASE_URL": "http://127.0.0.1:9", "API_KEY": "0" * 40, "INIT_TIMEOUT": "3"}.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    import wandb

    wandb.teardown()
    said: list[str] = []
    with opened(run, "wandb", said=said) as logs:
        logs.epoch(row(1))
    (line,) = said
    assert line.startswith("W&B cannot be reached")
    assert "`wandb sync` sends it" in line
    assert points(run, "wandb", "train/loss") == [(1, 1.0)]


def test_the_sheet_shows_every_image_in_its_place() -> None:
    sheet = contact_sheet(IMAGES, CAPTIONS)
    factor, row_px, column_px = 6, 6 * 20 + 4 + 16, 6 * 24 + 4
    assert sheet.shape == (2 * row_px, 3 * column_px, 3)
    for number, image in enumerate(IMAGES):
        top, left = number // 3 * row_px, number % 3 * column_px
        np.testing.assert_array_equal(sheet[top : top + 120 : factor, left : left + 144 : factor], image)
    captions = sheet[120:136]
    assert (captions < 128).any()
    assert (captions[:, 144:148] == 255).all(), np.argwhere(captions[:, 144:148] < 255)[
        :3
    ]  # a long one is cut off, not written over its neighbour
    assert contact_sheet(IMAGES[:1, :1, :1]).shape == (132, 132, 3)


@pytest.mark.parametrize("num_classes", [1, 3, 31, 300])
def test_the_picture_of_a_matrix_is_drawn_for_few_and_many_classes(num_classes: int) -> None:
    counts = np.eye(num_classes, dtype=np.int64) * 4
    picture = confusion_picture(counts, ["$x$ _"] * num_classes, "test $")
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 2

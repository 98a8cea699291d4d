"""Several processes that train together: one result, written once, whoever started them."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from commands import Command, without_drawing
from foveal.errors import ConfigError
from foveal.training.processes import Place, check_place, free_port, place_told
from small_runs import TINY, epochs

RECIPE = (
    *TINY,
    # Images of a batch do not see each other, and nothing is drawn: then two processes can equal one.
    "model.name=test_vit",
    "model.head.dropout=0",
    "augment.policy=none",
    "optim.name=sgd",
    "optim.lr=0.05",
    "train.epochs=2",
)
TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def command_of(out: Path, *overrides: str, data: Path | None = None, resume: bool = False) -> list[str]:
    """`foveal train` with the recipe."""
    words = ["train", *([str(data)] if data else []), "--out", str(out)]
    words += ["--resume"] * resume
    return [*words, *(word for override in (*RECIPE, *overrides) for word in ("--set", override))]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """Of the last step, in double precision."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["model"]
    return {name: value.double() for name, value in state.items()}


def far_apart(first: Path, second: Path) -> float:
    one, other = weights_of(first), weights_of(second)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    return make_images(tmp_path_factory.mktemp("together") / "images", ("2", "10", "b"), num_per_class=31)


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training by one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    with Command(command_of(run, data=images), without_drawing) as process:
        _, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
    return run


def test_two_processes_train_the_network_of_one(images: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # The first is started here, the second by the first.
    with Command(command_of(run, "train.devices=2", data=images), without_drawing) as process:
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
    assert "Bundle:" in out
    assert out.count("Report:") == 1
    assert far_apart(alone, run) < 1e-5
    for one, two in zip(epochs(alone), epochs(run), strict=True):
        # Counts of images: every one once, in whichever process.
        assert one["val_accuracy"] == two["val_accuracy"]
        assert float(one["val_loss"]) == pytest.approx(float(two["val_loss"]), abs=1e-5)
        assert float(one["train_loss"]) == pytest.approx(float(two["train_loss"]), abs=1e-5)
        assert one["train_accuracy"] == two["train_accuracy"]
    said = [parquet.read_table(folder / "evaluation/test/predictions.parquet") for folder in (alone, run)]
    assert said[0]["path"].to_pylist() == said[1]["path"].to_pylist()
    columns = [name for name in said[0].column_names if name.startswith("p_")]
    for name in columns:
        np.testing.assert_allclose(said[0][name].to_numpy(), said[1][name].to_numpy(), atol=1e-4)


def test_processes_that_somebody_else_started_find_together_and_go_on(
    images: Path, alone: Path, tmp_path: Path
) -> None:
    # As torchrun tells it to each of them; the second one starts first, and has to wait for the leader's data.
    run, port = tmp_path / "run", free_port()

    def started(rank: int, *, resume: bool) -> Command:
        place = Place(rank=rank, num_ranks=2, local_rank=rank, num_local=2, port=port)
        command = command_of(run, "train.devices=2", data=images, resume=resume)
        return Command(command, without_drawing, environment={**os.environ, **place.environment()})

    for resume in (False, True):
        with started(1, resume=resume) as second, started(0, resume=resume) as leader:
            said = [process.communicate(timeout=400) for process in (second, leader)]
            assert [second.returncode, leader.returncode] == [0, 0], said
        assert said[0][0] == ""
        assert "Bundle:" in said[1][0]
    assert far_apart(alone, run) < 1e-5


def test_the_processes_must_be_those_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)
    assert place_told() is None
    check_place(None, devices=2, nodes=1)
    with pytest.raises(ConfigError, match=r"train\.nodes=2"):
        check_place(None, devices=1, nodes=2)
    place = Place(rank=3, num_ranks=4, local_rank=1, num_local=2, node=1, address="node0", port=29500)
    for name, value in place.environment().items():
        monkeypatch.setenv(name, value)
    assert place_told() == place
    check_place(place, devices=2, nodes=2)
    with pytest.raises(ConfigError, match="4 processes were started"):
        check_place(place, devices=2, nodes=1)


def test_a_task_of_slurm_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)
    told = {
        "SLURM_JOB_ID": "1234567",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1",
        "SLURM_NTASKS": "8",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_NODELIST": "gpu[07-08]",
        "SLURM_JOB_NAME": "train",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    place = place_told()
    assert place is not None
    assert (place.rank, place.num_ranks, place.local_rank, place.num_local, place.node) == (5, 8, 1, 4, 1)
    assert place.address == "gpu07"
    assert place.port > 1024
    with monkeypatch.context() as patch:
        patch.delenv("SLURM_NTASKS_PER_NODE")
        with pytest.raises(ConfigError, match="--ntasks-per-node=8"):
            place_told()
    # A shell of the same allocation is no task of its own.
    monkeypatch.delenv("SLURM_PROCID")
    assert place_told() is None

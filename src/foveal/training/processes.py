"""The processes that train together: one for each device, or one alone."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined,unused-ignore]
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from foveal.errors import ConfigError, TrainingError
from foveal.machine import num_cpus
from foveal.training.config import ResolvedConfig

FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
JOIN_HOURS = 24
"""How long a process waits for the others to join: the leader reads and decodes the data in the meantime."""
SILENCE_MINUTES = 30
"""How long a process waits for a sign of the others once they train together."""

DISMISS_SECONDS = 60.0
"""How long the leader waits for the others to hear that there is nothing to do."""
_READY, _HERE, _DONE = "foveal/leader-ready", "foveal/here", "foveal/leader-done"
_LOOK_SECONDS = 0.05

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Place:
    """Which of the processes this one is, as torchrun, SLURM or the leader has told it.

    Attributes:
        rank: its number over all machines; 0 leads: it reads the data, writes the run and evaluates.
        num_ranks: processes over all machines.
        local_rank: its number on this machine.
        num_local: processes on this machine.
        node: number of this machine.
        address: where the leader listens.
        port: on which port.
    """

    rank: int = 0
    num_ranks: int = 1
    local_rank: int = 0
    num_local: int = 1
    node: int = 0
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def is_leader(self) -> bool:
        """Whether it is the one that reads the data, writes the run and evaluates."""
        return self.rank == 0

    def environment(self) -> dict[str, str]:
        """The same as torchrun tells it to a process."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.num_ranks),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.num_local),
            "GROUP_RANK": str(self.node),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


_called: set[Place | None] = set()
"""Places of this process, leading, from which the others have been called together."""


def place_told() -> Place | None:
    """The place that torchrun or SLURM has given this process; None where it was started alone.

    Raises:
        ConfigError: SLURM was asked for tasks in a way that does not say which belong to a machine.
    """
    told = os.environ
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= told.keys():
        return Place(
            rank=int(told["RANK"]),
            num_ranks=int(told["WORLD_SIZE"]),
            local_rank=int(told["LOCAL_RANK"]),
            num_local=int(told.get("LOCAL_WORLD_SIZE", "1")),
            node=int(told.get("GROUP_RANK", "0")),
            address=told["MASTER_ADDR"],
            port=int(told["MASTER_PORT"]),
        )
    # A shell within an allocation has SLURM's variables as well; only srun's steps have more than one task.
    of_slurm = {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_STEP_ID"}
    if of_slurm <= told.keys() and told["SLURM_NTASKS"] != "1":
        from lightning.fabric.plugins.environments import SLURMEnvironment

        try:
            slurm = SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:
            raise ConfigError(f"SLURM's variables do not fit: {error}", fix="docs/scale.md has a script.") from error
        num_nodes = int(told.get("SLURM_NNODES", "1"))
        return Place(
            rank=slurm.global_rank(),
            num_ranks=slurm.world_size(),
            local_rank=slurm.local_rank(),
            num_local=slurm.world_size() // num_nodes,
            node=slurm.node_rank(),
            address=slurm.main_address,
            port=slurm.main_port,
        )
    return None


def check_place(place: Place | None, *, devices: int, nodes: int) -> None:
    """Refuse a configuration that asks for other processes than there are.

    Raises:
        ConfigError: the numbers differ, or there are several machines and nobody has started the processes.
    """
    if place is None and nodes > 1:
        raise ConfigError(
            f"train.nodes={nodes}: foveal starts processes on its own machine only.",
            fix="start one on every machine with torchrun or srun; docs/scale.md shows both.",
        )
    if place is not None and place.num_ranks != devices * nodes:
        raise ConfigError(
            f"{place.num_ranks} processes were started, and train.devices={devices} x train.nodes={nodes} asks for "
            f"{devices * nodes}.",
            fix=f"set train.nodes to the number of machines, and train.devices to {place.num_local}.",
        )


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Processes:
    """What the training loop needs of the others; with one process everything is as it was.

    Args:
        place: which of them this one is.
    """

    def __init__(self, place: Place | None = None) -> None:
        self.place = place or Place()
        # Small messages go over the CPU, so that they never make a GPU wait.
        self._words: Any = None
        if self.is_many and torch.distributed.get_backend() != "gloo":
            self._words = torch.distributed.new_group(backend="gloo")

    @property
    def rank(self) -> int:
        """This process's number."""
        return self.place.rank

    @property
    def num_ranks(self) -> int:
        """Processes in all."""
        return self.place.num_ranks

    @property
    def is_many(self) -> bool:
        """Whether there are others."""
        return self.place.num_ranks > 1

    @property
    def is_leader(self) -> bool:
        """Whether this one writes the run."""
        return self.place.is_leader

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in the tensor's own type and on its device."""
        if self.is_many:
            on_cpu = tensor.detach().cpu().clone()
            torch.distributed.all_reduce(on_cpu, group=self._words)
            return on_cpu.to(tensor.device)
        return tensor

    def share_buffers(self, net: torch.nn.Module) -> None:
        """Give every process the leader's running statistics, so that all measure the same network."""
        if self.is_many:
            for buffer in net.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def agree(self, value: ValueT) -> ValueT:
        """The leader's value, for everyone."""
        if not self.is_many:
            return value
        held = [value]
        torch.distributed.broadcast_object_list(held, src=0, group=self._words)
        return held[0]

    def make_fabric(self, config: ResolvedConfig) -> Any:
        """Lightning's Fabric, which brings the device, the precision and DDP."""
        from lightning.fabric import Fabric

        # They would tell on stderr which precision they use; the run's configuration says so already.
        for name in ("lightning.fabric", "lightning.pytorch"):
            logging.getLogger(name).setLevel(logging.WARNING)
        precision = FABRIC_PRECISION[config.train.precision]
        if not self.is_many:
            return Fabric(accelerator=config.train.device, devices=1, precision=precision)
        from lightning.fabric.strategies import DDPStrategy

        strategy = DDPStrategy(
            cluster_environment=_environment_of(self.place),
            process_group_backend=_backend(config.train.device),
            # What thaws later, and an auxiliary head, have no gradient in some steps.
            find_unused_parameters=bool(config.model.unfreeze),
        )
        fabric = Fabric(
            accelerator=config.train.device,
            devices=self.place.num_local,
            num_nodes=self.place.num_ranks // self.place.num_local,
            strategy=strategy,
            precision=precision,
        )
        fabric.launch()
        return fabric


@contextmanager
def joined(place: Place, device: str, has_ended: Callable[[int], bool] | None = None) -> Iterator[Processes]:
    """Train together: the leader comes here when the data is ready, the others when it has said so.

    At the end the others wait for the leader's leaving, so that they find the whole run.

    Args:
        place: this one's.
        device: cpu or cuda.
        has_ended: whether the process of a rank is gone; only who has started the others can tell.

    Raises:
        TrainingError: one of them is gone before all have come together.
    """
    if place.num_ranks == 1:
        yield Processes(place)
        return
    if device == "cuda":
        torch.cuda.set_device(place.local_rank)
    else:
        # All of them share this machine's processors.
        torch.set_num_threads(max(1, num_cpus() // place.num_local))
    with _store(place, timedelta(hours=JOIN_HOURS), is_own=has_ended is not None) as store:
        if place.is_leader:
            _called.add(place)
            store.set(_READY, device)
        if place.is_leader and has_ended is not None:
            _await_arrivals(store, place, has_ended)
        store.set(f"{_HERE}/{place.rank}", "1")
        torch.distributed.init_process_group(
            _backend(device),
            store=PrefixStore("foveal", store),
            rank=place.rank,
            world_size=place.num_ranks,
            timeout=timedelta(minutes=SILENCE_MINUTES),
        )
        try:
            yield Processes(place)
            if place.is_leader:
                _let_go(store, place, timedelta(minutes=SILENCE_MINUTES), has_ended)
            else:
                store.wait([_DONE], timedelta(hours=JOIN_HOURS))
                store.set(f"{_DONE}/{place.rank}", "1")
        finally:
            torch.distributed.destroy_process_group()


def device_of_leader(place: Place) -> str | None:
    """Wait until the leader has read the data, which can take hours.

    Returns:
        The device to train on; None where there is nothing to train.
    """
    with _store(place, timedelta(hours=JOIN_HOURS)) as store:
        store.wait([_READY], timedelta(hours=JOIN_HOURS))
        device = store.get(_READY).decode()
        if not device:
            store.set(f"{_DONE}/{place.rank}", "1")
    return device or None


@contextmanager
def waited_for(place: Place | None) -> Iterator[None]:
    """Do what the leader does, and however it ends, keep nobody waiting: the run may be over, or unable to begin.

    Args:
        place: the leader's, if others were started beside it.
    """
    _called.discard(place)
    try:
        yield
    finally:
        if place is not None and place.num_ranks > 1 and place not in _called:
            # Where one of them is gone, or none has come, the leader does not wait for ever either.
            with suppress(RuntimeError), _store(place, timedelta(seconds=DISMISS_SECONDS)) as store:
                store.set(_READY, "")
                _let_go(store, place, timedelta(seconds=DISMISS_SECONDS))


@contextmanager
def _store(place: Place, timeout: timedelta, *, is_own: bool = False) -> Iterator[Any]:
    """Where the processes leave words for each other, as torch's own rendezvous opens it.

    Torch's waits in it until all have come; `is_own` opens it without, for a leader that looks after the others itself.
    """
    if is_own:
        yield TCPStore(place.address, place.port, place.num_ranks, True, timeout, wait_for_workers=False)
        return
    told = {name: os.environ.get(name) for name in place.environment()}
    os.environ.update(place.environment())
    try:
        store, _, _ = next(rendezvous("env://", place.rank, place.num_ranks, timeout=timeout))
        yield store
    finally:
        for name, value in told.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _await_arrivals(store: Any, place: Place, has_ended: Callable[[int], bool]) -> None:
    """Wait until the others are there, as long as all of them are under way."""
    while missing := [rank for rank in range(1, place.num_ranks) if not store.check([f"{_HERE}/{rank}"])]:
        if gone := [rank for rank in missing if has_ended(rank)]:
            raise TrainingError(
                f"Process {gone[0]} of this training ended before it could begin; what it said stands above.",
                fix="mend what it names, and go on with --resume.",
            )
        time.sleep(_LOOK_SECONDS)


def _let_go(store: Any, place: Place, timeout: timedelta, has_ended: Callable[[int], bool] | None = None) -> None:
    """Leave last: the store lives in the leader, and must outlive what the others ask of it."""
    store.set(_DONE, "1")
    others = range(1, place.num_ranks)
    if has_ended is None:
        store.wait([f"{_DONE}/{rank}" for rank in others], timeout)
        return
    while not all(has_ended(rank) or store.check([f"{_DONE}/{rank}"]) for rank in others):
        time.sleep(_LOOK_SECONDS)


def _backend(device: str) -> str:
    return "nccl" if device == "cuda" else "gloo"


def _environment_of(place: Place) -> Any:
    """What Lightning asks of a cluster, answered by a place."""
    from lightning.fabric.plugins.environments import ClusterEnvironment

    class Environment(ClusterEnvironment):  # type: ignore[misc,unused-ignore]
        creates_processes_externally = True
        main_address = place.address
        main_port = place.port

        @staticmethod
        def detect() -> bool:
            return True

        def world_size(self) -> int:
            return place.num_ranks

        def set_world_size(self, size: int) -> None:
            del size

        def global_rank(self) -> int:
            return place.rank

        def set_global_rank(self, rank: int) -> None:
            del rank

        def local_rank(self) -> int:
            return place.local_rank

        def node_rank(self) -> int:
            return place.node

    return Environment()

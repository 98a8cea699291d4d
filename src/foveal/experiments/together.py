"""The processes of one training: those that torchrun or SLURM started, children of this one, or this one alone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from foveal.errors import TrainingError
from foveal.run_folder import RunFolder
from foveal.training.config import ResolvedConfig
from foveal.training.processes import Place, Processes, check_place, free_port, joined, place_told

_END_SECONDS = 20.0


@contextmanager
def together(config: ResolvedConfig, run: RunFolder) -> Iterator[Processes]:
    """Lead a training: bring all of its processes together, and let them go at the end.

    Args:
        config: says how many devices and machines.
        run: written already, for the others read it.

    Raises:
        ConfigError: other processes were started than the configuration asks for.
        TrainingError: a process that was started here has failed.
    """
    told, devices, nodes = place_told(), config.train.devices, config.train.nodes
    check_place(told, devices=devices, nodes=nodes)
    if told is not None or devices == 1:
        with joined(told or Place(), config.train.device) as processes:
            yield processes
        return
    leader = Place(num_ranks=devices, num_local=devices, port=free_port())
    children = [_start(run, replace(leader, rank=rank, local_rank=rank)) for rank in range(1, devices)]
    try:
        with joined(leader, config.train.device, lambda rank: children[rank - 1].poll() is not None) as processes:
            yield processes
        for child in children:
            child.wait(_END_SECONDS)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        failed = [child.returncode for child in children if child.poll()]
        if failed:
            raise TrainingError(
                f"A process of this training failed (exit code {failed[0]}); what it said stands above.",
                fix="mend what it names, and go on with --resume.",
            ) from error
        raise
    finally:
        for child in children:
            _end(child)


def _start(run: RunFolder, place: Place) -> "subprocess.Popen[bytes]":
    """A process of the same foveal that takes its place beside this one."""
    command = [sys.executable, "-m", "foveal", "train", "--out", str(run.path.resolve()), "--resume"]
    return subprocess.Popen(command, env={**os.environ, **place.environment()}, stdout=subprocess.DEVNULL)


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End a child that has not ended by itself."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

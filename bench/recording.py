"""What a benchmark says of itself: its command line, the machine, and one JSON file below `bench/results/`."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from foveal.run_folder import describe_environment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


class Record:
    """Of one benchmark; prints the command line when it is made.

    Args:
        name: the result goes to `bench/results/NAME.json`, unless another file is given.
        out: that other file.
    """

    def __init__(self, name: str, out: Path | None = None) -> None:
        self._file = out or RESULTS / f"{name}.json"
        self._load_before = os.getloadavg()
        self.command = shlex.join(["python", *sys.argv])
        print(f"$ {self.command}", flush=True)

    def write(self, content: Mapping[str, Any], *, device: str = "cpu") -> None:
        """Write what was measured, with the machine and its load before and after; says where.

        Args:
            content: what was measured.
            device: where: cpu or cuda.
        """
        machine = describe_environment(seed=0, device=device)
        machine |= {"load_before": self._load_before, "load_after": os.getloadavg()}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"command": self.command, **content, "machine": machine}, indent=2)
        self._file.write_text(text + "\n", encoding="utf-8")
        before, after = self._load_before[0], machine["load_after"][0]
        print(f"\n{machine['cpu']}, {machine['num_cpus']} cores, torch {machine['packages']['torch']}; ", end="")
        print(f"load {before:.1f} before, {after:.1f} after. Written to {self._file}")


def add_out(parser: argparse.ArgumentParser, name: str) -> None:
    """The option that names the file of the result."""
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"the JSON result (default: bench/results/{name}.json)"
    )


def with_spread(values: Sequence[float], places: int = 3) -> str:
    """The median, with the lowest and the highest where there is more than one."""
    text = f"{median(values):.{places}g}"
    return text if len(values) < 2 else f"{text} ({min(values):.{places}g} to {max(values):.{places}g})"


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table in Markdown."""
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(str(cell) for cell in row)} |", flush=True)

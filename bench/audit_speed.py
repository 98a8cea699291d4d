"""The speed of `foveal audit` on CIFAR-10: against CleanVision's nine checks on 10,000 images, and on all 60,000.

Both sides are processes, timed from start to end, in turns; foveal makes every check but the deep ones, with an empty
cache folder each time, and writes its page and tables. Of CleanVision the checks alone are also timed, without the
start of Python and the imports; and of foveal the pass alone, from reading the folder to the last check, without the
start, the page and the tables. Prints one JSON object on stdout.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from images import unpacked_cifar10
from measuring import NotMeasuredError, Watched, watched
from peers import peer_python

HERE = Path(__file__).resolve().parent
BLOCKING = 3


def audited(images: Path, scratch: Path) -> Watched:
    """One audit from nothing; blocking findings are no failure."""
    cache, out = scratch / "cache", scratch / "audit"
    for folder in (cache, out):
        shutil.rmtree(folder, ignore_errors=True)
    environment = {**os.environ, "FOVEAL_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "foveal", "audit", str(images), "--out", str(out)]
    return watched(command, environment, allowed=(0, BLOCKING))


def compared(images: Path, scratch: Path, rounds: int) -> dict[str, Any]:
    """Foveal and CleanVision in turns."""
    peer = [str(peer_python()), str(HERE / "cleanvision_checks.py"), str(images)]
    said: dict[str, Any] = {"foveal": [], "foveal pass alone": [], "cleanvision": [], "cleanvision checks alone": []}

    def ours() -> None:
        said["foveal"].append(audited(images, scratch).seconds)
        stages = json.loads((scratch / "audit" / "summary.json").read_text(encoding="utf-8"))["seconds"]
        said["foveal pass alone"].append(sum(stages.values()))

    def theirs() -> None:
        done = watched(peer, os.environ)
        result = json.loads(done.stdout[done.stdout.index("{") :])
        said["cleanvision"].append(done.seconds)
        said["cleanvision checks alone"].append(result["seconds"])
        said.update({"cleanvision version": result["version"], "cleanvision found": result["found"]})

    sides: list[Callable[[], None]] = [ours, theirs]
    for number in range(rounds):
        for side in sides[:: -1 if number % 2 else 1]:
            side()
    return said


def scaled(images: Path, scratch: Path, rounds: int) -> dict[str, Any]:
    """The 10,000 of test/ and all 60,000, in turns."""
    runs: dict[str, list[Watched]] = {"test": [], ".": []}
    for number in range(rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            runs[name].append(audited(images / name, scratch))
    small, large = runs["test"], runs["."]
    return {
        "10,000": [each.seconds for each in small],
        "60,000": [each.seconds for each in large],
        "10,000 peak bytes": [each.peak_bytes for each in small],
        "60,000 peak bytes": [each.peak_bytes for each in large],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=("cleanvision", "scale"), help="both if not given")
    wanted = parser.parse_args()
    said: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="foveal-audit-") as folder:
        scratch = Path(folder)
        images = unpacked_cifar10(scratch)
        if images is None:
            parser.error("there is no cifar10.tar.gz; FOVEAL_DATA names the folder that it lies in")
        try:
            audited(images / "test", scratch)  # so that all read from a warm file cache
            if wanted.part != "scale":
                said |= compared(images / "test", scratch, wanted.rounds)
            if wanted.part != "cleanvision":
                said |= {"scale": scaled(images, scratch, wanted.rounds)}
        except NotMeasuredError as reason:
            sys.exit(str(reason))
    print(json.dumps(said))


if __name__ == "__main__":
    main()

"""What the parts of `bench/run.py` share: images, a cache folder of their own, two equal runs, the planted set."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from images import find_or_generate, real_images
from measuring import NotMeasuredError, run_json, watched

HERE = Path(__file__).resolve().parent
FOVEAL = [sys.executable, "-m", "foveal"]
QUICK = ["model.name=resnet18", "model.weights=none", "data.image_size=32", "train.epochs=1", "train.batch_size=64"]


class Bench:
    """What the measurements share.

    Args:
        rounds: how often each comparison is repeated.
        steps: training steps a round, or None for as many as a part takes by itself.
        scratch: a folder for images, caches and runs.
    """

    def __init__(self, rounds: int, steps: int | None, scratch: Path) -> None:
        self.rounds, self.steps, self.scratch = rounds, steps, scratch
        self.images = find_or_generate(scratch)
        self.environment = {**os.environ, "FOVEAL_CACHE_DIR": str(scratch / "cache")}
        self._runs: list[Path] = []

    def quick_run(self, number: int) -> Path:
        """The first or second of two equal runs on an empty cache folder, trained when asked for."""
        while len(self._runs) <= number:
            run = self.scratch / f"run{len(self._runs)}"
            settings = [text for setting in QUICK for text in ("--set", setting)]
            run_json([*FOVEAL, "train", str(self.images), "--out", str(run), "--json", *settings], self.environment)
            self._runs.append(run)
        return self._runs[number]

    def planted(self, *options: str) -> dict[str, Any]:
        """What `planted_recall.py` says of the planted set, which is made when first asked for."""
        source, images = real_images(), self.scratch / "planted" / "set"
        if source is None:
            raise NotMeasuredError("there is no sign_digits in $FOVEAL_DATA")
        if not images.is_dir():
            watched([sys.executable, str(HERE / "planted.py"), str(source), str(images)], self.environment)
        script = [sys.executable, str(HERE / "planted_recall.py"), str(images), *options]
        file = images.parent / "audit" / "recall.json"
        if file.is_file():
            script.append("--score-only")
        watched(script, self.environment, allowed=(0, 1))  # 1 where a target is missed
        said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return said

    def script(self, name: str, *options: str) -> dict[str, Any]:
        """What a script of this folder writes to the file that its `--out` names."""
        file = self.scratch / f"{name}.json"
        watched([sys.executable, str(HERE / f"{name}.py"), *options, "--out", str(file)], self.environment)
        said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return said

"""A process that runs one engine and is timed from within: `python -m foveal.evaluation.engine_process`.

Requests come as JSON lines on stdin, answers go as JSON lines to stdout; it ends with stdin. One engine a process, so
that its threads and its memory are its own. Nothing here imports torch before an engine asks for it.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveal.errors import FovealError
from foveal.pixels.geometry import crop_box
from foveal.pixels.policy import ImageRejectedError, PixelPolicy, decode
from foveal.pixels.rejection import reason_of
from foveal.prediction import ImageInput, ImagePredictor, Seen

Run = Callable[[Sequence[Seen]], object]


class EngineServer:
    """One engine, ready to be asked.

    Args:
        engine: which; see `foveal.evaluation.latency_figures.ENGINES`.
        model: the exported model, or the bundle.
        script: the TorchScript file, of that engine alone.
        num_threads: threads that compute.
        device: where torch computes.
        images: what it is timed on: {"path", "box", "margin"}, or {"noise": side in pixels}.
    """

    def __init__(
        self, engine: str, model: str, script: str, num_threads: int, device: str, images: Sequence[dict[str, Any]]
    ) -> None:
        started = time.perf_counter()
        self._predictor, self._run = _engine(engine, Path(model), script, num_threads, device)
        self.load_seconds = time.perf_counter() - started
        self._images = images
        self._seen: list[Seen] = []

    def prepare(self, num_kept: int) -> dict[str, Any]:
        """Decode every image once, which is also the warm-up of the disk; keep some for batches.

        Args:
            num_kept: how many.
        """
        failed: dict[str, str] = {}
        for number, image in enumerate(self._images):
            try:
                seen = self._predictor.prepare(_pixels(image))
            except (ImageRejectedError, OSError) as error:
                failed[str(number)] = reason_of(error)
                continue
            if len(self._seen) < num_kept:
                self._seen.append(seen)
        if self._seen:
            self._run(self._seen[:1])
        return {"failed": failed}

    def one(self, number: int) -> dict[str, Any]:
        """Seconds of decoding one image and cutting its squares, and of computing its probabilities."""
        start = time.perf_counter()
        seen = self._predictor.prepare(_pixels(self._images[number]))
        middle = time.perf_counter()
        self._run([seen])
        return {"decode": middle - start, "network": time.perf_counter() - middle}

    def batch(self, size: int) -> dict[str, Any]:
        """Seconds of one batch of finished squares."""
        batch = [self._seen[number % len(self._seen)] for number in range(size)]
        start = time.perf_counter()
        self._run(batch)
        return {"seconds": time.perf_counter() - start}

    def memory(self) -> dict[str, Any]:
        """The most resident memory that the process ever held, in bytes."""
        return {"peak_bytes": peak_bytes()}


def _engine(engine: str, model: Path, script: str, num_threads: int, device: str) -> tuple[ImagePredictor, Run]:
    if engine.startswith("onnx"):
        from foveal.exported.engine import OnnxPredictor

        exported = OnnxPredictor(model, num_threads=num_threads)
        return exported, exported.probabilities
    import torch

    from foveal.inference import Predictor

    torch.set_num_threads(num_threads)
    predictor = Predictor(model, device=device)
    if engine == "torch":
        return predictor, _default_layout(predictor, next(predictor.members[0].classifier.parameters()).device)
    if engine == "torch_compiled":
        for member in predictor.members:
            member.classifier.compile()
    if engine == "torchscript":
        from foveal.exporting.engines import ScriptPredictor

        return predictor, ScriptPredictor(Path(script), predictor).probabilities
    return predictor, predictor.probabilities


def _default_layout(predictor: Any, device: Any) -> Run:
    """The same networks as torch has them by itself: rows of one colour after the other, without channels_last."""
    import torch

    from foveal.inference import to_unit

    for member in predictor.members:
        member.classifier.to(memory_format=torch.contiguous_format)

    def run(seen: Sequence[Seen]) -> object:
        said = []
        for member in predictor.members:
            squares = np.ascontiguousarray(np.stack([each[member.look][0] for each in seen]).transpose(0, 3, 1, 2))
            with torch.inference_mode():
                logits = member.classifier(to_unit(torch.from_numpy(squares), device))
                said.append(torch.softmax(logits / member.temperature, dim=1).cpu().numpy())
        return said

    return run


def _pixels(image: dict[str, Any]) -> ImageInput:
    """What a predictor takes."""
    if "noise" in image:
        side = int(image["noise"])
        return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    path = Path(image["path"])
    if image.get("box") is None:
        return path
    return crop_box(decode(path, PixelPolicy()).pixels, tuple(image["box"]), float(image["margin"]))


def peak_bytes() -> int | None:
    """The most resident memory that this process ever held, in bytes; None where the system does not tell.

    Not `ru_maxrss` on Linux: a new process inherits there what the one that started it held.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def main() -> None:
    """Answer requests until stdin ends."""
    # Whatever a library prints goes to stderr: stdout is for answers alone.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    server: EngineServer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        name, values = request["ask"], request.get("with", {})
        try:
            if server is None:
                server = EngineServer(**values)
                said: dict[str, Any] = {"load_seconds": server.load_seconds}
            else:
                said = getattr(server, name)(**values)
        except FovealError as error:
            said = {"error": str(error)}
        except (ImageRejectedError, OSError, RuntimeError, ValueError, MemoryError) as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

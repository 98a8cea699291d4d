"""TorchScript: the file alone gives what foveal predicts, for networks and for ensembles."""

import io
import json
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from foveal.errors import ExportError
from foveal.exporting.describing import looks_of
from foveal.exporting.torchscript import make_torchscript
from foveal.inference import Predictor
from foveal.model.build import Classifier
from foveal.model.bundle import Bundle, open_bundle, read_bundle, update_bundle, write_bundle
from foveal.model.ensemble_bundle import write_ensemble
from foveal.model.voting import Vote
from foveal.pixels.geometry import to_square, to_store

LOAD = """
import json, sys, warnings
warnings.simplefilter("ignore", FutureWarning)
import torch
found = torch.jit.load(sys.argv[1])(torch.full((2, 32, 32, 3), 200, dtype=torch.uint8))
print(json.dumps({"probabilities": found.tolist(), "modules": [n for n in ("timm", "foveal") if n in sys.modules]}))
"""


def script_of(content: bytes) -> Any:
    jit: Any = torch.jit
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.load` is deprecated", category=FutureWarning)
        return jit.load(io.BytesIO(content))


def other_network(path: Path, folder: Path) -> Bundle:
    """The bundle at `path` with other weights, for smaller squares and of another temperature."""
    bundle = read_bundle(path)
    generator = torch.Generator().manual_seed(1)
    state = bundle.state()
    state["classifier.weight"] = torch.randn(state["classifier.weight"].shape, generator=generator)
    spec = bundle.spec.model_dump(exclude={"format_version", "foveal_version", "files"})
    preprocessing = {**spec["preprocessing"], "size_px": 24, "store_px": 26}
    return write_bundle(folder, {**spec, "preprocessing": preprocessing, "temperature": 0.7}, state)


def check_same(predictor: Predictor, script: Any, networks: Sequence[Bundle]) -> None:
    for num in (1, 5):
        images = list(np.random.default_rng(num).integers(0, 256, (num, 40, 56, 3), dtype=np.uint8))
        expected = np.stack([prediction.probabilities for prediction in predictor(images)])
        squares = [torch.from_numpy(each) for each in squares_of(images, networks)]
        found = script(*squares)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert np.ptp(expected, axis=0).max() > 0.05, "the images must not all get the same answer"


def squares_of(images: Sequence[NDArray[np.uint8]], networks: Sequence[Bundle]) -> list[NDArray[np.uint8]]:
    looks = [look.geometry() for look in looks_of(networks)]
    return [np.stack([to_square(to_store(image, look), look) for image in images]) for look in looks]


def test_a_network_gives_its_calibrated_probabilities(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    script = script_of(make_torchscript(bundle))
    check_same(Predictor(tiny_bundle, device="cpu"), script, [bundle])
    assert not list(script.parameters()), "frozen: weights are constants"


@pytest.mark.parametrize("vote", ["soft", "weighted", "majority"])
def test_an_ensemble_votes_inside(vote: Vote, tiny_bundle: Path, tmp_path: Path) -> None:
    first, second = read_bundle(tiny_bundle), other_network(tiny_bundle, tmp_path / "other")
    shares = [0.2, 0.5, 0.3] if vote == "weighted" else [1.0 / 3.0] * 3
    written = write_ensemble(tmp_path / "all", [second, first, second], ["a", "b", "c"], vote=vote, weights=shares)
    update_bundle(written.path, temperature=1.3)
    bundle = open_bundle(written.path)
    script = script_of(make_torchscript(bundle))
    check_same(Predictor(written.path, device="cpu"), script, written.members)


def test_the_file_needs_nothing_but_torch(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    file = tmp_path / "model.ts"
    file.write_bytes(make_torchscript(bundle))
    done = subprocess.run([sys.executable, "-I", "-c", LOAD, str(file)], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["modules"] == []
    grey = np.full((32, 34, 3), 200, dtype=np.uint8)
    expected = Predictor(tiny_bundle, device="cpu")([grey])[0].probabilities
    np.testing.assert_allclose(said["probabilities"], [expected] * 2, atol=1e-6)


def test_a_number_of_images_that_became_a_constant_is_found_out(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Classifier.forward

    def depends_on_their_number(self: Classifier, pixels: torch.Tensor) -> torch.Tensor:
        logits = forward(self, pixels)
        return 9.0 * (logits if len(pixels) == 2 else logits.flip(1))

    monkeypatch.setattr(Classifier, "forward", depends_on_their_number)
    with pytest.raises(ExportError, match="probabilities differ by") as caught:
        make_torchscript(read_bundle(tiny_bundle))
    assert "--to onnx" in caught.value.fix

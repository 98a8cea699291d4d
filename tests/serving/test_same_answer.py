"""The promise over the whole way: one picture has one answer, from Python, command line, file, REST and page."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from page_in_browser import give

import foveal
from foveal.exported.engine import OnnxPredictor
from foveal.exported.opening import open_export
from foveal.exported.spec import IMAGE_INPUT, PROBABILITIES
from foveal.pixels.policy import decode
from small_runs import CLASSES, copy_of, small_run

LIMIT = 1e-5


@pytest.fixture(scope="module")
def run(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one's own, for an export counts as a look at its test images."""
    return copy_of(small_run(make_images, tmp_path_factory), tmp_path_factory.mktemp("to export") / "run")


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "signs"
    foveal.export(run, folder, overrides=["export.num_speed_images=0"])
    return folder


@pytest.fixture(scope="module")
def server(exported: Path) -> Iterator[str]:
    with foveal.Server([exported]) as serving:
        yield serving.url


def by_name(files: list[Path], rows: list[list[float]]) -> dict[str, np.ndarray]:
    return {file.name: np.array(row) for file, row in zip(files, rows, strict=True)}


def differences(expected: dict[str, np.ndarray], said: dict[str, np.ndarray]) -> float:
    assert set(said) == set(expected)
    return max(float(np.abs(said[name] - expected[name]).max()) for name in expected)


def test_one_picture_has_one_answer(
    run: Path, exported: Path, server: str, pictures: list[Path], tmp_path: Path
) -> None:
    """For the eight orientations, grey, CMYK, 16 bits and transparency."""
    files = pictures
    assert len(files) >= 12
    expected = by_name(files, [each.probabilities.tolist() for each in foveal.Predictor(run)(files)])
    assert len({row.round(4).tobytes() for row in expected.values()}) > 3, "pictures that are all alike prove nothing"
    answers: dict[str, dict[str, np.ndarray]] = {}
    answers["onnx"] = by_name(files, [each.probabilities.tolist() for each in OnnxPredictor(exported)(files)])
    for model in (run, exported):
        table = tmp_path / f"{model.name}.jsonl"
        command = [sys.executable, "-m", "foveal", "predict", str(model), *map(str, files), "--out", str(table)]
        subprocess.run(command, check=True, capture_output=True)
        rows = [json.loads(line) for line in table.read_text().splitlines()]
        answers[f"command line, {model.name}"] = by_name(
            files, [[row[f"p_{name}"] for name in CLASSES] for row in rows]
        )
    # What somebody else's program does: decode, and hand the pixels to the graph, whatever their number.
    export = open_export(exported)
    session, policy = export.session(), export.spec.looks[0].preprocessing.policy()
    raw = [session.run([PROBABILITIES], {IMAGE_INPUT: decode(file, policy).pixels[None]})[0][0] for file in files]
    answers["pixels to the graph"] = by_name(files, [row.tolist() for row in raw])
    with httpx.Client(base_url=server, timeout=60.0) as asking:
        reply = asking.post("/v1/predict", files=[("image", (file.name, file.read_bytes())) for file in files])
        kind = {"content-type": "application/octet-stream"}
        alone = [asking.post("/v1/predict", content=file.read_bytes(), headers=kind) for file in files]
    assert reply.status_code == 200
    together = reply.json()["predictions"]
    assert [each["name"] for each in together] == [file.name for file in files]
    answers["rest"] = by_name(files, [[each["probabilities"][name] for name in CLASSES] for each in together])
    single = [each.json()["predictions"][0]["probabilities"] for each in alone]
    answers["rest, one by one"] = by_name(files, [[each[name] for name in CLASSES] for each in single])
    found_differences = {way: differences(expected, said) for way, said in answers.items()}
    assert max(found_differences.values()) < LIMIT, found_differences


def test_the_page_has_the_same_answer(run: Path, server: str, pictures: list[Path], opened: Callable[..., Any]) -> None:
    expected = by_name(pictures, [each.probabilities.tolist() for each in foveal.Predictor(run)(pictures)])
    tab = opened(server)
    give(tab, pictures)
    cards = tab.evaluate(
        """[...document.querySelectorAll('#cards > [data-state=done]')].map(card => {
          card.querySelectorAll('.body details').forEach(each => { each.open = true; });
          return [card.dataset.path, Object.fromEntries([...card.querySelectorAll('.bars li')].map(
            bar => [bar.dataset.class, Number(bar.dataset.probability)]))];
        })"""
    )
    said = {path: np.array([bars[name] for name in CLASSES]) for path, bars in cards}
    assert differences(expected, said) < LIMIT

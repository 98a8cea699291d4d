"""Pipelines saved by albumentations: run exactly, seeded, in threads; refused where they do not fit."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import foveal.data.augment_albumentations as module
from foveal.data.augment_albumentations import AlbumentationsPipeline, albumentations_pipeline
from foveal.errors import ConfigError, MissingExtraError
from foveal.extras import require

SIDE = 48


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    return pytest.importorskip("albumentations")


@pytest.fixture
def saved(library: Any, tmp_path: Path) -> Callable[..., Path]:
    def save(*names: str, ending: str = "yaml", **keys: Any) -> Path:
        made = {
            "flip": library.HorizontalFlip(p=0.5),
            "light": library.RandomBrightnessContrast(p=0.5),
            "turn": library.Rotate(12, p=1.0),
            "one_of": library.OneOf([library.GaussianBlur(p=1), library.GaussNoise(p=1)], p=0.5),
            "crop": library.RandomResizedCrop((40, 40), p=1.0),
            "crop_sometimes": library.RandomResizedCrop((40, 40), p=0.5),
            "numbers": library.Normalize(),
            "floats": library.ToFloat(),
        }
        file = tmp_path / f"{'_'.join(names)}.{ending}"
        pipeline = library.Compose([made[name] for name in names], **keys)
        library.save(pipeline, str(file), data_format="json" if ending == "json" else "yaml")
        return file

    return save


def image(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def read(file: Path, size: int = SIDE) -> AlbumentationsPipeline:
    return albumentations_pipeline(file, side_px=SIDE, size_px=size)


@pytest.mark.parametrize("ending", ["yaml", "yml", "json"])
def test_it_is_the_saved_pipeline_seeded(ending: str, saved: Callable[..., Path], library: Any) -> None:
    file = saved("flip", "turn", "light", "one_of", ending=ending)
    pipeline = read(file)
    theirs = library.load(str(file), data_format="json" if ending == "json" else "yaml")
    results = [pipeline(image(), seed) for seed in range(40)]
    for seed, result in enumerate(results):
        assert np.array_equal(pipeline(image(), seed), result)
        theirs.set_random_state(np.random.default_rng(seed), random.Random(seed))
        assert np.array_equal(theirs(image=image())["image"], result)
    assert len({result.tobytes() for result in results}) == 40
    assert [(each.name, each.share) for each in pipeline.operations] == [
        ("HorizontalFlip", 0.5), ("Rotate", 1.0), ("RandomBrightnessContrast", 0.5), ("OneOf", 0.5)
    ]  # fmt: skip
    flipped = pipeline.alone("HorizontalFlip", image()[None], 3)
    assert flipped is not None
    assert np.array_equal(flipped[0], image()[:, ::-1])


def test_transforms_draw_each_for_itself(saved: Callable[..., Path]) -> None:
    """Their own set_random_seed gives all of them one and the same stream."""
    pipeline = read(saved("flip", "light"))
    ramp = np.broadcast_to(np.arange(SIDE, dtype=np.uint8)[None, :, None] * 3 + 40, (SIDE, SIDE, 3)).copy()
    kinds = set()
    for seed in range(60):
        result = pipeline(ramp, seed)
        is_flipped = bool(result[0, 0, 0] > result[0, -1, 0])
        kinds.add((is_flipped, np.array_equal(result, ramp[:, ::-1] if is_flipped else ramp)))
    assert len(kinds) == 4


def test_threads_give_what_one_after_the_other_gives(saved: Callable[..., Path]) -> None:
    pipeline = read(saved("flip", "turn", "light", "one_of"))
    alone = [pipeline(image(seed), seed).tobytes() for seed in range(120)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda seed: pipeline(image(seed), seed).tobytes(), range(120)))
    assert together == alone


def test_what_comes_out_may_be_the_models_size(saved: Callable[..., Path]) -> None:
    pipeline = read(saved("turn", "crop"), size=40)
    assert pipeline.out_px == 40
    assert pipeline(image(), 0).shape == (40, 40, 3)
    with pytest.raises(ConfigError, match=r"40 x 40 x 3.*data\.image_size=40"):
        read(saved("crop"), size=44)


@pytest.mark.parametrize(("names", "keys", "words"), [
    (("flip", "numbers"), {}, "Normalize: remove it"),
    (("floats",), {}, "ToFloat: remove it"),
    (("crop_sometimes",), {}, "40 x 40 x 3 and 48 x 48 x 3"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(
    names: tuple[str, ...], keys: dict[str, Any], words: str, saved: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=words):
        read(saved(*names, **keys), size=40)


def test_boxes_are_refused(saved: Callable[..., Path], library: Any) -> None:
    file = saved("flip", bbox_params=library.BboxParams(format="coco", label_fields=["l"]), ending="json")
    with pytest.raises(ConfigError, match="bbox_params: boxes and points"):
        read(file)


def test_older_releases_are_understood_or_refused_never_half_read(saved: Callable[..., Path], tmp_path: Path) -> None:
    tree = json.loads(saved("flip", ending="json").read_text(encoding="utf-8"))
    tree["__version__"] = "1.3.1"
    (step,) = tree["transform"]["transforms"]

    def rewritten(**keys: Any) -> Path:
        file = tmp_path / "old.json"
        step.update(keys)
        file.write_text(json.dumps(tree), encoding="utf-8")
        return file

    always = read(rewritten(always_apply=True))
    assert all(np.array_equal(always(image(), seed), image()[:, ::-1]) for seed in range(8))
    with pytest.raises(ConfigError, match=r"lost_key.*saved by 1\.3\.1, installed is"):
        read(rewritten(always_apply=False, lost_key=3))
    with pytest.raises(ConfigError, match=r"NoSuchThing: albumentations .* has no such transform"):
        read(rewritten(__class_fullname__="NoSuchThing"))
    for text in ("[]", "{", "{}", '{"transform": 3}'):
        (tmp_path / "bad.json").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"bad\.json"):
            read(tmp_path / "bad.json")
    with pytest.raises(ConfigError, match="missing"):
        read(tmp_path / "missing.yaml")


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str, **words: str) -> Any:
        return require("no_such_library", **words)

    monkeypatch.setattr(module, "require", absent)
    with pytest.raises(MissingExtraError, match=r"foveal\[albumentations\]"):
        read(tmp_path / "p.yaml")


def test_it_asks_no_server(saved: Callable[..., Path]) -> None:
    """In a process of its own, where nobody has set the variable before."""
    code = (
        "import socket, sys, warnings\n"
        "def refuse(*_, **__): raise SystemExit('it went to the network')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from foveal.data.augment_albumentations import albumentations_pipeline\n"
        f"albumentations_pipeline({str(saved('flip'))!r}, side_px=32, size_px=32)\n"
        "print('done')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "done\n", done.stderr

"""Fixtures for every part of the tests: a cache folder of its own for each, small images to learn, a small bundle."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image, ImageDraw

from foveal.machine import num_cpus, ram_bytes

# Before anything imports torch: with pictures this small, more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The hub's library reads this once, when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

# How long an example takes is up to what else the machine is at.
settings.register_profile("beside others", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("beside others")

SHAPES = ("discs", "squares", "stripes")
TINY_MODEL = "test_efficientnet"
MOST_PROCESSES = 4


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Processes for `make test`: one with torch takes a gigabyte, and tests start some of their own beside it."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    ram = ram_bytes()
    by_memory = MOST_PROCESSES if ram is None else ram // (3 << 30)
    return max(1, min(num_cpus(), by_memory, MOST_PROCESSES))


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What fixtures of a module or the session make stays out of the user's cache, too."""
    os.environ["FOVEAL_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache-of-the-session"))


@pytest.fixture(autouse=True)
def _own_cache_and_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what another left in the cache, and none asks the network for weights."""
    monkeypatch.setenv("FOVEAL_CACHE_DIR", str(tmp_path / "cache-of-foveal"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def draw_shape(shape: str, side_px: int, rng: np.random.Generator) -> Image.Image:
    """A bright shape somewhere on a dark noisy ground: easy to learn in a few epochs, and no two alike."""
    image = Image.fromarray(rng.integers(0, 90, (side_px, side_px, 3), dtype=np.uint8))
    draw = ImageDraw.Draw(image)
    colour = tuple(int(value) for value in rng.integers(150, 256, 3))
    size = int(rng.integers(side_px // 3, side_px // 2))
    left, top = (int(value) for value in rng.integers(0, side_px - size, 2))
    box = (left, top, left + size, top + size)
    if shape == "discs":
        draw.ellipse(box, fill=colour)
    elif shape == "squares":
        draw.rectangle(box, fill=colour)
    else:
        for x in range(int(rng.integers(0, 4)), side_px, max(4, side_px // 6)):
            draw.line((x, 0, x, side_px), fill=colour, width=max(1, side_px // 16))
    # Plain shapes are copies of each other, turned and zoomed; blotches make each a picture of its own.
    blotches = rng.normal(0.0, 45.0, (side_px // 4 + 1, side_px // 4 + 1)).astype(np.float32)
    light = Image.fromarray(blotches).resize((side_px, side_px), Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(image) + np.asarray(light)[:, :, None]).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def make_images() -> Callable[..., Path]:
    """Write a folder of class folders: `make_images(folder, num_per_class=12, side_px=32, seed=0)`.

    Every second file is a JPEG, the others are PNG; the same arguments give the same bytes.
    """

    def make(
        folder: Path, classes: Sequence[str] = SHAPES, *, num_per_class: int = 12, side_px: int = 32, seed: int = 0
    ) -> Path:
        rng = np.random.default_rng(seed)
        for number, name in enumerate(classes):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for i in range(num_per_class):
                image = draw_shape(SHAPES[number % len(SHAPES)], side_px, rng)
                image.save(folder / name / f"{i}.{'jpg' if i % 2 else 'png'}")
        return folder

    return make


@pytest.fixture(scope="session")
def _bundle_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from foveal.model.build import Architecture, build
    from foveal.model.bundle import write_bundle

    torch.manual_seed(0)
    classifier = build(Architecture(name=TINY_MODEL, num_classes=len(SHAPES), image_size=32))
    state = classifier.net.state_dict()
    # Random weights hardly tell images apart; a stronger last layer makes every difference visible.
    state["classifier.weight"] *= 60.0
    spec = {
        "architecture": {"name": TINY_MODEL},
        "class_names": SHAPES,
        "preprocessing": {
            "policy_version": 1,
            "max_pixels": 120_000_000,
            "size_px": 32,
            "store_px": 34,
            "fit": "crop",
            "interpolation": "bicubic",
            "background": (255, 255, 255),
            "mean": classifier.architecture.mean,
            "std": classifier.architecture.std,
        },
        "temperature": 1.5,
        "training_data": {"fingerprint": "0" * 64, "num_images": {"train": 24, "val": 6, "test": 6}},
        "weights": {"source": "none", "licence": "none: trained from a random start"},
    }
    return write_bundle(tmp_path_factory.mktemp("template") / "bundle", spec, state).path


@pytest.fixture
def tiny_bundle(_bundle_template: Path, tmp_path: Path) -> Path:
    """A bundle of a small untrained network for the three shapes at 32 px, the test's own to change."""
    return Path(shutil.copytree(_bundle_template, tmp_path / "tiny-bundle"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Sockets that cannot connect and names that cannot be looked up, at once; gives the addresses that were tried."""
    import socket

    tried: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        tried.append(address)
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    return tried


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium, headless and told to stay off the network."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    quiet = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=[*quiet, "--disable-sync"])
        yield chromium
        chromium.close()

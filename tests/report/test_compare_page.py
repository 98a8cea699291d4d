"""The page of a comparison with names that would be markup, in a real browser."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.data.manifest import Manifest
from foveal.experiments.compare.answers import Aligned
from foveal.experiments.compare.result import Comparison, Pair
from foveal.experiments.summary import metrics_row
from foveal.files import sha256_file
from foveal.metrics import compare_every_pair, summarise
from foveal.report.compare_page import amount, build_compare_page, milliseconds

from .page_reader import HOSTILE, LOW_CONTRAST, Page, assert_accessible, assert_self_contained

COSTS = ("latency_{}_p50_ms", "latency_{}_p95_ms", "network_{}_p50_ms", "network_{}_p95_ms", "images_per_second_{}")


def comparison(folder: Path, names: tuple[str, ...], classes: tuple[str, ...], num_images: int = 60) -> Comparison:
    """Models that know more and more, and images to show; the first lies no longer where it was."""
    generator = np.random.default_rng(0)
    labels = np.arange(num_images) % len(classes)
    (folder / "images").mkdir()
    for row in range(1, num_images):
        pixels = generator.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{row}.png")
    paths = [f"{row}.png" for row in range(num_images)]
    hashes = ["0" * 64, *(sha256_file(folder / "images" / path) for path in paths[1:])]
    manifest = Manifest.build(folder / "images", path=paths, label=[classes[at] for at in labels], sha256=hashes)
    probabilities, rows, metrics = {}, [], {}
    for number, name in enumerate(names):
        logits = generator.normal(size=(num_images, len(classes))) + (1.0 + number) * np.eye(len(classes))[labels]
        metrics[name] = summarise(labels, logits, class_names=classes, split="test")
        probabilities[name] = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        facts: dict[str, Any] = {key.format("cpu"): 3.0 * (number + 1) for key in COSTS}
        facts |= dict.fromkeys([key.format("gpu") for key in COSTS]) | {"joules_per_1000_images_cpu": None}
        facts |= {f"{split}_{key}": 0.5 for split in ("train", "val", "test") for key in ("loss", "accuracy")}
        right = round(metrics[name].accuracy * num_images)
        facts |= {
            "path": f"runs/{name}",
            "kind": "run",
            "architecture": name,
            "image_size_px": 64,
            "num_parameters": 11_200_000,
        }
        facts |= {"num_macs": 1_800_000_000, "bundle_mib": 42.7, "num_right": right, "num_wrong": num_images - right}
        facts |= {"train_wall_seconds": 61.0, "train_cpu_seconds": None, "total_wall_seconds": 75.0}
        row = metrics_row(name, metrics[name], **facts)
        row["undefined"] = {**row["undefined"], "train_cpu_seconds": f"nobody timed {name}"}
        rows.append(row)
    pairs = compare_every_pair(labels, [*probabilities.values()])
    at = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names))]
    return Comparison(
        split="test",
        data=None,
        rows=rows,
        metrics=metrics,
        aligned=Aligned(classes, manifest, labels, probabilities, None, dict.fromkeys(names)),
        pairs=[Pair(names[a], names[b], pair) for (a, b), pair in zip(at, pairs, strict=True)],
        repeated=[],
        front=[names[0], names[-1]],
        notes=[f"Something about {names[0]}."],
        machine={"cpu": names[0], "num_threads": 2, "gpu": None, "batch_size": 32},
    )


@pytest.mark.parametrize("classes", [HOSTILE, tuple(f"class {number}" for number in range(40))], ids=["few", "many"])
def test_names_are_text_and_the_page_fits_every_screen(tmp_path: Path, browser: Any, classes: tuple[str, ...]) -> None:
    found = comparison(tmp_path, HOSTILE, classes)
    path = build_compare_page(found, tmp_path)
    page = Page(path)
    assert_self_contained(page)
    assert_accessible(page)
    assert "the file is not there any more" in page.text or "0.png" not in page.text
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("dialog", lambda dialog: said.append("a script ran"))
    tab.goto(path.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    assert tab.evaluate(LOW_CONTRAST) == []
    for width in (320, 700, 1280, 1600):
        tab.set_viewport_size({"width": width, "height": 800})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, width
    assert said == []
    tab.close()


def test_the_headline_says_who_is_best_and_who_cannot_be_told_from_it(tmp_path: Path) -> None:
    found = comparison(tmp_path, ("weak", "good", "better"), ("a", "b", "c"))
    verdicts = {(pair.first, pair.second): pair.paired.verdict for pair in found.pairs}
    assert verdicts == {("weak", "good"): "better", ("weak", "better"): "better", ("good", "better"): "undecided"}
    assert found.headline.startswith("better has the highest accuracy, 0.95 [")
    assert found.headline.endswith("but these 60 images cannot tell it from good; it is better than the other.")
    text = " ".join(Page(build_compare_page(found, tmp_path)).text.split())
    assert found.headline in text
    assert "nobody timed weak" in text
    assert "Log loss" in text
    assert "11.2\N{NO-BREAK SPACE}M" in text or "11.2 M" in text


def test_amounts_are_short_and_true() -> None:
    assert [amount(value) for value in (None, 7, 999, 1_000, 11_177_538, 1_819_066_880)] == [
        "–", "7", "999", "1\N{NO-BREAK SPACE}k", "11.2\N{NO-BREAK SPACE}M", "1.82\N{NO-BREAK SPACE}G",
    ]  # fmt: skip
    assert [milliseconds(value) for value in (None, 0.123, 4.56, 123.4)] == ["–", "0.12", "4.6", "123"]

"""The plots of an evaluation: what they show, and that hostile class names stay text."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from foveal.evaluation.drawing import (
    MUTED,
    RIGHT_COLOUR,
    SPLIT_COLOURS,
    WRONG_COLOUR,
    displayed,
    is_dark,
    shortened,
    tint,
)
from foveal.evaluation.plots import MAX_MATRIX_CLASSES, NUM_WORST_CLASSES, condensed, draw_plots, write_plots
from foveal.metrics import SplitMetrics, softmax, summarise

NAMES = {"confusion_counts", "confusion_rates", "reliability", "roc", "confidence_right_wrong"}
HOSTILE = ["<img src=x onerror=alert(1)>", r"$\mathfrak{x}$", "R&D \"'</text><script>", "猫 \x07\u202e", "a_b^c"]


def evaluated(
    names: list[str], num_each: int = 12, sharpness: float = 2.0, split: str = "test"
) -> tuple[SplitMetrics, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(names)), num_each)
    logits = rng.normal(size=(len(labels), len(names)))
    logits[np.arange(len(labels)), labels] += sharpness
    metrics = summarise(labels, logits, class_names=names, split=split, num_resamples=20)
    return metrics, labels, softmax(logits)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def contrast(first: np.ndarray, second: np.ndarray) -> float:
    """The contrast ratio of WCAG 2.1, from its definition."""
    lights = []
    for colour in (first, second):
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(lights) / min(lights)


def test_files_are_written_and_equal_from_run_to_run(tmp_path: Path) -> None:
    case = evaluated(["ape", "bee", "cat"])
    before = dict(matplotlib.rcParams)
    first = write_plots(tmp_path / "a" / "plots", *case)
    with ThreadPoolExecutor(3) as pool:
        others = list(pool.map(lambda name: write_plots(tmp_path / name, *case), "bcd"))
    assert {path.name for path in first} == {f"{name}.svg" for name in NAMES}
    for other in others:
        assert [path.read_bytes() for path in other] == [path.read_bytes() for path in first]
    assert dict(matplotlib.rcParams) == before


def test_pyplot_and_its_global_figures_are_never_loaded() -> None:
    code = (
        "import sys, numpy as np; from foveal.evaluation.plots import draw_plots; from foveal.metrics import *\n"
        "assert 'matplotlib' not in sys.modules, 'loaded by the import alone'\n"
        "x, names = np.eye(2)[[0, 1, 1]] * 3.0, ['a', 'b']\n"
        "m = summarise([0, 1, 0], x, class_names=names, split='test', num_resamples=9)\n"
        "draw_plots(m, [0, 1, 0], softmax(x)); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_confusion_cells_are_the_matrix() -> None:
    names = ["ape", "bee", "cat", "dog"]
    metrics, labels, probabilities = evaluated(names, num_each=9, sharpness=1.0)
    plots = draw_plots(metrics, labels, probabilities)
    matrix = np.array(metrics.confusion_matrix)
    shown = [int(text) for text in texts(plots["confusion_counts"]) if text.isdigit()]
    assert sorted(shown) == sorted(matrix[matrix > 0].tolist())
    rates = [text for text in texts(plots["confusion_rates"]) if text.isdigit()]
    assert sorted(rates) == sorted(f"{100 * rate:.0f}" for rate in (matrix / 9).ravel() if rate)
    assert names == [text for text in texts(plots["confusion_counts"]) if text in names][: len(names)]


def test_a_rate_says_100_only_where_it_is_exact() -> None:
    labels = np.array([0] * 400 + [1] * 400)
    predicted = labels.copy()
    predicted[0] = 1
    probabilities = np.eye(2)[predicted] * 0.8 + 0.1
    metrics = summarise(labels, np.log(probabilities), class_names=["a", "b"], split="test", num_resamples=20)
    shown = texts(draw_plots(metrics, labels, probabilities)["confusion_rates"])
    assert [text for text in shown if text in {">99", "<1", "100", "0"}] == [">99", "<1", "100"]


def test_hostile_class_names_stay_text() -> None:
    case = evaluated(HOSTILE, num_each=6, sharpness=1.0)
    for name, svg in draw_plots(*case).items():
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()}
        assert "script" not in tags, name
        assert "<img" not in svg, name
    shown = texts(draw_plots(*case)["confusion_counts"])
    for hostile in HOSTILE:
        assert shown.count(shortened(hostile)) == 2, f"{hostile!r} labels a row and a column, literally"
    assert shortened(r"$\mathfrak{x}$") == r"$\mathfrak{x}$"


@pytest.mark.parametrize("num_classes", [2, 25, 196])
def test_plots_stay_readable_with_many_classes(num_classes: int) -> None:
    names = [f"Ram C/V Cargo Van Minivan {number} 'long' / name" for number in range(num_classes)]
    for name, svg in draw_plots(*evaluated(names, num_each=2)).items():
        root = ElementTree.fromstring(svg)
        assert float(root.get("viewBox", "").split()[2]) < 800, name
        assert max(map(len, texts(svg))) < 60, name
        assert len(svg) < 700_000, name


def test_one_class_and_no_mistake_are_drawn_too() -> None:
    probabilities = np.tile([0.9, 0.1], (5, 1))
    metrics = summarise([0] * 5, np.log(probabilities), class_names=["a", "b"], split="val", num_resamples=20)
    plots = draw_plots(metrics, [0] * 5, probabilities)
    assert "not defined: only one class occurs" in texts(plots["roc"])
    assert "Validation: 0 of 5 wrong" in texts(plots["confidence_right_wrong"])


def test_roc_names_the_weakest_classes_with_their_areas() -> None:
    metrics, labels, probabilities = evaluated([f"c{number}" for number in range(8)], sharpness=1.5)
    weakest = sorted(metrics.per_class, key=lambda item: item.roc_auc or 0)[:3]
    shown = texts(draw_plots(metrics, labels, probabilities)["roc"])
    assert [text for text in shown if text.startswith("c")] == [f"{item.name}: {item.roc_auc:.3f}" for item in weakest]


@settings(max_examples=25, deadline=None)
@given(arrays(np.int64, (MAX_MATRIX_CLASSES + 9,) * 2, elements=st.integers(0, 20)))
def test_condensing_loses_no_image_and_names_the_worst(matrix: np.ndarray) -> None:
    names = [f"class {number}" for number in range(len(matrix))]
    small, shown = condensed(matrix.astype(np.float64), names)
    assert small.sum() == matrix.sum()
    assert shown[-1] == f"the {len(matrix) - NUM_WORST_CLASSES} others"
    places = [names.index(name) for name in shown[:-1]]
    assert places == sorted(places)
    assert (small[:-1, :-1] == matrix[np.ix_(places, places)]).all()
    errors = matrix.sum(0) + matrix.sum(1) - 2 * np.diag(matrix)
    assert errors[places].min() >= max((errors[at] for at in range(len(matrix)) if at not in places), default=0)


def test_few_classes_are_not_condensed() -> None:
    matrix = np.ones((MAX_MATRIX_CLASSES, MAX_MATRIX_CLASSES))
    small, names = condensed(matrix, [str(number) for number in range(MAX_MATRIX_CLASSES)])
    assert small is matrix
    assert len(names) == MAX_MATRIX_CLASSES


def test_colours_have_contrast() -> None:
    white = np.ones(3)
    for colour in (*SPLIT_COLOURS.values(), RIGHT_COLOUR, WRONG_COLOUR):
        assert contrast(tint(colour, np.array(1.0)), white) >= 3, f"{colour}: WCAG asks 3:1 of graphics"
    assert contrast(tint(MUTED, np.array(1.0)), white) >= 4.5
    for colour in (RIGHT_COLOUR, WRONG_COLOUR):
        for cell in tint(colour, np.linspace(0, 1, 101)):
            ink = white if is_dark(cell.tolist()) else np.zeros(3)
            assert contrast(cell, ink) >= 4.5


def test_what_cannot_be_seen_is_written_out() -> None:
    assert displayed("plain") == "plain"
    assert displayed("naïve 猫 e\u0301 \u200d") == "naïve 猫 e\u0301 \u200d"
    assert displayed("a\x00b\x1b[0m\nc") == r"a\x00b\x1b[0m\nc"
    assert displayed("gpj.\u202etxt") == r"gpj.\u202etxt"
    assert displayed("caf\udce9") == r"caf\udce9"
    displayed("".join(map(chr, range(0x3000)))).encode("utf-8")


def test_shortening_keeps_both_ends() -> None:
    assert shortened("Ram C/V Cargo Van Minivan 2012", 20) == "Ram C/V Ca…ivan 2012"
    assert shortened("short", 5) == "short"

"""The building blocks of every experiment's page: true to what they are given, safe, and readable by all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.errors import ArtifactError
from foveal.evaluation.drawing import draw_svg
from foveal.files import sha256_file
from foveal.report.experiment_page import PagePlot, PageTable, Picture, Section, write_experiment_page
from foveal.report.tables import Cell

from .page_reader import HOSTILE, LOW_CONTRAST, Page, assert_accessible, assert_self_contained


def svg(width_px: float = 420) -> str:
    return draw_svg(
        lambda figure: figure.add_subplot().plot([0, 1], [0, 1], label="a & b"), width_px=width_px, height_px=200
    )


def write_page(folder: Path, names: tuple[str, ...] = ("small_cnn", "resnet18", "long-name " * 8)) -> Path:
    image = folder / "an image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(image)
    table = PageTable(
        head=["Model", *(f"Figure {number}" for number in range(9)), "Says"],
        rows=[
            [
                name,
                Cell("0.93", "[0.91, 0.95]", bar=0.93),
                Cell("–", note=1),
                *["0.1"] * 7,
                f"words about {name} that wrap",
            ]
            for name in names
        ],
        caption=f"Figures of {names[0]}",
        notes=[f"no value: {names[0]}"],
        text_columns=[10],
        marked_rows=[1],
    )
    pictures = [
        Picture(
            image,
            (10, 10, 40, 40),
            sha256_file(image),
            caption=names[0],
            lines=[f"A: {names[1]}", "B: 2"],
            is_wrong=True,
        ),
        Picture(image, None, "0" * 64, caption="changed"),
        Picture(folder / "gone.png", caption=names[-1]),
    ]
    inner = Section(
        names[1], tables=[PageTable(["Fold", "Loss"], [[str(at), "0.1"] for at in range(40)])], pictures=pictures[:1]
    )
    sections = [
        Section("Models", [f"About {names[0]}."], [table], [PagePlot(svg(), names[0]), PagePlot(svg(900), "wide")]),
        Section("Models", pictures=pictures, folded=[inner]),
        Section(names[0]),
    ]
    return write_experiment_page(
        folder / "report.html",
        name=names[0],
        title="comparison",
        verdict=[f"{names[0]} is better than {names[1]}.", *(f"Remark on {name}." for name in names)],
        sections=sections,
        made_from=str(folder / names[1][:4]),
        next_commands=[f"foveal predict {names[0]}", "foveal export runs/a"],
        tiles=[("Accuracy", "0.93", "[0.91, 0.95]"), (names[1], "12 ms", "")],
        facts=[("Data", names[0])],
    )


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page(write_page(tmp_path))


def test_the_page_needs_nothing_but_itself_and_can_be_read_by_all(page: Page) -> None:
    assert_self_contained(page)
    assert_accessible(page)


def test_everything_that_was_given_is_there(page: Page) -> None:
    text = " ".join(page.text.split())
    for part in (
        "small_cnn is better than resnet18.", "Remark on resnet18.", "About small_cnn.", "0.93[0.91, 0.95]",
        "words about resnet18 that wrap", "no value: small_cnn", "A: resnet18", "the file has changed since",
        "the file is not there any more", "foveal predict small_cnn foveal export runs/a", "12 ms",
    ):  # fmt: skip
        assert part in text, part
    assert [at["id"] for at in page.all("header", "section")] == [
        "verdict", "models", "models-2", "small-cnn", "next"
    ]  # fmt: skip
    assert len(page.all("img")) == 2
    assert [at.get("class") for at in page.all("tr")].count("marked") == 1
    assert sum("tall" in at["class"] for at in page.all("div") if "table-box" in at.get("class", "")) == 1
    assert [at["href"] for at in page.all("a") if "note" in at.get("href", "")] == ["#models-t0-note-1"] * 3
    assert [
        "wide" in at["class"]
        for at in page.all("div")
        if at.get("class", "").startswith("plot ") or at.get("class") == "plot"
    ] == [False, True]


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    page = Page(write_page(tmp_path, HOSTILE))
    assert_self_contained(page)
    assert_accessible(page)
    assert "alert(1)" in page.text
    assert "{{ 7*7 }}" in page.text
    assert "\\u202e" in page.text
    assert "\u202e" not in page.source


def test_a_plot_that_is_none_is_refused_and_a_bare_page_is_whole(tmp_path: Path) -> None:
    sections = [Section("d", plots=[PagePlot("<p", "e")])]
    with pytest.raises(ArtifactError, match="not an SVG"):
        write_experiment_page(tmp_path / "a.html", name="a", title="b", verdict=["c"], sections=sections, made_from="f")
    assert not (tmp_path / "a.html").exists()
    bare = Page(
        write_experiment_page(tmp_path / "a.html", name="a", title="b", verdict=["c"], sections=[], made_from="f")
    )
    assert_self_contained(bare)
    assert "What to type next" not in bare.text


def test_in_a_browser(tmp_path: Path, browser: Any) -> None:
    path = write_page(tmp_path, HOSTILE)
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: said.append("a script ran"))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    assert page.evaluate(LOW_CONTRAST) == []
    for width in (320, 360, 700, 1024, 1280, 1600):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, width
    assert said == []
    page.close()

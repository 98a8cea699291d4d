"""The page of a real server in a real browser: the numbers of REST, whatever is given and whatever it is called."""

import csv
import io
import re
import unicodedata
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from page_in_browser import CLASSES, HOSTILE, SIZE_PX, STORE_PX, ask, card, draw, give, settle, shown, until
from PIL import Image

from foveal.files import neutral_cell
from foveal.metrics import wilson_interval

pytestmark = pytest.mark.browser


PAGE = Path(str(files("foveal") / "serving" / "page"))


def test_nothing_on_the_page_reads_markup_or_leaves_the_server() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in PAGE.iterdir()}
    assert {"index.html", "page.css", "page.js"} <= set(sources)
    for name, source in sources.items():
        assert not re.search(
            r"(inner|outer)HTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc", source
        ), name
        assert not re.search(r"https?://|@import|url\(", source), name
        assert len(source.splitlines()) < 400, name
    assert not re.search(r"<[^>]+\s(style|on\w+)=|<style|<script(?! type=\"module\" src=)", sources["index.html"])


def test_every_kind_of_picture_has_the_numbers_of_rest(opened: Any, page_address: str, pictures: list[Path]) -> None:
    tab = opened(page_address)
    give(tab, pictures)
    for path in pictures:
        expected = ask(page_address, path)
        assert shown(tab, path) == pytest.approx(expected["probabilities"], abs=1e-5), path.name
        data = card(tab, path).evaluate("li => ({...li.dataset})")
        assert data["predicted"] == expected["predicted"]
        assert float(data["probability"]) == pytest.approx(expected["probability"], abs=1e-5)
        said = card(tab, path).text_content()  # a browser does not lay out what is out of sight
        assert path.name in said
        assert re.search(r"\d+(\.\d+)?\s%", said)
        assert re.search(r"\d\sm?s: decode .*, queue .*, compute ", said)
        # Upright: what the browser shows has the shape that the model sees.
        is_wide = path.name not in {f"turned{turn}.jpg" for turn in (1, 2, 3, 4)}
        size = card(tab, path).locator("img").evaluate("img => [img.naturalWidth, img.naturalHeight]")
        assert size == ([96, 64] if is_wide else [64, 96]), path.name
    assert tab.evaluate("document.images.length") == len(pictures)
    assert card(tab, pictures[0]).locator("h3").text_content() == pictures[0].name


def test_the_heatmap_lies_where_the_model_looked(opened: Any, page_address: str, pictures: list[Path]) -> None:
    import matplotlib

    tab = opened(page_address)
    path = next(path for path in pictures if path.name == "landscape.jpg")
    give(tab, [path])
    canvas = card(tab, path).locator("canvas")
    box, picture = canvas.bounding_box(), card(tab, path).locator("img").bounding_box()
    side = picture["height"] * SIZE_PX / STORE_PX
    assert [box["width"], box["height"]] == pytest.approx([side, side], abs=0.6)
    for place, length in (("x", "width"), ("y", "height")):
        assert box[place] + box[length] / 2 == pytest.approx(picture[place] + picture[length] / 2, abs=0.6)
    assert "not seen by the model" in card(tab, path).text_content()
    assert canvas.get_attribute("aria-label").startswith("Heatmap for ")

    values = np.array(ask(page_address, path, heatmap=True)["heatmap"]["values"])
    pixels = canvas.evaluate("""canvas => {
      const {width, height} = canvas;
      return [width, height, [...canvas.getContext('2d').getImageData(0, 0, width, height).data]];
    }""")
    drawn = np.array(pixels[2]).reshape(pixels[1], pixels[0], 4)
    enlarged = Image.fromarray(values.astype(np.float32)).resize((pixels[0], pixels[1]), Image.Resampling.BILINEAR)
    expected = 255 * matplotlib.colormaps["inferno"](np.asarray(enlarged))[:, :, :3]
    assert np.ptp(values) > 0.3
    assert np.abs(drawn[:, :, :3] - expected).max() < 8

    slider = card(tab, path).get_by_role("slider")
    assert float(canvas.evaluate("c => c.style.opacity")) == float(slider.input_value()) / 100
    slider.fill("20")
    assert canvas.evaluate("c => getComputedStyle(c).opacity") == "0.2"
    assert slider.get_attribute("aria-valuetext") == "20 percent"


def test_another_model_and_another_way_are_asked_again(opened: Any, page_address: str, pictures: list[Path]) -> None:
    tab = opened(page_address)
    chosen = pictures[:3]
    give(tab, chosen)
    assert tab.locator("#again").is_hidden()
    tab.select_option("#model", "without")
    tab.select_option("#tta", "flip")
    until(tab, "document.getElementById('again').textContent === 'Ask without, flip about all 3 pictures'")
    tab.click("#again")
    until(tab, "document.querySelectorAll('#cards > [data-model=without]').length === 3")
    for path in chosen:
        expected = ask(page_address, path, model="without", tta="flip")
        assert shown(tab, path) == pytest.approx(expected["probabilities"], abs=1e-5)
        before = ask(page_address, path)
        assert f"with map: {before['predicted'][:20]}" in card(tab, path).locator(".earlier").text_content()
        assert card(tab, path).locator("canvas").count() == 0
        assert "the head is no linear layer" in card(tab, path).locator("figcaption").text_content()
    until(tab, "document.querySelectorAll('#summary tbody tr').length === 2")
    assert tab.locator("#summary tbody th").all_text_contents() == ["with map", "without, flip"]
    hint, caption = tab.inner_text("#heatmaps-hint"), tab.locator(".no-heatmap").first.inner_text()
    assert "This model gives none with its answer" in hint
    assert "foveal explain" in hint
    assert caption.startswith("No heatmap")


def test_broken_and_large_files_are_said_in_words(opened: Any, page_address: str, pictures: list[Path]) -> None:
    good = next(path for path in pictures if path.name == "landscape.jpg")
    broken, empty, page = (good.parent / name for name in ("broken.jpg", "empty.png", "page.jpg"))
    broken.write_bytes(good.read_bytes()[:400])
    empty.write_bytes(b"")
    page.write_text("<html><script>alert(1)</script></html>")
    tab = opened(page_address)
    give(tab, [broken, empty, page, good])
    for path in (broken, empty, page):
        answer = httpx.post(f"{page_address}/v1/predict", files={"image": (path.name, path.read_bytes())})
        assert answer.status_code == 422
        assert answer.json()["detail"] in card(tab, path).text_content()
    assert card(tab, good).get_attribute("data-state") == "done"
    until(tab, "document.getElementById('summary').textContent.includes('3 without an answer')")
    tab.select_option("#show", "failed")
    assert tab.locator("#cards > li:visible").count() == 3


def test_the_table_is_whole_and_runs_nothing(opened: Any, page_address: str, pictures: list[Path]) -> None:
    tab = opened(page_address)
    broken = pictures[0].parent / "-broken.jpg"
    broken.write_bytes(b"no picture")
    give(tab, [*pictures, broken])
    with tab.expect_download() as download:
        tab.click("#download")
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert download.value.suggested_filename == "predictions.csv"
    rows = {row["path"]: row for row in csv.DictReader(io.StringIO(text, newline=""))}
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows.values() for cell in row.values())
    assert len(rows) == len(pictures) + 1
    for path in pictures:
        row, expected = rows[neutral_cell(path.name)], ask(page_address, path)
        assert row["predicted"] == neutral_cell(expected["predicted"])
        assert {name: float(row[f"p_{name}"]) for name in CLASSES} == pytest.approx(expected["probabilities"], abs=1e-5)
        assert (row["status"], row["model"], row["tta"]) == ("ok", "with map", "none")
        assert float(row["decode_seconds"]) > 0
    failed = rows["'-broken.jpg"]
    assert (failed["status"], failed["p_discs"]) == ("failed", "")
    assert failed["reason"]


def test_every_name_is_shown_and_downloaded_as_it_is(opened: Any, page_address: str, tmp_path: Path) -> None:
    """Row 31: also those that no form can carry unchanged, for the page asks its own files what they are called."""
    folder = tmp_path / "names"
    folder.mkdir()
    names = [*(unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")), "two\nlines.png", "q\"uote, 's.png"]
    names += ["-dash.png", "ü" * 125 + "a.png", "50%22.png", "\u202ereversed.png", " spaces .png", "back\\slash.png"]
    for number, name in enumerate(names):
        draw(number, 24, 24).save(folder / name)
    tab = opened(page_address)
    give(tab, [folder / name for name in names])
    paths = tab.locator("#cards > li").evaluate_all("all => all.map(li => [li.dataset.path, li.dataset.state])")
    assert sorted(paths) == sorted([name, "done"] for name in names)
    assert set(tab.locator("#cards h3").all_text_contents()) == set(names)
    with tab.expect_download() as download:
        tab.click("#download")
    text = Path(download.value.path()).read_bytes().decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert sorted(row["path"] for row in rows) == sorted(map(neutral_cell, names))
    assert {(row["status"], row["model"]) for row in rows} == {("ok", "with map")}


def test_true_classes_and_the_accuracy(opened: Any, page_address: str, tmp_path: Path) -> None:
    for name in ("discs", "squares", "other"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(9):
            draw(number, 24, 24).save(tmp_path / "set" / name / f"{number}.png")
    (tmp_path / "set" / "notes.txt").write_text("no picture")
    tab = opened(page_address)
    tab.set_input_files("#folder", str(tmp_path / "set"))
    until(tab, "document.querySelectorAll('#cards > li').length === 27")
    settle(tab)
    assert "1 file left out" in tab.locator("#notice").inner_text()
    cards = tab.locator("#cards > li").evaluate_all("all => all.map(li => ({...li.dataset}))")
    known = [each for each in cards if "/other/" not in each["path"]]
    right = [each["predicted"] == each["path"].split("/")[1] for each in known]
    assert [each["right"] for each in known] == [str(each).lower() for each in right]
    assert {each["right"] for each in cards if "/other/" in each["path"]} == {""}
    until(tab, "document.querySelector('[data-known]')?.dataset.known === '18'")
    figure = tab.locator("[data-known]")
    data = figure.evaluate("element => ({...element.dataset})")
    assert (int(data["known"]), int(data["right"])) == (18, sum(right))
    assert [float(data["low"]), float(data["high"])] == pytest.approx(wilson_interval(sum(right), 18), abs=1e-12)

    # The user knows better; then only two are known.
    tab.uncheck("#guess")
    until(tab, "document.getElementById('summary').textContent.includes('no true class known')")
    for path, is_right in ((cards[0], True), (cards[1], False)):
        names = [name for name in CLASSES if (name == path["predicted"]) == is_right]
        place = tab.locator(f'#cards > li[data-path="{path["path"]}"]')
        place.get_by_label("True class").select_option(names[0])
        assert ("Right" if is_right else "Wrong") in place.locator(".verdict").text_content()
    until(tab, "document.getElementById('summary').textContent.includes('1 of 2 right: too few to say')")
    tab.select_option("#show", "wrong")
    assert tab.locator("#cards > li:visible").count() == 1


def test_a_true_class_is_guessed_from_names_with_care(opened: Any, page_address: str) -> None:
    tab = opened(page_address)
    names = ["cat", "Golden Retriever", "apple", "crab apple", "3", "7", "b", "naïve", "__proto__", HOSTILE]
    expected = {
        "cat_01.jpg": "cat",
        "my-CAT.png": "cat",
        "concatenate.png": None,
        "photos/golden_retriever-2.jpg": "Golden Retriever",
        "crab-apple.jpg": "crab apple",
        "crab apple and apple.jpg": "crab apple",
        "cat and apple.jpg": None,
        "set/3/IMG_7.jpg": "3",
        "IMG_7.jpg": None,
        "7.jpg": None,
        "7_IMG_2210.jpg": "7",
        "3-0012.png": "3",
        "7-3-2024.jpg": None,
        "photo (3).jpg": None,
        "a b.jpg": None,
        "nai\u0308ve.png": "naïve",
        "b/cat.jpg": "b",
        "cat/unsorted/1.jpg": "cat",
        "__proto__/1.jpg": "__proto__",
        "plain.jpg": None,
    }
    found = tab.evaluate(
        """async ([paths, names]) => {
          const {guessTruth, indexClasses} = await import('/assets/truth.js');
          const index = indexClasses(names);
          return paths.map(path => guessTruth(path, index)?.name ?? null);
        }""",
        [list(expected), names],
    )
    assert dict(zip(expected, found, strict=True)) == expected

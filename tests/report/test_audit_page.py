"""An audit's page: true to its folder, small whatever was found, and safe in a real browser."""

import base64
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.auditing.findings import FindingsTable
from foveal.auditing.kinds import KINDS
from foveal.errors import ArtifactError, FovealError
from foveal.files import read_json, write_json
from foveal.report.audit_choice import choose
from foveal.report.audit_figures import draw_originals
from foveal.report.audit_page import build_audit_page

from .page_reader import HOSTILE, LOW_CONTRAST, Page, assert_accessible, assert_self_contained
from .simulated_audit import AuditMaker, make_audit

LONG = "ä" * 120 + "-" * 11  # 251 bytes; with a suffix, as long as a file name can be


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_audit(tmp_path_factory.mktemp("it's an audit"))


@pytest.fixture(scope="module")
def page(audit: Path) -> Page:
    return Page(build_audit_page(audit))


def part(page: Page, start: str, end: str) -> str:
    """The source between two marks."""
    return page.source.split(start, 1)[1].split(end, 1)[0]


def pictures(source: str) -> list[np.ndarray]:
    """The pictures of a part of the page, decoded; uint8 [height, width, 3]."""
    found = re.findall(r"data:image/webp;base64,([^\"]+)", source)
    return [np.array(Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB")) for each in found]


def test_the_page_needs_nothing_but_itself_and_can_be_read_by_all(page: Page) -> None:
    assert_self_contained(page)
    assert_accessible(page)
    sections = [attributes["id"] for attributes in page.all("header", "section")]
    assert " ".join(sections) == "verdict leakage pairs pictures distribution samples sizes shortcuts checks"


def test_what_matters_comes_first_with_its_repair_and_the_next_command(audit: Path, page: Page) -> None:
    header = part(page, '<header id="verdict">', "</header>")
    said = read_json(audit / "summary.json")
    assert re.search(r'class="is-blocking"><span class="figure">1<', header)
    total = sum(each["num"] for each in said["findings"])
    assert f"{total} findings of 8 kinds: 1 blocking, 5 warnings and 2 notes." in header
    titles = re.findall(r'<a href="#([^"]+)">([^<]+)</a> <p>([^<]*)', header)
    assert [words for _, *words in titles] == [
        [KINDS[each["finding"]].title, each["sentence"]] for each in said["findings"]
    ]
    assert " ".join(anchor for anchor, *_ in titles) == (
        "kind-leak kind-near_duplicate class-findings kind-wrong_label shortcuts kind-unreadable kind-blurred "
        "class-findings"
    )
    folder = str(audit).replace("'", "&#39;&#34;&#39;&#34;&#39;")  # quoted for a shell, then for HTML
    assert f"foveal clean &#39;{folder}&#39; --out &#39;{folder}/clean.parquet&#39;" in header
    assert "2 checks were not made" in header


def test_the_leakage_is_that_of_the_summary(audit: Path, page: Page) -> None:
    leaks = read_json(audit / "summary.json")["leakage"]
    assert leaks["test"]["num_with_siblings_in_train"] == 15
    text = " ".join(page.text.split())
    assert "15 of 42 test images (36 %) have a copy in training." in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "No copy of a training image was found among 12 validation images." in text
    table = part(page, 'id="leaks-caption"', "</table>")
    cells = re.findall(r"<bdi>([^<]+)</bdi></th><td[^>]*>([^<]*)</td><td[^>]*--bar:([\d.]+)%\">([^<]*)", table)
    assert [(name, test) for name, _, _, test in cells] == [
        (name, f"{found} of {of}, {100 * found / of:.0f}\N{NO-BREAK SPACE}%")
        for name, (of, found) in leaks["test"]["by_class"].items()
    ]
    assert [float(bar) for _, _, bar, _ in cells] == [35.7, 35.7, 35.7]


def test_each_pair_shows_its_own_two_pictures_the_least_similar_first(audit: Path, page: Page) -> None:
    cards = part(page, 'id="kind-leak"', "</section>").split('<li class="card">')[1:]
    found = sorted(FindingsTable.read(audit).rows("leak"), key=lambda row: row["value"])
    assert len(cards) == len(found) == 15
    for card, row in zip(cards, found, strict=True):
        shown = pictures(card)
        for picture, path in zip(shown, (row["path"], row["related_path"]), strict=True):
            original = np.asarray(Image.open(audit.parent / "images" / path))
            assert picture.shape == original.shape
            # Each is noise of its own: any other picture, or its mirror image, would give about 0.
            assert np.corrcoef(picture.mean(axis=2).ravel(), original.mean(axis=2).ravel())[0, 1] > 0.5
            assert path in card
        assert f"similarity {row['value']:.2f}" in card
        assert "mirrored, then saved again" in card
        assert re.findall(r"</i><bdi>(\w+)", card) == [
            "test",
            {"train": "training", "val": "validation"}.get(row["related_split"], row["related_split"]),
        ]
    assert "6 more to look at" in page.text


def test_a_doubtful_label_stands_beside_what_it_is_and_what_it_may_be(audit: Path, page: Page) -> None:
    cards = part(page, 'id="kind-wrong_label"', '<section id="pictures"').split('<li class="card">')[1:]
    rows = {row["path"]: row for row in FindingsTable.read(audit).rows("wrong_label")}
    suspects = set(FindingsTable.read(audit).columns["path"])
    for card in cards:
        paths, labels = re.findall(r'class="path"><bdi>([^<]+)', card), re.findall(r"<b><bdi>([^<]+)", card)
        assert labels == [rows[paths[0]]["label"], rows[paths[0]]["label"], rows[paths[0]]["related_label"]]
        assert not suspects & set(paths[1:]), "a picture to compare with is one that nothing was found about"
        assert "as labelled" in card
        assert "suggested" in card
    assert len(cards) == 3


def test_classes_are_counted_with_and_without_copies(audit: Path, page: Page) -> None:
    text = part(page, '<section id="distribution"', "</section>")
    assert "60 of 90 usable samples are independent originals" in text
    cells = re.findall(r"<bdi>ape</bdi>.*?</tr>", text, re.DOTALL)[0]
    assert re.findall(r"<td[^>]*>([^<]*)", cells) == ["12", "4", "14", "30", "20", "33\N{NO-BREAK SPACE}%"]
    assert "4 originals" in cells
    assert "1 file set aside" in cells
    assert "20 of 30" in text, "the chart says how many of a class are originals"
    assert "20 independent images" in text


def test_what_has_no_picture_is_listed_and_what_was_not_checked_is_said(page: Page) -> None:
    files = part(page, 'id="kind-unreadable"', "</section>")
    assert files.count("a text file, not an image") == 3
    assert "class2/broken.jpg" in files
    checks = part(page, '<section id="checks"', "</section>")
    assert checks.index("it needs a trained model: --deep") < checks.index("every file was decoded fully")
    assert "foveal audit DATA --out AUDIT" in checks
    assert "its files are larger: 32 against 12 KB" in part(page, '<section id="shortcuts"', "</section>")


def test_half_of_what_is_shown_is_striking_and_half_is_spread() -> None:
    rng = np.random.default_rng(0)
    values = rng.permutation(np.linspace(0, 1, 5000))
    labels = rng.choice(["a", "b", "c"], 5000, p=[0.98, 0.01, 0.01])
    originals = rng.integers(0, 300, 5000)
    chosen = choose(values.tolist(), [labels.tolist(), originals.tolist()], 24, largest_first=False)
    assert len(set(chosen)) == 24
    assert np.all(np.diff(values[chosen]) >= 0)
    assert chosen[0] == int(np.argmin(values))
    for label in "abc":
        least = int(np.flatnonzero(labels == label)[np.argmin(values[labels == label])])
        assert least in chosen, "the least similar pair of every class"
    assert len({originals[at] for at in chosen[:12]}) == 12
    upper = values[chosen][values[chosen] > 0.3]
    assert len(upper) >= 8
    assert np.diff(upper).max() < 0.15
    assert choose([1.0, None, 3.0], [["a"] * 3], 5, largest_first=True) == [2, 0, 1]
    assert choose([], [[]], 5, largest_first=True) == []
    assert choose([0.5] * 9, [list("aaaaaaabc")], 1, largest_first=False) == [0]


def test_a_hundred_thousand_findings_make_a_small_page(tmp_path: Path) -> None:
    maker, rng = AuditMaker(tmp_path / "images"), np.random.default_rng(0)
    for at in range(40):
        noise = Image.fromarray(rng.integers(0, 256, (130, 130, 3), dtype=np.uint8))  # nothing is larger when encoded
        maker.save(noise, f"{at}.png", f"class {at % 4}", ("train", "test")[at % 2])
    kinds = [kind for kind, about in KINDS.items() if about.about in {"pair", "sample"}]
    for kind in kinds:
        is_pair = KINDS[kind].about == "pair"
        more = {"related_label": "class 1"} if kind == "wrong_label" else {}
        for at, value in enumerate(rng.random(100_000 // len(kinds)).tolist()):
            maker.find(kind, "warning", at % 40, (at + 1) % 40 if is_pair else None, value=value, **more)
    page = Page(build_audit_page(maker.write(tmp_path / "audit")))
    assert len(page.source) < 5_000_000
    assert len(page.all("img")) <= 440 + 32
    for kind in kinds:
        assert f'id="kind-{kind}"' in page.source
    assert page.text.replace(",", "").count(str(100_000 // len(kinds))) >= len(kinds)


@pytest.mark.parametrize(
    "summary", [{}, {"classes": None, "leakage": {}, "sizes": {"width_px": None}, "is_blocking": None}]
)
def test_a_summary_with_holes_still_makes_a_page(tmp_path: Path, summary: dict[str, Any]) -> None:
    folder = make_audit(tmp_path, has_splits=False, num_each=3)
    write_json(folder / "summary.json", summary)
    page = Page(build_audit_page(folder))
    assert_accessible(page)
    assert 'id="kind-near_duplicate"' in page.source, "what the table holds is shown all the same"
    assert "The data have no split yet" in page.text
    assert "The audit did not write down what it checked." in page.text


def test_data_without_faults_and_without_splits(tmp_path: Path) -> None:
    maker = AuditMaker(tmp_path / "images")
    for at in range(6):
        maker.save(Image.new("RGB", (50, 50), (at * 40, 0, 0)), f"{at}.png", "ab"[at % 2], None)
    page = Page(build_audit_page(maker.write(tmp_path / "audit")))
    assert "problems found by the checks that were made" in page.text
    assert "Nothing was found." in page.text
    assert "No copies were found: every usable sample counts as an original." in page.text
    assert f"foveal train {tmp_path}/images --out run" in page.text


def test_an_audit_of_nothing_usable(tmp_path: Path) -> None:
    maker = AuditMaker(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"")
    maker.find("unreadable", "blocking", maker.add("a.jpg", "a", None, status="quarantined"), detail="an empty file")
    page = Page(build_audit_page(maker.write(tmp_path / "audit", splits={})))
    assert "an empty file" in page.text


def test_boxes_of_one_photograph_are_told_apart(tmp_path: Path) -> None:
    maker = AuditMaker(tmp_path / "images")
    pixels = np.zeros((100, 200, 3), dtype=np.uint8)
    pixels[:, 100:] = 200
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "photo.png")
    boxes = [{"xmin": left, "ymin": 0, "xmax": left + 100, "ymax": 100} for left in (0, 100)]
    rows = [maker.add("photo.png", "cell", "train", **box) for box in boxes]
    maker.find("near_duplicate", "warning", *rows, value=0.9)
    card = part(Page(build_audit_page(maker.write(tmp_path / "audit"))), '<li class="card">', "</li>")
    assert [round(float(picture.mean())) for picture in pictures(card)] == [0, 200]
    assert "box 0, 0 to 100, 100" in card
    assert "box 100, 0 to 200, 100" in card


def test_images_that_are_gone_leave_words(tmp_path: Path) -> None:
    folder = make_audit(tmp_path, num_each=3)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    page = Page(build_audit_page(folder))
    assert not page.all("img")
    assert "the file is not there any more" in page.text


def test_what_is_no_audit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    folder = make_audit(tmp_path, num_each=2)
    good = read_json(folder / "summary.json")
    write_json(folder / "summary.json", good | {"classes": 3, "findings": [{"num": "many"}]})
    with pytest.raises(ArtifactError, match="no summary of an audit") as error:
        build_audit_page(folder)
    assert [problem.partition(":")[0] for problem in error.value.problems] == [
        "classes",
        "findings.0.finding",
        "findings.0.num",
    ]
    write_json(folder / "summary.json", good | {"format_version": 2})
    with pytest.raises(ArtifactError, match="format version 2"):
        build_audit_page(folder)
    (folder / "summary.json").unlink()
    with pytest.raises(FovealError, match="does not exist"):
        build_audit_page(folder)
    write_json(folder / "summary.json", good)
    (folder / "findings.parquet").write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match="damaged"):
        build_audit_page(folder)
    assert not (folder / "report.html").exists()


def test_the_chart_knows_many_classes_and_none() -> None:
    many = np.arange(2000)
    svg = draw_originals([str(at) for at in many], {"train": many}, {"train": many // 2})
    assert len(svg) < 300_000
    assert "classes, largest first" in svg
    zero = np.zeros(1, dtype=np.int64)
    assert "empty" in draw_originals(["empty"], {"all": zero}, {"all": zero})


@pytest.fixture(scope="module")
def hostile_audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class names, file names, evidence and folder that try to be more than text, or to be as wide as can be."""
    folder = tmp_path_factory.mktemp("hostile") / "<img src=x onerror=alert(5)>"
    prefix = "<img src=x onerror=alert(3)> '\" \n"
    audit = make_audit(folder, (*HOSTILE, LONG), prefix=prefix, detail=f"<script>alert(6)</script> {LONG}")
    rows = FindingsTable.read(audit)
    assert any("\n" in path for path in rows.columns["path"] if path)
    said = read_json(audit / "summary.json")
    said["notes"] = ["<b>noted</b> " + LONG]
    said["checks"].append({"check": LONG, "status": "skipped", "detail": "<i>" + LONG})
    said["command"] = f"foveal audit '{LONG}' --out \u202e"
    said["formats"] = {LONG: 3}
    write_json(audit / "summary.json", said)
    return audit


def test_hostile_names_are_text(hostile_audit: Path) -> None:
    page = Page(build_audit_page(hostile_audit))
    assert_self_contained(page)
    assert_accessible(page)
    for text in (HOSTILE[0], HOSTILE[1], HOSTILE[2].replace("\u202e", r"\u202e"), LONG, "<b>noted</b>"):
        assert text in page.text
    assert "<script>alert(6)</script>" in page.text
    assert r"onerror=alert(3)> '\" \n0.png".replace(r"\"", '"') in page.text
    assert "\u202e" not in page.source


def test_a_name_of_255_bytes_is_shown(tmp_path: Path) -> None:
    maker = AuditMaker(tmp_path / "images")
    name = f"{LONG}.png"
    assert len(os.fsencode(name)) == 255
    maker.find("blurred", "note", maker.save(Image.new("RGB", (60, 60)), name, "a", None), value=0.1)
    page = Page(build_audit_page(maker.write(tmp_path / "audit")))
    assert page.all("img")
    assert name in page.text


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 390, "height": 800})
    yield opened
    opened.close()


@pytest.mark.browser
def test_a_real_browser_shows_hostile_names_as_text_at_every_width(tab: Any, hostile_audit: Path) -> None:
    url = build_audit_page(hostile_audit).as_uri()
    seen: list[str] = []
    tab.on("dialog", lambda dialog: (seen.append(f"dialog {dialog.message}"), dialog.dismiss()))
    tab.on("request", lambda request: seen.append(request.url) if not request.url.startswith("data:") else None)
    tab.on("console", lambda message: seen.append(f"console {message.text}"))
    tab.on("pageerror", lambda error: seen.append(f"error {error}"))
    tab.goto(url, wait_until="load")
    tab.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    for width in (320, 390, 768, 1200, 1600):
        tab.set_viewport_size({"width": width, "height": 800})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, f"{width}: the page scrolls sideways"
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert tab.evaluate(LOW_CONTRAST) == []
    assert HOSTILE[0] in tab.inner_text("body")
    assert seen == [url]


@pytest.mark.browser
def test_no_text_is_too_pale(tab: Any, audit: Path) -> None:
    tab.goto(build_audit_page(audit).as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    assert tab.evaluate(LOW_CONTRAST) == []
    ranked = tab.locator(".ranked a").first
    ranked.click()
    assert abs(tab.evaluate("document.getElementById('kind-leak').getBoundingClientRect().top")) < 40

"""The page as a whole: self-contained, well-formed, true to its run folder, and safe in a real browser."""

import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from foveal.errors import ArtifactError, FovealError
from foveal.files import write_text
from foveal.metrics import SplitMetrics
from foveal.report.contents import read_run
from foveal.report.page import build_report
from foveal.run_folder import RunFolder

from .simulated_run import make_small_run

SmallRun = Callable[..., RunFolder]
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    r"$\mathfrak{x}$ </script><script>alert(2)</script>",
    "=1 \u202e'\" & {{ 7*7 }}",
)
VOID = {"meta", "link", "img", "br", "hr", "input", "path", "rect", "use", "image", "line", "circle"}


class Page(HTMLParser):
    """Every element of a page with its attributes, its text, and whether all elements are closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(self.source)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice: {tag} {attrs}"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open, tag
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(build_report(make_small_run(tmp_path_factory.mktemp("run"), sharpness=3.0)))


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    policy = page.all("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert "script-src" not in policy["content"]
    assert not page.all("script", "iframe", "object", "embed", "base", "form")
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action"):
            assert re.match(r"#|data:image/(webp|png);base64,|data:,$", attributes.get(name, "#")), attributes[name][
                :60
            ]
    assert not re.search(r"url\((?!#)|@import|@font-face", page.source)


def test_the_page_can_be_read_by_all(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    references = re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', page.source)
    assert set(references) <= set(ids)
    assert page.elements[0] == ("html", {"lang": "en"})
    assert len(page.all("main")) == len(page.all("h1")) == len(page.all("nav")) == 1
    assert all(image.get("alt") for image in page.all("img"))
    assert page.all("img")
    assert all(head.get("scope") in {"row", "col"} for head in page.all("th"))
    assert all(svg.get("aria-labelledby") for svg in page.all("svg"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_section_is_there_in_order(page: Page) -> None:
    sections = " ".join(attributes["id"] for attributes in page.all("header", "section"))
    assert sections == (
        "verdict samples distribution training confusion classes probabilities images metrics timings reproduce"
    )
    labels = " ".join(re.findall(r"<title id[^>]*>([^<]*)", page.source))
    for split in ("training", "validation", "test"):
        for plot in ("in images", "in per cent", "Reliability", "ROC", "Histograms"):
            assert re.search(f"{plot}[^:]*: {split} split", labels), (plot, split)
    assert "foveal train 'my images' --out run --seed 0" in page.text
    assert "11,181,642 parameters" in page.text
    assert "early_stopping:" in page.text
    assert re.search(r"4[12]\d images per second", page.text)


def test_the_numbers_are_those_of_the_run(small_run: SmallRun) -> None:
    run = small_run(sharpness=2.0)
    text = " ".join(Page(build_report(run)).text.split())
    for split in ("train", "val", "test"):
        metrics = SplitMetrics.read(run.evaluation(split) / "metrics.json")
        for key in ("accuracy", "macro_f1", "log_loss"):
            low, high = metrics.confidence_intervals[key]
            assert f"{getattr(metrics, key):.3f} [{low:.3f}, {high:.3f}]".replace(" ", "") in text.replace(" ", "")
        for item in metrics.per_class:
            cells = [f"{value:.3f}" for value in (item.precision, item.recall, item.f1) if value is not None]
            assert "".join((item.name, *cells)) in text.replace(" ", "")
    assert metrics.sentence() in text
    assert "the classes have no declared order (data.ordered=true)" in text


def test_the_examples_are_the_extreme_ones(small_run: SmallRun) -> None:
    run = small_run(sharpness=1.0)
    said = read_run(run).splits["test"].predictions
    source = build_report(run).read_text(encoding="utf-8")
    wrong = source[source.index("Wrong, and most sure of it") : source.index("<h3>Least sure</h3>")]
    shown = re.findall(r'<span class="path"><bdi>([^<]*)', wrong)
    order = [at for at in np.argsort(-said.probability, kind="stable") if not said.right[at]]
    assert shown == [said.paths[at] for at in order[:12]]
    names = read_run(run).class_names
    first = f"<bdi>{names[said.labels[order[0]]]}</bdi>.*?<bdi>{names[said.predicted[order[0]]]}</bdi>"
    assert re.search(first, wrong, re.DOTALL)


def test_the_plots_lie_beside_the_evaluation_and_nothing_else_is_written(small_run: SmallRun) -> None:
    run = small_run(with_plots=True)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    first = build_report(run).read_bytes()
    after = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    new = {path.relative_to(run.path).as_posix() for path in after.keys() - before.keys()}
    plots = {"class_distribution", "curves_loss", "curves_accuracy", "curves_macro_f1", "curves_lr"}
    assert new == {"report.html"} | {f"evaluation/{name}.svg" for name in plots}
    assert all(after[path] == content for path, content in before.items())
    for name in plots:
        ElementTree.parse(run.path / "evaluation" / f"{name}.svg")
    moment = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
    assert moment.sub(b"", build_report(run).read_bytes()) == moment.sub(b"", first)
    for path in run.path.rglob("plots/*.svg"):
        path.unlink()
    assert moment.sub(b"", build_report(run).read_bytes()) == moment.sub(b"", first), "missing plots are drawn again"


def test_missing_changed_and_damaged_images_leave_words(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run(num_each=12)
    images = tmp_path / "images"
    (images / "class0" / "0.png").unlink()
    Image.new("RGB", (8, 8)).save(images / "class0" / "1.png")
    (images / "class0" / "2.png").write_bytes(b"")
    shown = Page(build_report(run)).text
    assert "the file is not there any more" in shown
    assert "the file has changed since" in shown
    shutil.rmtree(images)
    page = Page(build_report(run))
    assert not page.all("img")
    assert page.text.count("the file is not there any more") > 24


def test_a_run_that_ended_early_still_has_a_report(small_run: SmallRun) -> None:
    run = small_run(splits=())
    for path in (run.env, run.metrics, run.timings, run.model_summary, run.looks, run.log, run.bundle / "bundle.json"):
        path.unlink()
    page = Page(build_report(run))
    for words in ("no split of this run has been evaluated yet", "No epoch was recorded.", "No stage was timed."):
        assert words in page.text


def test_an_unfinished_epoch_table_is_drawn(small_run: SmallRun) -> None:
    run = small_run()
    write_text(run.metrics, "epoch,train_loss,val_loss,lr\n1,0.5,,0.1\n2,0.25,nan,\n")
    assert "0.25" in Page(build_report(run)).text
    write_text(run.metrics, "epoch,train_loss\n1,much\n")
    with pytest.raises(ArtifactError) as error:
        build_report(run)
    assert error.value.problems == ("line 2, train_loss: 'much'",)


def test_what_does_not_fit_together_is_refused(small_run: SmallRun) -> None:
    run = small_run()
    shutil.copy(run.manifest, run.evaluation("val") / "predictions.parquet")
    with pytest.raises(ArtifactError, match=r"does not fit its metrics\.json") as error:
        build_report(run)
    assert "no column 'p_ape'" in error.value.problems
    (run.evaluation("val") / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match="cannot be read"):
        build_report(run)
    write_text(run.evaluation("val") / "metrics.json", "{")
    with pytest.raises(FovealError, match="is not JSON"):
        build_report(run)
    assert not run.report.exists()


def test_hostile_names_are_text(hostile_run: RunFolder) -> None:
    page = Page(build_report(hostile_run))
    assert not page.all("script")
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert HOSTILE[0] in page.text
    assert HOSTILE[1] in page.text
    assert HOSTILE[2].replace("\u202e", r"\u202e") in page.text
    assert "<b>warned</b>" in page.text
    assert "\u202e" not in page.source


@pytest.mark.parametrize("num_classes", [2, 60])
def test_the_page_stays_small(small_run: SmallRun, num_classes: int) -> None:
    names = [f"Ram C/V Cargo Van {number} 'long' / name" for number in range(num_classes)]
    path = build_report(small_run(names, num_each=8))
    assert path.stat().st_size < 1_200_000
    page = Page(path)
    assert all(name in page.text for name in names)
    assert len(page.all("img")) <= 36 + (60 if num_classes > 20 else 16)


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Class names, file names, folder, warnings and settings that try to be more than text."""
    folder = tmp_path_factory.mktemp("hostile")
    prefix = "<img src=x onerror=alert(3)> '\" "
    run = make_small_run(folder, HOSTILE, num_each=20, prefix=prefix, warnings=["<b>warned</b>"], sharpness=1.0)
    with run.config.open("a", encoding="utf-8") as stream:
        stream.write("note: '<script>alert(4)</script>'\n")
    moved = folder / "<img src=x onerror=alert(5)>"
    run.path.rename(moved)
    return RunFolder(moved)


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


# Each text's contrast with the nearest background behind it, as WCAG 2.1 defines it; drawings are tested elsewhere.
LOW_CONTRAST = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const light = rgb => rgb.slice(0, 3).map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [.2126, .7152, .0722][at], 0);
  const found = [];
  for (const element of document.querySelectorAll('body *:not(svg *)')) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    let behind = element, colour = [255, 255, 255, 1];
    for (; behind; behind = behind.parentElement) {
      const shade = channels(getComputedStyle(behind).backgroundColor);
      if (shade.length === 3 || shade[3] === 1) { colour = shade; break; }
    }
    const pair = [light(channels(getComputedStyle(element).color)), light(colour)].sort((a, b) => b - a);
    if ((pair[0] + .05) / (pair[1] + .05) < 4.5) found.push(element.outerHTML.slice(0, 80));
  }
  return found;
}"""


@pytest.mark.browser
def test_a_real_browser_shows_hostile_names_as_text(browser: Any, hostile_run: RunFolder) -> None:
    url = build_report(hostile_run).as_uri()
    seen: list[str] = []
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    tab.on("dialog", lambda dialog: (seen.append(f"dialog {dialog.message}"), dialog.dismiss()))
    tab.on("request", lambda request: seen.append(request.url) if not request.url.startswith("data:") else None)
    tab.on("console", lambda message: seen.append(f"console {message.text}"))
    tab.on("pageerror", lambda error: seen.append(f"error {error}"))
    tab.goto(url, wait_until="load")
    tab.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    tab.wait_for_timeout(200)
    assert seen == [url]
    shown = tab.inner_text("body")
    assert HOSTILE[0] in shown
    assert "onerror=alert(3)" in shown
    assert tab.evaluate("document.querySelectorAll('script, img:not([src^=\"data:\"])').length") == 0
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390, "the page itself never scrolls sideways"
    assert tab.evaluate(LOW_CONTRAST) == []
    # Whatever might slip through: the policy lets no script run and nothing load.
    tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=http://127.0.0.1:9/x onerror=alert(9)>')")
    tab.wait_for_timeout(200)
    assert not [event for event in seen if event.startswith("dialog")]
    tab.close()


@pytest.mark.browser
def test_no_width_makes_the_page_scroll_sideways(browser: Any, small_run: SmallRun) -> None:
    names = [f"Ram C/V Cargo Van {number} 'long' / {'unbroken' * 8}" for number in range(25)]
    url = build_report(small_run(names, num_each=8)).as_uri()
    for width in (320, 390, 768, 1200, 1600):
        tab = browser.new_page(viewport={"width": width, "height": 800})
        tab.goto(url)
        tab.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        tab.close()

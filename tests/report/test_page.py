"""The page as a whole: self-contained, well-formed, true to its run folder, and safe in a real browser."""

import re
import shutil
from collections.abc import Callable
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

from .page_reader import HOSTILE, LOW_CONTRAST, Page, assert_accessible, assert_self_contained
from .simulated_run import make_small_run

SmallRun = Callable[..., RunFolder]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(build_report(make_small_run(tmp_path_factory.mktemp("run"), sharpness=3.0)))


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    assert_self_contained(page)


def test_the_page_can_be_read_by_all(page: Page) -> None:
    assert_accessible(page)


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

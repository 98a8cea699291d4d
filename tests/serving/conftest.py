"""A browser, and a server with its page to look at in it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_in_browser import CLASSES, HOSTILE, SIZE_PX, draw, serving
from PIL import Image

from plain_export import write_export


@pytest.fixture(scope="module")
def page_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_export(folder / "with map", class_names=CLASSES, size_px=SIZE_PX, seed=5)
    write_export(folder / "without", class_names=CLASSES, size_px=SIZE_PX, seed=6, heatmap=False)
    return folder


@pytest.fixture(scope="module")
def page_address(page_models: Path) -> Iterator[str]:
    with serving(page_models, page_models / "with map", page_models / "without") as found:
        yield found


COUNT_URLS = """
  window.liveUrls = new Set();
  const [create, revoke] = [URL.createObjectURL.bind(URL), URL.revokeObjectURL.bind(URL)];
  URL.createObjectURL = thing => { const url = create(thing); liveUrls.add(url); return url; };
  URL.revokeObjectURL = url => { liveUrls.delete(url); revoke(url); };
  window.violations = [];
  addEventListener('securitypolicyviolation', event => violations.push(event.violatedDirective + event.blockedURI));
"""


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open the page of a server; whatever runs, breaks the policy, fails, or leaves the server's host is a failure."""
    faults: list[str] = []
    tabs: list[Any] = []

    def open_page(address: str, *, width: int = 1280, height: int = 900, is_ready: bool = True, **how: Any) -> Any:
        tab = browser.new_context(viewport={"width": width, "height": height}, **how).new_page()
        tab.set_default_timeout(15_000)
        tab.add_init_script(COUNT_URLS)
        tab.on("dialog", lambda dialog: (faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
        tab.on("pageerror", lambda error: faults.append(f"error {error}"))
        # A browser writes each answer of 4xx or 5xx to its console.
        tab.on("console", lambda message: "Failed to load" in message.text or faults.append(message.text))
        tab.on("request", lambda asked: asked.url.startswith((address, "blob:", "data:")) or faults.append(asked.url))
        tab.goto(address)
        tabs.append(tab)
        if is_ready:
            tab.wait_for_selector("#about:not([hidden])", state="attached")
        return tab

    yield open_page
    violations = [each for tab in tabs for each in tab.evaluate("violations")]
    for tab in tabs:
        tab.context.close()
    assert [*faults, *violations] == []


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Of every kind: landscape, portrait with each turn in its EXIF, grey, CMYK, 16 bits, and with transparency."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    plain = draw(3, 96, 64)
    plain.save(folder / "landscape.jpg")
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x112] = orientation
        plain.rotate(90, expand=True).save(folder / f"turned{orientation}.jpg", exif=exif)
    plain.convert("L").save(folder / "grey.png")
    plain.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.asarray(plain.convert("L")).astype(np.uint16) * 200).save(folder / "deep.png")
    clear = plain.convert("RGBA")
    clear.putalpha(90)
    clear.save(folder / "clear.png")
    plain.save(folder / f"{HOSTILE}.png".replace("/", ""))
    plain.rotate(180).save(folder / "=1+1.png")
    return sorted(folder.iterdir())

"""A server with its page, and what a visitor does there."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image, ImageDraw

HOSTILE = "<img src=x onerror=alert(1)>"
CLASSES = ("discs", "squares", HOSTILE, "=HYPERLINK(1)", "a class with a name as long as a line " * 3, "stripes", "b")
SIZE_PX, STORE_PX = 16, 18
TOKEN = "a-token-of-enough-letters"


def draw(seed: int, width: int, height: int) -> Image.Image:
    """A bright disc on a ground whose corners differ, so that no turn of it looks like another."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 200, (2, 2, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)
    size = min(width, height) // 3
    left, top = (int(rng.integers(0, room)) for room in (width - size, height - size))
    ImageDraw.Draw(image).ellipse((left, top, left + size, top + size), fill=(250, 240, 90))
    return image


@contextmanager
def serving(folder: Path, *arguments: str | Path) -> Iterator[str]:
    """A server's address, while it runs."""
    environment = {**os.environ, "FOVEAL_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "foveal", "serve", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        said = ""
        try:
            while (found := re.search(r"at (http://[0-9.:]+)", said)) is None:
                line = process.stderr.readline().decode() if process.stderr else ""
                assert line, f"the server ended: {said}"
                said += line
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)


def until(tab: Any, condition: str, seconds: float = 15.0) -> None:
    """Wait until a condition holds; not by the browser's own way, which is an `eval` that the page's policy forbids."""
    deadline = time.monotonic() + seconds
    while not tab.evaluate(condition):
        assert time.monotonic() < deadline, condition
        tab.wait_for_timeout(25)


def give(tab: Any, files: list[Path]) -> None:
    before = tab.locator("#cards > li").count()
    tab.set_input_files("#files", [str(path) for path in files])
    until(tab, f"document.querySelectorAll('#cards > li').length === {before + len(files)}")
    settle(tab)


def settle(tab: Any) -> None:
    """Until every card has its answer and, where there is one, its picture; cards out of sight are not drawn."""
    until(tab, "!document.querySelector('#cards > [data-state=waiting]')")
    until(tab, "[...document.querySelectorAll('#cards > [data-state=done]')].every(c => c.querySelector('.frame'))")


def ask(address: str, path: Path, **query: Any) -> dict[str, Any]:
    """What REST answers for a model, `with map` if none is named."""
    model = query.pop("model", "with map")
    url = f"{address}/v1/models/{model}/predict"
    answer = httpx.post(url, params=query, files={"image": path.read_bytes()}, timeout=30)
    return answer.raise_for_status().json()["predictions"][0]


def card(tab: Any, path: Path) -> Any:
    return tab.locator("#cards > li").and_(tab.locator(f"[data-path={json.dumps(path.name)}]"))


def shown(tab: Any, path: Path) -> dict[str, float]:
    """Every bar of a card, the folded ones too."""
    place = card(tab, path)
    place.evaluate("li => li.querySelectorAll('.body details').forEach(each => { each.open = true; })")
    until(tab, f"document.querySelectorAll(`[data-path={json.dumps(path.name)}] .bars li`).length === {len(CLASSES)}")
    bars = place.locator(".bars li").evaluate_all("all => all.map(li => [li.dataset.class, +li.dataset.probability])")
    assert [value for _, value in bars] == sorted((value for _, value in bars), reverse=True)
    return dict(bars)

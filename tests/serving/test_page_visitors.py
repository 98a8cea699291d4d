"""The page for everyone: by keyboard or screen reader, on a phone, at night, with many pictures, in trouble."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from page_in_browser import TOKEN, ask, card, draw, give, serving, settle, until

from report.page_reader import LOW_CONTRAST

pytestmark = pytest.mark.browser


def test_hands_on_the_keyboard_alone(opened: Any, page_address: str, pictures: list[Path]) -> None:
    tab = opened(page_address)

    def step_to(wanted: str, most: int = 60) -> None:
        for _ in range(most):
            tab.keyboard.press("Tab")
            at, outline = tab.evaluate(
                """() => {
                  const {activeElement: at} = document;
                  const {outlineWidth, outlineStyle} = getComputedStyle(at);
                  const name = at.matches('#cards *') ? at.type ?? at.tagName : at.id;
                  return [name, outlineStyle === 'none' ? 0 : parseFloat(outlineWidth)];
                }"""
            )
            assert outline >= 2, f"focus on {at} cannot be seen"
            if at == wanted:
                return
        pytest.fail(f"no way to {wanted} by Tab")

    # From the start: a chooser that opens before Playwright has begun to listen is lost.
    tab.on("filechooser", lambda chooser: chooser.set_files([str(path) for path in pictures[:2]]))
    tab.wait_for_timeout(200)
    step_to("choose")
    tab.keyboard.press("Enter")
    until(tab, "document.querySelectorAll('#cards > li').length === 2")
    settle(tab)
    until(tab, "document.getElementById('status').textContent === '2 pictures done.'")
    step_to("model")
    tab.keyboard.press("ArrowDown")
    assert tab.locator("#model").input_value() == "without"
    for key in ("ArrowDown", "ArrowUp"):
        tab.focus("#model")
        tab.keyboard.press(key)
        step_to("again")
        tab.keyboard.press("Enter")
        until(tab, "document.activeElement.id === 'results'")  # the button has gone, and one goes on to the answers
        settle(tab)
    step_to("range")
    before = tab.evaluate("+document.activeElement.value")
    tab.keyboard.press("ArrowLeft")
    assert tab.evaluate("+document.activeElement.value") == before - 5
    step_to("SUMMARY")
    tab.keyboard.press("Enter")
    until(tab, "document.activeElement.parentElement.open && document.querySelectorAll('.bars li').length > 10")
    step_to("select-one")
    tab.keyboard.press("d")
    assert tab.evaluate("document.activeElement.value") == "discs"
    tab.keyboard.press("Shift+Tab")
    for _ in range(24):
        if tab.evaluate("document.activeElement.className") == "remove":
            break
        tab.keyboard.press("Shift+Tab")
    tab.keyboard.press("Enter")
    assert tab.locator("#cards > li").count() == 1
    assert tab.evaluate("document.activeElement.className") == "remove"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_every_screen_and_can_be_read(
    opened: Any, page_address: str, pictures: list[Path], tmp_path: Path, scheme: str
) -> None:
    long_name = tmp_path / f"{'ä' * 100}.jpg"
    shutil.copy(next(path for path in pictures if path.name == "landscape.jpg"), long_name)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"?")
    tab = opened(page_address, color_scheme=scheme, reduced_motion="reduce")
    assert tab.evaluate(LOW_CONTRAST) == []
    give(tab, [*pictures[:4], long_name, broken])
    card(tab, pictures[0]).get_by_label("True class").select_option("discs")
    tab.click("#about > summary")
    tab.evaluate("document.querySelectorAll('#cards details').forEach(element => element.open = true)")
    tab.select_option("#model", "without")
    for width in (320, 360, 768, 1000, 1400):
        tab.set_viewport_size({"width": width, "height": 800})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, f"{width}: the page scrolls sideways"
    assert tab.evaluate(LOW_CONTRAST) == []
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 150) == (scheme == "dark")


def test_a_screen_reader_finds_names_and_news(opened: Any, page_address: str, pictures: list[Path]) -> None:
    tab = opened(page_address, width=360, height=740, has_touch=True, is_mobile=True)
    assert tab.get_by_role("button", name="Take a photograph").is_visible()
    assert tab.locator("#camera").get_attribute("capture") == "environment"
    give(tab, pictures[:1])
    tab.locator("#settings-fold > summary").click()
    tree = tab.context.new_cdp_session(tab).send("Accessibility.getFullAXTree")["nodes"]
    controls = (
        "button",
        "combobox",
        "textbox",
        "slider",
        "checkbox",
        "link",
        "image",
        "progressbar",
        "article",
        "list",
    )
    nodes = [
        (node["role"]["value"], node.get("name", {}).get("value", "").strip())
        for node in tree
        if not node["ignored"] and node["role"]["value"] in (*controls, "heading", "region", "status", "main")
    ]
    lists = {"Pictures and their answers", "Probabilities", "Further probabilities"}
    assert [role for role, name in nodes if role in controls and not name and role != "list"] == []
    names = {name for _, name in nodes}
    assert {"Choose pictures", "Model", "Test-time augmentation", "Heatmaps", "Heatmap opacity", "True class"} <= names
    assert {"Settings", "Answers", pictures[0].name, f"Remove {pictures[0].name}"} <= names
    assert lists - {"Further probabilities"} <= names
    assert "main" in {role for role, _ in nodes}
    status = tab.locator("[role=status]")
    assert status.get_attribute("aria-live") == "polite"
    expected = ask(page_address, pictures[0])["predicted"]
    until(tab, "document.getElementById('status').textContent !== ''")
    assert status.text_content().startswith(f"{pictures[0].name}: {expected}")
    assert tab.evaluate("document.documentElement.lang") == "en"


def test_pasted_and_dropped_pictures_come_in(opened: Any, page_address: str, pictures: list[Path]) -> None:
    tab = opened(page_address)
    content = list(next(path for path in pictures if path.name == "grey.png").read_bytes())
    for kind, name in (("paste", "image.png"), ("drop", "discs.png")):
        tab.evaluate(
            """([kind, name, content]) => {
              const transfer = new DataTransfer();
              transfer.items.add(new File([new Uint8Array(content)], name, {type: 'image/png'}));
              const how = {bubbles: true, cancelable: true};
              const event = kind === 'paste' ? new ClipboardEvent(kind, {...how, clipboardData: transfer})
                : new DragEvent(kind, {...how, dataTransfer: transfer});
              document.body.dispatchEvent(event);
            }""",
            [kind, name, content],
        )
        until(tab, f"document.querySelectorAll('#cards > li').length === {1 + (kind == 'drop')}")
        settle(tab)
    names = tab.locator("#cards h3").all_text_contents()
    assert names == ["discs.png", "pasted 1.png"]
    assert tab.locator("#cards > li").first.get_by_label("True class").input_value() == "discs"


def test_many_pictures_are_kept_small_and_let_go(opened: Any, page_address: str, tmp_path: Path) -> None:
    large = draw(1, 1200, 900)
    paths = [tmp_path / f"{number}.jpg" for number in range(24)]
    for path in paths:
        large.save(path, quality=60)
    tab = opened(page_address)
    give(tab, paths)
    sizes = tab.locator("#cards img").evaluate_all(
        "all => all.map(img => Math.max(img.naturalWidth, img.naturalHeight))"
    )
    assert len(sizes) == 24
    assert max(sizes) <= 448
    assert tab.evaluate("liveUrls.size") == 24
    tab.locator("#cards .remove").first.click()
    assert tab.evaluate("liveUrls.size") == 23
    tab.click("#clear")
    assert tab.evaluate("liveUrls.size") == 0
    assert tab.locator("#empty").is_visible()


def test_a_busy_server_is_asked_again_and_work_can_be_cancelled(
    opened: Any, page_address: str, pictures: list[Path]
) -> None:
    tab = opened(page_address)
    refused = []

    def refuse_once(route: Any) -> None:
        if refused:
            route.continue_()
            return
        refused.append(tab.evaluate("performance.now()"))
        problem = {"type": "/docs#busy", "title": "The server is busy", "status": 503, "detail": "The queue is full."}
        route.fulfill(status=503, headers={"Retry-After": "1"}, content_type="application/problem+json", json=problem)

    tab.route("**/predict?*", refuse_once)
    tab.set_input_files("#files", str(pictures[0]))
    tab.wait_for_selector("text=The server is busy; asking again in")
    settle(tab)
    assert tab.evaluate("performance.now()") - refused[0] > 1000
    tab.unroute("**/predict?*")

    tab.route("**/predict?*", lambda route: None)  # never answered
    tab.set_input_files("#files", [str(path) for path in pictures[:6]])
    tab.wait_for_selector("text=Asking the model")
    tab.click("#cancel")
    until(tab, "document.querySelectorAll('#cards > [data-state=cancelled]').length === 6")
    assert tab.locator("#progress-box").is_hidden()
    tab.unroute("**/predict?*")
    tab.get_by_role("button", name="Try again").first.focus()
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.tagName") == "ARTICLE"  # whose button it was
    until(tab, "document.querySelectorAll('#cards > [data-state=cancelled]').length === 5")
    settle(tab)


def test_a_token_is_asked_for_and_files_too_large_are_not_sent(
    opened: Any, page_models: Path, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "token.txt").write_text(TOKEN)
    arguments = ("--token-file", tmp_path / "token.txt", "--set", "serve.max_upload_mib=0.25")
    large = tmp_path / "large.png"
    large.write_bytes(bytes(300_000))
    with serving(tmp_path, page_models / "without", *arguments) as address:
        tab = opened(address, is_ready=False)
        tab.wait_for_selector("#token-form:not([hidden])")
        assert tab.evaluate("document.activeElement.id") == "token"
        tab.get_by_role("link", name="API").click()
        assert tab.locator("h1").inner_text().startswith("foveal ")
        assert "Needs the token" in tab.locator("body").inner_text()
        tab.set_viewport_size({"width": 390, "height": 800})
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        tab.get_by_role("link", name="/openapi.json").click()
        assert tab.url == f"{address}/openapi.json"
        assert '"securitySchemes"' in tab.locator("body").inner_text()
        tab.goto(address)
        tab.wait_for_selector("#token-form:not([hidden])")
        tab.set_input_files("#files", str(pictures[0]))  # before it may be asked
        tab.keyboard.type("not the right token at all")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("text=does not take this token")
        assert "token-title" in (tab.get_attribute("#token", "aria-describedby") or "")  # the refusal is read out
        tab.keyboard.type(TOKEN)
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#cards > [data-state=done]")
        assert tab.evaluate("document.activeElement.id") == "results"
        assert tab.evaluate("sessionStorage.length + localStorage.length") == 1
        assert TOKEN not in tab.url
        sent: list[str] = []
        tab.on("request", lambda request: sent.append(request.method))
        give(tab, [large])
        assert "Too large" in card(tab, large).text_content()
        assert "POST" not in sent
        tab.reload()
        tab.wait_for_selector("#about:not([hidden])", state="attached")
        assert tab.locator("#token-form").is_hidden()
    tab.set_input_files("#files", str(pictures[1]))
    tab.wait_for_selector("text=The server cannot be reached")

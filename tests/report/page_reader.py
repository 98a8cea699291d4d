"""Reading a finished page: its elements and its text, and the contrast that a browser would show."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

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


def assert_self_contained(page: Page) -> None:
    """Nothing is loaded, and nothing can run."""
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


def assert_accessible(page: Page) -> None:
    """Ids are unique and lead somewhere; pictures, tables and headings say what they are."""
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

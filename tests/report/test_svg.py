"""What of an SVG document may stand in a page."""

import re

import pytest

from foveal.errors import ArtifactError
from foveal.evaluation.drawing import draw_svg
from foveal.report.svg import inline

HOSTILE = """<?xml version="1.0"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 30 20"
     onload="alert(1)" style="position:fixed">
  <script>alert(2)</script>
  <style>@import "http://evil.example/x.css"; * { display: none }</style>
  <foreignObject><body xmlns="http://www.w3.org/1999/xhtml"><img src="x" onerror="alert(3)"/></body></foreignObject>
  <a xlink:href="javascript:alert(4)"><text>in a link</text></a>
  <image xlink:href="http://evil.example/pixel.png" width="1" height="1"/>
  <image xlink:href="data:image/svg+xml;base64,PHN2Zy8+" width="1" height="1"/>
  <image xlink:href="data:image/png;base64,AAAA" width="1" height="1"/>
  <use xlink:href="http://evil.example/x.svg#a"/>
  <rect width="5" height="5" style="fill: url(http://evil.example/y)" onclick="alert(5)"/>
  <rect width="6" height="6" style="fill: u\\72l(http://evil.example/z)"/>
  <set attributeName="href" to="javascript:alert(6)"/>
  <defs><clipPath id="clip"><path id="shape" d="M 0.123456 1 L 2 3"/></clipPath></defs>
  <g id="unused" clip-path="url(#clip)"><use xlink:href="#shape" style="clip-path: url(#clip)"/></g>
  <text x="1" y="2">&lt;img src=x onerror=alert(7)&gt;</text>
</svg>"""


def test_only_what_is_known_to_be_harmless_is_kept() -> None:
    markup = str(inline(HOSTILE, prefix="p", label="a plot").markup)
    assert "alert(7)" in markup
    assert "&lt;img src=x onerror=alert(7)&gt;" in markup
    for word in ("script", "evil", "onload", "onclick", "foreign", "style>", "javascript", "<set", "<a ", "position"):
        assert word not in markup, word
    assert markup.count("<image") == 3
    assert re.findall(r'href="([^"]*)"', markup) == ["data:image/png;base64,AAAA", "#p-shape"]
    assert "u\\72l" not in markup


def test_ids_get_the_prefix_and_references_follow() -> None:
    markup = str(inline(HOSTILE, prefix="p", label="a plot").markup)
    assert set(re.findall(r'\bid="([^"]*)"', markup)) == {"p-label", "p-clip", "p-shape"}
    assert set(re.findall(r"url\(#([^)]*)\)", markup)) == {"p-clip"}


def test_two_drawings_of_one_plot_share_no_id() -> None:
    svg = draw_svg(lambda figure: figure.add_subplot().plot([0, 1], marker="o"), width_px=200, height_px=100)
    ids = [set(re.findall(r'\bid="([^"]*)"', str(inline(svg, prefix=name, label="x").markup))) for name in "ab"]
    assert len(ids[0]) == len(ids[1]) > 2
    assert not ids[0] & ids[1]


def test_the_label_is_read_and_escaped_and_the_size_is_in_pixels() -> None:
    drawing = inline(HOSTILE, prefix="p", label='<b>"x"</b>')
    assert '<title id="p-label">&lt;b&gt;&quot;x&quot;&lt;/b&gt;</title>' in str(drawing.markup)
    assert 'role="img" aria-labelledby="p-label"' in str(drawing.markup)
    assert drawing.width_px == 40


@pytest.mark.parametrize("text", ["<html><svg/></html>", "<svg", ""])
def test_something_else_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"SVG|svg"):
        inline(text, prefix="p", label="x")

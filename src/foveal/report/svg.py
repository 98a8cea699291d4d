"""SVG files made safe to stand inside an HTML page, many on one page.

Nothing is passed on that is not known to be harmless: only drawing elements and attributes, links only to parts of the
same drawing, images only as embedded PNG. Ids get a prefix, so that two drawings never share one.
"""

import html
import re
from dataclasses import dataclass
from xml.etree import ElementTree

from foveal.errors import ArtifactError
from foveal.evaluation.drawing import displayed

_TAGS = frozenset({"svg", "g", "defs", "clipPath", "path", "rect", "line", "circle", "use", "text", "tspan", "image"})
_ATTRIBUTES = frozenset(
    [
        "x",
        "y",
        "x1",
        "x2",
        "y1",
        "y2",
        "cx",
        "cy",
        "r",
        "d",
        "width",
        "height",
        "viewBox",
        "transform",
        "style",
        "clip-path",
        "fill",
        "stroke",
        "opacity",
        "points",
        "id",
        "preserveAspectRatio",
    ]
)
_LOCAL_LINK = re.compile(r"url\(#([^)]*)\)")
_LONG_NUMBER = re.compile(r"(\d+\.\d{2})\d+")
_PX_PER_POINT = 4 / 3


@dataclass(frozen=True)
class Drawing:
    """An SVG element ready for a page.

    Attributes:
        markup: the element; safe to stand in a page as it is.
        width_px: its natural width in CSS pixels.
    """

    markup: str
    width_px: float


def inline(svg: str, *, prefix: str, label: str) -> Drawing:
    """Turn an SVG document into an element for an HTML page.

    Args:
        svg: the document.
        prefix: put before every id; letters and digits, different for each drawing of a page.
        label: what the drawing shows, for those who do not see it.

    Raises:
        ArtifactError: it is not an SVG document.
    """
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise ArtifactError(f"A plot is not an SVG document: {error}.", fix="run foveal evaluate again.") from error
    if _local(root.tag) != "svg":
        raise ArtifactError(f"Expected a plot with the root element svg, got {_local(root.tag)}.")
    box = [float(part) for part in root.get("viewBox", "0 0 300 200").split()]
    linked = set(_LOCAL_LINK.findall(svg)) | set(re.findall(r'href="#([^"]*)"', svg))
    clean = _clean(root, prefix, linked)
    width_px = box[2] * _PX_PER_POINT
    clean.attrib = {
        "viewBox": root.get("viewBox", "0 0 300 200"),
        "width": f"{width_px:.0f}",
        "height": f"{box[3] * _PX_PER_POINT:.0f}",
        "role": "img",
        "aria-labelledby": f"{prefix}-label",
    }
    body = "".join(ElementTree.tostring(child, encoding="unicode") for child in clean)
    opening = " ".join(f'{name}="{html.escape(value)}"' for name, value in clean.attrib.items())
    title = f'<title id="{prefix}-label">{html.escape(displayed(label))}</title>'
    return Drawing(f"<svg {opening}>{title}{body}</svg>", width_px)


def _clean(element: ElementTree.Element, prefix: str, linked: set[str]) -> ElementTree.Element:
    """A copy of an element with only what is allowed, without namespaces, as HTML wants it."""
    tag = _local(element.tag)
    copy = ElementTree.Element(tag)
    for name, value in element.attrib.items():
        kept = _attribute(tag, _local(name), value, prefix, linked)
        if kept is not None:
            copy.set(_local(name), kept)
    copy.text = element.text if tag in {"text", "tspan"} else None
    for child in element:
        if isinstance(child.tag, str) and _local(child.tag) in _TAGS:
            copy.append(_clean(child, prefix, linked))
    return copy


def _attribute(tag: str, name: str, value: str, prefix: str, linked: set[str]) -> str | None:
    """The attribute's value as it may stand in the page; None where it may not."""
    if name == "href":
        if value.startswith("#") and tag == "use":
            return f"#{prefix}-{value[1:]}"
        return value if tag == "image" and value.startswith("data:image/png;base64,") else None
    if name not in _ATTRIBUTES:
        return None
    if name == "id":
        return f"{prefix}-{value}" if value in linked else None
    if name == "d":
        return _LONG_NUMBER.sub(r"\1", value).replace("\n", " ")
    inside = _LOCAL_LINK.sub("", value).lower()
    if "url(" in inside or "\\" in inside or "@" in inside:
        return None  # a link to somewhere else, or an attempt to hide one
    return _LOCAL_LINK.sub(lambda match: f"url(#{prefix}-{match[1]})", value)


def _local(name: str) -> str:
    """A tag or attribute name without its namespace."""
    return name.rpartition("}")[2]

"""Pages from templates: every value escaped, nothing loaded, hidden signs written out."""

from pathlib import Path
from typing import Any

from foveal.evaluation.drawing import MUTED, SPLIT_COLOURS, displayed, split_name
from foveal.extras import require
from foveal.report.numbers import counted
from foveal.run_folder import now
from foveal.version import __version__

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, *, styles: tuple[str, ...], **values: Any) -> str:
    """One self-contained HTML page.

    Args:
        template: its file's name; an extension of base.html.j2.
        styles: names of the style sheets that it holds, in order.
        **values: what the template names, beside the version and the time, which every page gets.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", extra="train", purpose="write the report")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,  # off by default in jinja2
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"counted": counted, "lines": _lines, "split_colour": _colour, "split_name": split_name}
    page: str = environment.get_template(template).render(
        css="\n".join(_TEMPLATES.joinpath(name).read_text(encoding="utf-8") for name in styles),
        made=now()[:16].replace("T", " ") + " UTC",
        version=__version__,
        **values,
    )
    return page


class _Lines(str):
    """Text of many lines for inside `pre`, made visible line by line."""


def _lines(text: str) -> _Lines:
    return _Lines("\n".join(displayed(line.replace("\t", "    ")) for line in text.splitlines()))


def _visible(value: Any) -> Any:
    """Each value just before it is escaped: signs that cannot be seen, or that reorder text, are written out."""
    return displayed(value) if type(value) is str else value


def _colour(split: str) -> str:
    return SPLIT_COLOURS.get(split, MUTED)

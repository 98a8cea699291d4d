"""One self-contained HTML page a run: no network, no scripts, nothing beside the file itself."""

from pathlib import Path
from typing import Any

from foveal.evaluation.drawing import MUTED, SPLIT_COLOURS, displayed, split_name
from foveal.extras import require
from foveal.files import write_text
from foveal.report import sections
from foveal.report.contents import read_run
from foveal.report.numbers import counted
from foveal.run_folder import RunFolder, now
from foveal.version import __version__

_TEMPLATES = Path(__file__).parent / "templates"


def build_report(run: RunFolder) -> Path:
    """Write the run's report, and the plots of the whole run to `evaluation/` as SVG files.

    Everything comes from the run folder; the thumbnails alone come from the images that its manifest names, and where
    one is missing, words take its place.

    Args:
        run: a run folder with at least config.yaml and manifest.parquet.

    Returns:
        The page, `run.report`.

    Raises:
        ArtifactError: a file of the run is damaged.
        FovealError: the page cannot be written.
        MissingExtraError: jinja2, matplotlib or pyarrow is not installed.
    """
    contents = read_run(run)
    plots, words = sections.run_plots(contents), sections.verdict(contents)
    pictures = sections.Pictures.of(contents)
    for name, svg in plots.items():
        write_text(run.path / "evaluation" / f"{name}.svg", svg)
    page = _template().render(
        css=_TEMPLATES.joinpath("report.css").read_text(encoding="utf-8"),
        name=run.path.absolute().name,
        run_path=str(run.path),
        made=now()[:16].replace("T", " ") + " UTC",
        version=__version__,
        **words,
        **sections.samples(contents, pictures),
        **sections.data_and_training(contents, plots),
        **sections.mistakes(contents),
        **sections.probabilities(contents),
        **sections.examples(contents, pictures),
        **sections.figures(contents),
        **sections.settings(contents),
    )
    write_text(run.report, page)
    return run.report


def _template() -> Any:
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
    return environment.get_template("report.html.j2")


class _Lines(str):
    """Text of many lines for inside `pre`, made visible line by line."""


def _lines(text: str) -> _Lines:
    return _Lines("\n".join(displayed(line.replace("\t", "    ")) for line in text.splitlines()))


def _visible(value: Any) -> Any:
    """Each value just before it is escaped: signs that cannot be seen, or that reorder text, are written out."""
    return displayed(value) if type(value) is str else value


def _colour(split: str) -> str:
    return SPLIT_COLOURS.get(split, MUTED)

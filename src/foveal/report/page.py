"""One self-contained HTML page a run: no network, no scripts, nothing beside the file itself."""

from pathlib import Path

from foveal.files import write_text
from foveal.report import sections
from foveal.report.beyond_sections import beyond
from foveal.report.contents import read_run
from foveal.report.rendering import render
from foveal.run_folder import RunFolder


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
    page = render(
        "report.html.j2",
        styles=("report.css",),
        name=run.path.absolute().name,
        made_from=str(run.path),
        **words,
        **sections.samples(contents, pictures),
        **sections.data_and_training(contents, plots),
        **sections.mistakes(contents),
        **sections.probabilities(contents),
        **sections.examples(contents, pictures),
        **beyond(run),
        **sections.figures(contents),
        **sections.settings(contents),
    )
    write_text(run.report, page)
    return run.report

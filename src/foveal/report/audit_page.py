"""The page of an audit: what is in the data and what is wrong with it, in one file that opens offline."""

from pathlib import Path

from foveal.files import write_text
from foveal.report import audit_sections as sections
from foveal.report.audit_choice import AS_LIST, samples_of_classes
from foveal.report.audit_contents import AuditContents
from foveal.report.audit_pictures import Pictures
from foveal.report.rendering import render
from foveal.report.sections import MAX_GRID_CLASSES, MAX_SAMPLES, MAX_SAMPLES_A_CLASS, MAX_STRIP_CLASSES

PAGE_NAME = "report.html"


def build_audit_page(folder: Path) -> Path:
    """Write an audit's page.

    Everything comes from the audit's folder; the thumbnails alone come from the images that its manifest names, and
    where one is missing, words take its place.

    Args:
        folder: an audit's folder with summary.json, findings.parquet and manifest.parquet.

    Returns:
        The page, report.html in the folder.

    Raises:
        ArtifactError: a file of the audit is missing, damaged, or of a newer version.
        FovealError: summary.json is missing or not JSON, or the page cannot be written.
        MissingExtraError: jinja2, matplotlib or pyarrow is not installed.
    """
    audit = AuditContents.read(folder)
    num_classes = len(audit.manifest.class_names)
    each = min(MAX_SAMPLES_A_CLASS, MAX_SAMPLES // num_classes) if 0 < num_classes <= MAX_STRIP_CLASSES else 1
    pictures = Pictures.of(audit, samples_of_classes(audit, each, MAX_GRID_CLASSES))
    blocks = pictures.blocks
    page = render(
        "audit.html.j2",
        styles=("report.css", "audit.css"),
        name=folder.absolute().name,
        made_from=str(folder),
        data=audit.summary.data,
        data_format=audit.summary.data_format,
        leak_block=blocks.get("leak"),
        pair_blocks=[block for name, block in blocks.items() if block.form == "pairs" and name != "leak"],
        picture_blocks=[block for block in blocks.values() if block.form in {"pictures", "list"}],
        lists={name: sections.listed(audit, name) for name in AS_LIST},
        **sections.verdict(audit, blocks),
        **sections.leakage(audit),
        **sections.classes(audit),
        **sections.samples(audit, pictures),
        **sections.sizes(audit),
        **sections.shortcuts(audit),
        **sections.checks(audit),
    )
    path = folder / PAGE_NAME
    write_text(path, page)
    return path

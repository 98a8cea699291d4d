"""The page and the contact sheet of `foveal explain`."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.explaining.checks import SanityCheck
from foveal.explaining.explanation import Explanation
from foveal.explaining.folder import ExplainedImage, ExplainFolder
from foveal.explaining.methods import CLASS_METHODS, METHOD_NAMES
from foveal.explaining.pictures import overlay, squared
from foveal.pixels.policy import PixelPolicy
from foveal.report.contact_sheet import MAX_CELL_PX, Band, Column, Row, draw_contact_sheet, write_picture
from foveal.report.experiment_page import PageTable, Picture, Section, write_experiment_page
from foveal.report.numbers import MISSING, counted, share

MAX_SHEET_ROWS = 40
"""Images on the contact sheet, the first of all."""
MAX_PAGE_IMAGES = 60
"""Images that the page shows; the table has all."""
_MAX_SHEET_MEMBERS = 8


@dataclass(frozen=True)
class SheetRow:
    """An image as the contact sheet shows it.

    Attributes:
        name: of the file.
        note: what the classifier says of it.
        pictures: the picture, its heat, and that of each network of an ensemble; uint8 [side, side, 3] each.
    """

    name: str
    note: str
    pictures: tuple[NDArray[np.uint8], ...]


def sheet_row(explanation: Explanation) -> SheetRow:
    """The pictures of an image that did not fail."""
    said = explanation.prediction
    members = explanation.members[:_MAX_SHEET_MEMBERS] if len(explanation.members) > 1 else ()
    pictures = [explanation.picture, overlay(explanation), *(overlay(explanation, member) for member in members)]
    other = "" if explanation.explained == said.predicted else f"; heat of {explanation.explained}"
    return SheetRow(
        Path(said.path).name,
        f"{said.predicted} {share(said.probability)}{other}",
        tuple(squared(each, MAX_CELL_PX) for each in pictures),
    )


def write_contact_sheet(
    path: Path, rows: Sequence[SheetRow], *, title: str, note: str, member_names: Sequence[str] = ()
) -> None:
    """Write pictures and their heat side by side, a row an image.

    Args:
        path: the PNG.
        rows: at least one.
        title: what the sheet shows.
        note: how it was made.
        member_names: of the networks of an ensemble.

    Raises:
        FovealError: the disk is full or the folder cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    bands = [Band("", (Column("picture"), Column("heat")))]
    if names := member_names[:_MAX_SHEET_MEMBERS]:
        bands.append(Band("each network of the ensemble", tuple(Column(name) for name in names)))
    sheet = draw_contact_sheet(title, note, bands, [Row(row.name, row.note, row.pictures) for row in rows])
    write_picture(sheet, path)


def write_explain_page(
    folder: ExplainFolder,
    images: Sequence[ExplainedImage],
    *,
    model: Path,
    method: str,
    layers: Sequence[str],
    check: SanityCheck | None,
    remarks: Sequence[str],
    policy: PixelPolicy,
) -> Path:
    """Write the page of all that was explained.

    Args:
        folder: with the overlays already.
        images: the rows of the table.
        model: the run or bundle.
        method: how the maps were made.
        layers: whose maps they are, one a network.
        check: that the maps depend on the weights; None where it was not made.
        remarks: what else there is to say, such as what was left out.
        policy: how image files become pixels.

    Returns:
        The page.

    Raises:
        FovealError: the page cannot be written.
        MissingExtraError: jinja2 is not installed.
    """
    good, failed = [each for each in images if each.is_ok], [each for each in images if not each.is_ok]
    headline = f"{counted(len(good), 'image')} explained by {METHOD_NAMES[method]}"
    sections = [_images(folder, good, method)]
    if failed:
        rows = [[each.path, each.reason] for each in failed[:200]]
        table = PageTable(("File", "Why"), rows, text_columns=(1,), caption=f"{counted(len(failed), 'file')} failed")
        sections.append(Section("Failed", tables=[table]))
    sections.append(_reading(method))
    counts = Counter(each.predicted for each in good)
    facts = [
        ("Model", str(model)),
        ("Method", METHOD_NAMES[method]),
        ("Layer", ", ".join(dict.fromkeys(layers))),
        ("Predicted", ", ".join(f"{name}: {number:,}" for name, number in counts.most_common(12)) or MISSING),
    ]
    checked = [check.sentence] if check else ["Whether the maps depend on the weights was not checked."]
    return write_experiment_page(
        folder.page,
        name=folder.path.absolute().name,
        title="heatmaps",
        verdict=[headline + (f"; {counted(len(failed), 'file')} failed." if failed else "."), *checked, *remarks],
        sections=sections,
        made_from=str(folder.path),
        next_commands=[f"foveal predict {shlex.quote(str(model))} PHOTOS --out predictions.csv"],
        facts=facts,
        policy=policy,
    )


def _images(folder: ExplainFolder, good: Sequence[ExplainedImage], method: str) -> Section:
    pictures = []
    for each in good[:MAX_PAGE_IMAGES]:
        name = Path(each.path).name
        pictures.append(Picture(Path(each.path), caption=name, lines=[f"{each.predicted} {share(each.probability)}"]))
        lines = [] if each.heat_inside_boxes is None else [f"{share(each.heat_inside_boxes)} of the heat in its boxes"]
        if each.reason:
            lines.append(each.reason)
        what = f"heat of {each.explained}" if method in CLASS_METHODS else "heat, of no class"
        pictures.append(Picture(folder.path / each.overlay, caption=what, lines=lines))
    shown = len(good) > MAX_PAGE_IMAGES
    paragraphs = ["Each picture, and beside it the same with its heat: bright where it is hottest; dark where the "
                  "network never saw the picture, since it was cut to a square."]  # fmt: skip
    if shown:
        paragraphs.append(
            f"The first {MAX_PAGE_IMAGES:,} of {len(good):,}; explanations.csv and the folder overlays have all."
        )
    return Section("Images", paragraphs=paragraphs, pictures=pictures)


def _reading(method: str) -> Section:
    of_class = (
        "The map shows which places the network's answer for this class rests on, at this layer. "
        if method in CLASS_METHODS
        else "This map knows of no class: it shows what stands out to the network at this layer, whatever it answers. "
    )
    return Section(
        "What a map does not prove",
        paragraphs=[
            of_class + "It is as coarse as the layer's map, and blown up to the picture.",
            "That the heat lies on the object does not prove that the answer is right, nor that it is right for the "
            "right reason; and heat beside the object is a hint to look for shortcuts, not a proof of one. The test is "
            "to change what it points at, and to see whether the answer changes.",
        ],
    )

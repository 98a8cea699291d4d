"""`foveal explain`: where in each picture a classifier looked."""

import base64
import html
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike, fspath
from pathlib import Path
from typing import IO, Any

from PIL import Image

from foveal.api.opening import refuse_export, refuse_unfinished
from foveal.data.manifest import Manifest
from foveal.errors import ConfigError
from foveal.explaining.checks import NUM_IMAGES, SanityCheck, check_maps
from foveal.explaining.explainer import Explainer
from foveal.explaining.folder import ExplainedImage, ExplainFolder
from foveal.explaining.methods import METHOD_NAMES
from foveal.files import write_json
from foveal.machine import num_threads
from foveal.predictions import expand_inputs
from foveal.progress import Progress, Silence
from foveal.report.explain_page import (
    MAX_SHEET_ROWS,
    SheetRow,
    sheet_row,
    write_contact_sheet,
    write_explain_page,
)
from foveal.run_folder import RunFolder, is_run_folder
from foveal.types import Box

DEFAULT_LIMIT = 200
"""Images that are explained where nobody says how many: a map costs two to three times an answer, and two files."""
_SHOWN_IN_NOTEBOOK = 12


@dataclass(frozen=True)
class Explanations:
    """What was explained and where it lies.

    Attributes:
        folder: with maps, overlays, table, contact sheet and page.
        images: a row an image, in order; failed ones too.
        method: how the maps were made.
        layers: whose maps they are, one a network.
        check: whether the maps depend on what was learnt; None where it was not made.
        remarks: what was left out, and what else there is to know.
        table: explanations.csv.
        sheet: the contact sheet; None where all images failed.
        page: index.html.
    """

    folder: Path
    images: tuple[ExplainedImage, ...]
    method: str
    layers: tuple[str, ...]
    check: SanityCheck | None
    remarks: tuple[str, ...]
    table: Path
    sheet: Path | None
    page: Path

    @property
    def num_ok(self) -> int:
        """Images that were explained."""
        return sum(image.is_ok for image in self.images)

    @property
    def num_failed(self) -> int:
        """Images that were not; the reasons are in the table."""
        return len(self.images) - self.num_ok

    @property
    def sentences(self) -> tuple[str, ...]:
        """What came of it, for people."""
        failed = f", {self.num_failed:,} failed" if self.num_failed else ""
        layers = ", ".join(dict.fromkeys(self.layers))
        first = f"{self.num_ok:,} image{'s' if self.num_ok != 1 else ''} explained{failed}: "
        first += f"{METHOD_NAMES[self.method]} at {layers}."
        return (first, *([self.check.sentence] if self.check else []), *self.remarks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "folder": str(self.folder),
            "num_ok": self.num_ok,
            "num_failed": self.num_failed,
            "method": self.method,
            "layers": list(self.layers),
            "check": _checked(self.check),
            "remarks": list(self.remarks),
            "table": str(self.table),
            "sheet": str(self.sheet) if self.sheet else None,
            "page": str(self.page),
            "images": [image.to_dict() for image in self.images],
        }

    def _repr_html_(self) -> str:
        text = "".join(f"<p>{html.escape(each)}</p>" for each in self.sentences)
        figures = "".join(
            f'<figure style="display:inline-block;margin:4px"><img width="128" alt="" '
            f'src="{_inside(self.folder / each.overlay)}">'
            f"<figcaption>{html.escape(each.explained)}</figcaption></figure>"
            for each in islice((image for image in self.images if image.is_ok), _SHOWN_IN_NOTEBOOK)
        )
        return f"{text}<div>{figures}</div>"


@dataclass(frozen=True)
class ExplainPlan:
    """What `explain --dry-run` shows.

    Attributes:
        model: the run or bundle.
        num_inputs: files that the inputs stand for.
        num_explained: as many of them as would be explained.
        method: how the maps would be made.
        layers: whose maps they would be, one a network.
        folder: where they would go.
    """

    model: Path
    num_inputs: int
    num_explained: int
    method: str
    layers: tuple[str, ...]
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "model": str(self.model),
            "num_inputs": self.num_inputs,
            "num_explained": self.num_explained,
            "method": self.method,
            "layers": list(self.layers),
            "folder": str(self.folder),
        }

    def __str__(self) -> str:
        lines = [
            f"model       {self.model}",
            f"inputs      {self.num_inputs:,} files, of which {self.num_explained:,} would be explained",
            f"method      {METHOD_NAMES[self.method]} at {', '.join(dict.fromkeys(self.layers))}",
            f"writes to   {self.folder}",
        ]
        return "\n".join(lines)


def explain(
    model: str | PathLike[str],
    inputs: Sequence[str | PathLike[str]],
    *,
    out: str | PathLike[str],
    method: str = "auto",
    class_name: str | None = None,
    limit: int = DEFAULT_LIMIT,
    check: bool = True,
    device: str = "auto",
    force: bool = False,
    stdin: IO[str] | None = None,
    progress: Progress | None = None,
) -> Explanations:
    """Make heatmaps of files, folders, globs or a list on stdin; a bad file fails in its own row.

    For one image in memory, take `foveal.Explainer`.

    Args:
        model: a run or a bundle.
        inputs: files, folders, glob patterns, or "-" for a list of paths on stdin.
        out: the folder to write.
        method: gradcam, gradcam++, hirescam, eigencam, rollout, or auto: HiRes-CAM where there is a gradient.
        class_name: the class to explain; the predicted one of each image, if None.
        limit: the most images to explain; the first of the inputs.
        check: whether to compare some maps with those of random weights.
        device: auto, cpu, cuda or mps.
        force: whether to write over an earlier result in the same folder.
        stdin: where "-" reads from; the process's own if not given.
        progress: where to show it.

    Raises:
        ArtifactError: the model is no bundle, or a damaged one; or `out` holds something else.
        ConfigError: there is no such method, class or device, or the network does not allow the method.
        DataError: a folder or a pattern holds no file.

    Example:
        >>> import foveal
        >>> foveal.explain("runs/signs", ["photos"], out="heatmaps").num_ok  # doctest: +SKIP
        206
    """
    folder, progress = ExplainFolder(Path(out)), progress or Silence()
    _check_wish(folder.path, inputs, limit)
    explainer = _open(model, method, device)
    if class_name is not None:
        explainer.class_number(class_name)
    paths = expand_inputs([fspath(text) for text in inputs], stdin or sys.stdin)
    chosen = list(islice(paths, limit))
    num_left_out = sum(1 for _ in paths)
    folder.prepare()
    with folder.lock():
        folder.begin(force=force)
        boxes, boxed = _boxes_of(Path(model))
        images: list[ExplainedImage] = []
        rows: list[SheetRow] = []
        with progress.bar("Explaining", len(chosen), "images") as bar:
            for number, explanation in enumerate(explainer.stream(chosen, class_name=class_name), 1):
                path = chosen[number - 1]
                images.append(folder.add(number, explanation, boxes.get(Path(path).absolute(), ())))
                if explanation.is_ok and len(rows) < MAX_SHEET_ROWS:
                    rows.append(sheet_row(explanation))
                bar.advance()
        checked = _check(explainer, images) if check else None
        remarks = _remarks(len(chosen), num_left_out, is_boxed=boxed)
        result = _result(folder, explainer, images, checked, remarks, has_sheet=bool(rows))
        _write(result, folder, explainer, Path(model), rows)
    return result


def plan_explanation(
    model: str | PathLike[str],
    inputs: Sequence[str | PathLike[str]],
    *,
    out: str | PathLike[str],
    method: str = "auto",
    class_name: str | None = None,
    limit: int = DEFAULT_LIMIT,
    device: str = "auto",
    stdin: IO[str] | None = None,
) -> ExplainPlan:
    """What `explain` would do: the inputs are counted and the layer is chosen, and nothing is written.

    Raises:
        ArtifactError: as `explain`.
        ConfigError: as `explain`.
        DataError: as `explain`.
    """
    _check_wish(Path(out), inputs, limit)
    explainer = _open(model, method, device)
    if class_name is not None:
        explainer.class_number(class_name)
    num_inputs = sum(1 for _ in expand_inputs([fspath(text) for text in inputs], stdin or sys.stdin))
    return ExplainPlan(Path(model), num_inputs, min(num_inputs, limit), explainer.method, explainer.layers, Path(out))


def _check_wish(out: Path, inputs: Sequence[str | PathLike[str]], limit: int) -> None:
    """Refuse what makes no sense, before anything is opened.

    Raises:
        ConfigError: so it is.
    """
    if limit < 1:
        raise ConfigError(f"--limit {limit}: at least 1 was expected.")
    for each in inputs:
        if fspath(each) != "-" and Path(each).is_dir() and out.resolve().is_relative_to(Path(each).resolve()):
            raise ConfigError(
                f"The folder {out} lies in the input {each}, where its pictures would be explained the next time.",
                fix="choose an --out beside the input.",
            )


def _open(model: str | PathLike[str], method: str, device: str) -> Explainer:
    refuse_unfinished(Path(model))
    refuse_export(Path(model))
    return Explainer(model, method=method, device=device, num_workers=num_threads())


def _boxes_of(model: Path) -> tuple[dict[Path, list[Box]], bool]:
    """The boxes that a run's manifest has for its files, and whether it has any."""
    boxes: dict[Path, list[Box]] = {}
    if is_run_folder(model):
        manifest = Manifest.read(RunFolder(model).manifest)
        for path, box in zip(manifest.absolute_paths(), manifest.boxes(), strict=True):
            if box is not None:
                boxes.setdefault(path.absolute(), []).append(box)
    return boxes, bool(boxes)


def _check(explainer: Explainer, images: Sequence[ExplainedImage]) -> SanityCheck | None:
    some = [image for image in images if image.is_ok][:NUM_IMAGES]
    if not some:
        return None
    seen = [explainer.predictor.prepare(image.path) for image in some]
    return check_maps(explainer, seen, [explainer.class_number(image.explained) for image in some])


def _remarks(num_explained: int, num_left_out: int, *, is_boxed: bool) -> list[str]:
    remarks = []
    if num_left_out:
        remarks.append(
            f"The first {num_explained:,} of {num_explained + num_left_out:,} inputs were explained; --limit raises it."
        )
    if is_boxed:
        remarks.append(
            "This model was trained on boxes cut from pictures, and sees whole pictures here, as in foveal predict."
        )
    return remarks


def _result(
    folder: ExplainFolder,
    explainer: Explainer,
    images: Sequence[ExplainedImage],
    check: SanityCheck | None,
    remarks: Sequence[str],
    *,
    has_sheet: bool,
) -> Explanations:
    return Explanations(
        folder=folder.path,
        images=tuple(images),
        method=explainer.method,
        layers=explainer.layers,
        check=check,
        remarks=tuple(remarks),
        table=folder.table,
        sheet=folder.sheet if has_sheet else None,
        page=folder.page,
    )


def _write(
    result: Explanations, folder: ExplainFolder, explainer: Explainer, model: Path, rows: Sequence[SheetRow]
) -> None:
    """The table, the contact sheet, the page and the summary; maps and overlays are written already."""
    folder.write_table(result.images)
    if rows:
        write_contact_sheet(
            folder.sheet,
            rows,
            title=f"Where {model.absolute().name} looked",
            note=" ".join(result.sentences),
            member_names=explainer.member_names,
        )
    write_explain_page(
        folder,
        result.images,
        model=model,
        method=result.method,
        layers=result.layers,
        check=result.check,
        remarks=result.remarks,
        policy=explainer.predictor.looks[0][1],
    )
    write_json(
        folder.summary,
        {
            "verb": "explain",
            "model": str(model),
            "method": result.method,
            "layers": list(result.layers),
            "num_ok": result.num_ok,
            "num_failed": result.num_failed,
            "check": _checked(result.check),
            "remarks": list(result.remarks),
        },
    )


def _checked(check: SanityCheck | None) -> dict[str, Any] | None:
    if check is None:
        return None
    return {
        "passes": check.passes,
        "rank_correlation": check.rank_correlation,
        "largest": check.largest,
        "num_images": check.num_images,
        "num_draws": check.num_draws,
        "sentence": check.sentence,
    }


def _inside(picture: Path) -> str:
    """A small copy of a picture as a data URI."""
    stream = io.BytesIO()
    with Image.open(picture) as image:
        image.thumbnail((256, 256))
        image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"

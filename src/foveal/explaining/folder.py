"""What `foveal explain` writes of each image: the map as an array, the overlay as a picture, a row of the table."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveal.errors import ArtifactError
from foveal.explaining.explanation import Explanation
from foveal.explaining.pictures import overlay
from foveal.files import atomic_writer, read_json, write_csv, write_json
from foveal.run_folder import WorkFolder
from foveal.types import Box

MAPS, OVERLAYS = "maps", "overlays"
COLUMNS = (
    "path", "status", "reason", "predicted", "probability", "explained", "method", "layer", "map", "overlay",
    "peak_x", "peak_y", "heat_inside_boxes",
)  # fmt: skip
_LONGEST_STEM = 60


@dataclass(frozen=True)
class ExplainedImage:
    """A row of `explanations.csv`.

    Attributes:
        path: the file as it was given.
        status: ok or failed.
        reason: why it failed; or, where it did not, why its map is empty.
        predicted: the most probable class.
        probability: its calibrated probability; None where it failed.
        explained: the class whose map this is.
        method: how the map was made.
        layer: whose map it is.
        map: the file of arrays, within the folder.
        overlay: the picture with its heat, within the folder.
        peak_x: where the heat is greatest, in pixels of the upright picture from the left; None without heat.
        peak_y: likewise from the top.
        heat_inside_boxes: the share of the heat in the boxes that the run's manifest has for the file; None without.
    """

    path: str
    status: str
    reason: str
    predicted: str = ""
    probability: float | None = None
    explained: str = ""
    method: str = ""
    layer: str = ""
    map: str = ""
    overlay: str = ""
    peak_x: float | None = None
    peak_y: float | None = None
    heat_inside_boxes: float | None = None

    @property
    def is_ok(self) -> bool:
        """Whether it was explained."""
        return self.status == "ok"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ExplainFolder(WorkFolder):
    """Where everything of one `foveal explain` lies.

    ```
    DIR/
      explanations.csv   contact_sheet.png   index.html   summary.json
      maps/NUMBER-NAME.npz   overlays/NUMBER-NAME.png
    ```
    """

    @property
    def table(self) -> Path:
        """A row an image."""
        return self.path / "explanations.csv"

    @property
    def sheet(self) -> Path:
        """Pictures and their heat side by side."""
        return self.path / "contact_sheet.png"

    @property
    def page(self) -> Path:
        """The self-contained page."""
        return self.path / "index.html"

    @property
    def summary(self) -> Path:
        """What was asked for and what came of it."""
        return self.path / "summary.json"

    def begin(self, *, force: bool) -> None:
        """Take the folder, new or empty; or one of an earlier `explain`, whose files are removed; call it locked.

        Raises:
            ArtifactError: it holds something else, or an earlier result and `force` is not given.
        """
        held = sorted(path.name for path in self.path.iterdir() if path.name != ".lock")
        if held:
            if not self._is_ours():
                raise ArtifactError(
                    f"{self.path} is not empty, and holds no result of foveal explain: {', '.join(held[:5])}.",
                    fix="choose another --out.",
                )
            if not force:
                raise ArtifactError(
                    f"{self.path} holds heatmaps already.", fix="choose another --out, or write them anew by --force."
                )
            for file in (self.table, self.sheet, self.page):
                file.unlink(missing_ok=True)
            for folder, suffix in ((MAPS, "npz"), (OVERLAYS, "png")):
                for file in (self.path / folder).glob(f"[0-9]*-*.{suffix}"):
                    file.unlink()
        write_json(self.summary, {"verb": "explain"})
        for name in (MAPS, OVERLAYS):
            (self.path / name).mkdir(exist_ok=True)

    def _is_ours(self) -> bool:
        summary = read_json(self.summary) if self.summary.is_file() else None
        return isinstance(summary, dict) and summary.get("verb") == "explain"

    def add(self, number: int, explanation: Explanation, boxes: Sequence[Box] = ()) -> ExplainedImage:
        """Write an image's map and overlay.

        Args:
            number: of the image among the inputs, from 1; it keeps files of the same name apart.
            explanation: of the image.
            boxes: of the file, in pixels of the upright picture.

        Raises:
            FovealError: the disk is full or the folder cannot be written.
        """
        said = explanation.prediction
        if not explanation.is_ok:
            return ExplainedImage(said.path, "failed", said.reason)
        name = f"{number:04d}-{_plain(Path(said.path).stem)}"
        map_file, overlay_file = f"{MAPS}/{name}.npz", f"{OVERLAYS}/{name}.png"
        with atomic_writer(self.path / map_file) as stream:
            np.savez_compressed(stream, **_arrays(explanation))
        with atomic_writer(self.path / overlay_file) as stream:
            Image.fromarray(overlay(explanation)).save(stream, "PNG")
        peak = explanation.peak
        return ExplainedImage(
            path=said.path,
            status="ok",
            reason="" if peak else f"by this method no place speaks for {explanation.explained}",
            predicted=said.predicted,
            probability=said.probability,
            explained=explanation.explained,
            method=explanation.method,
            layer=explanation.layer,
            map=map_file,
            overlay=overlay_file,
            peak_x=round(peak[0], 2) if peak else None,
            peak_y=round(peak[1], 2) if peak else None,
            heat_inside_boxes=explanation.share_inside(boxes) if boxes else None,
        )

    def write_table(self, images: Sequence[ExplainedImage]) -> None:
        """Write `explanations.csv`; its text cells are neutralised, so that no spreadsheet runs them."""
        rows = ([getattr(image, name) for name in COLUMNS] for image in images)
        write_csv(self.table, COLUMNS, [["" if cell is None else cell for cell in row] for row in rows])


def _arrays(explanation: Explanation) -> dict[str, Any]:
    """What an image's .npz holds; see docs/explain.md."""
    members = explanation.members
    raw = {"raw": members[0].raw} if len(members) == 1 else {}
    if len(members) > 1:
        drawn = (explanation.picture.shape[0], explanation.picture.shape[1])
        raw = {f"raw_{number}": member.raw for number, member in enumerate(members)}
        raw |= {f"map_{number}": member.placed(explanation.size, drawn) for number, member in enumerate(members)}
    return {
        "map": explanation.small_map,
        "size": np.array(explanation.size, dtype=np.int64),
        "seen": np.array(explanation.seen, dtype=np.float64),
        **raw,
    }


def _plain(stem: str) -> str:
    """A name that every file system takes, from any other."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._")
    return plain[:_LONGEST_STEM] or "image"

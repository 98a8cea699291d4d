"""What `foveal export` returns and shows: tables, sentences and verdicts over what was proven."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.exported.opening import PARITY_FILE
from foveal.exporting.parity_facts import AccuracyPair, Parity
from foveal.exporting.speed import TITLES, Speed
from foveal.files import read_json
from foveal.metrics import shown


@dataclass(frozen=True)
class ExportResult:
    """A proven export.

    Attributes:
        folder: with the model, parity.json and the model card.
        file: the model.
        parity: what was proven.
        speed: the engines side by side; None where that was not measured.
        to: onnx, torchscript or hub-folder.
    """

    folder: Path
    file: Path
    parity: Parity
    speed: Speed | None
    to: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: what parity.json holds, and where everything lies."""
        record: dict[str, Any] = read_json(self.folder / PARITY_FILE)
        return {"folder": str(self.folder), "path": str(self.file), **record}

    def parity_table(self) -> list[list[str]]:
        """The parity gate, for a person: a row for all images, each split and each class."""
        rows = [["", "images", "same class", "accuracy of bundle", "accuracy of file"]]
        parity = self.parity
        agreement = f"{parity.agreement.count:,} of {parity.num_images:,}"
        if parity.accuracy is None:
            return [*rows, ["noise", f"{parity.num_images:,}", agreement, "", ""]]
        rows.append(["all", f"{parity.num_images:,}", agreement, *_both(parity.accuracy)])
        if len(parity.splits) > 1:
            rows += [[f"split {each.split}", f"{each.num_images:,}", "", *_both(each)] for each in parity.splits]
        for each in parity.classes:
            if each.num_images and each.agreement is not None:
                same = f"{round(each.agreement * each.num_images):,} of {each.num_images:,}"
                rows.append([_one_line(each.name), f"{each.num_images:,}", same, shown(each.bundle), shown(each.file)])
        return rows

    def speed_table(self) -> list[list[str]]:
        """The engines, for a person; no row where they were not timed."""
        if self.speed is None:
            return []
        rows = [["engine", "MiB", "ms, one image", "with decoding", "images/s in batches", "time, torch = 1"]]
        for each in self.speed.engines:
            low, high = each.time_ratio_interval
            ratio = f"{each.time_ratio:.2f} [{low:.2f}, {high:.2f}]"
            rows.append(
                [
                    TITLES[each.name],
                    f"{each.size_mib:.1f}",
                    f"{each.one_p50_ms:.2f}",
                    f"{each.with_decoding_p50_ms:.2f}",
                    f"{each.batch_images_per_second:,.0f}",
                    "1" if each.name == "torch" else ratio,
                ]
            )
        return rows

    def sentences(self) -> list[str]:
        """What it comes to, for a person."""
        parity = self.parity
        low, high = parity.agreement.interval
        images = "image" if parity.num_images == 1 else "images"
        what = images if parity.is_real else f"{images} of noise"
        lines = [
            f"Same class for {parity.agreement.count:,} of {parity.num_images:,} {what} (95 % interval of the share "
            f"{shown(low)} to {shown(high)}); probabilities differ by {parity.max_difference:.2g} at most, by "
            f"{parity.mean_difference:.2g} on average."
        ]
        if parity.agreement.num_ties:
            lines.append(f"{parity.agreement.num_ties:,} of them are ties, closer than the tolerance.")
        if parity.paired_sentence:
            lines.append(parity.paired_sentence[:1].upper() + parity.paired_sentence[1:] + ".")
        lines += [f"{each.num_images:,} {each.split} images: {each.seen}." for each in parity.splits]
        if parity.image_input is not None:
            check = parity.image_input
            lines.append(
                f"Resizing within the graph against Pillow on {check.num_images:,} images: probabilities differ by "
                f"{check.max_difference:.2g} at most."
            )
        if parity.num_unreadable:
            lines.append(f"{parity.num_unreadable:,} more could be read by neither.")
        lines += parity.notes
        return lines

    def verdict(self) -> list[str]:
        """What the timing comes to, and on what machine."""
        speed = self.speed
        if speed is None:
            return []
        machine = (
            f"On {speed.machine}, {speed.num_threads} thread{'s' if speed.num_threads != 1 else ''}, "
            f"{speed.num_images:,} images one by one and batches of {speed.batch_size}; medians."
        )
        missing = [f"{TITLES[name]} was not timed: {why}" for name, why in speed.missing.items()]
        return [machine, *missing, speed.sentence, *([speed.advice] if speed.advice else [])]

    def _repr_html_(self) -> str:
        tables = "".join(_html_table(table) for table in (self.parity_table(), self.speed_table()) if table)
        told = "".join(f"<li>{html.escape(each)}</li>" for each in (*self.sentences(), *self.verdict()))
        return f"<p>Export <code>{html.escape(str(self.file))}</code></p>{tables}<ul>{told}</ul>"


@dataclass(frozen=True)
class ExportPlan:
    """What `export --dry-run` shows.

    Attributes:
        model: what would be exported.
        architecture: its network, in words.
        to: onnx, torchscript or hub-folder.
        precision: fp32 or int8.
        num_images: at most how many images would be compared.
        num_calibration_images: how many others int8 would be calibrated on, at most.
        source: where they are from.
        out: the folder.
        file: the model within it.
    """

    model: Path
    architecture: str
    to: str
    precision: str
    num_images: int
    num_calibration_images: int
    source: str
    out: Path
    file: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "model": str(self.model),
            "architecture": self.architecture,
            "to": self.to,
            "precision": self.precision,
            "num_images": self.num_images,
            "num_calibration_images": self.num_calibration_images,
            "source": self.source,
            "out": str(self.out),
            "file": self.file,
        }

    def __str__(self) -> str:
        calibration = f", calibrated on up to {self.num_calibration_images:,} other images"
        lines = [
            f"model       {self.model}: {self.architecture}",
            f"kind        {self.to}, {self.precision}" + (calibration if self.num_calibration_images else ""),
            f"proven on   up to {self.num_images:,} images of {self.source}",
            f"writes to   {self.out / self.file}",
        ]
        return "\n".join(lines)


def _both(pair: AccuracyPair) -> list[str]:
    return [_with_bounds(pair.bundle, pair.bundle_interval), _with_bounds(pair.file, pair.file_interval)]


def _with_bounds(value: float, bounds: tuple[float, float] | None) -> str:
    return shown(value) + (f" [{shown(bounds[0])}, {shown(bounds[1])}]" if bounds else "")


def _one_line(name: str) -> str:
    """A class name that stays within its cell, whatever it holds."""
    return " ".join(name.split()) if name.isprintable() else repr(name)


def _html_table(table: Sequence[Sequence[str]]) -> str:
    head, *body = table
    rows = f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"
    rows += "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in body)
    return f"<table>{rows}</table>"

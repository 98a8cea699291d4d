"""Rows 18 to 38 of the list of faults, all in one folder: the audit ends, finds each, and touches nothing outside."""

import csv
import os
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import foveal
from foveal.api.audit import AuditResult
from foveal.cli import app
from foveal.data.manifest import Manifest
from foveal.errors import DataError
from foveal.files import plain_cell
from foveal.pixels import strict_jpeg

from .folder_of_faults import COPIED, CORRUPT, ODD_NAMES, REFUSED, USABLE, write_folder_of_faults

LONGEST_SECONDS = 30
"""Of a pass that takes three; decoding the bombs alone would take longer."""

_made: dict[str, Any] = {}


@pytest.fixture
def faults(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AuditResult]:
    """The folder and its audit, made once."""
    if not _made:
        root = tmp_path_factory.mktemp("faults")
        data = write_folder_of_faults(root)
        start = time.perf_counter()
        _made["audit"] = foveal.audit(data, root / "audit")
        _made["seconds"], _made["data"] = time.perf_counter() - start, data
    return _made["data"], _made["audit"]


def findings(audit: AuditResult, kind: str) -> dict[str, dict[str, Any]]:
    """By file name, or by class where they are about classes."""
    return {Path(row["path"]).name if row["path"] else row["label"]: row for row in audit.findings.rows(kind)}


def test_it_ends_soon_and_says_that_something_must_be_mended(faults: tuple[Path, AuditResult]) -> None:
    _, audit = faults
    assert audit.is_blocking
    assert _made["seconds"] < LONGEST_SECONDS
    assert audit.report.stat().st_size > 20_000


@pytest.mark.parametrize("name", REFUSED)
def test_rows_18_to_23_36_and_37_what_cannot_be_used_is_set_aside_with_its_reason(
    faults: tuple[Path, AuditResult], name: str
) -> None:
    found = findings(faults[1], "unreadable")
    assert set(found) == {*REFUSED} | ({CORRUPT} & set(found))
    assert REFUSED[name].lower() in found[name]["detail"].lower()
    assert (found[name]["severity"], found[name]["repair"]) == ("warning", "quarantine")


def test_row_20_a_jpeg_that_is_corrupt_in_the_middle_is_found(faults: tuple[Path, AuditResult]) -> None:
    checks = {check["check"]: check for check in faults[1].summary["checks"]}
    if not strict_jpeg.is_available():
        assert checks["corrupt_jpeg"]["status"] == "skipped"
        assert "simplejpeg" in checks["corrupt_jpeg"]["detail"]
        return
    assert set(findings(faults[1], "corrupt_jpeg")) == {CORRUPT}
    assert CORRUPT not in findings(faults[1], "unreadable")


@pytest.mark.parametrize("name", [*USABLE, *ODD_NAMES])
def test_rows_24_to_31_odd_images_and_odd_names_are_used(faults: tuple[Path, AuditResult], name: str) -> None:
    manifest = Manifest.read(faults[1].folder / "manifest.parquet")
    rows = [row for row, path in enumerate(manifest.column("path")) if path == f"train/dog/{name}"]
    assert len(rows) == 1
    assert manifest.column("status")[rows[0]] == "ok", manifest.column("reason")[rows[0]]
    assert all(manifest.column(column)[rows[0]] for column in ("sha256", "phash", "width", "height", "mode"))
    assert manifest.absolute_paths()[rows[0]].is_file()


def test_rows_29_and_30_first_frames_dots_and_lines_are_told(faults: tuple[Path, AuditResult]) -> None:
    _, audit = faults
    frames = {name: row["value"] for name, row in findings(audit, "animated").items()}
    assert frames == {"29 animated.gif": 4, "29 animated.webp": 4, "29 pages.tif": 3}
    assert {"30 one pixel.png", "30 a line.png"} <= set(findings(audit, "tiny"))
    assert findings(audit, "odd_aspect")["30 a line.png"]["value"] == 10_000
    assert {"26 one bit.png"} <= set(findings(audit, "binarised"))


def test_row_28_one_picture_in_eight_orientations_is_one_picture(faults: tuple[Path, AuditResult]) -> None:
    manifest = Manifest.read(faults[1].folder / "manifest.parquet")
    sizes = {
        (manifest.column("width")[row], manifest.column("height")[row])
        for row, path in enumerate(manifest.column("path"))
        if "/28 " in path
    }
    assert sizes == {(96, 64)}
    copies = [row for row in faults[1].findings.rows("near_duplicate") if "/28 " in row["path"]]
    assert len(copies) == 7
    assert not any("turned" in row["detail"] or "mirrored" in row["detail"] for row in copies)


def test_row_31_names_come_through_the_table(faults: tuple[Path, AuditResult]) -> None:
    with (faults[1].folder / "findings.csv").open(encoding="utf-8", newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [plain_cell(row["detail"]) for row in written] == faults[1].findings.columns["detail"]
    assert [plain_cell(row["path"]) for row in written] == [path or "" for path in faults[1].findings.columns["path"]]


def test_rows_32_and_33_classes(faults: tuple[Path, AuditResult]) -> None:
    _, audit = faults
    alike = findings(audit, "class_names_alike")
    assert {name: (row["related_label"], row["severity"], row["repair"]) for name, row in alike.items()} == {
        "Cat": ("cat", "blocking", "merge_classes")
    }
    assert findings(audit, "empty_class")["empty"]["severity"] == "blocking"
    assert findings(audit, "class_too_small")["owl"]["value"] == 1
    missing = {(row["label"], row["split"]): row["severity"] for row in audit.findings.rows("class_missing_in_split")}
    assert missing["yak", "train"] == "blocking"
    assert missing["owl", "test"] == "warning"


def test_row_34_every_copy_across_splits_is_found_and_nothing_else(faults: tuple[Path, AuditResult]) -> None:
    pairs = {row["path"]: row["related_path"] for row in faults[1].findings.rows("leak")}
    expected = {f"test/cat/taken {at}.jpg": at for at in range(len(COPIED))} | {"test/cat/taken exactly.jpg": 9}
    assert {path: Path(other).parent.name for path, other in pairs.items()} == dict.fromkeys(expected, "cat")
    assert faults[1].summary["leakage"]["test"]["num_with_siblings_in_train"] == len(expected)


def test_nothing_outside_is_read(faults: tuple[Path, AuditResult]) -> None:
    data, audit = faults
    manifest = Manifest.read(audit.folder / "manifest.parquet")
    secret = (data.parent / "outside" / "secret.jpg").read_bytes()
    rows = {path: row for row, path in enumerate(manifest.column("path"))}
    assert manifest.column("sha256")[rows["train/dog/36 link out.jpg"]] is None
    assert len(secret) > 1000
    assert manifest.column("status")[rows["train/dog/37 link to the folder above"]] == "quarantined"
    # The folder above is not read a second time as a part of this class.
    assert not [path for path in rows if path.startswith("train/dog/37 link to the folder above/")]


def test_the_command_ends_with_3_and_no_traceback(faults: tuple[Path, AuditResult], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["audit", str(faults[0]), "--out", str(tmp_path / "audit")])
    assert done.exit_code == 3
    assert "Traceback" not in done.stderr
    assert "Leak" in done.stdout or "have a copy" in done.stdout
    assert "foveal clean" in done.stdout


def test_what_training_says_of_it_names_the_classes_and_decodes_nothing(
    faults: tuple[Path, AuditResult], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="class folders without a single image") as caught:
        foveal.train(faults[0], tmp_path / "run")
    assert caught.value.problems == ("class 'empty': 0 images",)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_row_35_all_faults_of_a_table_are_told_at_once_by_line(
    faults: tuple[Path, AuditResult], tmp_path: Path
) -> None:
    plain = [f"train/cat/cat{at:03}.jpg;cat;train" for at in range(3)]
    wrong = ["train/cat/none.jpg;cat;train", "train/cat/cat004.jpg;;train", plain[0], "train/cat/cat001.jpg;dog;train"]
    wrong += ["train/cat/cat005.jpg;cat;trian", "../../../../etc/passwd;cat;test", "train/dog/36 link out.jpg;dog;test"]
    table = faults[0] / "table of faults.csv"
    table.write_bytes("\ufeff".encode() + "\r\n".join(["path;label;split", *plain, *wrong]).encode())
    try:
        with pytest.raises(DataError, match="has 7 faults") as caught:
            foveal.audit(table, tmp_path / "audit")
    finally:
        table.unlink()
    lines = [problem.split(":")[0] for problem in caught.value.problems]
    assert lines == [f"line {number}" for number in range(5, 12)]
    told = "\n".join(caught.value.problems)
    for words in ("does not exist", "label is missing", "says the same as", "'dog' here", "trian", "leads out", "link"):
        assert words in told
    assert not (tmp_path / "audit").exists()


def test_row_36_a_manifest_that_leads_out_is_refused_unopened(
    faults: tuple[Path, AuditResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.build(faults[0], path=["train/cat/cat000.jpg", "../../../etc/passwd"], label=["cat", "dog"])
    manifest.write(tmp_path / "manifest.parquet")
    opened = []
    whole = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: opened.append(path) or whole(path, *rest, **more))
    with pytest.raises(DataError) as caught:
        foveal.audit(tmp_path / "manifest.parquet", tmp_path / "audit")
    assert "passwd" in caught.value.problems[0]
    assert not any("passwd" in str(path) for path in opened)


@pytest.mark.parametrize("name", ["data.zip", "data.tar.gz", "data.7z"])
def test_row_38_archives_are_refused_unopened(faults: tuple[Path, AuditResult], tmp_path: Path, name: str) -> None:
    archive = tmp_path / name
    archive.write_bytes((faults[0].parent / "data.zip").read_bytes())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="is an archive") as caught:
        foveal.audit(archive, tmp_path / "audit")
    assert "unpack it" in caught.value.fix
    assert sorted(tmp_path.rglob("*")) == before

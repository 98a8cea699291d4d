"""The verb: what it writes, what it refuses, and that what `clean` made of it has nothing blocking left."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import foveal
from foveal.api import audit as module
from foveal.api.audit import FILES, AuditResult
from foveal.api.train import plan
from foveal.auditing.findings import COLUMNS, FindingsTable
from foveal.cli import app
from foveal.data import reading
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, ConfigError, DataError
from foveal.files import plain_cell, sha256_file
from foveal.report.audit_summary import Summary
from foveal.training.config import Config
from textured import COPIES, encoded, pictures

NEAR = ("mirrored", "resized", "turned by 90°")


def write(folder: Path, images: Sequence[Image.Image], name: str = "{}.jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for at, image in enumerate(images):
        (folder / name.format(at)).write_bytes(encoded(image))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """train, val and test of two classes, with three copies and the same bytes across, and one broken file."""
    root, images, rng = tmp_path / "data", iter(pictures(60, seed=2)), np.random.default_rng(0)
    originals: list[Image.Image] = []
    for split, number in (("train", 14), ("val", 6), ("test", 8)):
        for label in ("cat", "dog"):
            some = [next(images) for _ in range(number)]
            originals += some if split == "train" else []
            write(root / split / label, some)
    for at, kind in enumerate(NEAR):
        write(root / "test" / "cat", [COPIES[kind](originals[at], rng)], f"{kind}.jpg")
    (root / "val" / "dog" / "same.jpg").write_bytes((root / "train" / "dog" / "0.jpg").read_bytes())
    (root / "train" / "dog" / "broken.jpg").write_bytes(b"<html></html>")
    return root


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["audit", *map(str, words)])


def kinds(result: AuditResult, severity: str | None = None) -> set[str]:
    columns = result.findings.columns
    pairs = zip(columns["finding"], columns["severity"], strict=True)
    return {name for name, level in pairs if severity in (None, level)}


def test_what_it_writes_reads_back(data: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    done = foveal.audit(data, tmp_path / "audit")
    assert {path.name for path in done.folder.iterdir()} == set(FILES)
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
    summary = Summary.read(done.folder / "summary.json")
    assert summary == Summary.of(json.loads(json.dumps(done.summary)))
    assert (summary.num_samples, summary.num_usable, summary.data_format) == (61, 60, "split_folders")
    assert summary.num_originals == 56
    assert summary.leakage["test"].num_with_siblings_in_train == 3
    assert summary.leakage["val"].by_class == {"cat": (6, 0), "dog": (7, 1)}
    manifest = Manifest.read(done.folder / "manifest.parquet")
    for row, path in enumerate(manifest.absolute_paths()):
        if path.name == "broken.jpg":
            assert (manifest.column("status")[row], manifest.column("phash")[row]) == ("quarantined", None)
        else:
            assert manifest.column("sha256")[row] == sha256_file(path)
            assert len(manifest.column("phash")[row]) == 16
    assert FindingsTable.read(done.folder).columns == done.findings.columns
    with (done.folder / "findings.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert [plain_cell(row["path"]) or None for row in rows] == done.findings.columns["path"]
    values = [None if row["value"] == "" else float(row["value"]) for row in rows]
    assert values == pytest.approx(done.findings.columns["value"])
    assert done.is_blocking
    leaks = {row["path"]: row["related_path"] for row in done.findings.rows("leak")}
    expected = {f"test/cat/{kind}.jpg": f"train/cat/{at}.jpg" for at, kind in enumerate(NEAR)}
    assert leaks == {**expected, "val/dog/same.jpg": "train/dog/0.jpg"}
    assert [row["path"] for row in done.findings.rows("unreadable")] == ["train/dog/broken.jpg"]


def test_the_command_says_what_python_does_and_ends_with_3(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    done = run(data, "--out", out)
    assert done.exit_code == 3, done.stderr
    for words in ("blocking", "3 of 19 test images", f"foveal clean {out}", "report.html"):
        assert words in done.stdout
    shown = run(data, "--out", out, "--json", "--force")
    assert shown.exit_code == 3
    told = json.loads(shown.stdout)
    assert told["num_samples"] == 61
    assert (told["folder"], told["is_blocking"]) == (str(out), True)
    dry = run(data, "--out", tmp_path / "dry", "--dry-run", "--set", "audit.near_duplicates=false")
    assert dry.exit_code == 0
    assert "--set audit.near_duplicates=false" in dry.stdout
    assert not (tmp_path / "dry").exists()
    for path in data.rglob("*.jpg"):
        if path.stem in {*NEAR, "same"}:
            path.unlink()
    assert run(data, "--out", tmp_path / "clean").exit_code == 0


def test_what_is_there_is_not_written_over(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    foveal.audit(data, out, overrides=["audit.near_duplicates=false"])
    first = (out / "findings.csv").read_bytes()
    with pytest.raises(ArtifactError, match="holds an audit already") as caught:
        foveal.audit(data, out)
    assert "--force" in caught.value.fix
    assert (out / "findings.csv").read_bytes() == first
    (out / "mine.txt").write_text("mine")
    foveal.audit(data, out, force=True)
    assert (out / "findings.csv").read_bytes() != first
    assert (out / "mine.txt").read_text() == "mine"

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "report.html").write_text("mine")
    with pytest.raises(ArtifactError, match="no audit of foveal"):
        foveal.audit(data, foreign, force=True)
    (foreign / "report.html").rename(foreign / "notes.txt")
    with pytest.raises(ArtifactError, match=r"other files: notes\.txt"):
        foveal.audit(data, foreign)
    for place in (data, data / "audit", data / "train" / "audit"):
        with pytest.raises(ConfigError, match="lies in DATA"):
            foveal.audit(data, place, force=True)
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "audit"):
        with pytest.raises(ArtifactError, match=str(file)):
            foveal.audit(data, place)
    assert file.read_bytes() == b""


def test_an_audit_that_was_cut_off_is_not_taken_for_a_whole_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foveal.audit(data, tmp_path / "audit", overrides=["audit.near_duplicates=false"])
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            foveal.audit(data, tmp_path / "audit", force=True)
    assert not (tmp_path / "audit" / "summary.json").exists()
    assert not (tmp_path / "audit" / "report.html").exists()


def test_clean_and_audit_again_and_nothing_blocking_is_left(data: Path, tmp_path: Path) -> None:
    first = foveal.audit(data, tmp_path / "first")
    cleaned = foveal.clean(first.folder, tmp_path / "clean.parquet")
    second = foveal.audit(cleaned.manifest, tmp_path / "second")
    assert not second.is_blocking, kinds(second, "blocking")
    assert second.summary["leakage"]["test"]["num_with_siblings_in_train"] == 0
    # What was set aside already is told once, as a note, and not found again.
    aside = second.findings.rows("unreadable")
    assert [(row["severity"], row["path"]) for row in aside] == [("note", None)]
    assert "exact_duplicate" not in kinds(second)
    assert run(cleaned.manifest, "--out", tmp_path / "third").exit_code == 0
    # And to clean it again changes no row.
    again = foveal.clean(second.folder, tmp_path / "again.parquet")
    one, two = Manifest.read(cleaned.manifest), Manifest.read(again.manifest)
    assert one.table.select(["path", "split", "status"]).equals(two.table.select(["path", "split", "status"]))


def test_a_second_audit_decodes_nothing_and_finds_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = foveal.audit(data, tmp_path / "first", overrides=["audit.near_duplicates=false"])
    whole, decoded = reading.decode, []
    monkeypatch.setattr(reading, "decode", lambda *args, **more: decoded.append(args) or whole(*args, **more))
    second = foveal.audit(data, tmp_path / "second", overrides=["audit.near_duplicates=false"])
    assert len(decoded) == 0
    assert second.findings.columns == first.findings.columns
    one, two = ({k: v for k, v in each.summary.items() if k not in {"seconds", "command"}} for each in (first, second))
    assert one == two


def test_copies_are_compared_by_bytes_alone_where_that_is_asked(data: Path, tmp_path: Path) -> None:
    done = foveal.audit(data, tmp_path / "audit", overrides=["audit.near_duplicates=false"])
    assert "near_duplicate" not in kinds(done)
    assert {row["path"] for row in done.findings.rows("leak")} == {"val/dog/same.jpg"}
    skipped = {check["check"]: check["detail"] for check in done.summary["checks"] if check["status"] == "skipped"}
    assert skipped["near_duplicate"] == "audit.near_duplicates is false."
    assert {"off_domain", "wrong_label"} <= set(skipped)


def test_a_table_with_boxes(tmp_path: Path) -> None:
    """Boxes of one photograph overlap and are no copies; a copy of the photograph makes copies of its boxes."""
    images = pictures(6, seed=4, side_px=200)
    write(tmp_path / "photos", images)
    write(tmp_path / "photos", [COPIES["mirrored"](images[0], np.random.default_rng(0))], "mirrored.jpg")
    corners = [(5, 5, 105, 105), (10, 8, 110, 108), (90, 90, 195, 195)]
    lines = ["path,label,split,xmin,ymin,xmax,ymax"]
    for at in range(6):
        split = "train" if at < 4 else "test"
        lines += [
            f"{at}.jpg,{'rbc' if place else 'wbc'},{split},{','.join(map(str, box))}"
            for place, box in enumerate(corners)
        ]
    lines += ["mirrored.jpg,wbc,test,95,5,195,105", "mirrored.jpg,rbc,test,1,1,1,9"]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    done = foveal.audit(
        tmp_path / "boxes.csv", tmp_path / "audit", overrides=[f"data.images_root={tmp_path / 'photos'}"]
    )
    assert (done.summary["num_samples"], done.summary["num_files"]) == (20, 7)
    assert done.summary["num_quarantined"] == 1
    pairs = {(row["path"], row["related_path"]) for row in done.findings.rows("near_duplicate")}
    assert {frozenset(pair) for pair in pairs} == {frozenset({"0.jpg", "mirrored.jpg"})}
    assert {row["path"] for row in done.findings.rows("leak")} == {"mirrored.jpg"}
    assert done.summary["sizes"]["width_px"][0] == 100
    assert done.report.is_file()


def test_odd_names_of_files_and_classes(tmp_path: Path) -> None:
    images = iter(pictures(40, seed=5))
    names = [
        "=cmd.jpg",
        "a\nb.jpg",
        "-x.jpg",
        "<img src=x onerror=alert(1)>.jpg",
        "'\";&.jpg",
        "ü" * 120 + ".jpg",
        "猫.jpg",
    ]
    for label in ("=HYPERLINK(1)", "<b>bold</b>", "größe\u0301"):
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_bytes(encoded(next(images)))
    twin = tmp_path / "data" / "<b>bold</b>" / "twin.jpg"
    twin.write_bytes((tmp_path / "data" / "=HYPERLINK(1)" / "a\nb.jpg").read_bytes())
    done = foveal.audit(tmp_path / "data", tmp_path / "audit")
    rows = done.findings.rows("label_conflict")
    assert {rows[0]["path"], rows[0]["related_path"]} == {"<b>bold</b>/twin.jpg", "=HYPERLINK(1)/a\nb.jpg"}
    page = done.report.read_text(encoding="utf-8")
    assert "<b>bold</b>" not in page
    assert "<img src=x" not in page
    with (done.folder / "findings.csv").open(encoding="utf-8", newline="") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "@", "+"))]
    assert FindingsTable.read(done.folder).columns == done.findings.columns


def test_an_empty_class_folder_and_names_alike_are_told_and_mended(tmp_path: Path) -> None:
    images = pictures(40, seed=6)
    write(tmp_path / "data" / "cat", images[:14])
    write(tmp_path / "data" / "Cat", images[14:20])
    write(tmp_path / "data" / "dog", images[20:])
    (tmp_path / "data" / "owl").mkdir()
    done = foveal.audit(tmp_path / "data", tmp_path / "audit")
    assert kinds(done, "blocking") == {"empty_class", "class_names_alike"}
    assert [row["label"] for row in done.findings.rows("empty_class")] == ["owl"]
    alike = done.findings.rows("class_names_alike")
    assert [(row["label"], row["related_label"], row["repair"]) for row in alike] == [("Cat", "cat", "merge_classes")]
    cleaned = foveal.clean(done.folder, tmp_path / "clean.parquet")
    assert cleaned.actions["merge_classes"] == 6
    manifest = Manifest.read(cleaned.manifest)
    assert manifest.class_names == ("cat", "dog")
    again = foveal.audit(cleaned.manifest, tmp_path / "again")
    assert kinds(again, "blocking") == set()
    assert plan(cleaned.manifest, overrides=["model.weights=none", "model.name=test_resnet"])


@pytest.mark.parametrize("number", [1, 2, 30])
def test_one_class_or_one_image_is_told_and_not_a_crash(tmp_path: Path, number: int) -> None:
    write(tmp_path / "data" / "cat", pictures(number))
    done = foveal.audit(tmp_path / "data", tmp_path / "audit")
    assert done.summary["num_usable"] == number
    assert ("class_too_small" in kinds(done, "blocking")) == (number < 3)
    assert done.report.is_file()
    with pytest.raises(DataError):
        foveal.train(tmp_path / "data", tmp_path / "run")


def test_where_no_file_can_be_used_it_says_so(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        (tmp_path / "data" / label / "x.jpg").write_bytes(b"")
    done = foveal.audit(tmp_path / "data", tmp_path / "audit")
    assert kinds(done, "blocking") == {"empty_class"}
    assert len(done.findings.rows("unreadable")) == 2
    assert done.report.is_file()
    for nothing in (tmp_path / "none", tmp_path / "data" / "cat"):
        with pytest.raises(DataError):
            foveal.audit(nothing, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_settings_come_from_a_file_and_are_kept(data: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("audit:\n  near_duplicates: false\n")
    done = foveal.audit(
        data, tmp_path / "audit", config=settings, overrides=["audit.quality.tiny_px=500", "audit.quality.tiny_share=1"]
    )
    kept = module.read_config(done.folder / "config.yaml", ())
    assert isinstance(kept, Config)
    assert (kept.audit.near_duplicates, kept.audit.quality.tiny_px) == (False, 500)
    assert f"--config {settings} --set audit.quality.tiny_px=500" in done.summary["command"]
    with pytest.raises(ConfigError, match=r"near_duplicates"):
        foveal.audit(data, tmp_path / "other", overrides=["audit.near_duplicate=false"])


def test_a_result_shows_itself_in_a_notebook_without_running_names(tmp_path: Path) -> None:
    write(tmp_path / "data" / "<img onerror=x>", pictures(2))
    write(tmp_path / "data" / "y", pictures(2, seed=1))
    page = foveal.audit(tmp_path / "data", tmp_path / "audit")._repr_html_()
    assert "<img" not in page
    assert "&lt;img onerror=x&gt;" in page

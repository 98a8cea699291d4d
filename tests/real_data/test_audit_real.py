"""The audit of real pictures: whole sets have little to find, and what is planted among them is found."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.api.audit import AuditResult
from foveal.files import sha256_file
from textured import COPIES, encoded

pytestmark = pytest.mark.real_data

KINDS = ("re-encoded", "resized", "mirrored", "turned by 90°", "brightened")
NUM_OF_KIND = 20
NUM_PHOTOGRAPHS = 60


def in_near_duplicates(audit: AuditResult) -> set[str]:
    rows = audit.findings.rows("near_duplicate")
    return {str(row[name]) for row in rows for name in ("sample_id", "related_sample_id")}


def test_hand_signs_have_hardly_any_copies_and_nothing_blocking(real_data: Path, tmp_path: Path) -> None:
    audit = foveal.audit(real_data / "sign_digits", tmp_path / "audit")
    columns = audit.findings.columns
    blocking = [
        detail for level, detail in zip(columns["severity"], columns["detail"], strict=True) if level == "blocking"
    ]
    assert blocking == []
    assert audit.summary["num_quarantined"] == 0
    assert audit.summary["num_samples"] > 2000
    assert len(in_near_duplicates(audit)) < 0.015 * audit.summary["num_samples"]


def test_copies_that_are_planted_among_hand_signs_are_all_found(real_data: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = sorted((real_data / "sign_digits").rglob("*.[jJ][pP][gG]"))
    chosen = [files[at] for at in rng.choice(len(files), 3 * len(KINDS) * NUM_OF_KIND, replace=False)]
    copied = iter(chosen)
    expected: dict[str, str] = {}
    for path in chosen:
        (tmp_path / "data" / "train" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "train" / path.parent.name / path.name).write_bytes(path.read_bytes())
    for kind in KINDS:
        for at in range(NUM_OF_KIND):
            path = next(copied)
            with Image.open(path) as image:
                copy = encoded(COPIES[kind](image.convert("RGB"), rng), 60 if kind == "re-encoded" else 90)
            name = f"test/{path.parent.name}/{kind} {at}.jpg"
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name).write_bytes(copy)
            expected[name] = f"train/{path.parent.name}/{path.name}"
    audit = foveal.audit(tmp_path / "data", tmp_path / "audit")
    found = {row["path"]: row["related_path"] for row in audit.findings.rows("leak")}
    assert {name: found.get(name) for name in expected if found.get(name) != expected[name]} == {}
    assert set(found) == set(expected)


def test_boxes_of_blood_cells_are_hardly_ever_taken_for_copies(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "bccd"
    with (root / "boxes.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    photographs = set(distinct(root / "images", sorted({row[0] for row in rows}), NUM_PHOTOGRAPHS))
    with (tmp_path / "boxes.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *(row for row in rows if row[0] in photographs)])
    recipe = ["data.columns.path=filename", "data.columns.label=cell_type", f"data.images_root={root / 'images'}"]
    audit = foveal.audit(tmp_path / "boxes.csv", tmp_path / "audit", overrides=recipe)
    assert audit.summary["num_files"] == NUM_PHOTOGRAPHS
    assert audit.summary["num_samples"] > 600
    assert len(in_near_duplicates(audit)) <= 0.01 * audit.summary["num_samples"]


def distinct(folder: Path, names: list[str], most: int) -> Iterator[str]:
    """The first photographs of different bytes."""
    seen: set[str] = set()
    for name in names:
        content = sha256_file(folder / name)
        if content not in seen and len(seen) < most:
            seen.add(content)
            yield name

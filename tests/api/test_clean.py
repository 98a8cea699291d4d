"""The verb: files in, files out, and what is never written over."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import foveal
from foveal.api.clean import plan_clean, write_policy
from foveal.auditing.findings import Finding, FindingsTable
from foveal.auditing.repair_policy import RepairPolicy, read_policy
from foveal.auditing.repair_rows import LOG_COLUMNS
from foveal.cli import app
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, ConfigError, DataError, FovealError
from foveal.files import plain_cell

PATHS = ["=cmd.jpg", "a\nb.jpg", "-x.jpg", "ü" * 120 + ".jpg", "<b>.jpg", "e.jpg", "f.jpg", "g.jpg"]
LABELS = ["cat", "cat", "=dog", "=dog", "cat", "=dog", "Cat", "=dog"]
SPLITS = ["train", "train", "train", "train", "test", "test", "val", "val"]


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    folder = tmp_path / "audit"
    manifest = Manifest.build(tmp_path, path=PATHS, label=LABELS, split=SPLITS)
    manifest.write(folder / "manifest.parquet")
    findings = [
        Finding("blank", "warning", "quarantine", row=0, detail="There is one grey in it."),
        Finding("exact_duplicate", "warning", "keep_one", row=3, related_row=2),
        Finding("class_names_alike", "blocking", "merge_classes", label="Cat", related_label="cat"),
        Finding("near_duplicate", "warning", "regroup", row=1, related_row=4),
        Finding("tiny", "note", row=5),
        Finding("wrong_label", "warning", row=7, related_label="cat"),
    ]
    FindingsTable.of(findings, manifest).write(folder)
    return folder


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["clean", *map(str, words)])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_manifest_log_and_policy_are_written_and_a_second_time_changes_nothing(audit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "clean.v2.parquet"
    before = contents(audit)
    done = foveal.clean(audit, out, policy={"leak": "none"})
    assert [path.name for path in done.written] == ["clean.v2.parquet", "clean.v2.log.csv", "clean.v2.policy.yaml"]
    assert done.actions == {"quarantine": 1, "keep_one": 1, "merge_classes": 1, "regroup": 2}
    assert (done.num_rows, done.num_usable) == ((8, 8), (8, 6))
    assert done.classes == {"=dog": (4, 3), "Cat": (1, 0), "cat": (3, 3)}
    assert done.splits == {"train": (4, 2), "val": (2, 2), "test": (2, 2)}
    assert done.num_left == {"tiny": 1, "wrong_label": 1}
    manifest = Manifest.read(out)
    assert manifest.class_names == ("=dog", "cat")
    with done.log.open(encoding="utf-8", newline="") as stream:
        rows = [[plain_cell(cell) for cell in row] for row in csv.reader(stream)]
    assert tuple(rows[0]) == LOG_COLUMNS
    assert {row[1] for row in rows[1:]} == {PATHS[row] for row in (0, 1, 3, 4, 6)}
    assert b"'=cmd.jpg" in done.log.read_bytes()  # no spreadsheet runs it
    assert read_policy(done.policy) == RepairPolicy(leak="none")
    first = contents(out.parent)
    again = foveal.clean(audit, out, policy=done.policy)
    assert again.written == ()
    assert contents(out.parent) == first
    # On its own result, with the same findings.
    (audit / "manifest.parquet").write_bytes(out.read_bytes())
    own = foveal.clean(audit, tmp_path / "own.parquet", policy=done.policy)
    assert own.manifest.read_bytes() == first["clean.v2.parquet"]
    assert own.actions == {}
    # The log of what was done is not lost to the empty one of the second time.
    assert foveal.clean(audit, out, policy=done.policy).written == ()
    assert contents(out.parent) == first
    (audit / "manifest.parquet").write_bytes(before["manifest.parquet"])
    assert contents(audit) == before


def test_what_is_there_is_not_written_over(audit: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.parquet"
    foveal.clean(audit, out)
    first = contents(tmp_path)
    with pytest.raises(ArtifactError, match="not the same") as caught:
        foveal.clean(audit, out, policy={"blank": "none"})
    assert len(caught.value.problems) == 3
    assert contents(tmp_path) == first
    forced = foveal.clean(audit, out, policy={"blank": "none"}, force=True)
    assert len(forced.written) == 3
    for name in ("manifest.parquet", "findings.parquet"):
        with pytest.raises(ConfigError, match="would be written over"):
            foveal.clean(audit, audit / name, force=True)
    reviewed = tmp_path / "r.log.csv"
    reviewed.write_text("sample_id,label\n")
    with pytest.raises(ConfigError, match="would be written over"):
        foveal.clean(audit, tmp_path / "r.parquet", relabel=reviewed, force=True)
    with pytest.raises(ConfigError, match=r"does not end in \.parquet"):
        foveal.clean(audit, tmp_path / "clean.csv")
    (tmp_path / "other.log.csv").write_text("mine")
    with pytest.raises(ArtifactError, match="not the same"):
        foveal.clean(audit, tmp_path / "other.parquet")


def test_a_policy_of_ones_own_is_kept_as_it_is_written(audit: Path, tmp_path: Path) -> None:
    mine = tmp_path / "clean.policy.yaml"
    mine.write_text("# my reasons\nblank: none\n")
    done = foveal.clean(audit, tmp_path / "clean.parquet", policy=mine)
    assert mine not in done.written
    assert mine.read_text() == "# my reasons\nblank: none\n"


@pytest.mark.parametrize("name", ["manifest.parquet", "findings.parquet"])
def test_a_damaged_or_missing_audit_is_one_message(audit: Path, tmp_path: Path, name: str) -> None:
    for spoil in (lambda file: file.write_bytes(b"PAR1 no"), lambda file: file.unlink()):
        spoil(audit / name)
        with pytest.raises(FovealError, match=name):
            foveal.clean(audit, tmp_path / "clean.parquet")
    assert not (tmp_path / "clean.parquet").exists()


def test_a_refused_repair_writes_nothing(audit: Path, tmp_path: Path) -> None:
    reviewed = tmp_path / "reviewed.csv"
    reviewed.write_text("path,corrected_label\ng.jpg,owl\nh.jpg,cat\n")
    with pytest.raises(DataError, match="2 faults"):
        foveal.clean(audit, tmp_path / "clean.parquet", relabel=reviewed)
    assert sorted(path.name for path in tmp_path.glob("clean*")) == []
    reviewed.write_text("path,corrected_label\ng.jpg,owl\n")
    done = foveal.clean(audit, tmp_path / "clean.parquet", relabel=reviewed, overrides=["new_classes=[owl]"])
    assert done.classes["owl"] == (0, 1)
    assert "reviewed.csv" in done.policy.read_text()


def test_the_command_line_tells_and_writes_as_python_does(audit: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.parquet"
    dry = run(audit, "--out", out, "--dry-run", "--set", "blank=none")
    assert dry.exit_code == 0, dry.stderr
    assert not out.exists()
    assert f"foveal clean {audit} --out {out} --set blank=none" in dry.stdout
    done = run(audit, "--out", out)
    assert done.exit_code == 0, done.stderr
    left = "left      tiny 1, wrong_label 1"
    for words in ("quarantine 1", "8 -> 6 of 8 rows", left, f"foveal train {out} --out runs/clean"):
        assert words in done.stdout
    assert "holds this already" in run(audit, "--out", out).stdout
    shown = run(audit, "--out", out, "--json")
    assert json.loads(shown.stdout) == {**plan_clean(audit, out).to_dict(), "written": []}
    policy = tmp_path / "policy.yaml"
    written = run("--write-policy", policy, "--set", "leak=none")
    assert f"--policy {policy}" in written.stdout
    assert read_policy(policy) == RepairPolicy(leak="none")
    for words, code, message in (
        ((audit,), 2, "needs a manifest to write"),
        (("--out", out), 2, "needs the folder of an audit"),
        ((audit, "--out", out, "--set", "blank=maybe"), 2, "blank: expected"),
        ((audit, "--out", out, "--write-policy", policy), 2, "nothing else"),
        (("--write-policy", policy), 1, "exists"),
        ((tmp_path, "--out", out), 1, "give the folder of an audit"),
    ):
        ran = run(*words)
        assert (ran.exit_code, ran.stdout) == (code, "")
        assert message in ran.stderr
        assert "Traceback" not in ran.stderr


def test_a_result_shows_itself_in_a_notebook_without_running_names(audit: Path, tmp_path: Path) -> None:
    manifest = Manifest.build(tmp_path, path=["a.jpg", "b.jpg"], label=["<img onerror=x>", "y"])
    manifest.write(audit / "manifest.parquet")
    FindingsTable.of([Finding("blank", "warning", "quarantine", row=0)], manifest).write(audit)
    page = plan_clean(audit)._repr_html_()
    assert "<img" not in page
    assert "&lt;img onerror=x&gt;" in page
    assert "quarantine: 1" in page
    assert write_policy(tmp_path / "p.yaml").is_file()

"""`predict`: the same probabilities by every way that leads to them."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

import foveal
from commands import Command, kill_after
from foveal.api.predict import plan_prediction, predict
from foveal.cli import app
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, ConfigError, DataError
from foveal.model.bundle import update_bundle
from foveal.prediction_journal import journal_of
from small_runs import CLASSES, columns_of, copy_of


@pytest.fixture
def files(trained: Path) -> list[Path]:
    """The run's test images, in the order of its manifest."""
    manifest = Manifest.read(trained / "manifest.parquet")
    return [manifest.absolute_paths()[row] for row in manifest.of_split("test").tolist()]


def table_of(text: str) -> tuple[list[str], list[dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(text))
    rows = list(reader)
    return list(reader.fieldnames or ()), rows


def test_evaluation_command_table_python_and_the_copied_bundle_say_the_same(
    trained: Path, files: list[Path], tmp_path: Path
) -> None:
    """The promise of the tool: the number you read is the number you will get."""
    evaluated = columns_of(trained / "evaluation" / "test" / "predictions.parquet")
    expected = np.stack([evaluated[f"p_{name}"] for name in CLASSES], axis=1)
    result = predict(trained, files, out=tmp_path / "p.parquet", batch_size=5)
    table = columns_of(tmp_path / "p.parquet")
    assert np.abs(np.stack([table[f"p_{name}"] for name in CLASSES], axis=1) - expected).max() < 1e-6
    assert table["predicted"].tolist() == evaluated["predicted"].tolist()
    assert result.num_ok == len(files) == sum(result.class_counts.values())
    alone = Path(shutil.copytree(trained / "bundle", tmp_path / "elsewhere" / "b"))
    for said in (
        foveal.Predictor(trained)(files),
        foveal.Predictor(alone, batch_size=1)([file.read_bytes() for file in files]),
        foveal.Predictor(alone)([np.asarray(Image.open(file)) for file in files]),
        [foveal.Predictor(alone)(Image.open(file)) for file in files],
    ):
        assert np.abs(np.stack([each.probabilities for each in said]) - expected).max() < 1e-6


def test_the_table_is_in_the_order_of_the_inputs_with_columns_in_that_of_the_classes(
    trained: Path, files: list[Path], tmp_path: Path
) -> None:
    out = io.StringIO()
    predict(trained, [*reversed(files), files[0]], stdout=out)
    header, rows = table_of(out.getvalue())
    assert header == ["path", "status", "reason", "predicted", "probability", "p_2", "p_10", "p_b"]
    assert [row["path"] for row in rows] == [str(file) for file in (*reversed(files), files[0])]
    for row in rows:
        probabilities = {name: float(row[f"p_{name}"]) for name in CLASSES}
        assert row["predicted"] == max(probabilities, key=probabilities.__getitem__)
        assert float(row["probability"]) == max(probabilities.values())


def test_one_bad_file_fails_in_its_own_row(trained: Path, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    inputs = [files[0], tmp_path / "text.jpg", tmp_path / "missing.png", files[1]]
    result = predict(trained, inputs, out=tmp_path / "p.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["ok", "failed", "failed", "ok"]
    assert rows[1]["predicted"] is None
    assert rows[1]["p_2"] is None
    assert "text" in rows[1]["reason"]
    assert rows[2]["reason"] == "no such file"
    assert (result.num_ok, result.num_failed) == (2, 2)
    assert result.first_failures[1] == (str(tmp_path / "missing.png"), "no such file")


def test_the_first_reasons_are_told_and_what_is_next_only_where_there_is_something(
    trained: Path, tmp_path: Path
) -> None:
    gone = [str(tmp_path / f"gone {number}.png") for number in range(5)]
    out = tmp_path / "p.csv"
    said = CliRunner().invoke(app, ["predict", str(trained), *gone, "--out", str(out)])
    assert said.exit_code == 1
    lines = [line.strip() for line in said.stdout.splitlines()]
    assert lines[1:4] == [f"failed: {path}: no such file" for path in gone[:3]]
    assert lines[4:] == ["failed: 2 more; the column `reason` of the table says why", f"Table: {out}"]


def test_class_names_of_any_script_are_predicted_into_a_table(
    tiny_bundle: Path, files: list[Path], tmp_path: Path
) -> None:
    names = [f"Käfer {letter} 猫" for letter in "abc"]
    update_bundle(tiny_bundle, class_names=tuple(names))
    for _ in range(2):
        assert predict(tiny_bundle, files[:3], out=tmp_path / "ü.csv").num_ok == 3
    header, rows = table_of((tmp_path / "ü.csv").read_text(encoding="utf-8"))
    assert header[-3:] == [f"p_{name}" for name in names]
    assert len(rows) == 3


def test_folders_patterns_and_a_list_on_stdin_are_inputs(trained: Path, files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in (10, 9, 1):
        shutil.copy(files[0], folder / f"{number}{files[0].suffix}")
    out = io.StringIO()
    names = f"{files[1]}\n\n{files[2]}\n"
    predict(trained, [folder, str(folder / "*1*"), "-"], stdout=out, stdin=io.StringIO(names))
    stems = [Path(row["path"]).name.partition(".")[0] for row in table_of(out.getvalue())[1]]
    assert stems == ["1", "9", "10", "1", "10", files[1].stem, files[2].stem]


def test_what_cannot_be_predicted_is_refused_and_leaves_no_table(
    trained: Path, files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no files"):
        predict(trained, [files[0], tmp_path / "empty"], out=tmp_path / "p.csv")
    with pytest.raises(ConfigError, match="ending"):
        predict(trained, files, out=tmp_path / "p.xlsx")
    with pytest.raises(ConfigError, match="Parquet"):
        predict(trained, files, format="parquet")
    with pytest.raises(ArtifactError, match="neither a bundle nor a run"):
        predict(tmp_path / "empty", files)
    run = copy_of(trained, tmp_path / "run")
    weights = run / "bundle" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match="sha256"):
        predict(run, files)
    (run / "bundle" / "bundle.json").unlink()
    with pytest.raises(ArtifactError, match="training has not come to its end"):
        predict(run, files)
    assert not list(tmp_path.glob("p.*"))
    # What was predicted before the empty folder came up is kept for the next call.
    assert [path.name for path in tmp_path.glob(".*")] == [".p.csv.journal"]


def test_the_plan_counts_the_inputs_and_opens_none(trained: Path, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.png").write_text("not even an image")
    planned = plan_prediction(trained, [tmp_path / "photos", files[0]], out=tmp_path / "p.csv")
    assert (planned.num_inputs, planned.class_names, planned.format) == (4, CLASSES, "csv")
    assert not (tmp_path / "p.csv").exists()
    assert "4 files" in str(planned)
    with pytest.raises(DataError, match="No file matches"):
        plan_prediction(trained, [str(tmp_path / "*.tif")])


def test_a_table_of_many_rows_is_written_in_groups(tiny_bundle: Path, tmp_path: Path) -> None:
    predict(tiny_bundle, [str(tmp_path / f"missing-{i}.png") for i in range(5000)], out=tmp_path / "p.parquet")
    file = parquet.ParquetFile(tmp_path / "p.parquet")
    assert file.metadata.num_rows == 5000
    assert file.metadata.num_row_groups == 2


def test_a_command_that_is_killed_goes_on(trained: Path, tmp_path: Path) -> None:
    folder, table = tmp_path / "photos", tmp_path / "p.parquet"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(200):
        Image.fromarray(draw.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    command = ["predict", str(trained), str(folder), "--out", str(table)]
    # Enough lines to fill a buffer or two, before all are done.
    kill_after("foveal.prediction_journal:Journal:_add", 150, [*command, "--batch-size", "1"])
    assert journal_of(table).stat().st_size > 4_000
    assert not table.exists()
    with Command(command) as process:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert "not done again" in err
    assert not journal_of(table).exists()
    predict(trained, [folder], out=tmp_path / "whole.parquet")
    kept, whole = columns_of(table), columns_of(tmp_path / "whole.parquet")
    assert kept["path"].tolist() == whole["path"].tolist()
    # Of another size of batch only the last bits may differ.
    for name in CLASSES:
        np.testing.assert_allclose(kept[f"p_{name}"], whole[f"p_{name}"], atol=1e-6)

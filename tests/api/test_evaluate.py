"""`evaluate`: on a run's own split, counted; on other data, aligned by name."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.api.evaluate import evaluate, plan_evaluation
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, ConfigError, DataError
from foveal.metrics import SplitMetrics
from foveal.run_folder import RunFolder
from small_runs import CLASSES, columns_of, copy_of

MakeImages = Callable[..., Path]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return copy_of(trained, tmp_path / "run")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_number_is_the_one_that_training_gave(run: Path, split: str) -> None:
    """With the run's own seed for the intervals and its own groups: the same in every figure but the clock's."""
    before = SplitMetrics.read(run / "evaluation" / split / "metrics.json")
    found = evaluate(run, split=split)
    assert found.metrics.model_copy(update={"latency_ms": before.latency_ms}) == before
    assert SplitMetrics.read(found.folder / "metrics.json") == found.metrics
    assert found.folder == run / "evaluation" / split


def test_every_look_at_the_test_split_is_counted_and_shown(run: Path) -> None:
    (run / "report.html").unlink()
    assert evaluate(run).num_looks == 2
    assert "looked at 2 times" in (run / "report.html").read_text(encoding="utf-8")
    found = evaluate(run, out=run.parent / "elsewhere")
    assert found.num_looks == 3  # wherever it was written
    assert (run.parent / "elsewhere" / "predictions.parquet").is_file()
    looks = json.loads((run / "evaluation" / "looks.json").read_text())
    assert [look["verb"] for look in looks["test"]] == ["train", "evaluate", "evaluate"]
    assert len(looks["val"]) == 1


def test_other_seeds_move_the_intervals_and_nothing_else(run: Path) -> None:
    first, second = (evaluate(run, split="val", seed=seed).metrics for seed in (0, 1))
    assert first.accuracy == second.accuracy
    assert first.confidence_intervals["log_loss"] != second.confidence_intervals["log_loss"]


def relabelled(run: Path, target: Path, names: dict[str, str]) -> Path:
    """The run's test images as a folder of their own, class folders in whatever order."""
    manifest = Manifest.read(run / "manifest.parquet")
    rows = manifest.of_split("test")
    for number in rows.tolist():
        label = manifest.column("label")[number]
        folder = target / names.get(label, label)
        folder.mkdir(parents=True, exist_ok=True)
        source = manifest.absolute_paths()[number]
        shutil.copy(source, folder / f"{number:04}{source.suffix}")
    return target


def test_a_bundle_alone_is_measured_on_other_images_and_agrees(run: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(run / "bundle", tmp_path / "alone"))
    data = relabelled(run, tmp_path / "other", {})
    found = evaluate(bundle, data, out=tmp_path / "e")
    own = SplitMetrics.read(run / "evaluation" / "test" / "metrics.json")
    assert found.metrics.confusion_matrix == own.confusion_matrix
    assert found.metrics.log_loss == pytest.approx(own.log_loss, abs=1e-6)
    assert found.metrics.class_names == CLASSES
    assert found.report is None
    assert found.num_looks == 0
    # Of the training nothing is known: neither its largest class nor its images.
    assert found.metrics.leakage is None
    looks = json.loads((run / "evaluation" / "looks.json").read_text())
    assert len(looks["test"]) == 1


def test_classes_are_aligned_by_name_in_whatever_order_a_table_has_them(run: Path, tmp_path: Path) -> None:
    data = relabelled(run, tmp_path / "other", {})
    files = sorted(data.rglob("*.*"), key=lambda path: path.name, reverse=True)
    with (tmp_path / "t.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "kind"])
        writer.writerows([str(file.relative_to(data)), file.parent.name] for file in files)
    columns = ["data.columns.path=file", "data.columns.label=kind", f"data.images_root={data}"]
    found = evaluate(run / "bundle", tmp_path / "t.csv", out=tmp_path / "e", overrides=columns)
    own = columns_of(run / "evaluation" / "test" / "predictions.parquet")
    table = columns_of(tmp_path / "e" / "predictions.parquet")
    assert len(table["path"]) == len(own["path"]) == found.metrics.num_images
    assert sorted(table["p_10"]) == pytest.approx(sorted(own["p_10"]), abs=1e-6)
    assert found.metrics.class_names == CLASSES
    # The same by a file of configuration.
    (tmp_path / "c.yaml").write_text(f"data:\n  images_root: {data}\n  columns: {{path: file, label: kind}}\n")
    again = evaluate(run / "bundle", tmp_path / "t.csv", out=tmp_path / "e2", config=tmp_path / "c.yaml")
    assert again.metrics.confusion_matrix == found.metrics.confusion_matrix


def test_a_class_that_the_model_does_not_know_is_refused_by_name_before_decoding(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = relabelled(run, tmp_path / "other", {"b": "lynx"})

    def decoded(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    with monkeypatch.context() as patch:
        patch.setattr("foveal.evaluation.sources.ingest", decoded)
        with pytest.raises(DataError, match="'2', '10', 'b'") as caught:
            evaluate(run / "bundle", data, out=tmp_path / "e")
    assert caught.value.problems == ("class 'lynx'",)
    assert not (tmp_path / "e").exists()
    found = evaluate(run / "bundle", data, out=tmp_path / "e", overrides=["data.exclude_classes=[lynx]"])
    # A class that the data does not have is no fault; nothing is said of it, and the means leave it out.
    assert found.metrics.class_names == CLASSES
    missing = found.metrics.per_class[2]
    assert (missing.support, missing.recall) == (0, None)
    recalls = [row.recall for row in found.metrics.per_class[:2]]
    assert found.metrics.balanced_accuracy == pytest.approx(np.mean(recalls), abs=1e-12)
    assert "per_class.b.recall" in found.metrics.undefined


def test_a_run_knows_which_other_images_it_was_trained_on(run: Path, tmp_path: Path, make_images: MakeImages) -> None:
    data = make_images(tmp_path / "other", CLASSES, num_per_class=4, seed=9)
    manifest = Manifest.read(run / "manifest.parquet")
    for number in manifest.of_split("train")[:3].tolist():
        source = manifest.absolute_paths()[number]
        shutil.copy(source, data / manifest.column("label")[number] / f"copy{number}{source.suffix}")
    found = evaluate(run, data, out=tmp_path / "e").metrics
    assert found.num_images == 15
    assert found.leakage is not None
    assert found.leakage.num_test_images_with_siblings_in_train == 3
    assert len(json.loads((run / "evaluation" / "looks.json").read_text())["test"]) == 1


def test_only_the_split_that_is_asked_for_is_decoded(run: Path, tmp_path: Path, make_images: MakeImages) -> None:
    make_images(tmp_path / "data" / "train", CLASSES, num_per_class=4, seed=5)
    make_images(tmp_path / "data" / "test", CLASSES, num_per_class=3, seed=6)
    for image in (tmp_path / "data" / "train").rglob("*.png"):
        image.write_bytes(b"broken")
    found = evaluate(run / "bundle", tmp_path / "data", out=tmp_path / "e").metrics
    assert found.num_images == 9
    with pytest.raises(DataError, match="no usable image in the val split"):
        evaluate(run / "bundle", tmp_path / "data", split="val", out=tmp_path / "e")


def test_boxes_are_cut_as_in_training(run: Path, tmp_path: Path) -> None:
    sheet = Image.new("RGB", (96, 32))
    manifest = Manifest.read(run / "manifest.parquet")
    rows = manifest.of_split("test")[:3].tolist()
    for place, row in enumerate(rows):
        with Image.open(manifest.absolute_paths()[row]) as image:
            sheet.paste(image, (32 * place, 0))
    sheet.save(tmp_path / "sheet.png")
    lines = ["path,label,xmin,ymin,xmax,ymax"]
    lines += [f"sheet.png,{manifest.column('label')[row]},{32 * i},0,{32 * i + 32},32" for i, row in enumerate(rows)]
    (tmp_path / "boxes.csv").write_text("\n".join(lines) + "\n")
    evaluate(run / "bundle", tmp_path / "boxes.csv", out=tmp_path / "e")
    table = columns_of(tmp_path / "e" / "predictions.parquet")
    own = columns_of(run / "evaluation" / "test" / "predictions.parquet")
    for name in CLASSES:
        assert table[f"p_{name}"] == pytest.approx(own[f"p_{name}"][:3], abs=1e-6)


def test_images_of_the_run_that_are_gone_are_named_and_the_look_is_not_taken(
    run: Path, tmp_path: Path, make_images: MakeImages
) -> None:
    manifest = Manifest.read(run / "manifest.parquet")
    moved = Path(shutil.copytree(manifest.images_root, tmp_path / "moved"))
    Manifest(manifest.table, moved, manifest.class_names).write(run / "manifest.parquet")
    paths = [moved / manifest.column("path")[row] for row in manifest.of_split("test")[:2].tolist()]
    paths[0].unlink()
    Image.new("RGB", (32, 32)).save(paths[1], format="PNG")
    with pytest.raises(DataError, match="2 of the 13 test samples") as caught:
        evaluate(run)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [str(path) for path in paths]
    assert len(json.loads((run / "evaluation" / "looks.json").read_text())["test"]) == 1
    assert evaluate(run, split="val").metrics.num_images  # the others are as they were


def test_what_cannot_be_measured_is_refused_in_words(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a bundle, which brings no images") as caught:
        evaluate(run / "bundle")
    assert "DATA" in caught.value.fix
    with pytest.raises(ConfigError, match="there is no DATA"):
        evaluate(run, overrides=["data.box_margin=0.5"])
    with pytest.raises(ConfigError, match="did you mean"):
        evaluate(run, tmp_path, overrides=["data.box_margins=0.5"])
    with pytest.raises(ConfigError, match="lies in DATA"):
        evaluate(run, images := Manifest.read(run / "manifest.parquet").images_root, out=images / "evaluation")
    with pytest.raises(ConfigError, match="--split valid"):
        evaluate(run, split="valid")  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="neither a bundle nor a run"):
        evaluate(tmp_path)
    (run / "bundle" / "bundle.json").unlink()
    with pytest.raises(ArtifactError, match="training has not come to its end") as unfinished:
        evaluate(run)
    assert f"foveal train --out {run} --resume" in unfinished.value.fix


def test_a_run_that_another_process_works_in_is_left_alone(run: Path) -> None:
    with RunFolder(run).lock(), pytest.raises(ArtifactError, match="Another process"):
        evaluate(run)


def test_the_plan_counts_and_writes_nothing(run: Path, tmp_path: Path) -> None:
    before = sorted(path.stat().st_mtime_ns for path in run.rglob("*"))
    planned = plan_evaluation(run)
    assert planned.num_images == 13
    assert list(planned.class_counts) == list(CLASSES)
    assert sum(planned.class_counts.values()) == 13
    assert planned.counts_as_look
    assert planned.folder == run / "evaluation" / "test"
    data = relabelled(run, tmp_path / "other", {})
    other = plan_evaluation(run / "bundle", data, split="val", out=tmp_path / "e")
    assert (other.num_images, other.split, other.counts_as_look) == (13, "val", False)
    assert other.class_counts == planned.class_counts
    assert not (tmp_path / "e").exists()
    assert sorted(path.stat().st_mtime_ns for path in run.rglob("*")) == before
    with pytest.raises(DataError, match="other classes"):
        plan_evaluation(run / "bundle", relabelled(run, tmp_path / "lynx", {"b": "lynx"}))

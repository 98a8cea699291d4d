"""Every verb in one go, as a person would type them, on images that were never seen before."""

import csv
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from typer.testing import CliRunner

import foveal
from foveal.cli import app
from foveal.data.manifest import Manifest
from foveal.errors import DataError
from foveal.metrics import SplitMetrics
from piles import write_pile
from small_runs import CLASSES, TINY, columns_of, flags, quicken_plots


def typed(line: str, *more: str, code: int = 0) -> str:
    """Run a command line as typed; it must end as expected and say what to type next."""
    words = shlex.split(line)
    assert words[0] == "foveal"
    result = CliRunner().invoke(app, [*words[1:], *more])
    assert result.exit_code == code, result.stderr
    assert re.search("^(Next|Try next):$", result.stdout, re.MULTILINE) or "--json" in words
    return result.stdout


def test_from_a_folder_of_images_to_a_classifier_in_use(
    tmp_path: Path, make_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, no_network: list[object]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_images(Path("photos"), CLASSES, num_per_class=40)
    Path("photos/10/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 half a picture")
    recipe = shlex.join(flags("train.epochs=8", "optim.lr=0.01"))

    plan = typed(f"foveal train photos --dry-run {recipe}")
    assert re.search(r"images +\d+ train", plan)
    assert not Path("runs").exists()

    shown = typed(f"foveal train photos --out runs/first --seed 1 {recipe}")
    run = Path("runs/first")
    test = SplitMetrics.read(run / "evaluation/test/metrics.json")
    assert f"Test: {test.sentence()}; macro F1 " in shown
    assert test.accuracy is not None
    assert test.majority_baseline_accuracy is not None
    assert test.accuracy > test.majority_baseline_accuracy + 0.25  # it did learn the shapes
    report = (run / "report.html").read_text(encoding="utf-8")
    for words in (f"on {test.num_images} test images", "10/broken.jpg", "Content-Security-Policy", "<svg"):
        assert words in report
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", report)

    # Measured again: the same number, and a second look.
    again = json.loads(typed("foveal evaluate runs/first --json"))
    assert again["num_looks"] == 2
    assert again["metrics"]["accuracy"] == test.accuracy
    assert "looked at 3 times" in typed("foveal evaluate runs/first")

    # The bundle alone, somewhere else, on images from elsewhere.
    shutil.copytree(run / "bundle", "shipped")
    make_images(Path("elsewhere"), CLASSES[::-1][:2], num_per_class=6, seed=77)
    shown = typed("foveal evaluate shipped elsewhere --out e --split val")
    assert "on 12 val images" in shown
    assert columns_of(Path("e/predictions.parquet"))["label"].tolist() == ["10"] * 6 + ["b"] * 6

    # Predicted three ways.
    manifest = Manifest.read(run / "manifest.parquet")
    files = [str(manifest.absolute_paths()[row]) for row in manifest.of_split("test").tolist()]
    typed("foveal predict runs/first photos --out p.csv")
    with Path("p.csv").open(newline="") as stream:
        rows = {str(Path(row["path"]).absolute()): row for row in csv.DictReader(stream)}
    assert len(rows) == 121
    assert [row["status"] for row in rows.values()].count("failed") == 1
    typed("foveal predict shipped --out p.parquet", *files)
    table = columns_of(Path("p.parquet"))
    evaluated = columns_of(run / "evaluation/test/predictions.parquet")
    predictor = foveal.Predictor("shipped")
    for number, file in enumerate(files):
        said = predictor(file)
        assert not isinstance(said, list)
        expected = np.array([evaluated[f"p_{name}"][number] for name in CLASSES])
        assert said.probabilities == pytest.approx(expected, abs=1e-6)
        assert [table[f"p_{name}"][number] for name in CLASSES] == pytest.approx(expected, abs=1e-6)
        assert [float(rows[file][f"p_{name}"]) for name in CLASSES] == pytest.approx(expected, abs=1e-5)  # six digits

    # On from here: another training that starts from this one.
    tuned = shlex.join(flags("train.epochs=1", "model.weights=runs/first"))
    second = json.loads(typed(f"foveal train photos --out runs/second --json {tuned}"))
    assert second["metrics"]["val"]["accuracy"] > 0.5
    assert json.loads(Path("runs/second/bundle/bundle.json").read_text())["weights"]["source"] == "runs/first"
    assert "test_resnet" in typed("foveal models 'test_resnet*'")
    assert no_network == []


def plant(pile: Path) -> dict[str, str]:
    """Into the splits of a pile: copies, a leak, a conflict and a broken file. Gives the path of each by its kind."""
    with Image.open(pile / "train/b/0.png") as image:
        image.transpose(Image.Transpose.ROTATE_90).resize((80, 80)).save(pile / "test/b/leaked.jpg", quality=90)
    with Image.open(pile / "train/2/2.png") as image:
        ImageEnhance.Brightness(image).enhance(0.8).save(pile / "train/2/2_aug_1.png")
    with Image.open(pile / "train/10/4.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(pile / "train/2/conflict.png")
    shutil.copy(pile / "train/10/6.png", pile / "train/10/again.png")
    (pile / "val/10/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 half a picture")
    return {
        "leak": "test/b/leaked.jpg",
        "copy_by_name": "train/2/2_aug_1.png",
        "label_conflict": "train/2/conflict.png",
        "exact_duplicate": "train/10/again.png",
        "unreadable": "val/10/broken.jpg",
    }


def test_from_a_pile_with_faults_to_a_number_one_can_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[object]
) -> None:
    monkeypatch.chdir(tmp_path)
    quicken_plots(monkeypatch)
    write_pile(Path("pile"), {"train": 16, "val": 8, "test": 8}, CLASSES)
    planted = plant(Path("pile"))
    hashes = {path: path.read_bytes() for path in Path("pile").rglob("*.*")}
    recipe = shlex.join(flags("train.epochs=1"))

    # What is wrong is found, and blocks; all that was planted and no other leak or conflict.
    shown = typed("foveal audit pile --out audit", code=3)
    assert shown.splitlines()[0].startswith("blocking")
    with Path("audit/findings.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    found = {(row["finding"], path) for row in rows for path in (row["path"], row["related_path"])}
    assert {(kind, path) for kind, path in planted.items()} <= found
    assert {path for kind, path in found if kind == "leak"} == {planted["leak"], "train/b/0.png"}
    assert {path for kind, path in found if kind == "label_conflict"} == {planted["label_conflict"], "train/10/4.png"}
    with pytest.raises(DataError, match="belong together with one in train"):
        foveal.train("pile", "refused", overrides=[*TINY, "data.leaks=error"])

    # What was printed is typed, twice; then nothing blocks.
    (command, _) = shown.partition("Try next:\n")[2].strip().splitlines()
    assert command.strip() == "foveal clean audit --out audit/clean.parquet"
    cleaned = json.loads(typed(f"{command.strip()} --json"))
    assert cleaned["actions"] == {"quarantine": 2, "keep_one": 1, "regroup": 2, "move": 1} | cleaned["actions"]
    assert json.loads(typed(f"{command.strip()} --json"))["written"] == []
    again = json.loads(typed("foveal audit audit/clean.parquet --out audit2 --json"))
    assert not again["is_blocking"]
    assert again["leakage"]["test"]["num_with_siblings_in_train"] == 0

    # Folds that part no copies, and a look at what the network will see.
    typed("foveal split audit/clean.parquet --out folds.parquet --folds 3 --set split.given=redraw")
    folds = Manifest.read(Path("folds.parquet"))
    rows_of = {path: row for row, path in enumerate(folds.column("path").tolist())}
    for one, other in ((planted["leak"], "train/b/0.png"), (planted["copy_by_name"], "train/2/2.png")):
        pair = [rows_of[one], rows_of[other]]
        assert len(set(folds.split_codes()[pair])) == 1
        assert len(set(folds.column("fold")[pair].astype(str))) == 1
        assert len(set(folds.column("group")[pair])) == 1
    typed(f"foveal preview audit/clean.parquet --out grid.png --samples 3 --draws 2 {recipe}")
    assert Path("grid.png").stat().st_size > 1000

    typed(f"foveal train audit/clean.parquet --out run {recipe}")
    test = json.loads(typed("foveal evaluate run --json"))["metrics"]
    assert test["leakage"]["num_test_images_with_siblings_in_train"] == 0
    assert test["num_images"] == 24
    typed("foveal predict run pile/test --out p.csv")
    with Path("p.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 25
    assert {path: path.read_bytes() for path in Path("pile").rglob("*.*")} == hashes
    assert no_network == []

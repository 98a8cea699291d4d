"""The preview: what it shows is what training and evaluation see, byte by byte."""

import base64
import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

import foveal
from foveal.api import preview as module
from foveal.api.preview import plan_preview
from foveal.cli import app
from foveal.data.augment import Augmentation
from foveal.data.augment_config import POLICIES
from foveal.errors import ArtifactError, ConfigError, DataError
from foveal.pixels.policy import Geometry, PixelPolicy, decode, to_square, to_store
from foveal.report.contact_sheet import Band, Row
from small_runs import TINY

MakeImages = Callable[..., Path]
Drawn = dict[str, list[NDArray[np.uint8]]]


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Band], list[Row]]]:
    """What is drawn, before it is: headings and rows of every sheet."""
    seen: list[tuple[list[Band], list[Row]]] = []
    draw = module.draw_contact_sheet

    def watch(title: str, note: str, bands: list[Band], rows: list[Row]) -> Image.Image:
        seen.append((bands, rows))
        return draw(title, note, bands, rows)

    monkeypatch.setattr(module, "draw_contact_sheet", watch)
    return seen


def by_column(sheet: tuple[list[Band], list[Row]]) -> Drawn:
    """The pictures of each column, by band and title."""
    bands, rows = sheet
    names = [f"{band.title}/{column.title}" for band in bands for column in band.columns]
    return {name: [row.pictures[place] for row in rows] for place, name in enumerate(names)}


def headings(sheet: tuple[list[Band], list[Row]]) -> list[str]:
    return [f"{band.title}: {', '.join(column.title for column in band.columns)}" for band in sheet[0]]


def table_of(folder: Path, table: Path, splits: dict[str, str]) -> Path:
    """A table in which the file says the split."""
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "split"])
        for file in sorted(folder.rglob("*.*")):
            if split := splits.get(file.stem):
                writer.writerow([file.relative_to(folder), file.parent.name, split])
    return table


def test_what_is_seen_is_what_is_trained_on(
    make_images: MakeImages,
    tmp_path: Path,
    sheets: list[tuple[list[Band], list[Row]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one batch for all of train, a draw is an epoch, to the byte; watched in a real training."""
    folder = make_images(tmp_path / "images", ("a", "b"), num_per_class=6)
    for file in folder.rglob("*.png"):  # half of them oblong, so that the window moves
        Image.open(file).resize((55, 36)).save(file)
    splits = {**dict.fromkeys("0123", "train"), "4": "val", "5": "test"}
    table = table_of(folder, tmp_path / "table.csv", splits)
    recipe = [*TINY, f"data.images_root={folder}", "augment.policy=heavy", "seed=5", "train.epochs=2"]

    fed: list[torch.Tensor] = []
    forward = Augmentation.forward

    def watch(self: Augmentation, images: torch.Tensor) -> torch.Tensor:
        fed.append(forward(self, images))
        return fed[-1].clone()

    monkeypatch.setattr(Augmentation, "forward", watch)
    foveal.train(table, tmp_path / "run", overrides=recipe)
    trained = [(pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy() for pixels in fed]
    assert [len(pixels) for pixels in trained] == [8, 8]

    done = foveal.preview(table, tmp_path / "grid.png", overrides=recipe, num_samples=8, num_draws=2)
    assert Counter(label for _, label in done.samples) == {"a": 4, "b": 4}
    columns = by_column(sheets[0])
    for epoch in (0, 1):
        shown = {picture.tobytes() for picture in columns[f"Policy heavy/draw {epoch + 1}"]}
        assert len(shown) == 8
        assert shown == {picture.tobytes() for picture in trained[epoch]}


def test_the_original_is_the_square_of_evaluation_and_stands_beside_its_name(
    make_images: MakeImages, tmp_path: Path, sheets: list[tuple[list[Band], list[Row]]]
) -> None:
    folder = make_images(tmp_path / "images", side_px=50)
    recipe = ["model.weights=none", "data.image_size=40", "augment.policy=light"]
    done = foveal.preview(folder, tmp_path / "grid.png", overrides=recipe, num_samples=5, num_draws=1)
    geometry, policy = Geometry(size_px=40, store_px=43), PixelPolicy()
    columns = by_column(sheets[0])
    sheet = np.array(Image.open(tmp_path / "grid.png"))
    for place, ((path, label), picture) in enumerate(zip(done.samples, columns["Original/square"], strict=True)):
        assert path.startswith(f"{label}/")
        square = to_square(to_store(decode(folder / path, policy).pixels, geometry), geometry)
        assert np.array_equal(picture, square)
        row = sheets[0][1][place]
        assert (row.name, row.note) == (label, Path(path).name)
        enlarged = square.repeat(4, axis=0).repeat(4, axis=1)
        corners = np.argwhere((sheet == enlarged[0, 0]).all(axis=2)).tolist()
        assert any(np.array_equal(sheet[y : y + 160, x : x + 160], enlarged) for y, x in corners)
    augmentation = {name for name in columns if name.startswith("Each")}
    assert augmentation == {f"Each operation alone, at its strongest/{n}" for n in ("turn", "shift", "zoom", "light")}


def test_columns_are_those_of_the_policy(
    make_images: MakeImages, tmp_path: Path, sheets: list[tuple[list[Band], list[Row]]]
) -> None:
    folder = make_images(tmp_path / "images", num_per_class=3)
    oblong = make_images(tmp_path / "oblong", num_per_class=1)
    for file in oblong.rglob("*.png"):
        Image.open(file).resize((64, 32)).save(file)

    def draw(name: str, data: Path, *overrides: str, **wishes: int) -> list[str]:
        wishes = {"num_samples": 3, "num_draws": 1, **wishes}
        foveal.preview(data, tmp_path / f"{name}.png", overrides=["model.weights=none", *overrides], **wishes)
        return headings(sheets[-1])

    alone = "Each operation alone, at its strongest"
    assert draw("none", folder, "augment.policy=none") == ["Original: square"]
    flips = draw("flips", folder, "augment.policy=none", "augment.horizontal_flip=1.0", num_samples=9, num_draws=2)
    assert flips == ["Original: square", "Policy none: draw 1, draw 2", f"{alone}: mirror"]
    squares, *mirrored = by_column(sheets[-1]).values()
    assert len({square.tobytes() for square in squares}) == 9
    for column in mirrored:
        assert all(np.array_equal(a, b[:, ::-1]) for a, b in zip(column, squares, strict=True)), "each in its own row"
    assert draw("medium", oblong, "augment.policy=medium", num_draws=2) == [
        "Original: square",
        "Policy medium: draw 1, draw 2",
        f"{alone}: window, turn, shift, zoom, mirror, light, saturation, erasing",
    ]
    first, second, _ = by_column(sheets[-1])[f"{alone}/window"]
    square, other, _ = by_column(sheets[-1])["Original/square"]
    assert not np.array_equal(first, square)
    assert not np.array_equal(second, other)
    assert draw("all", folder, num_draws=2, all_policies=True) == [
        "Original: square",
        *(f"Policy {name}: draw 1, draw 2" for name in POLICIES if name != "none"),
    ]
    ops = "augment.operations=[{name: rotate}, {name: grey, probability: 1}, {name: rotate, degrees: 40}]"
    assert draw("list", oblong, ops) == [
        "Original: square",
        "All operations in order: draw 1",
        f"{alone}: rotate 1, grey, rotate 2",
    ], "a list without a crop looks at the middle of an oblong image"
    columns = by_column(sheets[-1])
    assert all(np.ptp(picture.astype(int), axis=2).max() <= 1 for picture in columns[f"{alone}/grey"])
    cropped = draw("crop", oblong, "augment.operations=[{name: resized_crop}]")
    assert cropped[-1] == f"{alone}: window, resized crop"
    automatic = draw("automatic", folder, "augment.policy=trivialaugment")[-1]
    assert automatic.startswith(f"{alone}: shift, shear x, shear y, translate x, ")


def test_the_same_seed_gives_the_same_bytes_and_leaves_the_generator_alone(
    make_images: MakeImages, tmp_path: Path
) -> None:
    folder = make_images(tmp_path / "images")
    recipe = ["model.weights=none", "augment.policy=heavy"]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    contents = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(1)
        out = tmp_path / f"{number}.png"
        foveal.preview(folder, out, overrides=[*recipe, f"seed={seed}"], num_samples=4, num_draws=2)
        assert torch.equal(torch.get_rng_state(), state)
        contents.append(out.read_bytes())
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize("store", ["on", "off"])
def test_what_cannot_be_used_is_passed_over_and_its_class_stays(
    store: str, make_images: MakeImages, tmp_path: Path
) -> None:
    folder = make_images(tmp_path / "images", ("a", "b"), num_per_class=3)
    for number in range(30):
        (folder / "b" / f"broken{number}.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes([number]) * 90)
    settings = ["model.weights=none", f"data.store={store}"]
    done = foveal.preview(folder, tmp_path / "g.webp", overrides=settings, num_samples=6, num_draws=1)
    assert Counter(label for _, label in done.samples) == {"a": 3, "b": 3}
    assert all("broken" not in path for path, _ in done.samples)
    assert done.num_unusable == 30
    fewer = foveal.preview(folder, tmp_path / "f.webp", overrides=settings, num_samples=60, num_draws=1)
    assert len(fewer.samples) == 6


def test_samples_are_drawn_evenly_and_from_train_where_there_is_one(make_images: MakeImages, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "d" / "train", ("a", "b", "c"), num_per_class=4)
    make_images(tmp_path / "d" / "test", ("a", "b", "c"), num_per_class=20, seed=1)
    for number in range(40):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / "a" / f"more{number}.png")
    settings = ["model.weights=none"]
    for num_samples, most in ((7, 3), (2, 1), (12, 4)):
        out = tmp_path / f"{num_samples}.png"
        done = foveal.preview(tmp_path / "d", out, overrides=settings, num_samples=num_samples, num_draws=1)
        counts = Counter(label for _, label in done.samples)
        assert sum(counts.values()) == num_samples
        assert max(counts.values()) == most
        assert {path.partition("/")[0] for path, _ in done.samples} == {"train"}
        assert [label for _, label in done.samples] == sorted(label for _, label in done.samples)
    planned = plan_preview(tmp_path / "d", tmp_path / "x.png", overrides=settings)
    assert planned.class_counts == {"a": 44, "b": 4, "c": 4}
    assert not (tmp_path / "x.png").exists()


def test_one_class_and_boxes_of_one_photograph_can_be_seen(tmp_path: Path, make_images: MakeImages) -> None:
    make_images(tmp_path / "images", ("a",), num_per_class=1, side_px=60)
    rows = [f"images/a/0.png,cell,{x},{x},{x + 20},{x + 30}" for x in (0, 15, 30)]
    (tmp_path / "boxes.csv").write_text("path,label,xmin,ymin,xmax,ymax\n" + "\n".join(rows), encoding="utf-8")
    done = foveal.preview(tmp_path / "boxes.csv", tmp_path / "g.png", overrides=["model.weights=none"], num_draws=1)
    assert done.samples == (("images/a/0.png", "cell"),) * 3


def test_refusals_come_before_anything_is_written(make_images: MakeImages, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", num_per_class=2)
    there = tmp_path / "there.png"
    there.write_text("mine", encoding="utf-8")
    (tmp_path / "folder.png").mkdir()
    for out, kind, words in (
        (tmp_path / "g.gif", ConfigError, r"'\.gif'.*\.png"),
        (folder / "g.png", ConfigError, "lies in DATA"),
        (folder / "discs" / ".." / "g.png", ConfigError, "lies in DATA"),
        (there, ArtifactError, "is there already"),
        (tmp_path / "folder.png", ArtifactError, "is a folder"),
    ):
        with pytest.raises(kind, match=words):
            foveal.preview(folder, out)
    with pytest.raises(ConfigError) as caught:
        foveal.preview(folder, tmp_path / "g.png", num_samples=0, num_draws=13)
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="policy"):
        foveal.preview(folder, tmp_path / "g.png", overrides=["augment.policy=strong"])
    assert there.read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["folder.png", "there.png"]
    done = foveal.preview(folder, there, overrides=["model.weights=none"], num_samples=2, num_draws=1, force=True)
    with Image.open(done.picture) as picture:
        assert picture.format == "PNG"


def test_no_usable_image_is_said_with_every_reason(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(20):
            (tmp_path / "d" / name / f"{number}.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes([number]) * 90)
    with pytest.raises(DataError, match="No image can be used") as caught:
        foveal.preview(tmp_path / "d", tmp_path / "g.png", overrides=["model.weights=none"])
    assert len(caught.value.problems) == 40
    assert "a/0.jpg" in " ".join(caught.value.problems)
    assert not (tmp_path / "g.png").exists()


def test_the_result_shows_itself_in_a_notebook(make_images: MakeImages, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", num_per_class=2)
    out = tmp_path / '<img onerror="x">.png'
    done = foveal.preview(folder, out, overrides=["model.weights=none"], num_samples=2, num_draws=1)
    page = done._repr_html_()
    assert page.count("<") == 1
    found = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert found
    assert base64.b64decode(found[1]) == out.read_bytes()
    as_dict = json.loads(json.dumps(done.to_dict()))
    assert as_dict["samples"] == [{"path": path, "label": label} for path, label in done.samples]
    assert as_dict["operations"]["turn"] == "up to ±8°"
    out.unlink()
    assert "is not there any more" in done._repr_html_()


def test_the_command_says_what_it_drew_and_what_comes_next(make_images: MakeImages, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", num_per_class=2)
    (folder / "discs" / "broken.jpg").write_bytes(b"\xff\xd8\xff" + bytes(50))

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, ["preview", str(folder), *words, "--set", "model.weights=none"])
        assert done.exit_code == 0, done.output
        return done.stdout

    planned = run("--out", str(tmp_path / "g.png"), "--dry-run", "--policies")
    assert f"foveal preview {folder} --out {tmp_path / 'g.png'} --samples 8 --draws 4 --policies" in planned
    assert not (tmp_path / "g.png").exists()
    said = run("--out", str(tmp_path / "g.png"), "--samples", "9", "--seed", "3")
    assert "Policy light, 6 samples, 32 x 32 px:" in said
    assert "  turn: up to ±8°" in said
    train = f"  foveal train {folder} --out runs/first --set augment.policy=light --set model.weights=none --set seed=3"
    assert said.splitlines()[-1] == train
    said = run("--out", str(tmp_path / "h.jpg"), "--set", "augment.policy=medium", "--json")
    assert json.loads(said)["policy"] == "medium"
    ops = "augment.operations=[{name: gain, probability: 1}]"
    said = run("--out", str(tmp_path / "i.jpg"), "--set", ops)
    assert "A list of operations, 6 samples, 32 x 32 px:\n  gain: times 1.5\n" in said
    assert "augment.policy" not in said.splitlines()[-1]

"""`foveal.split` and `foveal split` over real files: copies stay together, old places are kept, nothing is lost."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner

import foveal
from foveal.api.split import plan_split, split
from foveal.cli import app
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, ConfigError, DataError

MakeImages = Callable[..., Path]
QUICK = ["split.near_duplicates=false"]


@pytest.fixture
def images(tmp_path: Path, make_images: MakeImages) -> Path:
    return make_images(tmp_path / "images", num_per_class=20)


def places(file: Path) -> dict[str, str | None]:
    manifest = Manifest.read(file)
    return dict(zip(manifest.column("path"), manifest.column("split"), strict=True))


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["split", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_copies_that_were_changed_stay_on_one_side(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    folder = tmp_path / "data"
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for number in range(12):
            coarse = Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8))
            picture = coarse.resize((96, 96), Image.Resampling.BICUBIC)
            picture.save(folder / label / f"{number}.png")
            if number < 4:
                picture.resize((64, 64)).save(folder / label / f"{number}_small.jpg", quality=70)
                ImageOps.mirror(picture).save(folder / label / f"{number}_mirrored.png")
                shutil.copy(folder / label / f"{number}.png", folder / label / f"{number}_again.png")
    (folder / "a" / "broken.jpg").write_text("no picture")
    done = split(folder, tmp_path / "m.parquet", overrides=["model.weights=none"])
    manifest = Manifest.read(tmp_path / "m.parquet")
    by_path = places(tmp_path / "m.parquet")
    group = dict(zip(manifest.column("path"), manifest.column("group"), strict=True))
    for label in ("a", "b"):
        for number in range(4):
            family = [f"{label}/{number}{end}" for end in (".png", "_small.jpg", "_mirrored.png", "_again.png")]
            assert len({by_path[path] for path in family}) == 1
            assert len({group[path] for path in family}) == 1
            assert str(group[family[0]]).startswith("copies-")
        assert group[f"{label}/7.png"] is None
    assert done.num_images == 48
    assert done.num_quarantined == 1
    assert by_path["a/broken.jpg"] is None
    assert {each.name for each in done.sources} == {"same bytes", "near duplicates"}
    assert done.counts.num_groups.sum() == 24
    # What split has drawn, train keeps.
    assert split(tmp_path / "m.parquet", tmp_path / "n.parquet", overrides=["model.weights=none"]).is_written
    assert places(tmp_path / "n.parquet") == by_path


def test_a_manifest_that_is_there_is_kept_to_unless_forced(images: Path, make_images: MakeImages) -> None:
    file = images.parent / "m.parquet"
    assert split(images, file, overrides=QUICK).counts.num_images.sum() == 60
    before = places(file)
    make_images(images, num_per_class=30)
    (images / "discs" / "0.png").rename(images / "discs" / "renamed.png")
    done = split(images, file, overrides=[*QUICK, "seed=5"])
    after = places(file)
    assert {path: after[path] for path in before if path != "discs/0.png"} == {
        path: place for path, place in before.items() if path != "discs/0.png"
    }
    assert after["discs/renamed.png"] == before["discs/0.png"]
    assert "was there already" in done.notes[0]
    assert "60 images (1 of them moved or renamed) were in the earlier manifest; 30 are new." in done.notes
    assert np.abs(done.counts.num_images - [[21], [4.5], [4.5]]).max() <= 1
    split(images, file, overrides=[*QUICK, "seed=5"], force=True)
    assert places(file) != after
    other = split(images, file.with_name("o.parquet"), overrides=[*QUICK, "seed=8"], like=file)
    assert places(other.manifest) == places(file)


def test_nothing_of_anybody_is_written_over(images: Path) -> None:
    place = images.parent
    table = place / "mine.parquet"
    table.write_bytes(b"mine")
    for force in (False, True):
        with pytest.raises(ArtifactError, match="no manifest of foveal"):
            split(images, table, overrides=QUICK, force=force)
    for name in ("m.csv", "m", "images"):
        with pytest.raises(ConfigError, match=r"is no name for one") as caught:
            split(images, place / name, overrides=QUICK)
        assert caught.value.fix.endswith(".parquet")
    file = place / "m.parquet"
    split(images, file, overrides=QUICK)
    with pytest.raises(ConfigError, match="DATA itself"):
        split(file, file, overrides=QUICK, force=True)
    bare = place / "bare.parquet"
    manifest = Manifest.read(file)
    manifest.with_columns(split=[None] * 60).write(bare)
    with pytest.raises(ArtifactError, match="without a split"):
        split(images, bare, overrides=QUICK)
    with pytest.raises(ConfigError, match="no split to be kept"):
        split(images, place / "x.parquet", like=bare, overrides=QUICK)
    other = place / "other.parquet"
    split(images, other, overrides=[*QUICK, "seed=1"])
    with pytest.raises(ArtifactError, match="--like names another"):
        split(images, other, overrides=QUICK, like=file)
    assert split(images, other, overrides=QUICK, like=file, force=True).is_written
    assert places(other) == places(file)


def test_the_command_prints_a_table_and_what_to_type_next(images: Path) -> None:
    file = images.parent / "my folds.parquet"
    flags = ["--no-near-duplicates", "--folds", 3, "--per-class", 15, "--group-by", r"(\d)\.(png|jpg)", "--seed", 2]
    code, planned, _ = run(images, "--out", file, *flags, "--dry-run")
    assert code == 0
    assert not file.exists()
    again = shlex.split(planned.splitlines()[-1])
    code, out, _ = run(*again[2:], "--json")
    assert code == 0
    told = json.loads(out)
    assert told["is_written"]
    assert {part: sum(row.values()) for part, row in told["images"].items()}.keys() == {
        "fold 0", "fold 1", "fold 2", "test",
    }  # fmt: skip
    assert told["sources"][0]["name"] == "regular expression on the path"
    code, out, err = run(images, "--out", file, *flags, "--force")
    assert code == 0
    assert out.splitlines()[0].split() == ["class", "fold", "0", "fold", "1", "fold", "2", "test"]
    assert out.splitlines()[-1] == f"  foveal train '{file}' --out runs/first"
    assert "The subset holds 45 of 60 images" in out
    assert "Traceback" not in err
    manifest = Manifest.read(file)
    assert set(manifest.column("fold")[manifest.of_split("train")]) == {0, 1, 2}
    shown = foveal.split(images, images.parent / "<b>.parquet", overrides=QUICK)._repr_html_()
    assert "<b>" not in shown
    assert "&lt;b&gt;" in shown


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--folds", "1"], 2, "split.folds"),
        (["--group-by", "("], 2, "no regular expression"),
        (["--group-by", "(zebra)"], 2, "none of 60 paths"),
        (["--per-class", "5", "--total", "9"], 2, "two sizes"),
        (["--set", "split.fold=3"], 2, "split.fold: no such key"),
        (["--per-class", "21"], 1, "class 'discs': 20 usable images, not 21"),
        (["--folds", "20"], 1, "class 'discs': 20 samples in 20 independent groups, not 21"),
        (["--group-by", r"\.(\w)"], 1, "class 'discs': 20 samples in 2 independent groups, not 3"),
        (["--like", "nowhere.parquet"], 1, "nowhere.parquet does not exist"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(images: Path, flags: list[str], code: int, words: str) -> None:
    done, out, err = run(images, "--out", images.parent / "m.parquet", *flags)
    assert (done, out) == (code, "")
    assert words in " ".join(err.split())
    assert "Traceback" not in err
    assert not (images.parent / "m.parquet").exists()
    # Nothing was decoded either.
    assert not (images.parent / "cache-of-foveal").exists()


def test_an_empty_class_folder_is_named(images: Path) -> None:
    (images / "nothing").mkdir()
    with pytest.raises(DataError) as caught:
        plan_split(images, images.parent / "m.parquet")
    assert "class 'nothing': 0 images" in caught.value.problems

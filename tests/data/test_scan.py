import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.data.config import ColumnsConfig, DataConfig
from foveal.data.manifest import Manifest
from foveal.data.scan import scan
from foveal.data.split import split, straddling
from foveal.errors import ArtifactError, DataError


def make(root: Path, *files: str) -> Path:
    """Files with a few bytes: the scan opens no image, so these need be none."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"pixels of " + os.fsencode(name))
    return root


def rows(manifest: Manifest) -> dict[str, tuple[str, str | None, str]]:
    columns = (manifest.column(name) for name in ("path", "label", "split", "status"))
    return {path: (label, split, status) for path, label, split, status in zip(*columns, strict=True)}


def refused(data: Path, **config: object) -> DataError:
    with pytest.raises(DataError) as caught:
        scan(data, DataConfig(**config))  # type: ignore[arg-type]
    return caught.value


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    make(tmp_path, "10/a.jpg", "2/b.PNG", "2/deep/er/c", "2/notes.txt", "2/x.xml", "2/y.xml", "loose.jpg", "README.md")
    make(tmp_path, ".git/x.jpg", "__MACOSX/2/._b.png", "2/Thumbs.db", "2/.DS_Store", "2/.ipynb_checkpoints/b.png")
    result = scan(tmp_path, DataConfig())
    assert result.format == "folder"
    assert result.manifest.class_names == ("2", "10")
    assert rows(result.manifest) == {
        "2/b.PNG": ("2", None, "ok"), "2/deep/er/c": ("2", None, "ok"), "10/a.jpg": ("10", None, "ok"),
    }  # fmt: skip
    assert result.notes == (
        "1 images such as 'loose.jpg' lie in no class folder and were left out.",
        "Files that are no images by their name were left out: 2 .xml, 1 .txt.",
    )
    assert all(path.is_file() for path in result.manifest.absolute_paths())


def test_split_folders_keep_what_they_say(tmp_path: Path) -> None:
    make(tmp_path, "Train/cat/1.jpg", "Train/dog/2.jpg", "VALID/cat/3.jpg", "test/cat/4.jpg", "test/dog/5.jpg")
    make(tmp_path, "annotations/a.xml")
    (tmp_path / "VALID/dog").mkdir()
    result = scan(tmp_path, DataConfig())
    assert result.format == "split_folders"
    assert rows(result.manifest)["VALID/cat/3.jpg"] == ("cat", "val", "ok")
    assert sorted(result.manifest.column("split")) == ["test", "test", "train", "train", "val"]
    assert "The folder 'annotations' is no split and was left out." in result.notes
    assert "val has no sample of 'dog'." in result.notes


def test_a_class_that_is_only_tested_is_refused_with_its_counts(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "test/cat/2.jpg", "test/fox/3.jpg", "test/fox/4.jpg")
    error = refused(tmp_path)
    assert error.problems == ("class 'fox': 0 in train, 0 in val, 2 in test",)
    assert scan(tmp_path, DataConfig(exclude_classes=("fox",))).manifest.class_names == ("cat", "dog")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make(tmp_path, "bus/1.jpg", "train/2.jpg")
    assert scan(tmp_path, DataConfig()).manifest.class_names == ("bus", "train")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "it holds nothing"),
        ((".hidden/x.jpg",), "hidden files only"),
        (("a.jpg", "b.jpg"), "2 images such as 'a.jpg', but no class folders"),
        (("boxes.csv",), "no folders, and the files 'boxes.csv'"),
        (("train/1.jpg", "test/2.jpg"), "without class folders"),
        (("train/cat/1.jpg", "test/cat/2.jpg", "dog/3.jpg"), "two ways"),
        (("train/cat/1.jpg", "val/cat/2.jpg", "valid/cat/3.jpg"), "two folders for val"),
        (("data/cat/1.jpg", "data/dog/2.jpg"), "either level could be the classes"),
        (("cat/train/1.jpg", "cat/test/2.jpg", "dog/train/3.jpg"), "splits inside of its class folders"),
    ],
)
def test_what_fits_nothing_is_described(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    assert message in refused(make(tmp_path, *files)).message


def test_a_folder_that_holds_a_table_points_to_it(tmp_path: Path) -> None:
    make(tmp_path, "images/1.jpg", "annotations/1.xml", "boxes.csv")
    error = refused(tmp_path)
    assert error.problems == ("class 'annotations': 0 images",)
    assert f"give {tmp_path / 'boxes.csv'} as DATA" in error.fix


def test_what_foveal_wrote_is_no_data(tmp_path: Path) -> None:
    for files in (("config.yaml", "manifest.parquet"), ("experiment.json",)):
        folder = tmp_path / files[0]
        for name in ("bundle", "evaluation"):
            (folder / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / name / "plot.png")
        for name in files:
            (folder / name).touch()
        error = refused(folder)
        assert "is what foveal has written" in error.message
        assert (str(folder / "manifest.parquet") in error.fix) == ("manifest.parquet" in files)


def test_stated_formats_settle_what_is_ambiguous(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "fox/3.jpg")
    assert scan(tmp_path, DataConfig(format="split_folders")).manifest.class_names == ("cat", "dog")
    assert scan(tmp_path, DataConfig(format="folder")).manifest.class_names == ("fox", "train")
    assert "data.format=csv was stated" in refused(tmp_path, format="csv").message


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "data.zip", "data.tar.gz", "x.jpg", "x.doc", "signs/1.jpg")
    assert "unpack it first" in refused(tmp_path / "data.zip").fix
    assert "unpack it first" in refused(tmp_path / "data.tar.gz").fix
    assert "single image" in refused(tmp_path / "x.jpg").message
    assert "no kind that foveal reads" in refused(tmp_path / "x.doc").message
    assert f"Did you mean {tmp_path / 'signs'}?" in refused(tmp_path / "sings").message
    with pytest.raises(DataError, match="an address"):
        scan("hf://beans", DataConfig())
    os.mkfifo(tmp_path / "pipe.csv")
    assert "neither a file nor a folder" in refused(tmp_path / "pipe.csv").message
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ArtifactError, match="damaged"):
        scan(tmp_path / "broken.parquet", DataConfig())


def test_class_names_and_folders_in_other_unicode_forms_are_one_class(tmp_path: Path) -> None:
    make(tmp_path, "e\u0301/1.jpg", "\u00e9/2.jpg", "b/3.jpg")
    manifest = scan(tmp_path, DataConfig()).manifest
    assert manifest.class_names == ("b", "\u00e9")
    assert all(path.is_file() for path in manifest.absolute_paths())
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    make(tmp_path / "ids", "0/1.jpg", "1/2.jpg")
    named = scan(tmp_path / "ids", DataConfig(class_names=str(tmp_path / "names.txt"))).manifest
    assert rows(named)["1/2.jpg"] == ("bee", None, "ok")


# --- rows of the table of faults -------------------------------------------------------------------------------------

ODD_NAMES = (
    "e\u0301.jpg", "\u00e9.jpg", "new\nline.jpg", "return\r.jpg", "quote\"'.jpg", "-rf.jpg", "=1+1.jpg", "'=x.jpg",
    " space .jpg", "semi;colon,comma\t.jpg", "\U0001f98a" * 62 + "abc.jpg", "back\\slash.jpg", "%2e.jpg",
    "a\u2028b.jpg", "*?[x].jpg",
)  # fmt: skip


def test_row_31_odd_names_survive_manifest_and_csv(tmp_path: Path) -> None:
    data = make(tmp_path / "d", *(f"{folder}/{name}" for folder in ("-a,\n", "b") for name in ODD_NAMES))
    assert max(len(os.fsencode(name)) for name in ODD_NAMES) == 255
    found = scan(data, DataConfig()).manifest
    assert set(found.column("path")) == {f"{folder}/{name}" for folder in ("-a,\n", "b") for name in ODD_NAMES}
    assert all(path.is_file() for path in found.absolute_paths())
    divided = split(found, val_fraction=0.2, test_fraction=0.2, seed=0)
    for name in ("m.parquet", "m.csv"):
        divided.write(tmp_path / name)
        again = scan(tmp_path / name, DataConfig(images_root=str(data))).manifest
        assert again.table.equals(divided.table), name
        assert again.class_names == divided.class_names
        assert again.fingerprint() == divided.fingerprint()


def test_row_31_names_that_are_no_text_are_quarantined(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "b/2.jpg", os.fsdecode(b"b/\xff.jpg"), os.fsdecode(b"b/\xfe/3.jpg"))
    manifest = scan(tmp_path, DataConfig()).manifest
    assert rows(manifest)[r"b/\xff.jpg"] == ("b", None, "quarantined")
    assert rows(manifest)[r"b/\xfe/3.jpg"] == ("b", None, "quarantined")
    assert "not UTF-8" in str(manifest.column("reason")[1:].tolist())
    manifest.write(tmp_path / "m.parquet")
    assert Manifest.read(tmp_path / "m.parquet").table.equals(manifest.table)
    make(tmp_path, os.fsdecode(b"\xff/1.jpg"))
    assert "rename it" in refused(tmp_path).fix


def test_row_33_an_empty_class_folder_is_named_before_any_work(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.jpg", "dog/notes.txt")
    (tmp_path / "fox").mkdir()
    error = refused(tmp_path)
    assert error.problems == ("class 'dog': 0 images", "class 'fox': 0 images")
    assert """--set 'data.exclude_classes=["dog", "fox"]'""" in error.fix
    assert scan(tmp_path, DataConfig(exclude_classes=("dog", "fox"))).manifest.class_names == ("cat",)


def test_rows_36_37_links_out_of_the_folder_are_quarantined_unless_allowed(tmp_path: Path) -> None:
    make(tmp_path / "outside", "secret.jpg", "more/x.jpg")
    data = make(tmp_path / "data", "cat/1.jpg", "cat/real/2.jpg", "dog/3.jpg")
    (data / "cat/file.jpg").symlink_to(tmp_path / "outside/secret.jpg")
    (data / "cat/folder").symlink_to(tmp_path / "outside/more")
    (data / "cat/nowhere.jpg").symlink_to("missing.jpg")
    (data / "cat/inside.jpg").symlink_to("../dog/3.jpg")
    (data / "fox").symlink_to(tmp_path / "outside")
    error = refused(data)
    assert "class 'fox': 0 samples of 1 can be used; is a link that leads out" in error.problems[0]
    found = rows(scan(data, DataConfig(exclude_classes=("fox",))).manifest)
    assert {path for path, row in found.items() if row[2] == "ok"} == {
        "cat/1.jpg", "cat/real/2.jpg", "cat/inside.jpg", "dog/3.jpg",
    }  # fmt: skip
    assert {path for path, row in found.items() if row[2] == "quarantined"} == {
        "cat/file.jpg", "cat/folder", "cat/nowhere.jpg",
    }  # fmt: skip
    allowed = rows(scan(data, DataConfig(allow_outside_root=True)).manifest)
    assert {"cat/file.jpg", "cat/folder/x.jpg", "fox/secret.jpg", "fox/more/x.jpg"} <= set(allowed)
    assert all(row[2] == "ok" for path, row in allowed.items() if path != "cat/nowhere.jpg")


@pytest.mark.parametrize("allow", [False, True])
def test_row_37_loops_of_links_end(tmp_path: Path, allow: bool) -> None:
    data = make(tmp_path / "data", "cat/1.jpg", "cat/deep/2.jpg", "dog/3.jpg")
    (data / "cat/up").symlink_to("..")
    (data / "cat/self").symlink_to(".")
    (data / "cat/deep/again").symlink_to("../deep")
    (data / "cat/a_link").symlink_to("deep")
    (data / "cat/ping.jpg").symlink_to("pong.jpg")
    (data / "cat/pong.jpg").symlink_to("ping.jpg")
    result = scan(data, DataConfig(allow_outside_root=allow))
    found = rows(result.manifest)
    assert {path for path, row in found.items() if row[2] == "ok"} == {"cat/1.jpg", "cat/deep/2.jpg", "dog/3.jpg"}
    assert {path for path, row in found.items() if row[2] != "ok"} == {
        "cat/up", "cat/self", "cat/ping.jpg", "cat/pong.jpg",
    }  # fmt: skip
    assert sum("read already" in note for note in result.notes) == 2
    (data / "loop").symlink_to(".")
    assert "class 'loop': 0 samples of 1 can be used" in refused(data, allow_outside_root=allow).problems[0]


def test_a_pipe_among_the_images_hangs_nobody(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.jpg", "dog/2.jpg")
    os.mkfifo(tmp_path / "cat/pipe.jpg")
    assert rows(scan(tmp_path, DataConfig()).manifest)["cat/pipe.jpg"] == ("cat", None, "quarantined")


def test_row_36_links_to_splits_outside_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "outside", "cat/1.jpg", "dog/2.jpg")
    data = make(tmp_path / "data", "test/cat/1.jpg", "test/dog/2.jpg")
    (data / "train").symlink_to(tmp_path / "outside")
    assert "is a link that leads out" in refused(data).message
    manifest = scan(data, DataConfig(allow_outside_root=True)).manifest
    assert rows(manifest)["train/cat/1.jpg"] == ("cat", "train", "ok")


# --- a manifest as DATA ----------------------------------------------------------------------------------------------


def test_a_manifest_keeps_its_splits_and_quarantine(tmp_path: Path) -> None:
    data = make(tmp_path / "d", *(f"{label}/{number}.jpg" for label in ("x", "y", "z") for number in range(9)))
    manifest = scan(data, DataConfig()).manifest
    manifest = manifest.with_columns(
        status=["quarantined", *["ok"] * 26], reason=["too dark", *[None] * 26], sha256=[f"{n:064x}" for n in range(27)]
    )
    divided = split(manifest, val_fraction=0.2, test_fraction=0.2, seed=3)
    divided.write(tmp_path / "m.parquet")
    (data / divided.column("path")[0]).unlink()  # a quarantined image may be gone
    result = scan(tmp_path / "m.parquet", DataConfig())
    assert result.format == "parquet"
    assert result.manifest.table.equals(divided.table)
    assert result.manifest.images_root == data
    without = scan(tmp_path / "m.parquet", DataConfig(exclude_classes=("y",))).manifest
    assert without.class_names == ("x", "z")
    assert len(without) == 18
    (tmp_path / "names.csv").write_text("id,name\nx,axe\ny,ox\nz,zoo\n")
    assert scan(tmp_path / "m.parquet", DataConfig(class_names=str(tmp_path / "names.csv"))).manifest.class_names == (
        "axe", "ox", "zoo",
    )  # fmt: skip
    shutil.move(data, tmp_path / "moved")
    error = refused(tmp_path / "m.parquet")
    assert "26 images of 26" in error.message
    assert error.problems[0].startswith("row 2: path ")
    assert f"data.images_root={tmp_path / 'moved'}" in error.fix
    assert scan(tmp_path / "m.parquet", DataConfig(images_root=str(tmp_path / "moved"))).manifest.table.equals(
        divided.table
    )


def test_row_36_a_manifest_leads_nowhere_else(tmp_path: Path) -> None:
    make(tmp_path, "secret.jpg", "d/cat/1.jpg")
    paths = ["../secret.jpg", str(tmp_path / "secret.jpg"), "cat/../../secret.jpg", "cat/1.jpg", "a\0b"]
    Manifest.build(tmp_path / "d", path=paths, label=["cat"] * 5).write(tmp_path / "m.parquet")
    error = refused(tmp_path / "m.parquet")
    assert [problem.partition(":")[0] for problem in error.problems] == ["row 1", "row 2", "row 3", "row 5"]
    assert "allow_outside_root" in error.fix


# --- real images -----------------------------------------------------------------------------------------------------

real = pytest.mark.skipif("FOVEAL_DATA" not in os.environ, reason="FOVEAL_DATA is not set")


@pytest.mark.real_data
@real
def test_sign_digits() -> None:
    manifest = scan(Path(os.environ["FOVEAL_DATA"], "sign_digits"), DataConfig()).manifest
    assert len(manifest) == 2062
    assert manifest.class_names == tuple("0123456789")
    divided = split(manifest, val_fraction=0.15, test_fraction=0.15, seed=0)
    counts = np.array(
        [np.bincount(divided.label_ids()[divided.of_split(name)], minlength=10) for name in ("train", "val", "test")]
    )
    per_class = counts.sum(axis=0)
    assert np.abs(counts - np.outer([0.7, 0.15, 0.15], per_class)).max() < 1


@pytest.mark.real_data
@real
def test_blood_cells_by_boxes() -> None:
    folder = Path(os.environ["FOVEAL_DATA"], "bccd")
    config = DataConfig(images_root=str(folder / "images"), columns=ColumnsConfig(path="filename", label="cell_type"))
    result = scan(folder / "boxes.csv", config)
    manifest = split(result.manifest, val_fraction=0.15, test_fraction=0.15, seed=0)
    assert (len(manifest), manifest.class_names) == (4888, ("Platelets", "RBC", "WBC"))
    # Two boxes of the published table have no area.
    assert sorted(manifest.column("path")[~manifest.is_usable()]) == ["BloodImage_00338.jpg", "BloodImage_00343.jpg"]
    sides: dict[str, set[str]] = {}
    for path, side in zip(
        manifest.column("path")[manifest.usable()], manifest.column("split")[manifest.usable()], strict=True
    ):
        sides.setdefault(path, set()).add(side)
    assert len(sides) == 364
    assert all(len(each) == 1 for each in sides.values())
    assert not straddling(manifest).any()
    for number in range(3):
        labels = manifest.label_ids()
        total = np.count_nonzero(labels[manifest.usable()] == number)
        for name, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
            assert np.count_nonzero(labels[manifest.of_split(name)] == number) / total == pytest.approx(share, abs=0.01)

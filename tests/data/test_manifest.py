from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foveal.data.manifest import COLUMNS, Manifest, is_manifest, manifest_schema, sample_ids
from foveal.errors import ArtifactError, DataError, FovealError


@pytest.fixture
def manifest() -> Manifest:
    return Manifest.build(
        Path("/data"),
        path=["a/1.jpg", "b/2.jpg", "b/3.jpg", "b/3.jpg"],
        label=["10", "2", "2", "10"],
        split=["train", None, "test", "test"],
        fold=[0, np.nan, 1, 1],
        xmin=[None, None, 0, 5],
        ymin=[None, None, 1, 6],
        xmax=[None, None, 10, 20],
        ymax=[None, None, 11, 21],
        status=["ok", "quarantined", "ok", "ok"],
        reason=[None, "empty", None, None],
    )


def test_columns_are_the_contract(manifest: Manifest) -> None:
    expected = "sample_id path label split group fold xmin ymin xmax ymax width height mode sha256 phash status reason"
    assert tuple(expected.split()) == COLUMNS
    assert manifest.table.schema.equals(manifest_schema())


def test_class_order_is_natural_and_label_ids_follow_it(manifest: Manifest) -> None:
    assert manifest.class_names == ("2", "10")
    assert manifest.label_ids().tolist() == [1, 0, 0, 1]


def test_rows_by_split_leave_out_the_quarantined(manifest: Manifest) -> None:
    assert manifest.usable().tolist() == [0, 2, 3]
    assert manifest.of_split("test").tolist() == [2, 3]
    assert manifest.with_columns(split=["train"] * 4).of_split("train").tolist() == [0, 2, 3]
    assert manifest.boxes() == [None, None, (0, 1, 10, 11), (5, 6, 20, 21)]
    assert manifest.absolute_paths()[0] == Path("/data/a/1.jpg")


def test_columns_mark_the_unknown(manifest: Manifest) -> None:
    fold, split = manifest.column("fold"), manifest.column("split")
    np.testing.assert_array_equal(fold, [0, np.nan, 1, 1])
    assert split.tolist() == ["train", None, "test", "test"]
    assert manifest.codes("split").tolist() == [0, -1, 1, 1]
    # As the decode pass does it: objects of any kind in one column.
    width = np.array([100, None, float("nan"), np.float64(7.0)], dtype=object)
    np.testing.assert_array_equal(manifest.with_columns(width=width).column("width"), [100, np.nan, np.nan, 7])


def test_with_columns_refuses_what_does_not_fit(manifest: Manifest) -> None:
    with pytest.raises(DataError, match="colour"):
        manifest.with_columns(colour=["red"] * 4)
    with pytest.raises(DataError, match="3 values"):
        manifest.with_columns(split=["train"] * 3)
    with pytest.raises(DataError, match="without label"):
        manifest.with_columns(label=["a", None, "b", "c"])
    with pytest.raises(DataError, match="label 'dog'"):
        manifest.with_columns(label=["2", "2", "10", "dog"]).label_ids()


def test_parquet_round_trip(manifest: Manifest, tmp_path: Path) -> None:
    root = tmp_path / "r\udcff\n"
    odd = Manifest(manifest.table, root, ("2", 'Ram "C/V" 2012 é', "10"))
    odd.write(tmp_path / "m.parquet")
    back = Manifest.read(tmp_path / "m.parquet")
    assert back.table.equals(odd.table)
    assert (back.images_root, back.class_names) == (root, odd.class_names)
    assert is_manifest(tmp_path / "m.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["m.parquet"]


def test_sample_id_depends_on_path_and_box_alone(manifest: Manifest) -> None:
    ids = manifest.column("sample_id")
    assert len(set(ids)) == 4
    assert all(len(each) == 16 for each in ids)
    assert sample_ids(["b/3.jpg"], [(5, 6, 20, 21)]) == [ids[3]]
    moved = Manifest.build(Path("/elsewhere"), path=["b/2.jpg", "a/1.jpg"], label=["x", "y"])
    assert moved.column("sample_id").tolist() == [ids[1], ids[0]]
    # A contract: runs are compared by these names, so they must not change between versions.
    assert sample_ids(["a/1.jpg", "a/1.jpg"], [None, (1, 2, 3, 4)]) == ["35f4aeeb54d23214", "062f82047168bca6"]


def test_fingerprint_is_of_the_usable_content(manifest: Manifest) -> None:
    before = manifest.fingerprint()
    assert manifest.take(np.array([3, 1, 0, 2])).fingerprint() == before
    assert manifest.take(manifest.is_usable()).fingerprint() == before
    assert Manifest(manifest.table, Path("/moved"), manifest.class_names).fingerprint() == before
    hashed = manifest.with_columns(sha256=["1", "2", "3", "3"])
    renamed = hashed.with_columns(path=["x", "y", "z", "z"])
    assert hashed.fingerprint() == renamed.fingerprint() != before
    assert manifest.with_columns(label=["2", "2", "2", "10"]).fingerprint() != before
    assert manifest.with_columns(split=["val", None, "test", "test"]).fingerprint() != before
    assert manifest.with_columns(xmin=[None, None, 1, 5]).fingerprint() != before


def test_damaged_foreign_and_newer_files_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    file = tmp_path / "m.parquet"
    manifest.write(file)
    content = file.read_bytes()
    for name, broken in {
        "cut": content[:-20],
        "text": b"hello",
        "empty": b"",
        "half": content[: len(content) // 2],
    }.items():
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(ArtifactError, match="damaged") as caught:
            Manifest.read(tmp_path / name)
        assert "make the manifest again" in caught.value.fix
    pq.write_table(pa.table({"path": ["a"], "label": ["b"]}), tmp_path / "foreign.parquet")
    with pytest.raises(ArtifactError, match="no manifest of foveal"):
        Manifest.read(tmp_path / "foreign.parquet")
    with pytest.raises(ArtifactError, match="does not exist"):
        Manifest.read(tmp_path / "none.parquet")
    newer = pq.read_table(file).replace_schema_metadata(
        {b"foveal.manifest": b'{"format_version": 99, "images_root": "/", "class_names": []}'}
    )
    pq.write_table(newer, tmp_path / "newer.parquet")
    with pytest.raises(ArtifactError, match="format version 99"):
        Manifest.read(tmp_path / "newer.parquet")


def test_a_flipped_bit_in_the_rows_is_noticed(tmp_path: Path) -> None:
    labels = [f"class {number}" for number in range(200)]
    Manifest.build(Path("/data"), path=[f"{label}.jpg" for label in labels], label=labels).write(tmp_path / "m.parquet")
    content = bytearray((tmp_path / "m.parquet").read_bytes())
    metadata = pq.read_metadata(tmp_path / "m.parquet").row_group(0).column(COLUMNS.index("label"))
    content[metadata.dictionary_page_offset + metadata.total_compressed_size // 2] ^= 1
    (tmp_path / "m.parquet").write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged"):
        Manifest.read(tmp_path / "m.parquet")


def test_unwritable_folder_is_our_error(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FovealError, match="could not be written"):
        manifest.write(tmp_path / "file" / "m.parquet")

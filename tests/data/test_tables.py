import csv
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foveal.data.config import ColumnsConfig, DataConfig
from foveal.data.manifest import Manifest
from foveal.data.scan import ScanResult, scan
from foveal.errors import DataError
from foveal.files import neutral_cell


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with five files; the scan opens no image, so these need be none."""
    for name in ("a.jpg", "b.jpg", "c.jpg", "sub/d.jpg", "sub/e.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def read(folder: Path, content: str | bytes, **config: object) -> ScanResult:
    (folder / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return scan(folder / "t.csv", DataConfig(**config))  # type: ignore[arg-type]


def refused(folder: Path, content: str | bytes, **config: object) -> DataError:
    with pytest.raises(DataError) as caught:
        read(folder, content, **config)
    return caught.value


def pairs(manifest: Manifest) -> list[tuple[str, str]]:
    return list(zip(manifest.column("path"), manifest.column("label"), strict=True))


@pytest.mark.parametrize(
    "content",
    [
        b"path,label\na.jpg,1\nsub/d.jpg,10\n",
        b"\xef\xbb\xbfpath,label\r\na.jpg,1\r\n\r\nsub/d.jpg,10",
        b"label;x;path\n1;;a.jpg\n10;;sub/d.jpg\n",
        b'"label"\t"path"\n"1"\t"a.jpg"\n"10"\t"./sub//d.jpg"\n',
        b'path, label\n"a.jpg", "1"\nsub/../sub/d.jpg, 10\n',
        "path,label\na.jpg,1\nsub/d.jpg,10\n".encode("utf-16"),
        b"label,path\n1,a.jpg,,\n10,sub/d.jpg\n",
    ],
)
def test_row_35_a_csv_is_read_however_it_is_written(images: Path, content: bytes) -> None:
    result = read(images, content)
    assert result.format == "csv"
    assert pairs(result.manifest) == [("a.jpg", "1"), ("sub/d.jpg", "10")]
    assert result.manifest.images_root == images


def test_labels_and_paths_are_kept_exactly_and_neutralised_cells_are_taken_back(images: Path) -> None:
    labels = ["Ram C/V Cargo Van Minivan 2012", '=HYPERLINK("x")', 'a,b;c\n"d"', "'-x", " spaced "]
    names = ["-a.jpg", "=b.jpg", "'=c.jpg", "d'.jpg", "e\n.jpg"]
    for name in names:
        (images / name).write_bytes(b"x")
    with (images / "t.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerows(
            [["path", "label"], *([neutral_cell(a), neutral_cell(b)] for a, b in zip(names, labels, strict=True))]
        )
    assert pairs(scan(images / "t.csv", DataConfig()).manifest) == list(zip(names, labels, strict=True))


def test_row_35_everything_is_reported_at_once_with_line_numbers(images: Path) -> None:
    error = refused(
        images,
        "path,label,split,fold,group,xmin,ymin,xmax,ymax\n"
        "a.jpg,cat,train,,,,,,\n"  # 2: right
        '"b.jpg","c\nat",TEST,1,,1,2,30,40\n'  # 3 and 4: right
        "b.jpg,cat,val,,,1,2,3x,40\n"  # 5
        "b.jpg,,val,,,5,5,30,\n"  # 6: two faults
        "none.jpg,cat,holdout,-1,,,,,\n"  # 7: three faults
        "a.jpg,cat,train,,,,,,\n"  # 8
        "a.jpg,dog,train,,,,,,\n"  # 9
        ",dog,train,,,,,,\n"  # 10
        "sub,dog,train,1.5,,inf,0,1,1\n",  # 11: three faults
    )
    assert error.problems == (
        "line 5: xmax: '3x' is no number",
        "line 6: the label is missing",
        "line 6: the box lacks ymax",
        "line 7: path 'none.jpg' does not exist",
        "line 7: split 'holdout' is none of train, val, test",
        "line 7: fold: '-1' is no whole number from 0 on",
        "line 8: says the same as line 2: 'a.jpg' is 'cat'",
        "line 9: 'a.jpg' is 'dog' here and 'cat' in line 2",
        "line 10: the path is missing",
        "line 11: path 'sub' is a folder, not an image",
        "line 11: fold: '1.5' is no whole number from 0 on",
        "line 11: xmin: 'inf' is too large",
    )
    assert "12 faults" in error.message


def test_row_35_wrong_headers_say_what_to_type(images: Path) -> None:
    error = refused(images, "Filename,cell_type,xmin\na.jpg,RBC,3\n")
    assert "'Filename', 'cell_type', 'xmin'" in error.message
    assert "no column 'label' (data.columns.label)" in error.problems
    assert "--set data.columns.path=Filename --set data.columns.label=cell_type" in error.fix
    assert len(error.problems) == 5  # path, label, and the rest of the box
    # Names that say nothing: the column of images is told by its cells, the label must be named.
    assert "'data.columns.path=col 1'" in refused(images, "col 1,col 2\na.jpg,cat\n").fix
    assert "looks like data" in refused(images, "a.jpg,cat\nb.jpg,dog\n").fix
    assert "2 times" in refused(images, "path,label,label\na.jpg,cat,dog\n").problems[0]
    wrong = refused(images, "path,label,patient\na.jpg,cat,1\n", columns=ColumnsConfig(group="patient_id"))
    assert "--set data.columns.group=patient" in wrong.fix


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"path,label\n", "no rows"),
        (b"path,label\na.jpg,cat\nb,1.jpg,cat\n", "do not fit its header"),
        (b'path,label\na.jpg,"cat\nb.jpg,dog\n', "no CSV table: line 2"),
        (b'path,label\na.jpg,"cat" 7\n', "no CSV table: line 2"),
        (b"\xff\xfe\x00", "no CSV table"),
    ],
)
def test_tables_that_cannot_be_read_say_where(images: Path, content: bytes, message: str) -> None:
    assert message in refused(images, content).message


def test_text_that_is_not_utf8_is_named_by_its_line(images: Path) -> None:
    error = refused(images, "path,label\na.jpg,Mäuse\nä.jpg,x\n".encode("latin-1"))
    assert [problem.partition(" is not UTF-8")[0] for problem in error.problems] == [
        "line 2: the label",
        "line 3: the path",
    ]
    assert "NUL" in refused(images, b"path,label\na.jpg,c\0t\n").problems[0]
    assert "NUL" in refused(images, b"path,label\na\0.jpg,cat\n").problems[0]


def test_boxes_make_samples_and_those_without_area_are_quarantined(images: Path) -> None:
    table = "file,kind,xmin,xmax,ymin,ymax,split,group\n"
    table += "a.jpg,RBC,0,10,5,20,train,p1\na.jpg,WBC,3.2,9.7,-4,8.0,,\na.jpg,RBC,7,7,1,9,train,p1\n"
    table += "b.jpg,WBC,,,nan,NaN,valid,\nb.jpg,RBC,-9,-2,1,5,,\n"
    result = read(images, table, columns=ColumnsConfig(path="file", label="kind"))
    manifest = result.manifest
    assert manifest.boxes() == [(0, 5, 10, 20), (3, -4, 10, 8), (7, 1, 7, 9), None, (-9, 1, -2, 5)]
    assert manifest.is_usable().tolist() == [True, True, False, True, False]
    assert manifest.column("reason").tolist() == [
        None, None, "the box (7, 1, 7, 9) has no area", None, "the box (-9, 1, -2, 5) lies outside of the image",
    ]  # fmt: skip
    assert manifest.column("split").tolist() == ["train", None, "train", "val", None]
    assert manifest.column("group").tolist() == ["p1", None, "p1", None, None]
    assert result.notes == ("2 boxes hold no pixel; their rows were quarantined.",)
    shares = refused(images, "path,label,xmin,ymin,xmax,ymax\na.jpg,x,0.1,0.1,0.9,1\nb.jpg,y,0,0,0.5,0.5\n")
    assert "pixels are expected" in shares.problems[0]
    flat = refused(images, "path,label,xmin,ymin,xmax,ymax\na.jpg,x,9,9,9,9\nb.jpg,y,0,0,5,5\n")
    assert flat.problems == ("class 'x': 0 samples of 1 can be used; the box (9, 9, 9, 9) has no area",)


def test_ids_become_names_and_classes_are_left_out_with_their_faults(images: Path) -> None:
    (images / "names.txt").write_text("ant\nbee\ncow\n")
    content = "path,label\na.jpg,0\nb.jpg,2\nmissing.jpg,1\n"
    result = read(images, content, class_names=str(images / "names.txt"), exclude_classes=("bee",))
    assert pairs(result.manifest) == [("a.jpg", "ant"), ("b.jpg", "cow")]
    assert result.manifest.class_names == ("ant", "cow")
    kept = refused(images, "path,label\na.jpg,x\nb.jpg,y\nb.jpg,z\nnone.jpg,x\n", exclude_classes=("x",))
    assert kept.problems == ("line 4: 'b.jpg' is 'z' here and 'y' in line 3",)


def test_parquet_of_others_is_read_by_row(images: Path) -> None:
    def write(**columns: object) -> Path:
        pq.write_table(pa.table(columns), images / "t.parquet")
        return images / "t.parquet"

    file = write(
        path=pa.array(["a.jpg", "b.jpg"]).dictionary_encode(), label=[3.0, 10.0], fold=[1.0, None], xmin=[1, None],
        ymin=[1, None], xmax=[5, None], ymax=[6, None],
    )  # fmt: skip
    result = scan(file, DataConfig())
    assert result.format == "parquet"
    assert pairs(result.manifest) == [("a.jpg", "3"), ("b.jpg", "10")]
    assert result.manifest.boxes() == [(1, 1, 5, 6), None]
    np.testing.assert_array_equal(result.manifest.column("fold"), [1, np.nan])
    with pytest.raises(DataError) as caught:
        scan(write(path=["a.jpg", "b.jpg", "x.jpg"], label=["1", None, "2"]), DataConfig())
    assert caught.value.problems == ("row 2: the label is missing", "row 3: path 'x.jpg' does not exist")
    with pytest.raises(DataError, match="neither text nor numbers"):
        scan(write(path=["a.jpg"], label=[[1, 2]]), DataConfig())
    with pytest.raises(DataError, match="lacks columns"):
        scan(write(image=["a.jpg"], label=["1"]), DataConfig())


# --- where the images lie --------------------------------------------------------------------------------------------


def test_row_36_paths_that_lead_out_are_refused_unless_allowed(images: Path) -> None:
    data = images / "sub"
    shutil.copy(images / "a.jpg", data / "in.jpg")
    (data / "link.jpg").symlink_to(images / "a.jpg")
    (data / "linked").symlink_to(images)
    (data / "fine.jpg").symlink_to("d.jpg")
    (data / "broken.jpg").symlink_to("nothing.jpg")
    table = "path,label\n../a.jpg,1\n../../etc/passwd,1\n/etc/passwd,1\nlink.jpg,1\nlinked/b.jpg,1\n"
    table += f"fine.jpg,1\n{data}/in.jpg,1\nd.jpg,2\nx/../../a.jpg,2\nbroken.jpg,2\n"
    error = refused(data, table)
    assert [problem.partition(":")[0] for problem in error.problems] == [
        "line 2", "line 3", "line 4", "line 5", "line 6", "line 10", "line 11",
    ]  # fmt: skip
    assert all("leads out" in problem or "lead out" in problem for problem in error.problems[:-1])
    assert "leads nowhere" in error.problems[-1]
    assert "--set data.allow_outside_root=true" in error.fix
    allowed = read(
        data, "path,label\n../a.jpg,1\nlinked/b.jpg,1\nin.jpg,1\nd.jpg,2\n", allow_outside_root=True
    ).manifest
    assert allowed.column("path").tolist() == [str(images / "a.jpg"), "linked/b.jpg", "in.jpg", "d.jpg"]
    assert all(path.is_file() for path in allowed.absolute_paths())


def test_row_36_nothing_outside_is_touched(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = images / "sub"
    (data / "linked").symlink_to(images)
    touched: list[str] = []

    def watch(name: str) -> None:
        genuine = getattr(os, name)

        def watched(path: object = ".", *args: object, **options: object) -> object:
            touched.append(os.path.join(os.path.realpath(os.path.dirname(str(path))), os.path.basename(str(path))))
            return genuine(path, *args, **options)

        monkeypatch.setattr(os, name, watched)

    table = (
        "path,label\n../a.jpg,1\nlinked/b.jpg,1\n" + "".join(f"linked/sub/{n}.jpg,1\n" for n in range(50)) + "d.jpg,2\n"
    )
    (data / "t.csv").write_text(table)
    for name in ("stat", "scandir", "open", "listdir"):
        watch(name)
    with pytest.raises(DataError):
        scan(data / "t.csv", DataConfig())
    monkeypatch.undo()
    outside = [path for path in touched if path.startswith(str(images)) and not path.startswith(str(data))]
    assert touched
    assert outside == []


def test_absolute_paths_inside_become_relative(images: Path) -> None:
    (images.parent / f"{images.name}_link").symlink_to(images)
    table = f"path,label\n{images}/a.jpg,1\n{images}/sub/../b.jpg,2\n{os.path.realpath(images)}//c.jpg,2\n"
    assert read(images, table).manifest.column("path").tolist() == ["a.jpg", "b.jpg", "c.jpg"]
    linked = images.parent / f"{images.name}_link"
    assert scan(linked / "t.csv", DataConfig()).manifest.column("path").tolist() == ["a.jpg", "b.jpg", "c.jpg"]


def test_images_elsewhere_are_looked_for_and_the_setting_is_named(
    images: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("table")
    absolute = refused(other, f"path,label\n{images}/a.jpg,1\n{images}/sub/d.jpg,2\n")
    assert absolute.fix.endswith(f"--set data.images_root={images}")
    shutil.copytree(images, other / "photos")
    rows = "path,label\na.jpg,1\nb.jpg,2\nc.jpg,2\nsub/d.jpg,1\n"
    below = refused(other, rows)
    assert below.problems == ("line 2: path 'a.jpg' does not exist, and so with all 4 rows",)
    assert f"--set data.images_root={other / 'photos'}" in below.fix
    assert len(read(other, rows, images_root=str(other / "photos")).manifest) == 4
    stems = refused(images, "path,label\na,1\nb,2\nc,2\nsub/d,1\n")
    assert "there is no 'a', but there is 'a.jpg'" in stems.fix


@pytest.mark.parametrize("num_files", [3, 60])  # asked for one by one, and by listing the folder
def test_names_in_another_unicode_form_are_found(tmp_path: Path, num_files: int) -> None:
    names = [f"{number} \u00e9.jpg" for number in range(num_files)]
    for name in names:
        (tmp_path / unicodedata.normalize("NFD", name)).write_bytes(b"x")
    (tmp_path / names[0]).write_bytes(b"the exact form wins")
    content = "path,label\n" + "".join(f"{name},{number % 2}\n" for number, name in enumerate(names))
    manifest = read(tmp_path, content).manifest
    assert manifest.column("path").tolist() == [names[0], *(unicodedata.normalize("NFD", name) for name in names[1:])]
    content += "missing.jpg,1\n" + "x" * 300 + ".jpg,1\n"
    assert [problem.split(":")[0] for problem in refused(tmp_path, content).problems] == [
        f"line {num_files + 2}", f"line {num_files + 3}",
    ]  # fmt: skip

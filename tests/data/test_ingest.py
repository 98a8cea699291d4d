"""The one decode pass: complete, exact, never twice, and safe to kill."""

import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image

from foveal.data import ingest as ingest_module
from foveal.data import reading, reading_processes
from foveal.data import store as store_module
from foveal.data.config import DataConfig
from foveal.data.facts import SKETCH_BYTES, measure
from foveal.data.ingest import Ingested, Recipe, ingest
from foveal.data.manifest import Manifest
from foveal.data.scan import scan
from foveal.errors import ArtifactError, DataError, FovealError
from foveal.pixels.policy import Geometry, PixelPolicy, crop_box, decode, to_store
from foveal.pixels.strict_jpeg import CORRUPT_JPEG
from foveal.progress import Silence
from foveal.types import Box

RECIPE = Recipe(Geometry(size_px=24, store_px=28))
FACTS = ("width", "height", "mode", "sha256")

CHILD = """
import os, signal, sys
from pathlib import Path
from foveal.data import ingest as ingest_module, reading, store
from foveal.data.config import DataConfig
from foveal.pixels.policy import Geometry
from foveal.data.scan import scan
from foveal.data.store_index import Index

store.COMMIT_ROWS = 6
moment, number = sys.argv[2], int(sys.argv[3])

def happens(what):
    global number
    if what == moment:
        number -= 1
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def killing(changes):
    for change in changes:
        yield change
        happens("in the transaction")

apply, fsync, decode = Index.apply, os.fsync, reading.decode

def new_apply(self, changes):
    happens("before the transaction")
    apply(self, killing(changes))
    happens("after the transaction")

def new_fsync(descriptor):
    happens("before the pixels are on disk")
    fsync(descriptor)

def new_decode(*arguments):
    happens("while decoding")
    return decode(*arguments)

Index.apply, os.fsync, reading.decode = new_apply, new_fsync, new_decode
manifest = scan(sys.argv[1], DataConfig()).manifest
print("ready", flush=True)
sys.stdin.readline()
done = ingest_module.ingest(
    manifest, ingest_module.Recipe(Geometry(24, 28)), keep_pixels=True, cap_bytes=10**9, num_workers=2
)
import hashlib
digest = hashlib.sha256(b"".join(done.source[row].tobytes() for row in range(len(manifest)))).hexdigest()
print(done.num_decoded, done.num_from_store, digest)
"""


def run(manifest: Manifest, recipe: Recipe = RECIPE, *, keep_pixels: bool = True, cap_bytes: int = 10**9) -> Ingested:
    return ingest(manifest, recipe, keep_pixels=keep_pixels, cap_bytes=cap_bytes, num_workers=2)


def counts(done: Ingested) -> tuple[int, int]:
    return done.num_decoded, done.num_from_store


def expected(manifest: Manifest, row: int, recipe: Recipe = RECIPE) -> np.ndarray:
    """One stored form by the pixel policy's own functions, in the order that the design says."""
    pixels = decode(manifest.absolute_paths()[row].read_bytes(), recipe.policy).pixels
    box = manifest.boxes()[row]
    return to_store(pixels if box is None else crop_box(pixels, box, recipe.margin), recipe.geometry)


def check_pixels(done: Ingested, recipe: Recipe = RECIPE) -> None:
    rows = done.manifest.usable().tolist()
    assert rows
    for row in rows:
        np.testing.assert_array_equal(done.source[row], expected(done.manifest, row, recipe))


def check_facts(done: Ingested, recipe: Recipe = RECIPE) -> None:
    """Every usable row against what is measured of its pixels here; of the others nothing is said."""
    facts, usable = done.facts, done.manifest.is_usable()
    assert usable.any()
    np.testing.assert_array_equal(facts.is_known, usable)
    paths, boxes, hashes = done.manifest.absolute_paths(), done.manifest.boxes(), done.manifest.column("phash")
    for row in range(len(done.manifest)):
        if not usable[row]:
            assert hashes[row] is None
            assert np.isnan(facts.measures[row]).all()
            assert np.isnan(facts.width_px[row])
            continue
        decoded = decode(paths[row].read_bytes(), recipe.policy)
        box = boxes[row]
        pixels = decoded.pixels if box is None else crop_box(decoded.pixels, box, recipe.margin)
        expected = measure(pixels)
        np.testing.assert_array_equal(facts.measures[row], expected.values)
        np.testing.assert_array_equal(facts.sketch[row], expected.sketch)
        assert int(facts.phash[row]) == expected.phash
        assert hashes[row] == str(imagehash.phash(Image.fromarray(pixels)))
        assert (facts.height_px[row], facts.width_px[row]) == pixels.shape[:2]
        assert (facts.format[row], facts.notes[row]) == (decoded.format, "; ".join(decoded.notes))
        assert facts.num_bytes[row] == paths[row].stat().st_size


def boxed(folder: Path, path: Sequence[str], boxes: Sequence[Box | None]) -> Manifest:
    columns = {
        name: [None if box is None else box[edge] for box in boxes]
        for edge, name in enumerate(("xmin", "ymin", "xmax", "ymax"))
    }
    return Manifest.build(folder, path=path, label=["a"] * len(path), **columns)


def shard_files() -> list[Path]:
    return sorted(Path(os.environ["FOVEAL_CACHE_DIR"]).glob("*/*/*.rgb"))


@pytest.fixture
def folder(tmp_path: Path, make_images: Callable[..., Path]) -> Path:
    """Twenty-four small images, upright and oblong, grey and in colour."""
    folder = make_images(tmp_path / "images", num_per_class=7, side_px=40)
    for number, (mode, size) in enumerate([("L", (50, 30)), ("RGB", (31, 90)), ("RGBA", (20, 20))]):
        noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
        Image.fromarray(noise.squeeze(), mode).save(folder / "discs" / f"{mode}.png")
    return folder


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    return scan(folder, DataConfig()).manifest


def test_stored_pixels_are_those_of_the_policy_and_facts_go_into_the_manifest(manifest: Manifest) -> None:
    done = run(manifest)
    assert counts(done) == (24, 0)
    check_pixels(done)
    facts = zip(*(done.manifest.column(name) for name in FACTS), strict=True)
    by_path = dict(zip(done.manifest.column("path"), facts, strict=True))
    assert by_path["discs/L.png"][:3] == (50.0, 30.0, "L")
    assert by_path["discs/RGBA.png"][2] == "RGBA"
    assert len(set(done.manifest.column("sha256"))) == 24
    assert done.manifest.class_names == manifest.class_names


def test_a_second_run_decodes_nothing_and_a_store_at_rest_stays_as_it_is(manifest: Manifest) -> None:
    first = run(manifest)
    before = [(file.name, file.stat().st_size) for file in shard_files()]
    second = run(manifest)
    assert counts(second) == (0, 24)
    assert second.manifest.table.equals(first.manifest.table)
    check_pixels(second)
    assert [(file.name, file.stat().st_size) for file in shard_files()] == before


def test_only_what_changed_is_decoded_again(manifest: Manifest, folder: Path) -> None:
    run(manifest)
    changed = folder / "discs" / "0.png"
    status = changed.stat()
    Image.new("RGB", (40, 40), "red").save(changed)
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    done = run(manifest)
    assert counts(done) == (1, 23)
    check_pixels(done)
    assert (done.source[0].reshape(-1, 3) == (255, 0, 0)).all()


def test_a_touched_moved_or_copied_folder_is_known_by_its_content(folder: Path, tmp_path: Path) -> None:
    first = run(scan(folder, DataConfig()).manifest)
    for file in folder.rglob("*.png"):
        file.touch()
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    shutil.copy(moved / "discs" / "0.png", moved / "discs" / "same.png")
    for place, num_files in ((folder, 24), (moved, 25)):
        done = run(scan(place, DataConfig()).manifest)
        assert counts(done) == (0, num_files)
        check_pixels(done)
    assert len(shard_files()) == 1
    assert shard_files()[0].stat().st_size == sum(first.source[row].nbytes for row in range(24))


def test_another_geometry_is_another_form_beside_the_first(manifest: Manifest) -> None:
    recipes = [
        RECIPE,
        Recipe(Geometry(32, 32, "pad", background=(0, 0, 0))),
        Recipe(Geometry(32, 32, "pad", background=(255, 255, 255))),
        Recipe(Geometry(32, 32, "squash", "bilinear")),
        Recipe(Geometry(24, 28), PixelPolicy(background=(9, 9, 9))),
    ]
    assert [run(manifest, recipe).num_decoded for recipe in recipes] == [24] * 5
    for recipe in recipes:
        done = run(manifest, recipe)
        assert done.num_decoded == 0
        check_pixels(done, recipe)
    smaller = Recipe(Geometry(20, 28))
    assert run(manifest, smaller).num_decoded == 0, "the model's square is cut from the same stored form"


def test_boxes_are_samples_of_their_own(folder: Path) -> None:
    paths = ["discs/RGB.png"] * 3 + ["discs/L.png"] * 2
    boxes: list[Box | None] = [(0, 0, 20, 30), (5, 40, 31, 90), None, (-10, -10, 60, 60), (60, 0, 80, 30)]
    recipe = Recipe(Geometry(24, 28), margin=0.25)
    manifest = boxed(folder, paths, boxes)
    for num_decoded in (2, 0):
        done = run(manifest, recipe)
        assert counts(done) == (num_decoded, 2 - num_decoded)
        assert done.manifest.column("status").tolist() == ["ok"] * 4 + ["quarantined"]
        assert "no area inside the image of 50 x 30" in done.manifest.column("reason")[4]
        check_pixels(done, recipe)
    more = boxed(folder, paths[:1], [(1, 1, 9, 9)])
    assert run(more, recipe).num_decoded == 1, "a new box of a known file must be cut"


@pytest.mark.parametrize("keep_pixels", [True, False])
def test_broken_files_are_quarantined_with_their_reason_and_the_others_go_on(
    folder: Path, *, keep_pixels: bool
) -> None:
    """Rows 18 and 19."""
    whole = (folder / "discs" / "1.jpg").read_bytes()
    broken = {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"dear diary, today was a long day" * 9, "the content is a text"),
        "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>" * 9, "HTML"),
        "cut.jpg": (whole[: len(whole) // 2], "cut off"),
    }
    for name, (content, _) in broken.items():
        (folder / "discs" / name).write_bytes(content)
    manifest = scan(folder, DataConfig()).manifest
    for num_decoded in (28, 0):
        done = run(manifest, keep_pixels=keep_pixels)
        assert counts(done) == (num_decoded, 28 - num_decoded), "nor is a broken file decoded twice"
        assert len(done.manifest.usable()) == 24
        for row in np.flatnonzero(~done.manifest.is_usable()).tolist():
            name = Path(done.manifest.column("path")[row]).name
            assert broken[name][1] in done.manifest.column("reason")[row]
        check_pixels(done)
    time.sleep(0.01)
    (folder / "discs" / "cut.jpg").write_bytes(whole)
    assert len(run(manifest, keep_pixels=keep_pixels).manifest.usable()) == 25, "a mended file is taken up again"


def test_what_cannot_be_read_is_quarantined_and_asked_again_the_next_time(manifest: Manifest, folder: Path) -> None:
    gone, pipe = folder / "discs" / "0.png", folder / "discs" / "1.jpg"
    content = gone.read_bytes()
    gone.unlink()
    pipe.unlink()
    os.mkfifo(pipe)  # opening it would wait for ever
    done = run(manifest)
    assert counts(done) == (22, 0)
    reasons = dict(zip(done.manifest.column("path"), done.manifest.column("reason"), strict=True))
    assert reasons["discs/0.png"] == "no such file"
    assert reasons["discs/1.jpg"] == "cannot be read: not a regular file"
    gone.write_bytes(content)
    assert counts(run(manifest)) == (1, 22)


def test_quarantined_rows_are_passed_over(manifest: Manifest) -> None:
    status = ["quarantined" if row < 20 else "ok" for row in range(24)]
    done = run(manifest.with_columns(status=status, reason=["so" if row < 20 else None for row in range(24)]))
    assert counts(done) == (4, 0)
    assert set(done.manifest.column("reason")) == {"so", None}
    with pytest.raises(IndexError):
        done.source[0]


def test_decoding_on_the_fly_gives_the_same_and_keeps_no_pixels(folder: Path) -> None:
    paths = [*(str(file.relative_to(folder)) for file in sorted(folder.rglob("*.*"))), "discs/RGB.png", "discs/RGB.png"]
    manifest = boxed(folder, paths, [None] * 24 + [(0, 0, 20, 30), (90, 90, 99, 99)])
    off = run(manifest, keep_pixels=False)
    assert shard_files() == []
    again = run(manifest, keep_pixels=False)
    assert (off.num_decoded, again.num_decoded) == (24, 0), "what was learnt is remembered all the same"
    on = run(manifest)
    for done in (off, again):
        assert done.manifest.table.equals(on.manifest.table)
        for row in on.manifest.usable().tolist():
            np.testing.assert_array_equal(done.source[row], on.source[row])
    assert run(manifest, keep_pixels=False).num_decoded == 0
    assert run(manifest).num_decoded == 0, "a run without pixels does not forget those that are kept"


def test_a_bad_box_of_a_known_file_is_found_before_training_also_on_the_fly(folder: Path) -> None:
    run(boxed(folder, ["discs/RGB.png"], [None]), keep_pixels=False)
    done = run(boxed(folder, ["discs/RGB.png"], [(90, 90, 99, 99)]), keep_pixels=False)
    assert done.manifest.column("status").tolist() == ["quarantined"]


def test_an_image_that_changes_under_decoding_on_the_fly_is_named(manifest: Manifest, folder: Path) -> None:
    done = run(manifest, keep_pixels=False)
    (folder / "discs" / "0.png").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"discs/0\.png could be read before and cannot now") as caught:
        done.source[0]
    assert "must not change" in caught.value.fix


def test_the_cap_drops_old_forms_and_keeps_the_current_one(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    progress = Silence()
    monkeypatch.setattr(progress, "say", said.append)
    one = sum(run(manifest).source[row].nbytes for row in range(24))
    now = time.time()
    monkeypatch.setattr(store_module.time, "time", lambda: now + 7_200)
    other = Recipe(Geometry(32, 32, "squash"))
    ingest(manifest, other, keep_pixels=True, cap_bytes=int(2.2 * one), num_workers=2, progress=progress)
    assert said == []
    monkeypatch.setattr(store_module.time, "time", lambda: now + 7_200 + 1_800)
    third = Recipe(Geometry(32, 32, "pad"))
    ingest(manifest, third, keep_pixels=True, cap_bytes=int(2.4 * one), num_workers=2, progress=progress)
    assert len(said) == 1
    assert "were deleted that lay unused for longest" in said[0]
    assert run(manifest, other).num_decoded == 0, "recently used"
    assert run(manifest, third).num_decoded == 0, "current"
    assert run(manifest).num_decoded == 24


@pytest.mark.parametrize("harm", ["cut", "deleted"])
def test_a_shard_that_someone_cut_is_noticed_and_made_again(manifest: Manifest, harm: str) -> None:
    whole = run(manifest)
    num_bytes = whole.source[0].nbytes
    (file,) = shard_files()
    if harm == "cut":
        os.truncate(file, num_bytes + 5)
    else:
        file.unlink()
    done = run(manifest)
    assert counts(done) == ((23, 1) if harm == "cut" else (24, 0))
    check_pixels(done)
    assert run(manifest).num_decoded == 0


def test_a_damaged_index_is_told(manifest: Manifest) -> None:
    run(manifest)
    (index,) = Path(os.environ["FOVEAL_CACHE_DIR"]).glob("*/index.sqlite")
    index.write_bytes(b"\xaa" * 50_000)
    with pytest.raises(ArtifactError, match="cannot be used") as caught:
        run(manifest)
    assert "it is only a cache" in caught.value.fix


def test_facts_are_measured_once_whatever_the_geometry(manifest: Manifest) -> None:
    first = run(manifest)
    check_facts(first)
    assert first.facts.sketch.shape == (24, SKETCH_BYTES)
    for recipe, keep_pixels in ((RECIPE, True), (RECIPE, False), (Recipe(Geometry(20, 26)), False)):
        done = run(manifest, recipe, keep_pixels=keep_pixels)
        assert counts(done) == (0, 24)
        check_facts(done)
        assert done.manifest.table.equals(first.manifest.table)


def test_pixels_that_are_wanted_later_are_decoded_but_not_measured_again(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(manifest, keep_pixels=False)

    def refuse(*_: object) -> None:
        raise AssertionError("this is known")

    for name in ("glance", "jpeg_fault"):
        monkeypatch.setattr(reading, name, refuse)
    done = run(manifest)
    assert done.num_decoded == 24
    check_pixels(done)
    check_facts(done)


def test_facts_of_boxes_are_those_of_what_was_cut_out(folder: Path) -> None:
    paths = ["discs/RGB.png"] * 3 + ["discs/L.png"] * 2
    boxes: list[Box | None] = [(0, 0, 20, 30), (5, 40, 31, 90), None, (-10, -10, 60, 60), (60, 0, 80, 30)]
    manifest = boxed(folder, paths, boxes)
    for margin, num_decoded in ((0.25, 2), (0.0, 2), (0.25, 0), (0.0, 0)):
        recipe = Recipe(Geometry(24, 28), margin=margin)
        done = run(manifest, recipe)
        assert done.num_decoded == num_decoded
        check_facts(done, recipe)
    assert (done.facts.width_px[0], done.facts.height_px[0]) == (20, 30)


def test_facts_of_another_version_are_made_anew_and_pixels_stay_where_they_are(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(manifest)
    before = [(file.name, file.stat().st_size) for file in shard_files()]
    monkeypatch.setattr(reading, "FACTS_VERSION", reading.FACTS_VERSION + 1)
    for num_decoded in (24, 0):
        done = run(manifest)
        assert done.num_decoded == num_decoded
        check_pixels(done)
        check_facts(done)
    assert [(file.name, file.stat().st_size) for file in shard_files()] == before


def test_a_store_that_was_made_before_there_were_facts_is_filled_up(manifest: Manifest) -> None:
    run(manifest)
    before = [(file.name, file.stat().st_size) for file in shard_files()]
    (file,) = Path(os.environ["FOVEAL_CACHE_DIR"]).glob("*/index.sqlite")
    with sqlite3.connect(file) as index:
        index.execute("DROP TABLE facts")
    index.close()
    for num_decoded in (24, 0):
        done = run(manifest)
        assert done.num_decoded == num_decoded
        check_facts(done)
        check_pixels(done)
    assert [(file.name, file.stat().st_size) for file in shard_files()] == before


@pytest.fixture
def damaged(folder: Path) -> Path:
    """A JPEG that has lost a sector in the middle, which Pillow does not see."""
    file = folder / "discs" / "damaged.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((240, 240)).save(file, quality=95)
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle] + bytes(512) + content[middle + 512 :])
    assert decode(file).pixels.shape == (240, 240, 3)
    return file


@pytest.mark.parametrize("keep_pixels", [True, False])
def test_a_jpeg_corrupt_in_the_middle_is_quarantined(folder: Path, damaged: Path, *, keep_pixels: bool) -> None:
    """Row 20."""
    manifest = scan(folder, DataConfig()).manifest
    for num_decoded in (25, 0):
        done = run(manifest, keep_pixels=keep_pixels)
        assert done.num_decoded == num_decoded, "nor is it decoded twice"
        (row,) = np.flatnonzero(~done.manifest.is_usable()).tolist()
        assert done.manifest.column("path")[row] == "discs/damaged.jpg"
        assert done.manifest.column("reason")[row].startswith(CORRUPT_JPEG)
        check_facts(done)


def test_jpegs_are_checked_later_where_the_library_was_missing_and_remembered_where_it_is_gone(
    folder: Path, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = scan(folder, DataConfig()).manifest
    num_jpegs = len(list(folder.rglob("*.jpg")))
    with monkeypatch.context() as without:
        without.setattr(reading, "is_available", lambda: False)
        assert len(run(manifest).manifest.usable()) == 25
        assert run(manifest).num_decoded == 0
    done = run(manifest)
    assert done.num_decoded == num_jpegs, "the others need no check"
    assert len(done.manifest.usable()) == 24
    assert run(manifest).num_decoded == 0
    with monkeypatch.context() as without:
        without.setattr(reading, "is_available", lambda: False)
        known = run(manifest)
        assert known.num_decoded == 0
        assert len(known.manifest.usable()) == 24, "damage that was seen does not go away"
    monkeypatch.setattr(reading, "JPEG_CHECK_VERSION", reading.JPEG_CHECK_VERSION + 1)
    assert [run(manifest).num_decoded for _ in range(2)] == [num_jpegs, 0], "another check, another answer"


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Reads even the smallest data in processes; gives their numbers."""
    pids: list[int] = []
    monkeypatch.setattr(ingest_module, "PROCESSES_FROM_FILES", 1)
    monkeypatch.setattr(ingest_module, "_FILES_AT_ONCE", 3)
    start = subprocess.Popen

    def noting(*arguments: object, **options: object) -> object:
        process = start(*arguments, **options)  # type: ignore[call-overload]
        pids.append(process.pid)
        return process

    monkeypatch.setattr(reading_processes.subprocess, "Popen", noting)
    return pids


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_processes_find_the_same_as_threads(folder: Path, damaged: Path, in_processes: list[int]) -> None:
    (folder / "discs" / "text.jpg").write_bytes(b"dear diary, today was a long day" * 9)
    (folder / "discs" / "gone.png").symlink_to(folder / "nowhere.png")
    paths = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.*"))
    boxes: list[Box | None] = [None] * len(paths)
    manifest = boxed(folder, [*paths, paths[0], paths[0]], [*boxes, (0, 0, 9, 9), (90, 90, 99, 99)])
    first = run(manifest)
    assert len(in_processes) == 2
    assert not any(is_there(pid) for pid in in_processes), "none is left behind"
    assert first.num_decoded == len(paths) - 1
    assert len(first.manifest.usable()) == 24 + 1
    check_pixels(first)
    check_facts(first)
    again = run(manifest)
    assert counts(again) == (0, len(paths) - 1)
    assert again.manifest.table.equals(first.manifest.table)
    for file in folder.rglob("*.*"):
        if file.is_file():
            file.touch()
    touched = run(manifest)
    assert counts(touched) == (0, len(paths) - 1), "what the store knows, the processes know"
    shutil.rmtree(os.environ["FOVEAL_CACHE_DIR"])
    threads = ingest(manifest, RECIPE, keep_pixels=True, cap_bytes=10**9, num_workers=1)
    assert threads.manifest.table.equals(first.manifest.table)
    np.testing.assert_array_equal(threads.facts.measures, first.facts.measures)


def test_where_no_process_can_be_started_threads_do_the_work(
    manifest: Manifest, in_processes: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "python-that-fails"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    for executable in (str(broken), str(tmp_path / "python-nowhere"), "/bin/false", ""):
        monkeypatch.setattr(reading_processes.sys, "executable", executable)
        shutil.rmtree(os.environ["FOVEAL_CACHE_DIR"], ignore_errors=True)
        done = run(manifest)
        assert counts(done) == (24, 0)
        check_pixels(done)
    assert not any(is_there(pid) for pid in in_processes)


def test_a_process_that_is_killed_is_told_with_its_files(
    manifest: Manifest, in_processes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = reading_processes._ask

    def killing(process: "subprocess.Popen[bytes]", wanted: Sequence[reading.Wanted]) -> list[reading.Found]:
        if any("stripes" in file.path for file in wanted):
            process.kill()
        return ask(process, wanted)

    monkeypatch.setattr(reading_processes, "_ask", killing)
    start = time.monotonic()
    with pytest.raises(FovealError, match="ended by signal SIGKILL while it read one of 3 files") as caught:
        run(manifest)
    assert any("stripes" in problem for problem in caught.value.problems)
    assert time.monotonic() - start < 30
    assert not any(is_there(pid) for pid in in_processes)
    monkeypatch.setattr(reading_processes, "_ask", ask)
    check_pixels(run(manifest))


def test_what_goes_wrong_in_a_process_comes_out_as_it_was(
    manifest: Manifest, in_processes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(Geometry(24, 28), PixelPolicy(version=9))
    with pytest.raises(ArtifactError, match="version 9 of the pixel policy") as caught:
        run(manifest, recipe)
    assert "train again" in caught.value.fix
    assert len(in_processes) == 2
    assert not any(is_there(pid) for pid in in_processes)


PLAIN_SCRIPT = """
import os, sys, time
from foveal.data import ingest as module
from foveal.data import reading_processes
from foveal.data.config import DataConfig
from foveal.pixels.policy import Geometry
from foveal.data.scan import scan

module.PROCESSES_FROM_FILES, module._FILES_AT_ONCE = 1, 1
ask = reading_processes._ask
def slow(process, wanted):
    os.write(1, b"%d\\n" % process.pid)
    if len(sys.argv) > 2:
        time.sleep(60)
    return ask(process, wanted)
reading_processes._ask = slow
recipe = module.Recipe(Geometry(24, 28))
done = module.ingest(scan(sys.argv[1], DataConfig()).manifest, recipe, keep_pixels=True, cap_bytes=10**9, num_workers=2)
print("decoded", done.num_decoded)
"""


def test_a_plain_script_is_not_run_again_by_the_processes(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PLAIN_SCRIPT)
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "decoded 24"
    assert len(set(done.stdout.split()[:24])) == 2


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(folder: Path, signal_number: int) -> None:
    command = [sys.executable, "-c", PLAIN_SCRIPT, str(folder), "slow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True) as child:
        assert child.stdout
        pids = {int(child.stdout.readline()) for _ in range(2)}
        assert len(pids) == 2
        if signal_number == signal.SIGINT:
            os.killpg(child.pid, signal_number)  # as a terminal does
            time.sleep(0.3)
            child.kill()  # the threads of this script sleep for a minute
        else:
            child.kill()
    deadline = time.monotonic() + 20
    while any(is_there(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_there(pid) for pid in pids)


def _child(folder: Path, moment: str, number: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", CHILD, str(folder), moment, str(number)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("while decoding", 11),
        ("before the pixels are on disk", 2),
        ("before the transaction", 3),
        ("in the transaction", 10),
        ("after the transaction", 2),
    ],
)
def test_a_killed_pass_goes_on_where_it_was(folder: Path, manifest: Manifest, moment: str, number: int) -> None:
    with _child(folder, moment, number) as child:
        assert child.communicate(b"\n")[0] == b"ready\n"
    assert child.returncode == -signal.SIGKILL
    with sqlite3.connect(next(Path(os.environ["FOVEAL_CACHE_DIR"]).glob("*/index.sqlite"))) as index:
        ((num_committed,),) = index.execute("SELECT count(*) FROM pixels")
    index.close()
    assert 0 < num_committed < 24 or moment == "while decoding"
    done = run(manifest)
    assert counts(done) == (24 - num_committed, num_committed)
    check_pixels(done)
    assert run(manifest).num_decoded == 0


def test_two_processes_may_decode_the_same_folder_at_once(folder: Path, manifest: Manifest) -> None:
    children = [_child(folder, "never", 0) for _ in range(2)]
    for child in children:
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
    for child in children:
        assert child.stdin
        child.stdin.write(b"\n")
        child.stdin.flush()
    answers = [child.communicate()[0].split() for child in children]
    done = run(manifest)
    assert done.num_decoded == 0
    check_pixels(done)
    digest = hashlib.sha256(b"".join(done.source[row].tobytes() for row in range(24))).hexdigest()
    for num_decoded, num_from_store, found in answers:
        assert int(num_decoded) + int(num_from_store) == 24
        assert found.decode() == digest

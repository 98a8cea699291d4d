"""The store: what is committed is there, what is not is never referred to, and the cap holds."""

import resource
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from foveal.data import store as store_module
from foveal.data.store import ImageFacts, Place, Store, box_key, form_name, policy_name
from foveal.errors import ArtifactError
from foveal.pixels.policy import Geometry, PixelPolicy
from foveal.types import Box

HOUR = 3600.0


def picture(seed: int, height: int = 20, width: int = 30) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def fill(store: Store, form: str, seeds: range) -> dict[int, Place]:
    """Write one shard with a picture for each seed, by hashes such as "7"."""
    with store.writer(form) as writer:
        return {seed: writer.add_pixels(str(seed), None, picture(seed), None) for seed in seeds}


def place_of(store: Store, form: str, sha256: str, box: Box | None = None) -> Place | None:
    return store.places(form, [sha256]).get((sha256, box_key(box)))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("store-v*/*/*.rgb"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the store's clock to some hours before now."""
    now = time.time()

    def hours_ago(hours: float) -> None:
        monkeypatch.setattr(store_module.time, "time", lambda: now - hours * HOUR)

    return hours_ago


def test_images_come_back_as_they_went_in_after_closing(tmp_path: Path) -> None:
    with Store(tmp_path) as store, store.writer("form") as writer:
        writer.add_pixels("a", None, picture(1), None)
        writer.add_pixels("a", (0, 0, 9, 5), picture(2, 5, 9), None)
        writer.add_pixels("b", None, picture(3)[::-1, ::2], None)  # not contiguous
        writer.add_pixels("b", (9, 9, 9, 9), None, "no area")
    with Store(tmp_path) as store:
        wanted = [("b", None), ("a", (0, 0, 9, 5)), ("a", None), ("a", (0, 0, 9, 6)), ("b", (9, 9, 9, 9))]
        places = [place_of(store, "form", *key) for key in wanted]
        source = store.read("form", places)
        assert place_of(store, "other form", "a") is None
    assert len(source) == 5
    for row, expected in enumerate([picture(3)[::-1, ::2], picture(2, 5, 9), picture(1)]):
        np.testing.assert_array_equal(source[row], expected)
        assert not source[row].flags.writeable
    assert places[3] is None
    assert places[4] == Place("", 0, 0, 0, "no area")
    with pytest.raises(IndexError, match="row 4 is not in the store"):
        source[4]


def test_files_are_known_until_size_or_time_differ(tmp_path: Path) -> None:
    facts = ImageFacts("cafe", 30, 20, "RGB", "PNG", "rotated", None)
    with Store(tmp_path) as store, store.writer("form") as writer:
        writer.add_file(b"caf\xe9\n.png", 10, 5_000_000_000, facts, "policy")
    with Store(tmp_path) as store:
        assert store.known_hashes([(b"caf\xe9\n.png", 10, 5_000_000_000)]) == ["cafe"]
        for path, num_bytes, modified_ns in (
            (b"caf\xe9\n.png", 11, 5_000_000_000),
            (b"caf\xe9\n.png", 10, 5_000_000_001),
        ):
            assert store.known_hashes([(path, num_bytes, modified_ns)]) == [None]
        assert store.known_hashes([(b"caf\xe9.png", 10, 5_000_000_000)]) == [None]
        assert store.contents(["beef", "cafe"], "policy") == {"cafe": facts}
        assert store.contents(["cafe"], "other policy") == {}


def test_a_large_shard_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 4_000)
    with Store(tmp_path) as store:
        places = fill(store, "form", range(7))
        source = store.read("form", list(places.values()))
    assert sorted(file.stat().st_size for file in shards(tmp_path)) == [1_800, 3_600, 3_600, 3_600]
    for row, seed in enumerate(places):
        np.testing.assert_array_equal(source[row], picture(seed))


def test_what_was_committed_survives_a_failure_and_the_rest_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "COMMIT_ROWS", 3)
    with Store(tmp_path) as store:

        def write_and_fail() -> None:
            with store.writer("form") as writer:
                for seed in range(7):
                    writer.add_pixels(str(seed), None, picture(seed), None if seed < 6 else str(1 // 0))

        with pytest.raises(ZeroDivisionError):
            write_and_fail()
        (file,) = shards(tmp_path)
        assert file.stat().st_size == 4 * 1_800
        places = [place_of(store, "form", str(seed)) for seed in range(6)]
        assert [place is not None for place in places] == [True] * 4 + [False] * 2
        np.testing.assert_array_equal(store.read("form", places)[3], picture(3))


def test_slow_work_is_committed_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "COMMIT_SECONDS", 0.0)
    with Store(tmp_path) as store, store.writer("form") as writer:
        for seed in range(2):
            writer.add_pixels(str(seed), None, picture(seed), None)
            with Store(tmp_path) as other:
                assert place_of(other, "form", str(seed)) is not None


def test_a_writer_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        fill(store, "form", range(0))
    assert shards(tmp_path) == []


def test_a_full_disk_is_told_and_what_was_committed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "COMMIT_ROWS", 0)
    with Store(tmp_path) as store:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)

        def write_too_much() -> None:
            with store.writer("form") as writer:
                writer.add_pixels("0", None, picture(0), None)
                resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
                writer.add_pixels("1", None, picture(1, 300, 300), None)

        try:
            with pytest.raises(ArtifactError, match=r"could not be written.*File too large") as caught:
                write_too_much()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "free some space" in caught.value.fix
        assert place_of(store, "form", "1") is None
        place = place_of(store, "form", "0")
        np.testing.assert_array_equal(store.read("form", [place])[0], picture(0))
        assert store.num_bytes() == 1_800


@pytest.mark.parametrize("harm", ["cut", "emptied", "deleted"])
def test_a_shard_that_is_not_whole_counts_as_not_there(tmp_path: Path, harm: str) -> None:
    with Store(tmp_path) as store:
        places = fill(store, "form", range(3))
    (file,) = shards(tmp_path)
    if harm == "deleted":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: 1_800 + 7 if harm == "cut" else 0])
    with Store(tmp_path) as store:
        found = [place_of(store, "form", str(seed)) for seed in range(3)]
        assert [place is not None for place in found] == [harm == "cut", False, False]
        np.testing.assert_array_equal(store.read("form", [found[0]])[0], picture(0)) if found[0] else None
        # Gone between the question and the use: a message, not the signal that ends the process.
        with pytest.raises(ArtifactError, match="deleted or cut off while it was being used") as caught:
            store.read("form", list(places.values()))
        assert "start again" in caught.value.fix


@pytest.mark.parametrize("harm", ["garbage", "holes", "cut"])
def test_a_damaged_index_is_told_with_the_way_out(tmp_path: Path, harm: str) -> None:
    def use() -> None:
        with Store(tmp_path) as store:
            for seed in range(400):
                place_of(store, "form", str(seed))

    with Store(tmp_path) as store:
        fill(store, "form", range(400))
    use()
    (file,) = tmp_path.glob("*/index.sqlite")
    content = file.read_bytes()
    if harm == "garbage":
        file.write_bytes(b"not a database, whatever its name" * 100)
    elif harm == "holes":
        file.write_bytes(content[:4096] + b"\xaa" * (len(content) - 4096))
    else:
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match=r"index of the image store in .* cannot be used") as caught:
        use()
    assert "delete that folder (it is only a cache)" in caught.value.fix


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot be used") as caught:
        Store(tmp_path / "file" / "cache")
    assert "FOVEAL_CACHE_DIR" in caught.value.fix


def test_the_least_recently_used_make_room_and_no_more_than_needed(
    tmp_path: Path, clock: Callable[[float], None]
) -> None:
    with Store(tmp_path) as store:
        forms = {5.0: "old", 4.0: "older use, same form", 3.0: "old", 0.5: "recent"}
        for number, (hours, form) in enumerate(forms.items()):
            clock(hours)
            fill(store, form, range(10 * number, 10 * number + 10))
        clock(2.0)
        touched = place_of(store, "old", "0")
        assert touched
        store.touch([touched.shard])  # so that the first is the most recent of the three old ones
        clock(0.0)
        source = store.read("older use, same form", [place_of(store, "older use, same form", "10")])

        assert store.make_room(0, 4 * 18_000) == 0, "all fits"
        assert store.make_room(1, 4 * 18_000) == 18_000
        there = [place_of(store, form, str(10 * number)) is not None for number, form in enumerate(forms.values())]
        assert there == [True, False, True, True]
        np.testing.assert_array_equal(source[0], picture(10))  # mapped before it was deleted

        assert store.make_room(10**9, 4 * 18_000) == 2 * 18_000, "what was used within the hour stays"
        there = [place_of(store, form, str(10 * number)) is not None for number, form in enumerate(forms.values())]
        assert there == [False, False, False, True]
        assert store.num_bytes() == 18_000


def test_what_a_killed_process_left_is_swept_up_when_it_is_old(tmp_path: Path, clock: Callable[[float], None]) -> None:
    with Store(tmp_path) as store:
        fill(store, "form", range(2))
        orphan = tmp_path.joinpath("store-v1", "form", "0123.rgb")
        orphan.write_bytes(bytes(1000))
        store.make_room(0, 10**9)
        assert orphan.exists(), "it may be in the making"
        clock(-2.0)
        store.make_room(0, 10**9)
        assert not orphan.exists()
        assert place_of(store, "form", "0") is not None


def test_forms_differ_in_whatever_changes_a_stored_pixel() -> None:
    white, black = (255, 255, 255), (0, 0, 0)
    geometries = [
        Geometry(28, 32),
        Geometry(32, 32, "pad"),
        Geometry(32, 32, "squash"),
        Geometry(28, 33),
        Geometry(28, 32, interpolation="bilinear"),
        Geometry(28, 32, background=black),
    ]
    names = [form_name(geometry, PixelPolicy(), 0.0) for geometry in geometries]
    names += [
        form_name(Geometry(28, 32), PixelPolicy(background=black), 0.0),
        form_name(Geometry(28, 32), PixelPolicy(max_pixels=9), 0.0),
        form_name(Geometry(28, 32), PixelPolicy(), 0.5),
    ]
    assert len(set(names)) == len(names)
    assert form_name(Geometry(30, 32, background=white), PixelPolicy(), 0) == names[0]
    assert policy_name(PixelPolicy()) != policy_name(PixelPolicy(background=black))


def test_two_that_make_a_new_store_at_the_same_moment_both_may(tmp_path: Path) -> None:
    """SQLite refuses at once to change the journal of a file that another writes to, however long it may wait."""
    file = tmp_path / "store-v1" / "index.sqlite"
    file.parent.mkdir()
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE pixels_of_the_other (x)")
    start = time.monotonic()
    threading.Timer(0.3, lambda: other.execute("COMMIT").close()).start()
    with Store(tmp_path) as store:
        fill(store, "form", range(1))
    assert 0.2 < time.monotonic() - start < 20
    other.close()


def test_a_store_that_another_process_holds_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveal.data.store_index.WAIT_SECONDS", 0.05)
    with Store(tmp_path) as store:
        fill(store, "form", range(1))
        (file,) = tmp_path.glob("*/index.sqlite")
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ArtifactError, match="locked") as caught:
            fill(store, "form", range(1, 2))
        assert "wait until the other process is done" in caught.value.fix
        other.execute("ROLLBACK")
        other.close()
        fill(store, "form", range(1, 2))

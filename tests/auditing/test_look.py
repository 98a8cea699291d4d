"""One look at all pictures: decoded once, compared, and never decoded again to be looked at a second time."""

from pathlib import Path

import numpy as np
import pytest

from foveal.auditing.look import look, with_copies
from foveal.data import reading
from foveal.data.config import DataConfig
from foveal.data.scan import scan
from foveal.progress import Silence
from textured import COPIES, encoded, pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for at, image in enumerate(pictures(12)):
        place = tmp_path / "data" / ("cat" if at % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{at}.jpg").write_bytes(encoded(image))
        if at < 3:
            (place / f"{at}b.jpg").write_bytes(encoded(COPIES["mirrored"](image, rng)))
        if at == 3:
            (place / f"{at}b.jpg").write_bytes(encoded(image))
    (tmp_path / "data" / "cat" / "broken.jpg").write_bytes(b"GIF8")
    return tmp_path / "data"


@pytest.mark.parametrize("near_duplicates", [True, False])
def test_copies_are_found_and_broken_files_are_not_compared(folder: Path, near_duplicates: bool) -> None:
    manifest = scan(folder, DataConfig()).manifest
    found = look(manifest, DataConfig(), near_duplicates=near_duplicates, progress=Silence())
    paths = manifest.column("path")
    pairs = {
        (Path(paths[a]).stem, Path(paths[b]).stem) for a, b in zip(found.pairs.left, found.pairs.right, strict=True)
    }
    assert pairs == ({("0", "0b"), ("1", "1b"), ("2", "2b"), ("3", "3b")} if near_duplicates else {("3", "3b")})
    assert len(found.clusters) == len(manifest)
    assert (found.clusters >= 0).sum() == 2 * len(pairs)
    assert found.ingested.num_decoded == 17  # a broken file was tried, too
    assert not found.ingested.manifest.is_usable()[paths == "cat/broken.jpg"].any()
    assert (found.ingested.manifest.table["phash"].null_count, len(found.ingested.facts.sketch)) == (1, 17)


def test_the_second_look_opens_no_picture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for copy in folder.rglob("*b.jpg"):
        copy.unlink()  # where no two are alike, nothing has to be laid over anything
    manifest = scan(folder, DataConfig()).manifest
    first = look(manifest, DataConfig(), near_duplicates=True, progress=Silence())

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(reading, "decode", refuse)
    again = look(manifest, DataConfig(num_workers=1), near_duplicates=True, progress=Silence())
    assert (again.ingested.num_decoded, again.ingested.num_from_store) == (0, 13)
    assert again.ingested.manifest.table.equals(first.ingested.manifest.table)
    assert np.array_equal(again.ingested.facts.sketch, first.ingested.facts.sketch)
    assert len(again.pairs) == len(first.pairs) == 0


def test_training_that_decoded_already_need_not_look_again(folder: Path) -> None:
    manifest = scan(folder, DataConfig()).manifest
    looked = look(manifest, DataConfig(), near_duplicates=True, progress=Silence())
    again = with_copies(looked.ingested, near_duplicates=True, num_workers=1, progress=Silence())
    assert np.array_equal(again.pairs.left, looked.pairs.left)
    assert np.array_equal(again.pairs.similarity, looked.pairs.similarity)
    assert again.ingested is looked.ingested


def test_the_sketches_are_let_go_of_and_nothing_else_is(folder: Path) -> None:
    manifest = scan(folder, DataConfig()).manifest
    looked = look(manifest, DataConfig(), near_duplicates=True, progress=Silence())
    light = looked.without_sketches()
    assert looked.ingested.facts.sketch.any()
    assert light.ingested.facts.sketch.shape == looked.ingested.facts.sketch.shape
    assert light.ingested.facts.sketch.base.nbytes <= 1024
    assert np.array_equal(light.ingested.facts.phash, looked.ingested.facts.phash)
    assert light.pairs is looked.pairs

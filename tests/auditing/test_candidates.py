"""The first steps of the search, whatever is held in memory and however many threads there are."""

import numpy as np
import pytest

from foveal.auditing import candidates, neighbours
from foveal.auditing.candidates import Candidates, find_candidates
from foveal.data.sketch import SKETCH_BYTES, SKETCH_SIDE_PX
from foveal.progress import Silence

NUM, NUM_COPIES = 700, 60


def sketches() -> np.ndarray:
    """Smooth noise, some of it turned by a right angle once more, and a few flat ones."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(NUM, 6, 6))
    grown = np.kron(coarse, np.ones((1, 6, 6)))[:, :SKETCH_SIDE_PX, :SKETCH_SIDE_PX]
    smooth = sum(np.roll(grown, (down, across), (1, 2)) for down in range(-2, 3) for across in range(-2, 3))
    pictures = np.clip(128 + 12 * smooth, 0, 255).astype(np.uint8)
    pictures[-NUM_COPIES:] = np.rot90(pictures[:NUM_COPIES], axes=(1, 2))
    pictures[300:310] = 90
    return pictures.reshape(NUM, SKETCH_BYTES)


def found(num_workers: int) -> Candidates:
    return find_candidates(sketches(), np.arange(NUM), np.arange(NUM), num_workers=num_workers, progress=Silence())


def assert_same(one: Candidates, other: Candidates) -> None:
    for name in ("left", "right", "agreement", "is_mirrored"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert np.array_equal(one.placement.matrix, other.placement.matrix)


def test_threads_and_what_is_held_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BRUTE_FORCE_BELOW", 100)
    monkeypatch.setattr(candidates, "_BLOCK", 64)
    monkeypatch.setattr(neighbours, "_BLOCK", 100)
    known = found(1)
    pairs = set(zip(known.left.tolist(), known.right.tolist(), strict=True))
    assert {(at, NUM - NUM_COPIES + at) for at in range(NUM_COPIES)} <= pairs
    assert not {row for pair in pairs for row in pair} & set(range(300, 310)), "what is flat is like everything"
    assert_same(found(3), known)
    monkeypatch.setattr(candidates, "_MOST_HELD", 0)
    assert_same(found(2), known)


def test_where_all_are_flat_there_is_nothing_to_find() -> None:
    flat = np.full((20, SKETCH_BYTES), 7, np.uint8)
    rows = np.arange(20)
    assert len(find_candidates(flat, rows, rows, num_workers=2, progress=Silence()).left) == 0
    none = np.empty(0, np.int64)
    assert len(find_candidates(flat, none, rows, num_workers=2, progress=Silence()).left) == 0

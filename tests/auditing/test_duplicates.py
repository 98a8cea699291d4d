"""Copies among pictures: every planted one is found, and no two different pictures are taken for copies."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from foveal.auditing.duplicates import Pairs, exact_pairs, find_duplicates, group_copies
from foveal.data.facts import Facts, measure, record
from foveal.data.manifest import Manifest
from foveal.progress import Silence
from textured import COPIES, chain, pictures, pixels_of, reencoded, scaled

NUM_ORIGINALS = 60
NUM_COPIES = 10
"""Of each kind."""


@dataclass
class Planted:
    """Pictures, and of which original each was made."""

    images: list[Image.Image]
    source: list[int]
    kind: list[str]


@pytest.fixture(scope="module")
def planted() -> Planted:
    rng = np.random.default_rng(1)
    found = Planted(pictures(NUM_ORIGINALS), list(range(NUM_ORIGINALS)), ["original"] * NUM_ORIGINALS)
    for kind, copier in (*COPIES.items(), *[("chain", chain)] * 4):
        for source in rng.choice(NUM_ORIGINALS, NUM_COPIES, replace=False).tolist():
            found.images.append(reencoded(copier(found.images[source], rng), 90))
            found.source.append(source)
            found.kind.append(kind)
    return found


def compared(
    images: Sequence[Image.Image],
    *,
    paths: Sequence[str] = (),
    num_workers: int = 2,
    is_known: Sequence[bool] = (),
    **columns: Sequence[object],
) -> Pairs:
    pixels = [pixels_of(image) for image in images]
    facts = Facts.unknown(len(pixels))
    facts.fill(range(len(pixels)), [record(measure(each), each.shape[1], each.shape[0]) for each in pixels])
    if is_known:
        facts.is_known[:] = is_known
    columns.setdefault("sha256", [f"{at:064}" for at in range(len(pixels))])
    paths = paths or [f"{at}.jpg" for at in range(len(pixels))]
    manifest = Manifest.build(Path("/pictures"), path=paths, label=["a"] * len(pixels), **columns)
    return find_duplicates(manifest, facts, pixels, num_workers=num_workers, progress=Silence())


@pytest.fixture(scope="module")
def found(planted: Planted) -> Pairs:
    return compared(planted.images)


def test_every_single_change_and_nearly_every_chain_of_three_is_found(planted: Planted, found: Pairs) -> None:
    clusters = group_copies(len(planted.images), found)
    missed = [
        planted.kind[row]
        for row in range(NUM_ORIGINALS, len(planted.images))
        if not clusters[row] == clusters[planted.source[row]] >= 0
    ]
    assert set(missed) <= {"chain"}
    assert len(missed) <= 0.05 * planted.kind.count("chain")


def test_no_two_different_pictures_are_taken_for_copies(planted: Planted, found: Pairs) -> None:
    source = np.array(planted.source)
    assert [(int(a), int(b)) for a, b in zip(found.left, found.right, strict=True) if source[a] != source[b]] == []
    clusters = group_copies(len(source), found)
    alone = np.setdiff1d(np.arange(NUM_ORIGINALS), source[NUM_ORIGINALS:])
    assert len(alone) < NUM_ORIGINALS / 4
    assert (clusters[alone] == -1).all()


def test_pairs_are_in_order_and_told_once(found: Pairs) -> None:
    assert (found.left < found.right).all()
    pairs = list(zip(found.left.tolist(), found.right.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert not found.is_exact.any()
    assert (found.similarity > 0.5).all()
    assert (found.similarity <= 1).all()
    assert (np.abs(found.turn_degrees) <= 180).all()


SAME_VIEW = "the same view; re-encoded, resized or recoloured"
SAID = {
    **dict.fromkeys(("re-encoded", "resized", "brightened", "grey", "blurred", "jittered"), SAME_VIEW),
    "mirrored": "mirrored",
    "upside down": "mirrored, turned by 180°",
    "turned by 90°": "turned by 90°",
    "turned by 180°": "turned by 180°",
    "turned by 270°": "turned by 90°",
    "turned by 8°": "turned by 8°",
    "turned by -8°": "turned by 8°",
}


@pytest.mark.parametrize("kind", SAID)
def test_what_was_done_is_said_in_words(planted: Planted, found: Pairs, kind: str) -> None:
    assert described(planted, found, kind) == {SAID[kind]}


@pytest.mark.parametrize(("kind", "share"), [("cropped by 5 %", 95), ("cropped by 15 %", 85)])
def test_how_much_a_crop_keeps_is_said(planted: Planted, found: Pairs, kind: str, share: int) -> None:
    said = described(planted, found, kind)
    assert said <= {f"cropped to {share + off} % of its sides" for off in (-1, 0, 1)}
    assert said


def described(planted: Planted, found: Pairs, kind: str) -> set[str]:
    said = set()
    for row in [row for row, each in enumerate(planted.kind) if each == kind]:
        places = np.flatnonzero((found.left == planted.source[row]) & (found.right == row))
        said |= {found.describe(int(place)) for place in places}
    return said


def as_set(pairs: Pairs, names: Sequence[int] | None = None) -> set[tuple[int, ...]]:
    rows = zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)
    return {tuple(sorted((names[a], names[b]) if names is not None else (a, b))) for a, b in rows}


def test_neither_threads_nor_the_order_of_rows_matter(planted: Planted, found: Pairs) -> None:
    again = compared(planted.images, num_workers=1)
    assert all(np.array_equal(getattr(again, name), getattr(found, name)) for name in Pairs.__dataclass_fields__)
    order = np.random.default_rng(5).permutation(len(planted.images)).tolist()
    assert as_set(compared([planted.images[at] for at in order]), order) == as_set(found)


@pytest.mark.parametrize(("num_originals", "num_copies"), [(3, 10), (3, 20), (8, 30)])
def test_a_few_originals_that_were_blown_up_to_a_whole_set_are_still_seen_through(
    num_originals: int, num_copies: int
) -> None:
    """As training sets are: a handful of pictures, and dozens of copies of each make up all of the data."""
    rng, kinds = np.random.default_rng(0), list(COPIES.values())
    images, source = [], []
    for at, original in enumerate(pictures(num_originals, seed=7)):
        for number in range(num_copies):
            copy = kinds[number % len(kinds)](original, rng)
            images.append(reencoded(copy if number < len(kinds) else COPIES["jittered"](copy, rng), 90))
            source.append(at)
    clusters = group_copies(len(images), compared(images))
    for at in range(num_originals):
        own = clusters[np.array(source) == at]
        assert np.bincount(own[own >= 0], minlength=1).max() >= 0.9 * num_copies


def test_the_same_bytes_are_paired_with_the_first_and_compared_once(planted: Planted) -> None:
    one, other = planted.images[:2]
    small = scaled(one)
    pairs = compared([other, one, one, small, one], sha256=["o", "x", "x", "s", "x"])
    assert as_set(pairs) == {(1, 2), (1, 4), (1, 3)}
    exact = as_set(pairs.take(pairs.is_exact))
    assert exact == {(1, 2), (1, 4)}
    place = int(np.flatnonzero(pairs.is_exact)[0])
    assert pairs.describe(place) == "the same bytes"
    assert (pairs.similarity[pairs.is_exact] == 1).all()
    assert group_copies(5, pairs).tolist() == [-1, 1, 1, 1, 1]


def test_boxes_of_one_photograph_are_never_compared_and_those_of_two_are(planted: Planted) -> None:
    one, other = planted.images[:2]
    boxes = {"xmin": [0, 3, 0, 0], "ymin": [0, 0, 0, 0], "xmax": [90, 93, 90, 90], "ymax": [90, 90, 90, 90]}
    # Two overlapping boxes of a.jpg, one of its smaller copy b.jpg, one of something else.
    pairs = compared(
        [one, one, scaled(one), other], paths=["a.jpg", "a.jpg", "b.jpg", "c.jpg"], sha256=["a", "a", "b", "c"], **boxes
    )
    assert as_set(pairs) == {(0, 2), (1, 2)}
    assert not pairs.is_exact.any()


def test_the_same_bytes_with_other_boxes_are_no_exact_pair() -> None:
    boxes = {"xmin": [0, 5, 0, None], "ymin": [0, 5, 0, None], "xmax": [9, 14, 9, None], "ymax": [9, 14, 9, None]}
    manifest = Manifest.build(Path("/p"), path=["a", "a", "b", "c"], label=["x"] * 4, sha256=["s"] * 4, **boxes)
    assert as_set(exact_pairs(manifest)) == {(0, 2)}


def test_quarantined_rows_and_unknown_bytes_are_copies_of_nothing(planted: Planted) -> None:
    one = planted.images[0]
    status = ["quarantined", "ok", "quarantined"]
    pairs = compared([one, one, one], sha256=["x", "x", "x"], status=status, is_known=[False, True, False])
    assert len(pairs) == 0
    manifest = Manifest.build(Path("/p"), path=["a", "b"], label=["x"] * 2)
    assert len(exact_pairs(manifest)) == 0


@pytest.mark.parametrize("number", [0, 1, 2])
def test_hardly_any_rows(planted: Planted, number: int) -> None:
    images = [planted.images[0], scaled(planted.images[0])][:number]
    assert as_set(compared(images)) == ({(0, 1)} if number == 2 else set())
    assert group_copies(number, compared(images)).tolist() == ([0, 0] if number == 2 else [-1] * number)


def test_pictures_with_nothing_in_them_are_no_near_duplicates() -> None:
    rng = np.random.default_rng(0)
    flat = [Image.new("RGB", (96, 96), (level,) * 3) for level in (255, 254, 0, 128)]
    faint = [
        Image.fromarray((252 + rng.integers(-1, 2, (96, 96, 3))).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))
        for _ in range(6)
    ]
    assert len(compared(flat + faint)) == 0


def test_pictures_of_one_kind_without_detail_in_common_are_no_near_duplicates() -> None:
    """Light that falls off in the same way, with other grain in each: as slides, skies or X-rays have."""
    rng = np.random.default_rng(0)
    down, across = np.mgrid[0:96, 0:96]
    images = []
    for each in range(12):
        light = 200 - 1.2 * across if each % 2 else 220 - 0.03 * ((across - 48) ** 2 + (down - 48) ** 2)
        grain = rng.normal(0, 6, (96, 96))
        images.append(Image.fromarray((light + grain).clip(0, 255).astype(np.uint8)).convert("RGB"))
    assert len(compared(images)) == 0


def test_copies_of_the_smallest_and_of_oblong_pictures_do_not_end_it(planted: Planted) -> None:
    rng = np.random.default_rng(0)
    dot, line = Image.new("RGB", (1, 1), "red"), Image.fromarray(rng.integers(0, 256, (1, 3000, 3), dtype=np.uint8))
    wide = planted.images[0].resize((200, 60))
    pairs = compared([dot, dot.copy(), line, line.resize((1, 700)), wide, scaled(wide)])
    assert (4, 5) in as_set(pairs)
    assert not {row for pair in as_set(pairs) for row in pair} & {0, 1}

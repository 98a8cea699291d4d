import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.neighbors import NearestNeighbors

from foveal.auditing.off_domain import (
    DESCRIBED_PX,
    describe,
    far_threshold,
    neighbour_distances,
    off_domain,
    standardised,
    whitened,
)

ALONE = -1


def cells(num: int, seed: int) -> np.ndarray:
    """Red discs on a pale ground, as under a microscope; uint8 [n, 64, 64, 3]."""
    draw = np.random.default_rng(seed)
    pictures = []
    for _ in range(num):
        image = Image.new("RGB", (DESCRIBED_PX, DESCRIBED_PX), tuple(draw.integers(210, 240, 3).tolist()))
        pen = ImageDraw.Draw(image)
        for _ in range(int(draw.integers(1, 5))):
            left, top, size = draw.integers(0, 44), draw.integers(0, 44), draw.integers(12, 22)
            colour = (int(draw.integers(150, 190)), int(draw.integers(60, 100)), int(draw.integers(80, 120)))
            pen.ellipse((int(left), int(top), int(left + size), int(top + size)), fill=colour)
        noisy = np.asarray(image, dtype=np.int64) + draw.integers(-6, 7, (DESCRIBED_PX, DESCRIBED_PX, 3))
        pictures.append(noisy.clip(0, 255).astype(np.uint8))
    return np.stack(pictures)


def foreign() -> np.ndarray:
    """A page of text, noise, a blue screen and a picture in stripes; uint8 [4, 64, 64, 3]."""
    page = Image.new("RGB", (DESCRIBED_PX, DESCRIBED_PX), "white")
    pen = ImageDraw.Draw(page)
    for top in range(2, 60, 8):
        pen.text((2, top), "Lorem ipsum", fill="black")
    noise = np.random.default_rng(5).integers(0, 256, (DESCRIBED_PX, DESCRIBED_PX, 3))
    blue = np.broadcast_to([20, 40, 160], noise.shape)
    stripes = np.where((np.arange(DESCRIBED_PX) // 4 % 2)[None, :, None], [250, 220, 0], [10, 60, 10])
    stripes = np.broadcast_to(stripes, noise.shape)
    return np.stack([np.asarray(page), noise, blue, stripes]).astype(np.uint8)


def test_foreign_pictures_are_found_and_no_others() -> None:
    for seed in (0, 1):
        pictures = np.concatenate([cells(300, seed), foreign()])
        distances = neighbour_distances(describe([pictures[:100], pictures[100:]]), np.full(304, ALONE))
        far = off_domain({"plain": distances}, np.full(304, ALONE))
        assert {each.place for each in far} >= {300, 301, 302, 303}
        assert len(far) <= 5
        assert all(each.view == "plain" and each.medians == distances[each.place] for each in far)
        assert len(off_domain({"plain": distances[:300]}, np.full(300, ALONE))) <= 1


def test_a_description_does_not_depend_on_the_portions() -> None:
    pictures = cells(30, 2)
    whole, parts = describe([pictures]), describe(pictures[start : start + 7] for start in range(0, 30, 7))
    np.testing.assert_allclose(whole, parts, atol=1e-4)
    assert describe([]).shape == (0, 0)


@pytest.mark.parametrize("kind", ["normal", "clusters", "heavy"])
def test_false_alarms_are_few_whatever_the_data(kind: str) -> None:
    alarms = []
    for seed in range(8):
        draw = np.random.default_rng(seed)
        features = draw.normal(size=(1500, 24))
        if kind == "clusters":
            features += 6.0 * draw.normal(size=(12, 24))[draw.integers(0, 12, 1500)]
        if kind == "heavy":
            features *= np.exp(0.4 * draw.normal(size=(1500, 1)))
        distances = neighbour_distances(features.astype(np.float32), np.full(1500, ALONE))
        alarms.append(len(off_domain({"one": distances, "same": distances}, np.full(1500, ALONE))))
    assert np.mean(alarms) <= 1.5


def test_distances_equal_those_of_scikit_learn() -> None:
    features = np.random.default_rng(0).normal(size=(1300, 9)).astype(np.float32)
    found, _ = NearestNeighbors(n_neighbors=11).fit(features).kneighbors(features)
    expected = found[:, -1] / np.median(found[:, -1])
    np.testing.assert_allclose(neighbour_distances(features, np.full(1300, ALONE)), expected, rtol=1e-3)


def test_copies_of_a_foreign_picture_do_not_hide_each_other() -> None:
    draw = np.random.default_rng(3)
    features = draw.normal(size=(400, 8)).astype(np.float32)
    features[:15] = 30.0 + 0.001 * draw.normal(size=(15, 8))
    clusters = np.full(400, ALONE)
    assert not {each.place for each in off_domain({"it": neighbour_distances(features, clusters)}, clusters)} & set(
        range(15)
    )
    clusters[:15] = 7
    assert {each.place for each in off_domain({"it": neighbour_distances(features, clusters)}, clusters)} >= set(
        range(15)
    )


def test_recoloured_copies_of_what_belongs_belong_and_do_not_hide_what_does_not() -> None:
    """A tenth of the pictures are loud copies, as training sets are blown up with: beyond every foreign picture."""
    pictures = np.concatenate([cells(300, 6), foreign()])
    loud = np.random.default_rng(0).uniform(0.1, 1.8, (40, 1, 1, 3))
    copies = (pictures[:40] * loud).clip(0, 255).astype(np.uint8)
    clusters = np.concatenate([np.arange(40), np.full(264, ALONE), np.arange(40)])
    described = describe([np.concatenate([pictures, copies])])
    far = off_domain({"plain": neighbour_distances(described, clusters)}, clusters)
    assert {each.place for each in far} == {300, 301, 302, 303}
    # Without what the copies are of, they would be what is usual.
    alone = np.full(344, ALONE)
    unaware = {each.place for each in off_domain({"plain": neighbour_distances(described, alone)}, alone)}
    assert unaware != {300, 301, 302, 303}


def test_what_cannot_be_told_is_not_told() -> None:
    alike = np.ones((50, 4), dtype=np.float32)
    assert (neighbour_distances(alike, np.full(50, ALONE)) == 1.0).all()
    assert off_domain({"alike": np.ones(50)}, np.full(50, ALONE)) == []
    assert (neighbour_distances(alike[:1], np.array([ALONE])) == 1.0).all()
    assert (neighbour_distances(alike, np.zeros(50, dtype=np.int64)) == 1.0).all()  # all are copies of one
    assert off_domain({}, np.empty(0, dtype=np.int64)) == []
    few = np.ones(39)
    few[0] = 100.0
    assert off_domain({"few": few}, np.full(39, ALONE)) == []
    unknown = np.full(60, np.nan)
    assert off_domain({"unknown": unknown}, np.full(60, ALONE)) == []


def test_the_threshold_grows_with_the_spread_and_the_number() -> None:
    draw = np.random.default_rng(0)
    narrow, wide = (np.exp(spread * draw.normal(size=2000)) for spread in (0.1, 0.5))
    assert 1.2 < far_threshold(narrow) < far_threshold(wide)
    assert far_threshold(narrow[:200]) < far_threshold(narrow)


def test_features_are_brought_to_one_scale() -> None:
    draw = np.random.default_rng(0)
    mixing = draw.normal(size=(12, 12)) * np.geomspace(1, 30, 12)
    features = (draw.normal(size=(4000, 12)) @ mixing).astype(np.float32)
    np.testing.assert_allclose(np.cov(whitened(features).T), np.eye(12), atol=1e-2)
    constant = np.ones((10, 3), dtype=np.float32)
    assert np.isfinite(standardised(constant)).all()
    assert np.isfinite(whitened(constant)).all()

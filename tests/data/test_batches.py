"""Batches: nothing left out, nothing twice, and an order that can be taken up again."""

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from foveal.data.batches import Batch, Batches, TrainingBatches, derive_seed
from foveal.errors import ConfigError, DataError
from foveal.pixels.policy import Geometry, to_square

GEOMETRY = Geometry(size_px=8, store_px=10)


class Images:
    """A source of oblong images of which each tells its row and the place of each pixel."""

    def __init__(self, num_images: int, *, broken: Sequence[int] = ()) -> None:
        self._num_images, self._broken = num_images, broken
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self._num_images

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        self.asked.append(int(row))
        if row in self._broken:
            raise DataError(f"row {row} is broken")
        height, width = (10, 10 + row % 5) if row % 2 else (10 + row % 7, 10)
        y, x = np.mgrid[0:height, 0:width]
        image = np.stack([np.full_like(x, row), x, y], axis=-1).astype(np.uint8)
        image.flags.writeable = False  # as a store's are
        return image


def labels_of(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows * 7 % 11


def training(
    num_rows: int = 53, *, seed: int = 5, num_workers: int = 2, batch_size: int = 8, **options: Any
) -> TrainingBatches:
    rows = np.arange(num_rows) * 3
    return TrainingBatches(
        Images(200),
        rows,
        labels_of(rows),
        side_px=10,
        batch_size=batch_size,
        seed=seed,
        num_workers=num_workers,
        **options,
    )


def no_threads_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def content(batches: object) -> list[tuple[list[int], list[int], bytes]]:
    return [(b.rows.tolist(), b.labels.tolist(), b.images.numpy().tobytes()) for b in batches]  # type: ignore[attr-defined]


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("num_rows", [0, 1, 8, 21])
def test_evaluation_sees_every_row_once_in_order_as_the_central_square(num_rows: int, num_workers: int) -> None:
    rows = np.random.default_rng(0).permutation(40)[:num_rows].astype(np.int64)
    batches = Batches(Images(40), rows, labels_of(rows), GEOMETRY, batch_size=8, num_workers=num_workers)
    for _ in range(2):
        found = list(batches)
        assert len(found) == len(batches) == -(-num_rows // 8)
        assert [row for batch in found for row in batch.rows] == rows.tolist()
        assert [label for batch in found for label in batch.labels.tolist()] == labels_of(rows).tolist()
        assert sum(map(len, found)) == batches.num_images == num_rows
        for batch in found:
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert batch.images.shape == (len(batch), 3, 8, 8)
            for row, image in zip(batch.rows, batch.images, strict=True):
                np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), to_square(Images(40)[row], GEOMETRY))
    assert no_threads_left()


def test_an_epoch_shows_every_image_at_most_once_in_batches_of_one_size() -> None:
    batches = training()
    epochs = [[batch.rows for batch in batches.epoch(epoch)] for epoch in range(4)]
    assert len(batches) == 6
    for epoch in epochs:
        assert [len(rows) for rows in epoch] == [8] * 6
        assert len(set(np.concatenate(epoch).tolist())) == 48
        assert set(np.concatenate(epoch).tolist()) <= set(range(0, 159, 3))
    left_out = [set(range(0, 159, 3)) - set(np.concatenate(epoch).tolist()) for epoch in epochs]
    assert len({frozenset(rows) for rows in left_out}) == 4, "the images that are left over differ"


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    batches = training(num_rows=5)
    assert (len(batches), batches.batch_size) == (1, 5)
    assert [sorted(batch.rows.tolist()) for batch in batches.epoch(0)] == [[0, 3, 6, 9, 12]]


def test_labels_and_windows_belong_to_their_rows() -> None:
    batches = training()
    places = set()
    for batch in batches.epoch(1):
        assert batch.labels.tolist() == labels_of(batch.rows).tolist()
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for row, image in zip(batch.rows.tolist(), batch.images.permute(0, 2, 3, 1).numpy(), strict=True):
            left, top = int(image[0, 0, 1]), int(image[0, 0, 2])
            np.testing.assert_array_equal(image, Images(200)[row][top : top + 10, left : left + 10])
            places.add((left, top))
    assert len(places) > 6, "the window moves"


def test_without_random_windows_the_window_is_the_middle() -> None:
    for batch in training(random_window=False).epoch(0):
        for row, image in zip(batch.rows.tolist(), batch.images.permute(0, 2, 3, 1).numpy(), strict=True):
            height, width = Images(200)[row].shape[:2]
            assert abs(int(image[0, 0, 1]) - (width - 10) / 2) <= 0.5
            assert abs(int(image[0, 0, 2]) - (height - 10) / 2) <= 0.5


def test_an_epoch_is_a_pure_function_of_seed_and_epoch() -> None:
    reference = content(training().epoch(3))
    assert content(training(num_workers=4).epoch(3)) == reference
    used = training()
    list(used.epoch(0))
    torch.manual_seed(9)
    np.random.seed(9)
    assert content(used.epoch(3)) == reference
    others = [
        content(training().epoch(2)),
        content(training(seed=6).epoch(3)),
        content(training(seed=5 + 2**31).epoch(3)),
    ]
    assert all(other != reference for other in others)


@pytest.mark.parametrize("first_step", [0, 1, 5, 6])
def test_a_resumed_epoch_has_exactly_the_same_tail(first_step: int) -> None:
    assert content(training().epoch(2, first_step=first_step)) == content(training().epoch(2))[first_step:]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_fault_in_a_worker_surfaces_where_its_batch_is_due(num_workers: int) -> None:
    rows = np.arange(40)
    source = Images(40, broken=[18])
    batches = iter(Batches(source, rows, labels_of(rows), GEOMETRY, batch_size=8, num_workers=num_workers))
    assert [next(batches).rows[0], next(batches).rows[0]] == [0, 8]
    with pytest.raises(DataError, match="row 18 is broken"):
        next(batches)
    assert no_threads_left()


def test_closing_early_leaves_no_threads_and_reads_only_a_few_batches_ahead() -> None:
    rows = np.arange(2_000) % 50
    source = Images(50)
    batches = TrainingBatches(source, rows, labels_of(rows), side_px=10, batch_size=8, seed=0, num_workers=3)
    epoch = batches.epoch(0)
    for _ in range(4):
        next(epoch)
    assert not no_threads_left()
    epoch.close()
    assert no_threads_left()
    assert len(source.asked) <= 8 * (4 + 3 + 2), "memory stays bounded"
    unused = batches.epoch(1)
    unused.close()
    assert no_threads_left()


def test_seeds_depend_on_every_part_and_stay_what_they_are() -> None:
    parts = [(1,), (1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (1, 0, 0), (2**32 - 1, 1), (0,), ()]
    assert len({derive_seed(*each) for each in parts}) == len(parts)
    assert all(0 <= derive_seed(*each) < 2**63 for each in parts)
    # Runs that were begun before a change must be resumed with the same draws.
    assert derive_seed(0, 2, 3, 4) == int(np.random.SeedSequence([4, 0, 2, 3, 4]).generate_state(1, np.uint64)[0] // 2)


def merged(shares: Sequence[Batch], num_ranks: int) -> tuple[list[int], list[int], bytes]:
    """One batch of the shares that the processes have of it, in its order."""
    order = np.argsort(np.concatenate([np.arange(len(share)) * num_ranks + rank for rank, share in enumerate(shares)]))
    rows = np.concatenate([share.rows for share in shares])[order]
    labels = torch.cat([share.labels for share in shares])[order]
    images = torch.cat([share.images for share in shares])[order].contiguous(memory_format=torch.channels_last)
    return rows.tolist(), labels.tolist(), images.numpy().tobytes()


def speckled(window: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Noise on the cropped window, as a pipeline for single images makes it."""
    return (window[1:-1, 1:-1] + np.random.default_rng(seed).integers(0, 9, (8, 8, 3))).astype(np.uint8)


def imbalanced(**options: Any) -> TrainingBatches:
    """90, 9 and 1 images of three classes."""
    labels = np.repeat(np.array([7, 2, 4]), [90, 9, 1])
    return TrainingBatches(Images(100), np.arange(100), labels, side_px=10, seed=1, sampling="balanced", **options)


def test_the_draws_of_the_plain_order_stay_what_they_are() -> None:
    # Runs that were begun before a change must be resumed with the same order and the same windows.
    for epoch in range(2):
        draw = np.random.Generator(np.random.PCG64(derive_seed(5, 1, epoch)))
        order, shifts = draw.permutation(53), draw.random(53)
        for step, batch in enumerate(training().epoch(epoch)):
            numbers = order[step * 8 : step * 8 + 8]
            assert batch.rows.tolist() == (numbers * 3).tolist()
            for number, image in zip(numbers, batch.images, strict=True):
                height, width = Images(200)[number * 3].shape[:2]
                assert int(image[2, 0, 0]) == round((height - 10) * shifts[number])
                assert int(image[1, 0, 0]) == round((width - 10) * shifts[number])


@pytest.mark.parametrize(
    "options",
    [{}, {"sampling": "balanced"}, {"repeats": 3}, {"per_image": speckled}, {"random_window": False, "repeats": 2}],
)
@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_the_shares_of_all_processes_are_the_batch_of_one(num_ranks: int, options: dict[str, Any]) -> None:
    for epoch in (0, 3):
        whole = list(training(**options).epoch(epoch))
        ranks = [training(rank=rank, num_ranks=num_ranks, num_workers=1, **options) for rank in range(num_ranks)]
        assert {len(each) for each in ranks} == {len(whole)}
        assert {each.batch_size for each in ranks} == {8}
        together = [merged(shares, num_ranks) for shares in zip(*(each.epoch(epoch) for each in ranks), strict=True)]
        assert together == content(whole)
        tails = [each.epoch(epoch, first_step=4) for each in ranks]
        assert [merged(shares, num_ranks) for shares in zip(*tails, strict=True)] == content(whole)[4:]


def test_more_processes_than_images_in_a_step_are_refused() -> None:
    with pytest.raises(ConfigError, match="A step over 8 images cannot be shared by 9 processes"):
        training(rank=0, num_ranks=9)
    with pytest.raises(ConfigError, match="over 3 images"):
        training(num_rows=3, rank=1, num_ranks=4)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 8, 21, 40])
@pytest.mark.parametrize("num_ranks", [2, 3, 9])
def test_in_evaluation_each_row_is_in_exactly_one_process(num_ranks: int, num_rows: int) -> None:
    rows = np.random.default_rng(0).permutation(40)[:num_rows].astype(np.int64)

    def shared(rank: int, num_ranks: int) -> Batches:
        return Batches(Images(40), rows, labels_of(rows), GEOMETRY, batch_size=8, rank=rank, num_ranks=num_ranks)

    whole = {row: image for batch in shared(0, 1) for row, image in zip(batch.rows.tolist(), batch.images, strict=True)}
    seen: list[int] = []
    for rank in range(num_ranks):
        share = shared(rank, num_ranks)
        batches = list(share)
        assert len(share) == len(batches)
        assert all(len(batch) for batch in batches)
        own = [row for batch in batches for row in batch.rows.tolist()]
        assert share.num_images == len(own)
        assert share.labels.tolist() == labels_of(np.array(own, dtype=np.int64)).tolist()
        assert [label for batch in batches for label in batch.labels.tolist()] == share.labels.tolist()
        for batch in batches:
            assert all(
                torch.equal(image, whole[row]) for row, image in zip(batch.rows.tolist(), batch.images, strict=True)
            )
        seen += own
    assert sorted(seen) == sorted(rows.tolist())


@pytest.mark.parametrize("batch_size", [10, 33])
def test_balanced_sampling_shows_every_class_and_within_it_every_image_equally_often(batch_size: int) -> None:
    batches = imbalanced(batch_size=batch_size)
    assert len(batches) == 100 // batch_size
    num_seen = len(batches) * batch_size
    shown_of_the_first: set[int] = set()
    for epoch in range(6):
        found = list(batches.epoch(epoch))
        labels = Counter(label for batch in found for label in batch.labels.tolist())
        assert sorted(labels) == [2, 4, 7]
        assert sum(labels.values()) == num_seen
        assert max(labels.values()) - min(labels.values()) <= 1
        rows = Counter(row for batch in found for row in batch.rows.tolist())
        for members in (range(90), range(90, 99), range(99, 100)):
            times = [rows[row] for row in members]
            assert max(times) - min(times) <= 1
        shown_of_the_first |= {row for row in rows if row < 90}
        of_the_rare = [int(label == 4) for batch in found for label in batch.labels.tolist()]
        assert 0 < sum(of_the_rare[: num_seen // 2]) < sum(of_the_rare), "classes are mixed, not one after the other"
    assert len(shown_of_the_first) > 75, "each epoch draws others"


def test_of_balanced_sampling_the_class_that_is_drawn_once_more_and_the_windows_vary() -> None:
    batches = imbalanced(batch_size=10)
    extra, lefts = set(), set()
    for epoch in range(12):
        found = list(batches.epoch(epoch))
        labels = Counter(label for batch in found for label in batch.labels.tolist())
        extra.add(labels.most_common(1)[0][0])
        lefts |= {
            int(image[2, 0, 0]) * 10 + int(image[1, 0, 0])
            for batch in found
            for row, image in zip(batch.rows.tolist(), batch.images, strict=True)
            if row == 99
        }
    assert extra == {2, 4, 7}
    assert len(lefts) == 5, "the one image of its class is 14 px wide, and comes with every window"
    assert content(imbalanced(batch_size=10, num_workers=3).epoch(4)) == content(batches.epoch(4))
    assert content(batches.epoch(4, first_step=7)) == content(batches.epoch(4))[7:]


@pytest.mark.parametrize(("num_rows", "repeats"), [(53, 2), (53, 5), (8, 3), (9, 4), (15, 7), (5, 3), (1, 4)])
def test_repeats_show_each_image_so_often_and_never_twice_in_a_batch(num_rows: int, repeats: int) -> None:
    batches = training(num_rows=num_rows, repeats=repeats)
    size = batches.batch_size
    assert len(batches) == num_rows * repeats // size
    for epoch in range(8):
        found = [batch.rows.tolist() for batch in batches.epoch(epoch)]
        assert all(len(set(rows)) == len(rows) == size for rows in found)
        times = Counter(row for rows in found for row in rows)
        assert max(times.values()) == repeats
        assert sum(times.values()) == len(batches) * size
        assert min(times[row] for row in range(0, num_rows * 3, 3)) >= repeats - 1, "only the last batch may be lacking"
    assert content(batches.epoch(2, first_step=len(batches) // 2)) == content(batches.epoch(2))[len(batches) // 2 :]


def test_each_repeat_of_an_image_has_a_window_of_its_own() -> None:
    images: dict[int, set[bytes]] = {}
    for batch in training(repeats=6).epoch(0):
        for row, image in zip(batch.rows.tolist(), batch.images, strict=True):
            images.setdefault(row, set()).add(image.numpy().tobytes())
    longest = [row for row in images if (row % 5 if row % 2 else row % 7) >= 4]
    assert np.mean([len(images[row]) for row in longest]) > 2.5


@pytest.mark.parametrize("num_workers", [1, 4])
def test_a_pipeline_for_single_images_gets_a_window_it_may_write_to_and_a_seed_of_its_own(num_workers: int) -> None:
    seeds: list[int] = []

    def darken(window: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        assert window.shape == (10, 10, 3)
        assert window.dtype == np.uint8
        window //= 2
        seeds.append(seed)
        return window

    halved = list(training(num_workers=num_workers, per_image=darken).epoch(2))
    for batch, plain in zip(halved, training().epoch(2), strict=True):
        assert torch.equal(batch.images, plain.images // 2)
        assert batch.rows.tolist() == plain.rows.tolist()
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert len(set(seeds)) == 48
    assert sorted(seeds) == sorted(derive_seed(5, 5, 2, place) for place in range(48))
    smaller = training(num_workers=num_workers, per_image=speckled)
    assert {tuple(batch.images.shape) for batch in smaller.epoch(0)} == {(8, 3, 8, 8)}
    assert content(smaller.epoch(1)) == content(training(num_workers=1, per_image=speckled).epoch(1))
    assert content(smaller.epoch(1)) != content(smaller.epoch(0))


@pytest.mark.parametrize(
    ("made", "came"),
    [
        (lambda window, seed: window.astype(np.float32), r"float32 \[10, 10, 3\]"),
        (lambda window, seed: window[:5], r"uint8 \[5, 10, 3\]"),
        (lambda window, seed: window[..., 0], r"uint8 \[10, 10\]"),
        (lambda window, seed: window[: 5 + seed % 2, : 5 + seed % 2], r"uint8 \[5, 5, 3\], uint8 \[6, 6, 3\]"),
    ],
)
def test_a_pipeline_that_makes_no_equal_squares_is_refused(made: Any, came: str) -> None:
    with pytest.raises(ConfigError, match=came):
        list(training(per_image=made).epoch(0))
    assert no_threads_left()

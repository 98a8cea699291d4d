"""Batches: nothing left out, nothing twice, and an order that can be taken up again."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from foveal.data.batches import Batches, TrainingBatches, derive_seed
from foveal.errors import DataError
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
        return np.stack([np.full_like(x, row), x, y], axis=-1).astype(np.uint8)


def labels_of(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows * 7 % 11


def training(num_rows: int = 53, *, seed: int = 5, num_workers: int = 2, **options: bool) -> TrainingBatches:
    rows = np.arange(num_rows) * 3
    return TrainingBatches(
        Images(200), rows, labels_of(rows), side_px=10, batch_size=8, seed=seed, num_workers=num_workers, **options
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

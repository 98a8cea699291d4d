"""Batches as slices of the store: the order of an epoch is a pure function of (seed, epoch)."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.data.store import PixelSource
from foveal.pixels.policy import Geometry, to_square

PartT = TypeVar("PartT")


@dataclass(frozen=True, slots=True)
class Batch:
    """Images that are processed together.

    Attributes:
        images: uint8 [n, 3, side, side], 0..255, in channels-last memory.
        labels: int64 [n], class numbers; -1 where unknown.
        rows: int64 [n], row numbers in the manifest.
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


def derive_seed(*parts: int) -> int:
    """A seed that depends on every part, such as (seed, epoch, step); the same on every machine.

    Source: numpy's SeedSequence, whose mixing is stable by contract.
    """
    # The number of parts as well: SeedSequence takes [1] and [1, 0] for the same.
    entropy = [len(parts), *(part & 0xFFFFFFFF for part in parts)]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


class Batches:
    """Evaluation batches: every row once, in order, the central square.

    Args:
        source: stored forms by row number.
        rows: int64 [n], the rows to go through.
        labels: int64 [n], class numbers of those rows.
        geometry: how the square is cut.
        batch_size: images a batch; the last one may be smaller.
        num_workers: threads that prepare batches ahead.
    """

    def __init__(
        self,
        source: PixelSource,
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        geometry: Geometry,
        *,
        batch_size: int,
        num_workers: int = 1,
    ) -> None:
        self._source, self._rows, self._labels, self._geometry = source, rows, labels, geometry
        self._batch_size, self._num_workers = batch_size, num_workers

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    @property
    def num_images(self) -> int:
        """Images in one pass."""
        return len(self._rows)

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 [n], class numbers in the order of the pass."""
        return self._labels

    def __iter__(self) -> Iterator[Batch]:
        starts = range(0, len(self._rows), self._batch_size)
        return _ahead([slice(start, start + self._batch_size) for start in starts], self._make, self._num_workers)

    def _make(self, part: slice) -> Batch:
        images = np.stack([to_square(self._source[row], self._geometry) for row in self._rows[part]])
        return Batch(_channels_last(images), torch.from_numpy(self._labels[part]), self._rows[part])


class TrainingBatches:
    """Training batches: shuffled by (seed, epoch), each image as the largest square window of its stored form.

    The augmentation cuts the model's square from that window, on the training device. All batches of an epoch have the
    same size; the few images that are left over differ from epoch to epoch.

    Args:
        source: stored forms by row number.
        rows: int64 [n], the rows to draw from.
        labels: int64 [n], class numbers of those rows.
        side_px: side of the square windows; the stored forms' shorter side.
        batch_size: images a batch; all images, where there are fewer.
        seed: decides the order, together with the epoch.
        random_window: whether the window moves along an oblong image, or stays in its middle.
        num_workers: threads that prepare batches ahead.
    """

    def __init__(
        self,
        source: PixelSource,
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        *,
        side_px: int,
        batch_size: int,
        seed: int,
        random_window: bool = True,
        num_workers: int = 1,
    ) -> None:
        self._source, self._rows, self._labels, self._side_px = source, rows, labels, side_px
        self._random_window = random_window
        self._batch_size, self._seed, self._num_workers = min(batch_size, len(rows)), seed, num_workers

    def __len__(self) -> int:
        return len(self._rows) // self._batch_size

    @property
    def batch_size(self) -> int:
        """Images in every batch."""
        return self._batch_size

    def epoch(self, epoch: int, *, first_step: int = 0) -> Generator[Batch, None, None]:
        """The batches of one epoch, from `first_step` on: a resumed run sees exactly what it would have seen."""
        draw = np.random.Generator(np.random.PCG64(derive_seed(self._seed, 1, epoch)))
        order = draw.permutation(len(self._rows))
        shifts = draw.random(len(self._rows)) if self._random_window else np.full(len(self._rows), 0.5)
        size = self._batch_size
        parts = [order[step * size : (step + 1) * size] for step in range(first_step, len(self))]
        return _ahead(parts, lambda part: self._make(part, shifts[part]), self._num_workers)

    def _make(self, part: NDArray[np.int64], shifts: NDArray[np.float64]) -> Batch:
        images = np.empty((len(part), self._side_px, self._side_px, 3), dtype=np.uint8)
        for image, number, shift in zip(images, part, shifts, strict=True):
            image[...] = _window(self._source[self._rows[number]], self._side_px, float(shift))
        return Batch(_channels_last(images), torch.from_numpy(self._labels[part]), self._rows[part])


def _window(stored: NDArray[np.uint8], side_px: int, shift: float) -> NDArray[np.uint8]:
    """A square of the stored form: all of its shorter side, and a random stretch of its longer one."""
    height, width = stored.shape[:2]
    top = round((height - side_px) * shift)
    left = round((width - side_px) * shift)
    return stored[top : top + side_px, left : left + side_px]


def _channels_last(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _ahead(parts: Sequence[PartT], make: Callable[[PartT], Batch], num_workers: int) -> Generator[Batch, None, None]:
    """Make batches in threads, a few ahead of the one in use, in order."""
    under_way: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(num_workers, thread_name_prefix="batches") as pool:
        try:
            for part in parts:
                under_way.append(pool.submit(make, part))
                if len(under_way) > num_workers + 1:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

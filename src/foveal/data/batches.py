"""Batches as slices of the store: the order of an epoch is a pure function of (seed, epoch).

Where several processes work together each has its own share of every batch, and all shares together are the batch that
one process alone would have had.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.data.store import PixelSource
from foveal.errors import ConfigError
from foveal.pixels.policy import Geometry
from foveal.pixels.views import PLAIN, View, view_square

PartT = TypeVar("PartT")

Sampling = Literal["natural", "balanced"]
PerImage = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]
"""From a window, uint8 [side, side, 3], and a seed to what takes its place, uint8 [side', side', 3]."""


def check_ranks(num_ranks: int, num_images: int) -> None:
    """Refuse more processes than a step has images.

    Args:
        num_ranks: processes that train together.
        num_images: images in a step, over all of them.

    Raises:
        ConfigError: some would have none.
    """
    if num_ranks > num_images:
        raise ConfigError(
            f"A step over {num_images} images cannot be shared by {num_ranks} processes: each needs one.",
            fix="lower train.devices or train.nodes, or raise train.batch_size.",
        )


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
    """Evaluation batches: every row once, in order, the central square or another view of it.

    Args:
        source: stored forms by row number.
        rows: int64 [n], the rows to go through.
        labels: int64 [n], class numbers of those rows.
        geometry: how the square is cut.
        batch_size: images a batch, over all processes; the last one may be smaller.
        num_workers: threads that prepare batches ahead.
        rank: number of this process.
        num_ranks: processes that go through the rows together, each row in one of them.
        view: which square of each image; the central one if not given.
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
        rank: int = 0,
        num_ranks: int = 1,
        view: View | None = None,
    ) -> None:
        self._source, self._geometry, self._num_workers = source, geometry, num_workers
        self._view = view or PLAIN
        places = np.arange(len(rows))
        shares = [places[start : start + batch_size][rank::num_ranks] for start in range(0, len(rows), batch_size)]
        # Of the last rows there may be fewer than processes.
        self._sizes = [len(share) for share in shares if len(share)]
        own = np.concatenate(shares) if shares else places
        self._rows, self._labels = rows[own], labels[own]

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def num_images(self) -> int:
        """Images in one pass of this process."""
        return len(self._rows)

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 [n], class numbers in the order of this process's pass."""
        return self._labels

    def __iter__(self) -> Iterator[Batch]:
        ends = np.cumsum(self._sizes, dtype=np.int64).tolist()
        parts = [slice(end - size, end) for end, size in zip(ends, self._sizes, strict=True)]
        return _ahead(parts, self._make, self._num_workers)

    def _make(self, part: slice) -> Batch:
        images = np.stack([view_square(self._source[row], self._geometry, self._view) for row in self._rows[part]])
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
        batch_size: images a batch, over all processes; all images, where there are fewer.
        seed: decides the order, together with the epoch.
        random_window: whether the window moves along an oblong image, or stays in its middle.
        size_px: side of the square that the model sees; where the window does not move, its middle is then the square
            that evaluation sees, to the pixel.
        num_workers: threads that prepare batches ahead.
        sampling: natural: every image once; balanced: as many images, of every class equally many, each image of a
            class as often as its others.
        repeats: times each image comes in an epoch, never twice in the same batch where it is natural.
        per_image: what is done to each window, in the threads, so several at a time; its seed comes from the seed, the
            epoch and the place in it.
        rank: number of this process.
        num_ranks: processes that train together; each has every num_ranks-th image of every batch.

    Raises:
        ConfigError: a batch has fewer images than there are processes.
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
        size_px: int | None = None,
        num_workers: int = 1,
        sampling: Sampling = "natural",
        repeats: int = 1,
        per_image: PerImage | None = None,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self._source, self._rows, self._labels, self._side_px = source, rows, labels, side_px
        self._random_window = random_window
        self._parity = 0 if size_px is None else (side_px - size_px) % 2
        self._batch_size, self._seed, self._num_workers = min(batch_size, len(rows)), seed, num_workers
        self._sampling, self._repeats, self._per_image = sampling, repeats, per_image
        self._rank, self._num_ranks = rank, num_ranks
        check_ranks(num_ranks, max(1, self._batch_size))

    def __len__(self) -> int:
        return len(self._rows) * self._repeats // self._batch_size

    @property
    def batch_size(self) -> int:
        """Images in every batch, over all processes."""
        return self._batch_size

    def epoch(self, epoch: int, *, first_step: int = 0) -> Generator[Batch, None, None]:
        """The batches of one epoch, from `first_step` on: a resumed run sees exactly what it would have seen."""
        draw = np.random.Generator(np.random.PCG64(derive_seed(self._seed, 1, epoch)))
        order, shifts = self._drawn(draw)
        size = self._batch_size
        places = [np.arange(step * size, (step + 1) * size) for step in range(first_step, len(self))]
        parts = [part[self._rank :: self._num_ranks] for part in places]
        return _ahead(parts, lambda part: self._make(epoch, part, order[part], shifts[part]), self._num_workers)

    def _drawn(self, draw: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """An epoch: which image stands at each place, int64 [places], and where its window does, float64 in 0..1."""
        num_images = len(self._rows)
        if self._sampling == "balanced":
            order = _balanced_order(self._labels, len(self) * self._batch_size, draw)
            shift_of = np.arange(len(order))
        else:
            order = _repeated_order(num_images, self._repeats, self._batch_size, draw)
            shift_of = order + num_images * (np.arange(len(order)) // num_images)
        if not self._random_window:
            return order, np.full(len(order), 0.5)
        return order, draw.random(len(order))[shift_of]

    def _make(
        self, epoch: int, places: NDArray[np.int64], part: NDArray[np.int64], shifts: NDArray[np.float64]
    ) -> Batch:
        windows = (
            _window(self._source[self._rows[number]], self._side_px, shift, self._parity)
            for number, shift in zip(part, shifts.tolist() if self._random_window else repeat(None), strict=False)
        )
        if self._per_image is None:
            images = np.empty((len(part), self._side_px, self._side_px, 3), dtype=np.uint8)
            for image, window in zip(images, windows, strict=True):
                image[...] = window
        else:
            # Copies, for a window is a view of the store, which must not be written to.
            made = [
                self._per_image(window.copy(), derive_seed(self._seed, 5, epoch, place))
                for window, place in zip(windows, places.tolist(), strict=True)
            ]
            images = _stacked(made)
        return Batch(_channels_last(images), torch.from_numpy(self._labels[part]), self._rows[part])


def _repeated_order(num_images: int, repeats: int, batch_size: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """One shuffled pass over all images after the other; no image twice in a batch, also where two passes meet."""
    passes = [draw.permutation(num_images)]
    for number in range(1, repeats):
        following = draw.permutation(num_images)
        # The last batch of the pass before is filled up with the head of this one.
        num_before = number * num_images % batch_size
        head = following[: batch_size - num_before] if num_before else following[:0]
        clash = np.flatnonzero(np.isin(head, passes[-1][num_images - num_before :]))
        others = np.flatnonzero(~np.isin(following[len(head) :], passes[-1][num_images - num_before :])) + len(head)
        swapped = others[: len(clash)]
        following[clash], following[swapped] = following[swapped], following[clash]
        passes.append(following)
    return np.concatenate(passes)


def _balanced_order(labels: NDArray[np.int64], num_places: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Every class equally often, give or take one, and every image of a class equally often, give or take one.

    Within a class it goes through shuffled passes, not through independent draws, of which a third of a class's images
    would get none in an epoch as long as the class.
    """
    classes = draw.permutation(np.unique(labels))
    chosen = []
    for place, number in enumerate(classes.tolist()):
        members = np.flatnonzero(labels == number)
        num_wanted = num_places // len(classes) + (place < num_places % len(classes))
        num_passes = -(-num_wanted // len(members))
        passes = [draw.permutation(members) for _ in range(num_passes)]
        chosen.append(np.concatenate([*passes, members[:0]])[:num_wanted])
    return draw.permutation(np.concatenate(chosen))


def _stacked(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """What `per_image` has made, as one array.

    Raises:
        ConfigError: it is not square 8-bit RGB, or not all of one size.
    """
    side = images[0].shape[0] if images[0].ndim else 0
    for image in images:
        if image.dtype != np.uint8 or image.shape != (side, side, 3):
            shapes = sorted({f"{each.dtype} {list(each.shape)}" for each in images})
            raise ConfigError(
                "The pipeline of the augmentation gave "
                + ", ".join(shapes)
                + "; expected uint8 [side, side, 3] for all.",
                fix="end it with a crop or resize to one square, without normalisation or tensors; foveal makes them.",
            )
    return np.stack(images)


def _window(stored: NDArray[np.uint8], side_px: int, shift: float | None, parity: int) -> NDArray[np.uint8]:
    """A square of the stored form: all of its shorter side, and a random stretch of its longer one, or the middle."""
    height, width = stored.shape[:2]
    # Without a shift as `to_square` rounds: what it leaves over outside, less what the centre of the window leaves.
    top, left = (
        (edge - side_px + parity) // 2 if shift is None else round((edge - side_px) * shift) for edge in (height, width)
    )
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

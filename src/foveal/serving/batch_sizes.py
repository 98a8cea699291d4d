"""How many images at once go fastest: learned from the batches that are computed anyway.

More at once is not always faster. On a processor, a network of many thin layers (EfficientNet, MobileNet) has its
intermediate results in the cache for one image and not for eight, and takes twice as long for each.
"""

from collections import deque
from statistics import median

_NUM_TRIALS = 3
_NUM_KEPT = 9
_TRY_AGAIN_EVERY = 50
"""Batches after which another size is tried once more: the machine may have become another."""


class BatchSizes:
    """The sizes that batches of one kind may have, and what is known of them.

    Args:
        most: images that may be computed together.
    """

    def __init__(self, most: int) -> None:
        self._sizes = [most]
        while (smaller := 2 ** ((self._sizes[-1] - 1).bit_length() - 1)) >= 1 and self._sizes[-1] > 1:
            self._sizes.append(smaller)
        self._seconds: dict[int, deque[float]] = {size: deque(maxlen=_NUM_KEPT) for size in self._sizes}
        self._num_told = 0

    @property
    def limit(self) -> int:
        """Images that the next batch may have: a size of which too little is known, largest first, or the best."""
        for size in self._sizes:
            if len(self._seconds[size]) < _NUM_TRIALS:
                return size
        turn, left = divmod(self._num_told, _TRY_AGAIN_EVERY)
        if turn and not left:
            return self._sizes[turn % len(self._sizes)]
        return min(self._sizes, key=lambda size: median(self._seconds[size]))

    def tell(self, size: int, seconds: float) -> None:
        """Learn from a batch.

        Args:
            size: images in it.
            seconds: that it took.
        """
        self._num_told += 1
        if size in self._seconds:
            self._seconds[size].append(seconds / size)

"""The columns of a preview: the square of evaluation, draws of the augmentation, and each operation alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.data.augment import Augmentation, Operation
from foveal.data.augment_albumentations import AlbumentationsPipeline, albumentations_pipeline
from foveal.data.augment_config import POLICIES, AugmentConfig
from foveal.data.batches import Batch, Batches, TrainingBatches, derive_seed
from foveal.data.store import PixelSource
from foveal.pixels.policy import Geometry
from foveal.report.contact_sheet import Column
from foveal.training.config import ResolvedConfig

Columns = list[tuple[Column, NDArray[np.uint8]]]
"""For each column its words and its pictures, uint8 [samples, size, size, 3]."""


@dataclass(frozen=True)
class Shown:
    """What a preview shows.

    Attributes:
        config: as a training would have it.
        geometry: how an image becomes the square that the network sees.
    """

    config: ResolvedConfig
    geometry: Geometry

    def augmentation(self, config: AugmentConfig | None = None) -> Augmentation:
        """The module that trains, of the configured policy or of another."""
        return Augmentation(
            config or self.config.augment, side_px=self.geometry.store_px, size_px=self.geometry.size_px
        )

    @cached_property
    def pipeline(self) -> AlbumentationsPipeline | None:
        """What runs on each image before, where there is one."""
        file = self.config.augment.albumentations
        if file is None:
            return None
        return albumentations_pipeline(file, side_px=self.geometry.store_px, size_px=self.geometry.size_px)

    @cached_property
    def operations(self) -> tuple[Operation, ...]:
        """What is done to an image."""
        return self.pipeline.operations if self.pipeline else self.augmentation().operations


def draw_bands(shown: Shown, source: PixelSource, num_draws: int, *, all_policies: bool) -> list[tuple[str, Columns]]:
    """All columns in bands, each with its heading.

    Args:
        shown: what is drawn from.
        source: the samples.
        num_draws: columns for each policy.
        all_policies: whether to show the draws of every policy, and no operation alone.
    """
    config = shown.config.augment
    bands = [("Original", [(Column("square", "as evaluation sees it"), _originals(shown, source))])]
    none = {"operations": (), "albumentations": None}
    wishes = [config.model_copy(update={"policy": name, **none}) for name in POLICIES] if all_policies else [config]
    for wish in wishes:
        if not wish.is_off:
            drawn = [(Column(f"draw {number + 1}"), _drawn(shown, source, wish, number)) for number in range(num_draws)]
            bands.append((heading(wish), drawn))
    if not (config.is_off or all_policies):
        bands.append(("Each operation alone, at its strongest", _each_alone(shown, source)))
    return bands


def heading(config: AugmentConfig) -> str:
    """What stands above the draws."""
    if config.title == "operations":
        return "All operations in order"
    return "The albumentations pipeline" if config.title == "albumentations" else f"Policy {config.title}"


def _originals(shown: Shown, source: PixelSource) -> NDArray[np.uint8]:
    """What evaluation sees."""
    rows = np.arange(len(source))
    (batch,) = Batches(source, rows, rows, shown.geometry, batch_size=len(rows))
    return batch.images.permute(0, 2, 3, 1).numpy()


def _windows(
    shown: Shown,
    source: PixelSource,
    number: int,
    *,
    random_window: bool,
    pipeline: AlbumentationsPipeline | None = None,
) -> Batch:
    """What the augmentation of an epoch gets, if these samples are all that there is."""
    rows = np.arange(len(source))
    batches = TrainingBatches(
        source,
        rows,
        rows,
        side_px=shown.geometry.store_px,
        batch_size=len(rows),
        seed=shown.config.seed,
        random_window=random_window,
        per_image=pipeline,
    )
    (batch,) = batches.epoch(number)  # of all of them, so there is one
    return batch


def _drawn(shown: Shown, source: PixelSource, config: AugmentConfig, number: int) -> NDArray[np.uint8]:
    """What training sees: the windows and the draws of the first step of an epoch."""
    pipeline = shown.pipeline if config.albumentations is not None else None
    batch = _windows(shown, source, number, random_window=config.random_window, pipeline=pipeline)
    torch.manual_seed(derive_seed(shown.config.seed, 2, number, 0))
    return _as_bytes(shown.augmentation(config)(batch.images))[np.argsort(batch.rows)]


def _each_alone(shown: Shown, source: PixelSource) -> Columns:
    columns = []
    if shown.config.augment.random_window and any(len(set(source[i].shape[:2])) > 1 for i in range(len(source))):
        columns.append((Column("window", "anywhere along an oblong image"), _ends(shown, source)))
    batch = _windows(shown, source, 0, random_window=False)
    middle = batch.images[torch.from_numpy(np.argsort(batch.rows))]
    for place, operation in enumerate(shown.operations):
        pixels = _alone(shown, operation, middle, derive_seed(shown.config.seed, 4, place))
        if pixels is not None:
            columns.append((Column(operation.name.replace("_", " "), str(operation)), pixels))
    return columns


def _alone(shown: Shown, operation: Operation, middle: torch.Tensor, seed: int) -> NDArray[np.uint8] | None:
    """One operation; None where it alone makes pictures that do not fit into the sheet."""
    augmentation = shown.augmentation()
    if shown.pipeline is None:
        torch.manual_seed(seed)
        return _as_bytes(augmentation.alone(operation.name, middle))
    done = shown.pipeline.alone(operation.name, middle.permute(0, 2, 3, 1).numpy(), seed)
    if done is None or done.shape[1] != done.shape[2] or done.shape[1] < shown.geometry.size_px:
        return None
    return _as_bytes(augmentation(torch.from_numpy(done).permute(0, 3, 1, 2)))


def _ends(shown: Shown, source: PixelSource) -> NDArray[np.uint8]:
    """The window at the one end of the image and at the other, by turns."""
    side, size = shown.geometry.store_px, shown.geometry.size_px
    start = (side - size) // 2
    inner = slice(start, start + size)
    cut: list[Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = [
        lambda stored: stored[:side, :side],
        lambda stored: stored[-side:, -side:],
    ]
    return np.stack([cut[place % 2](source[place])[inner, inner] for place in range(len(source))])


def _as_bytes(pixels: torch.Tensor) -> NDArray[np.uint8]:
    """From float32 [n, 3, size, size] within 0..1 to uint8 [n, size, size, 3]."""
    result: NDArray[np.uint8] = (pixels * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return result

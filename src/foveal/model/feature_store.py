"""Features of a frozen network: each image goes through the backbone once, and never again.

They lie in the user's store beside the decoded images, under a form that names all that a feature depends on: the
backbone's weights to the last bit, the square that it sees, and the way it is computed. Every run, fold and trial with
the same backbone finds there what another has computed.
"""

import hashlib
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.data.batches import Batches
from foveal.data.cache import cache_folder
from foveal.data.manifest import Manifest
from foveal.data.reading import Recipe
from foveal.data.store import RECENT_SECONDS, PixelSource, Store, StoredFeatures, box_key, form_name
from foveal.data.store_maps import FEATURE_SUFFIX, Place
from foveal.files import sha256_bytes
from foveal.inference import to_unit
from foveal.model.build import Classifier
from foveal.progress import Progress, Silence

FEATURES_VERSION = 1
"""To be raised with any change to how features are computed: what another version made is made anew."""

_PIXELS_AT_ONCE = {True: 32 * 224 * 224, False: 64 * 224 * 224}
"""Pixels of the images of one batch, on a CPU or on something faster; well below what training takes."""
_MOST_AT_ONCE = 256

_HEAD_KEYS: dict[str, Any] = {
    "num_classes": True,
    "classical": True,
    "head": {"kind", "layers", "dropout", "batch_norm", "activation"},
}
"""Of an architecture: what comes after the features, so that it may differ."""

Key = tuple[str, str]
"""An image's content and box: SHA-256 and `box_key`."""


def cached_features(
    classifier: Classifier,
    source: PixelSource,
    manifest: Manifest,
    rows: NDArray[np.int64],
    recipe: Recipe,
    *,
    device: torch.device,
    autocast: torch.dtype | None,
    cap_bytes: int,
    num_workers: int = 1,
    progress: Progress | None = None,
) -> StoredFeatures:
    """The features of some rows, those computed that are not in the store yet.

    It can be killed at any moment and taken up again: what was committed is not computed twice.

    Args:
        classifier: with the weights that stay; moved to `device`, its modes left as they were.
        source: stored forms by row number, made by `recipe`.
        manifest: the rows, decoded.
        rows: int64 [n], whose features are wanted.
        recipe: how files became stored forms, and which square is cut from them.
        device: where to compute.
        autocast: bfloat16 or float16 to compute in mixed precision, as training would; None for float32.
        cap_bytes: largest size of the whole store; what was not used for longest makes room.
        num_workers: threads that prepare batches ahead.
        progress: where to show how far it is.

    Returns:
        Features by row number of the manifest; of other rows than `rows` there need be none.

    Raises:
        ArtifactError: the store cannot be read or written.
    """
    form = features_form(classifier, recipe, device=device, autocast=autocast)
    sha256s, boxes = manifest.column("sha256"), manifest.boxes()
    keys: dict[int, Key] = {row: (str(sha256s[row]), box_key(boxes[row])) for row in rows.tolist()}
    with Store(cache_folder()) as store:
        places = store.places(form, list({sha256 for sha256, _ in keys.values()}))
        store.touch({place.shard for place in places.values()})
        # Copies share a key, and the first of them stands for all.
        missing = {key: row for row, key in reversed(keys.items()) if key not in places}
        if missing:
            size = _num_at_once(recipe.geometry.size_px, device)
            batches = Batches(
                source,
                np.array(sorted(missing.values()), dtype=np.int64),
                np.full(len(missing), -1, dtype=np.int64),
                recipe.geometry,
                batch_size=size,
                num_workers=num_workers,
            )
            with closing(_computed(classifier, batches, size, device, autocast)) as computed:
                filling = _Filling(store, form, keys, places, cap_bytes, progress or Silence())
                filling.add(computed, batches.num_images)
        found = [places.get(keys[row]) if row in keys else None for row in range(len(manifest))]
        return store.read_features(form, found)


def features_form(classifier: Classifier, recipe: Recipe, *, device: torch.device, autocast: torch.dtype | None) -> str:
    """The name under which features lie that were made with the same choices and the same weights."""
    import timm

    architecture = classifier.architecture
    choices = (
        FEATURES_VERSION,
        form_name(recipe.geometry, recipe.policy, recipe.margin),
        recipe.geometry.size_px,
        architecture.model_dump(mode="json", exclude=_HEAD_KEYS),
        torch.__version__,
        timm.__version__,
        device.type,
        str(autocast),
        backbone_digest(classifier),
    )
    # The hash says all; the name is for people who look into the folder, and has to stay a short one.
    name = architecture.name if isinstance(architecture.name, str) else "joint"
    return f"features-{name}-{sha256_bytes(repr(choices).encode())[:16]}"


def backbone_digest(classifier: Classifier) -> str:
    """The SHA-256 over all tensors that features depend on: the network's weights and statistics, not its head's."""
    head = {id(tensor) for module in classifier.head_modules() for tensor in (*module.parameters(), *module.buffers())}
    digest = hashlib.sha256()
    tensors = {**dict(classifier.net.named_parameters()), **dict(classifier.net.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        if id(tensor) not in head:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            # Contiguous, since channels-last weights are the same weights; as bytes, since numpy has no bfloat16.
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _num_at_once(size_px: int, device: torch.device) -> int:
    """Images in a batch: the same in every run, so that the last bits of a feature are too."""
    return max(1, min(_MOST_AT_ONCE, _PIXELS_AT_ONCE[device.type == "cpu"] // size_px**2))


def _computed(
    classifier: Classifier, batches: Batches, size: int, device: torch.device, autocast: torch.dtype | None
) -> Generator[tuple[NDArray[np.int64], NDArray[np.float32]], None, None]:
    """Run images through the backbone: rows, and their features as float32 [n, features]."""
    classifier.to(device).to(memory_format=torch.channels_last)
    mixed: AbstractContextManager[object] = torch.autocast(device.type, autocast) if autocast else nullcontext()
    with _evaluating(classifier):
        for batch in batches:
            with torch.inference_mode(), mixed:
                # Always the same shape, so that no image's features depend on how many others were missing.
                pixels = to_unit(_filled_up(batch.images, size), device)
                features = classifier.pooled(pixels)[: len(batch)]
            yield batch.rows, features.float().cpu().numpy()


def _filled_up(images: torch.Tensor, size: int) -> torch.Tensor:
    """A batch of `size` images: the last one over and over at the end."""
    if len(images) == size:
        return images
    numbers = torch.arange(size).clamp_(max=len(images) - 1)
    return images[numbers].contiguous(memory_format=torch.channels_last)


@contextmanager
def _evaluating(classifier: Classifier) -> Iterator[None]:
    """All modules in the mode of evaluation, and then each in its own again."""
    modes = [(module, module.training) for module in classifier.modules()]
    classifier.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


@dataclass(frozen=True)
class _Filling:
    """Puts features into the store.

    Attributes:
        store: where to.
        form: under which name.
        keys: each row's content and box.
        places: where features lie already; filled.
        cap_bytes: largest size of the store.
        progress: where to show how far it is.
    """

    store: Store
    form: str
    keys: Mapping[int, Key]
    places: dict[Key, Place]
    cap_bytes: int
    progress: Progress

    def add(self, computed: Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]], num_images: int) -> None:
        """Take what is computed, as it comes."""
        first = next(computed)
        self.store.make_room(num_images * first[1][0].nbytes, self.cap_bytes, self.progress)
        touched = time.monotonic()
        with (
            self.store.writer(self.form, FEATURE_SUFFIX) as writer,
            self.progress.bar("Computing features", num_images, "images") as bar,
        ):
            for rows, features in chain([first], computed):
                for row, values in zip(rows.tolist(), features, strict=True):
                    self.places[self.keys[row]] = writer.add_features(*self.keys[row], values)
                bar.advance(len(rows))
                if time.monotonic() - touched > RECENT_SECONDS / 4:
                    self.store.touch({place.shard for place in self.places.values()})
                    touched = time.monotonic()

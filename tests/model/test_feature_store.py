"""The store of features: what was computed once is not computed again, and nothing else is taken for it."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from foveal.data import store as store_module
from foveal.data.batches import Batches
from foveal.data.manifest import Manifest
from foveal.data.reading import Recipe
from foveal.data.store import Store, StoredFeatures
from foveal.inference import to_unit
from foveal.model import feature_store
from foveal.model.build import Architecture, Classifier, build
from foveal.model.config import HeadConfig
from foveal.model.feature_store import cached_features, features_form
from foveal.pixels.policy import Geometry, PixelPolicy
from foveal.progress import Bar, Silence

CPU = torch.device("cpu")
RECIPE = Recipe(Geometry(32, 35))
NUM_IMAGES = 11


class Images:
    """Stored forms of noise, some of them oblong; counts what is asked for."""

    def __init__(self, num_images: int = NUM_IMAGES) -> None:
        draw = np.random.default_rng(0)
        self._images = [draw.integers(0, 256, (35, 35 + row % 3, 3), dtype=np.uint8) for row in range(num_images)]
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        self.asked.append(row)
        return self._images[row]


def manifest(sha256s: Sequence[str] = (), boxes: Sequence[tuple[int, int, int, int]] = ()) -> Manifest:
    """Rows of contents `0`, `1`, ..., or of those that are given, whole or cut out."""
    sha256s = sha256s or [str(row) for row in range(NUM_IMAGES)]
    columns: dict[str, Any] = dict(zip(("xmin", "ymin", "xmax", "ymax"), zip(*boxes, strict=True), strict=False))
    rows = range(len(sha256s))
    paths, labels = [f"{row}.png" for row in rows], ["ab"[row % 2] for row in rows]
    return Manifest.build(Path("/images"), path=paths, label=labels, sha256=sha256s, **columns)


def network(name: str = "test_resnet", *, seed: int = 0, **changes: Any) -> Classifier:
    torch.manual_seed(seed)
    classifier = build(Architecture(name=name, num_classes=3, image_size=32, **changes))
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that training mode would not compute
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return classifier


def features_of(
    classifier: Classifier, images: Images, rows: Sequence[int] | None = None, **options: Any
) -> StoredFeatures:
    told: dict[str, Any] = {"device": CPU, "autocast": None, "cap_bytes": 1 << 40, **options}
    table = told.pop("manifest", None) or manifest()
    chosen = np.arange(len(table)) if rows is None else np.array(rows, dtype=np.int64)
    return cached_features(classifier, images, table, chosen, told.pop("recipe", RECIPE), **told)


@contextmanager
def counted(classifier: Classifier) -> Iterator[list[int]]:
    """How many images each forward pass takes."""
    sizes: list[int] = []
    first = next(module for module in classifier.modules() if isinstance(module, nn.Conv2d))
    hook = first.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    yield sizes
    hook.remove()


def shards() -> list[Path]:
    return sorted(Path(os.environ["FOVEAL_CACHE_DIR"]).glob("store-v*/features-*/*.f32"))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_features_are_those_of_the_square_that_evaluation_sees(name: str, autocast: torch.dtype | None) -> None:
    classifier, images, rows = network(name).train(), Images(), np.arange(NUM_IMAGES)
    state = torch.get_rng_state()
    found = features_of(classifier, images, autocast=autocast).take(rows)
    assert torch.equal(torch.get_rng_state(), state), "a draw of the training would be another"
    assert all(module.training for module in classifier.modules())
    classifier.eval()
    (batch,) = Batches(images, rows, rows, RECIPE.geometry, batch_size=NUM_IMAGES)
    with torch.inference_mode(), torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        logits = classifier(to_unit(batch.images, CPU))
        again = classifier.classify(torch.from_numpy(found))
    assert found.shape == (NUM_IMAGES, classifier.net.num_features)
    # Of another shape of the batch only the last bits may differ.
    limit = 1e-4 if autocast is None else 3e-2
    torch.testing.assert_close(again, logits, rtol=limit, atol=limit)
    assert found.std() > 0.01


def test_a_second_use_computes_and_reads_nothing() -> None:
    first = features_of(network(), Images()).take(np.arange(NUM_IMAGES))
    # Another run: other head, other fold, weights in another layout of memory.
    classifier, images = network().to(memory_format=torch.channels_last), Images()
    nn.init.zeros_(classifier.net.get_classifier().weight)
    rows = [7, 2, 9]
    with counted(classifier) as sizes:
        again = features_of(classifier, images, rows)
    assert (sizes, images.asked) == ([], [])
    np.testing.assert_array_equal(again.take(np.array(rows)), first[rows])
    with pytest.raises(IndexError, match="row 3 has no features"):
        again.take(np.array([7, 3]))
    assert again.take(np.empty(0, dtype=np.int64)).shape == (0, first.shape[1])


def test_only_what_is_missing_is_computed_and_its_last_bit_does_not_depend_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_store, "_MOST_AT_ONCE", 4)
    whole = features_of(network(), Images()).take(np.arange(NUM_IMAGES))
    monkeypatch.setenv("FOVEAL_CACHE_DIR", str(tmp_path / "another cache"))
    classifier, images = network(), Images()
    features_of(classifier, images, [3])
    with counted(classifier) as sizes:
        features_of(classifier, images, [8, 3, 1])
        found = features_of(classifier, images)
    assert sizes == [4, 4, 4]
    assert sorted(images.asked) == list(range(NUM_IMAGES))
    np.testing.assert_array_equal(found.take(np.arange(NUM_IMAGES)), whole)


def test_copies_share_their_features_and_boxes_of_one_image_do_not() -> None:
    boxes = [(0, 0, 9, 9), (0, 0, 9, 9), (1, 0, 9, 9), (0, 0, 9, 9)]
    table, images = manifest(["x", "x", "x", "y"], boxes), Images(4)
    found = features_of(network(), images, manifest=table).take(np.arange(4))
    assert sorted(images.asked) == [0, 2, 3]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])
    whole = Images(4)
    features_of(network(), whole, manifest=manifest(["x", "x", "x", "y"]))
    assert sorted(whole.asked) == [0, 3], "an image is not its box"


def _changed(change: Callable[[Classifier], None]) -> Classifier:
    classifier = network()
    with torch.no_grad():
        change(classifier)
    return classifier


def test_whatever_changes_a_feature_changes_its_form() -> None:
    def form(classifier: Classifier, recipe: Recipe = RECIPE, autocast: torch.dtype | None = None) -> str:
        return features_form(classifier, recipe, device=CPU, autocast=autocast)

    forms = [
        form(network()),
        form(network(seed=1)),
        form(network(std=(0.2, 0.2, 0.2))),
        form(_changed(lambda found: found.net.layer1[0].bn1.running_var[3].add_(1e-6))),
        form(_changed(lambda found: found.net.layer1[0].conv1.weight[0, 0, 0, 0].mul_(1.0 + 2e-7))),
        form(network(), replace(RECIPE, geometry=Geometry(31, 35))),
        form(network(), replace(RECIPE, geometry=Geometry(32, 36))),
        form(network(), replace(RECIPE, geometry=Geometry(32, 32, "pad"))),
        form(network(), replace(RECIPE, policy=PixelPolicy(version=2))),
        form(network(), replace(RECIPE, margin=0.1)),
        form(network(), autocast=torch.bfloat16),
    ]
    assert len(set(forms)) == len(forms)
    assert form(_changed(lambda found: found.net.get_classifier().weight.zero_())) == forms[0]
    assert form(network().to(memory_format=torch.channels_last).train()) == forms[0]


def test_a_head_of_another_kind_or_of_other_classes_finds_the_same_features() -> None:
    def form(num_classes: int = 3, **head: Any) -> str:
        built = build(Architecture(name="test_resnet", num_classes=num_classes, image_size=32, head=HeadConfig(**head)))
        backbone = {name: value for name, value in network().net.state_dict().items() if not name.startswith("fc.")}
        built.backbone.load_state_dict(backbone, strict=False)
        return features_form(built, RECIPE, device=CPU, autocast=None)

    plain, dense = form(), form(kind="dense", layers=(8,))
    assert plain == form(7) == form(dropout=0.5)
    assert dense == form(7, kind="dense", layers=(9, 5), dropout=(0.1, 0.2), activation="gelu", batch_norm=True)
    assert len({plain, dense, form(pool="max"), form(pool="avg"), form(pool="flatten")}) == 5


@pytest.mark.parametrize("harm", ["cut within a row", "emptied", "deleted"])
def test_what_a_damaged_shard_held_is_computed_again(harm: str) -> None:
    whole = features_of(network(), Images()).take(np.arange(NUM_IMAGES))
    (file,) = shards()
    row_bytes = whole[0].nbytes
    content = file.read_bytes()
    assert len(content) == NUM_IMAGES * row_bytes
    if harm == "deleted":
        file.unlink()
    else:
        file.write_bytes(content[: 5 * row_bytes - 3 if harm == "cut within a row" else 0])
    images = Images()
    found = features_of(network(), images)
    assert len(images.asked) == (NUM_IMAGES - 4 if harm == "cut within a row" else NUM_IMAGES)
    np.testing.assert_array_equal(found.take(np.arange(NUM_IMAGES)), whole)


def test_features_fill_shard_after_shard_and_count_for_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Lines(Silence):
        def say(self, text: str) -> None:
            said.append(text)

    width = network().net.num_features
    monkeypatch.setattr(store_module, "SHARD_BYTES", 4 * 4 * width)
    found = features_of(network(), Images())
    assert sorted(file.stat().st_size for file in shards()) == [12 * width, 16 * width, 16 * width]
    whole = found.take(np.arange(NUM_IMAGES))
    np.testing.assert_array_equal(found.take(np.array([9, 0, 9])), whole[[9, 0, 9]])
    with Store(Path(os.environ["FOVEAL_CACHE_DIR"])) as store:
        assert store.num_bytes() == NUM_IMAGES * 4 * width
    now = time.time()
    monkeypatch.setattr(store_module.time, "time", lambda: now + 2 * 3600.0)
    old = shards()
    others = features_of(network(seed=1), Images(), cap_bytes=NUM_IMAGES * 4 * width, progress=Lines())
    assert not any(file.exists() for file in old)
    assert "deleted that lay unused" in said[0]
    assert len(others) == NUM_IMAGES
    np.testing.assert_array_equal(found.take(np.arange(NUM_IMAGES)), whole)  # mapped before they were deleted


_SCRIPT = """
    import os, signal, sys, time
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from foveal.data import store
    from foveal.model import feature_store
    from foveal.progress import Silence
    from test_feature_store import Images, features_of, network

    feature_store._MOST_AT_ONCE = 2
    store.COMMIT_ROWS = 3

    class Killing(Silence):
        '''Ends the process as kill -9 does, once so many images are done.'''

        num_done = 0

        def bar(self, *_):
            # Both have looked into the store by now, so that neither finds there what the other will compute.
            Path(sys.argv[2]).touch()
            while not Path(sys.argv[3]).exists():
                time.sleep(0.01)
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def advance(self, amount=1, **_):
            self.num_done += amount
            if self.num_done >= int(sys.argv[1]):
                os.kill(os.getpid(), signal.SIGKILL)

    features_of(network(), Images(), progress=Killing())
"""


def test_two_at_once_that_are_killed_leave_a_store_that_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = textwrap.dedent(_SCRIPT.format(tests=str(Path(__file__).parent)))
    ready = (str(tmp_path / "first"), str(tmp_path / "second"))
    stopping = [
        subprocess.Popen([sys.executable, "-c", script, *words], stderr=subprocess.PIPE)
        for words in (("6", *ready), ("8", *reversed(ready)))
    ]
    said = [process.communicate(timeout=120)[1].decode() for process in stopping]
    assert [process.returncode for process in stopping] == [-signal.SIGKILL] * 2, said
    images = Images()
    monkeypatch.setattr(feature_store, "_MOST_AT_ONCE", 2)
    found = features_of(network(), images).take(np.arange(NUM_IMAGES))
    assert 0 < len(images.asked) < NUM_IMAGES
    assert set(images.asked) >= {8, 9, 10}
    monkeypatch.setenv("FOVEAL_CACHE_DIR", os.environ["FOVEAL_CACHE_DIR"] + "-of-one")
    np.testing.assert_array_equal(found, features_of(network(), Images()).take(np.arange(NUM_IMAGES)))


def test_the_bar_counts_the_images_that_are_computed() -> None:
    shown: list[Any] = []

    class Watching(Silence):
        @contextmanager
        def bar(self, description: str, total: int, unit: str) -> Iterator[Bar]:
            shown.append((description, total, unit))

            class Counting:
                def advance(self, amount: int = 1, **fields: str) -> None:
                    shown.append(amount)

            yield Counting()

    features_of(network(), Images(), [1, 2], progress=Watching())
    features_of(network(), Images(), [1, 2, 5], progress=Watching())
    features_of(network(), Images(), [1, 5], progress=Watching())
    assert shown == [("Computing features", 2, "images"), 2, ("Computing features", 1, "images"), 1]

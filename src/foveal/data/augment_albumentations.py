"""Pipelines that albumentations saved, run on each image in the threads that load it.

albumentations is archived; its last release under the MIT licence is 2.0.8, and the extra holds to it.
"""

import json
import os
import random
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.config import read_yaml
from foveal.data.augment_ways import Operation
from foveal.errors import ConfigError, DataError
from foveal.extras import require

_NUM_PROBES = 12
# What the network is fed with is foveal's to decide: it is written in the bundle, and prediction does the same.
_NUMBERS = {"Normalize", "ToTensorV2", "ToTensor3D", "ToFloat", "FromFloat"}


class AlbumentationsPipeline:
    """A saved pipeline as a function of an image and a seed; any number of threads may call it at once.

    Attributes:
        out_px: side of the squares that come out.

    Args:
        file: what `albumentations.save` wrote, YAML or JSON.
        side_px: side of the squares that go in.
        size_px: side of the square that the model sees.

    Raises:
        MissingExtraError: albumentations is not installed.
        ConfigError: the file cannot be read, was saved by a release that means other things by it, or holds what a
            training on labelled images cannot use; all at once.
    """

    def __init__(self, file: str | os.PathLike[str], *, side_px: int, size_px: int) -> None:
        self._library = _library()
        self._file, self._side_px = Path(file), side_px
        self._tree = _modernised(_read(self._file))
        self._local = threading.local()
        problems = _refusals(self._tree)
        if not problems:
            problems, pipeline = _built(self._library, self._tree)
            problems = problems or self._problems_of_probes(pipeline, size_px)
        if problems:
            raise ConfigError(f"The albumentations pipeline {file} cannot be used.", problems=problems)

    def __call__(self, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Run the pipeline.

        Args:
            image: uint8 [side, side, 3].
            seed: decides every draw of it.

        Returns:
            uint8 [out_px, out_px, 3].

        Raises:
            DataError: this time something else came out.
        """
        pipeline = getattr(self._local, "pipeline", None)
        if pipeline is None:
            pipeline = self._local.pipeline = self._library.from_dict(self._tree)
        result = _run(pipeline, image, seed)
        if result.shape != (self.out_px, self.out_px, 3) or result.dtype != np.uint8:
            raise DataError(
                f"The albumentations pipeline {self._file} made {result.dtype} {result.shape} of an image, and uint8 "
                f"({self.out_px}, {self.out_px}, 3) was expected.",
                fix="remove what changes the size of an image only sometimes.",
            )
        return np.ascontiguousarray(result)

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The pipeline's own steps, in words; no two have the same name."""
        names: list[str] = []
        for step in self._steps():
            name = _name(step)
            names.append(f"{name} {names.count(name) + 1}" if name in names else name)
        shares = [float(step.get("p", 1.0)) for step in self._steps()]
        return tuple(Operation(name, "", share) for name, share in zip(names, shares, strict=True))

    def alone(self, name: str, images: NDArray[np.uint8], seed: int) -> NDArray[np.uint8] | None:
        """One step of `operations` and nothing else, done to every image.

        Args:
            name: of one of `operations`.
            images: uint8 [n, side, side, 3].
            seed: of the first image; the others follow.

        Returns:
            uint8 [n, side', side', 3]; None where the step alone makes images of several sizes.
        """
        step = next(step for step, each in zip(self._steps(), self.operations, strict=True) if each.name == name)
        top = {**self._tree["transform"], "transforms": [{**step, "p": 1.0}], "p": 1.0}
        pipeline = self._library.from_dict({**self._tree, "transform": top})
        results = [_run(pipeline, image, seed + place) for place, image in enumerate(images)]
        return np.stack(results) if len({result.shape for result in results}) == 1 else None

    def _steps(self) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = self._tree["transform"].get("transforms", [])
        return [step for step in steps if float(step.get("p", 1.0)) > 0.0]

    def _problems_of_probes(self, pipeline: Any, size_px: int) -> list[str]:
        """What comes out of a few images must be squares of one size, in bytes."""
        draw, shapes = np.random.default_rng(0), set()
        for seed in range(_NUM_PROBES):
            image = draw.integers(0, 256, (self._side_px, self._side_px, 3), dtype=np.uint8)
            try:
                result = _run(pipeline, image, seed)
            except Exception as error:  # noqa: BLE001  the pipeline is the user's, and so may be any failure of it
                return [
                    f"it fails on an image of {self._side_px} x {self._side_px} px: {type(error).__name__}: {error}"
                ]
            if not isinstance(result, np.ndarray) or result.dtype != np.uint8:
                kind = result.dtype if isinstance(result, np.ndarray) else type(result).__name__
                return [f"it returns {kind}, and uint8 is needed: remove what turns bytes into other numbers"]
            shapes.add(result.shape)
        words = " and ".join(sorted(" x ".join(map(str, shape)) for shape in shapes))
        if len(shapes) > 1:
            return [f"its output is {words}: remove what changes the size only sometimes, or add a Resize at the end"]
        (shape,) = shapes
        if shape not in {(side, side, 3) for side in (self._side_px, size_px)}:
            return [
                f"its output is {words}, and {self._side_px} x {self._side_px} x 3, the size that goes in, or "
                f"{size_px} x {size_px} x 3 is needed: remove its crop or resize, or set data.image_size={shape[0]}"
            ]
        self.out_px: int = shape[0]
        return []


def albumentations_pipeline(file: str | os.PathLike[str], *, side_px: int, size_px: int) -> AlbumentationsPipeline:
    """Read a pipeline that albumentations saved: what `TrainingBatches` takes as `per_image`.

    Raises:
        MissingExtraError: albumentations is not installed.
        ConfigError: the pipeline cannot be used.
    """
    return AlbumentationsPipeline(file, side_px=side_px, size_px=size_px)


def _library() -> Any:
    # Without this its import asks a server for a newer release.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    return require("albumentations", extra="albumentations", purpose="run a pipeline that it saved")


def _read(file: Path) -> dict[str, Any]:
    """The file as plain values.

    Raises:
        ConfigError: it cannot be read, or is no saved pipeline.
    """
    if file.suffix.lower() == ".json":
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"The albumentations pipeline {file} cannot be read: {error}.") from error
    else:
        tree = read_yaml(file)
    top = tree.get("transform") if isinstance(tree, dict) else None
    if not isinstance(top, dict) or not isinstance(top.get("transforms"), list):
        raise ConfigError(
            f"{file} is no pipeline that albumentations saved: no `transform` with `transforms` is in it.",
            fix="write it by albumentations.save(albumentations.Compose([...]), path, data_format='yaml').",
        )
    return dict(tree)


def _every(step: Any) -> Iterator[dict[str, Any]]:
    """A step and all those within it."""
    if isinstance(step, dict):
        yield step
        for inner in step.get("transforms") or []:
            yield from _every(inner)


def _name(step: Mapping[str, Any]) -> str:
    return str(step.get("__class_fullname__", "?")).rpartition(".")[2]


def _modernised(tree: dict[str, Any]) -> dict[str, Any]:
    """Releases before 2 wrote `always_apply`, which means a probability of 1."""
    for step in _every(tree["transform"]):
        if step.pop("always_apply", False) is True:
            step["p"] = 1.0
    return tree


def _refusals(tree: dict[str, Any]) -> list[str]:
    """What can be seen in the file without running it."""
    problems = [
        f"{key}: boxes and points are no part of labelled images; remove it from the Compose"
        for key in ("bbox_params", "keypoint_params")
        if tree["transform"].get(key)
    ]
    names = [_name(step) for step in _every(tree["transform"])]
    problems += [
        f"{name}: remove it; foveal makes the network's numbers itself, the same in training and in prediction"
        for name in dict.fromkeys(names)
        if name in _NUMBERS
    ]
    return problems


def _built(library: Any, tree: dict[str, Any]) -> tuple[list[str], Any]:
    """The pipeline, or what of the file this release does not know: it would go on without, with a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            pipeline = library.from_dict(tree)
        except KeyError as error:
            return [f"{error.args[0]}: albumentations {library.__version__} has no such transform"], None
        except Exception as error:  # noqa: BLE001  as many kinds as the library has transforms
            return [f"albumentations {library.__version__} cannot make it: {type(error).__name__}: {error}"], None
    saved = tree.get("__version__", "an unknown release")
    return [
        f"{' '.join(str(each.message).split())} (saved by {saved}, installed is {library.__version__})"
        for each in caught
        if issubclass(each.category, UserWarning)
    ], pipeline


def _run(pipeline: Any, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    # One stream for all transforms: set_random_seed would give each the same, and what is done with a probability of
    # a half would be done always together.
    pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
    result: NDArray[np.uint8] = pipeline(image=image)["image"]
    return result

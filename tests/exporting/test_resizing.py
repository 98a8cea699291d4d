"""The resize inside the exported graph is Pillow's, to the bit."""

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from PIL import Image

from foveal.exporting.graph_writer import GraphWriter
from foveal.exporting.preprocessing_graph import OPSET, write_squares
from foveal.pixels.geometry import Geometry, to_square, to_store

INTERPOLATIONS = ("bilinear", "bicubic", "lanczos")
GEOMETRIES = [
    *(Geometry(48, 55, "crop", interpolation) for interpolation in INTERPOLATIONS),  # type: ignore[arg-type]
    *(Geometry(33, 33, "pad", interpolation, (7, 200, 91)) for interpolation in INTERPOLATIONS),  # type: ignore[arg-type]
    *(Geometry(70, 70, "squash", interpolation) for interpolation in INTERPOLATIONS),  # type: ignore[arg-type]
    Geometry(32, 32, "crop"),
    Geometry(1, 2, "crop"),
    Geometry(1, 1, "pad", "lanczos"),
]
SIDES = st.one_of(st.integers(1, 12), st.integers(1, 130), st.sampled_from((33, 48, 55, 70, 96, 110, 140, 1000)))


def squares_model(geometry: Geometry) -> onnx.ModelProto:
    writer = GraphWriter("test/")
    writer.add("Identity", write_squares(writer, "image", geometry), name="square")
    kind, make_value = onnx.TensorProto.UINT8, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        writer.nodes,
        "squares",
        [make_value("image", kind, ["batch", "height", "width", 3])],
        [make_value("square", kind, ["batch", geometry.size_px, geometry.size_px, 3])],
        writer.initializers,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@cache
def runner(geometry: Geometry) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(squares_model(geometry).SerializeToString(), options)
    return lambda images: np.asarray(session.run(None, {"image": images})[0])


def expected(images: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    return np.stack([to_square(to_store(image, geometry), geometry) for image in images])


def pixels(seed: int, *shape: int, is_extreme: bool = False) -> NDArray[np.uint8]:
    """Noise; extreme noise, of black and white alone, makes filters with negative weights overshoot."""
    drawn = np.random.default_rng(seed).integers(0, 2 if is_extreme else 256, shape, dtype=np.uint8)
    return drawn * np.uint8(255) if is_extreme else drawn


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@settings(max_examples=40, deadline=None)
@given(height=SIDES, width=SIDES, num_images=st.integers(1, 3), seed=st.integers(0, 99), is_extreme=st.booleans())
@example(height=1, width=4000, num_images=1, seed=0, is_extreme=True)
@example(height=3001, width=2, num_images=2, seed=1, is_extreme=False)
def test_squares_are_those_of_pillow(
    geometry: Geometry, height: int, width: int, num_images: int, seed: int, is_extreme: bool
) -> None:
    images = pixels(seed, num_images, height, width, 3, is_extreme=is_extreme)
    np.testing.assert_array_equal(runner(geometry)(images), expected(images, geometry))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_photograph_of_usual_size(interpolation: Any) -> None:
    geometry = Geometry(224, 256, "crop", interpolation)
    coarse = Image.fromarray(pixels(3, 30, 40, 3)).resize((1600, 1200), Image.Resampling.BICUBIC)
    photograph = (np.asarray(coarse, np.int16) + pixels(4, 1200, 1600, 3) // 8).clip(0, 255).astype(np.uint8)
    found = runner(geometry)(photograph[None])
    np.testing.assert_array_equal(found, expected(photograph[None], geometry))
    assert found.std() > 10


def test_large_squares_take_several_blocks() -> None:
    # 600 pixels are more than sixteen blocks of 32.
    geometry = Geometry(600, 601, "crop", "lanczos")
    images = pixels(5, 1, 450, 700, 3, is_extreme=True)
    np.testing.assert_array_equal(runner(geometry)(images), expected(images, geometry))


@pytest.mark.parametrize("shape", [(1, 0, 5, 3), (1, 5, 0, 3), (2, 0, 0, 3)])
def test_an_image_without_pixels_is_an_error_and_no_black_square(shape: tuple[int, ...]) -> None:
    for geometry in (GEOMETRIES[0], GEOMETRIES[3], GEOMETRIES[6]):
        with pytest.raises(Exception, match="Gather"):
            runner(geometry)(np.zeros(shape, np.uint8))


def test_it_is_plain_onnx_and_nothing_peculiar_to_one_runtime() -> None:
    """ONNX's own reference evaluator, in numpy, gives the same bytes."""
    for geometry, (height, width) in product((GEOMETRIES[2], GEOMETRIES[4], GEOMETRIES[6]), ((61, 90), (20, 7))):
        images = pixels(6, 2, height, width, 3, is_extreme=True)
        model = squares_model(geometry)
        (found,) = ReferenceEvaluator(model).run(None, {"image": images})
        np.testing.assert_array_equal(found, expected(images, geometry))
        assert {node.domain for node in model.graph.node} == {""}

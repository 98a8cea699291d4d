"""Eight bits: smaller, nearly the same answers, and what must stay in float32 stays so."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from foveal.errors import ExportError
from foveal.exporting.cores import Core, make_core
from foveal.exporting.int8 import MIN_CALIBRATION_IMAGES, nodes_to_quantise, quantise
from foveal.model.build import Architecture, build
from foveal.model.bundle import read_bundle, write_bundle


def core_of(name: str, side_px: int, tiny_bundle: Path, folder: Path) -> Core:
    """A network with random weights, its statistics those of the images below; its classes are told apart by colour."""
    torch.manual_seed(0)
    architecture = Architecture(name=name, num_classes=3, image_size=side_px)
    classifier = build(architecture)
    images = torch.from_numpy(squares_of(32, side_px)).permute(0, 3, 1, 2).float() / 255.0
    with torch.no_grad():
        for _ in range(20):
            classifier.train()(images)
    template = read_bundle(tiny_bundle).spec.model_dump(exclude={"format_version", "foveal_version", "files"})
    spec = {**template, "architecture": architecture.spec()}
    spec["preprocessing"] |= {"size_px": side_px, "store_px": side_px}
    return make_core(write_bundle(folder, spec, classifier.net.state_dict()))


def squares_of(num: int, side_px: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth blotches in all colours, uint8 [num, side, side, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num, 4, 4, 3)).repeat(side_px // 4, axis=1).repeat(side_px // 4, axis=2)
    return np.asarray((coarse + rng.normal(0.0, 10.0, coarse.shape)).clip(0, 255), dtype=np.uint8)


def run(core: Core, squares: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(core.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"square": squares}))


def relative(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The difference as a share of what tells the images apart."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected - expected.mean(axis=0)))


def test_a_convolutional_network_keeps_its_answers_and_maps(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    core = core_of("small_cnn", 32, tiny_bundle, tmp_path / "bundle")
    before = core.model.SerializeToString()
    monkeypatch.chdir(tmp_path)
    listed = sorted(tmp_path.iterdir())
    capfd.readouterr()
    found = quantise(core, squares_of(40, 32))
    assert sorted(tmp_path.iterdir()) == listed
    assert capfd.readouterr() == ("", "")
    assert core.model.SerializeToString() == before, "the original stays as it is"
    assert len(found.model.SerializeToString()) < 0.35 * len(before)
    squares = squares_of(24, 32, seed=1)
    (logits, maps), (expected, expected_maps) = run(found, squares), run(core, squares)
    assert 1e-4 < relative(logits, expected) < 0.1
    assert found.has_heatmap
    assert relative(maps.mean((2, 3)), expected_maps.mean((2, 3))) < 0.1
    assert [each.name for each in found.model.graph.output] == ["logits", "activation"]
    for num in (1, 7):
        assert run(found, squares[:num])[0].shape == (num, 3)


def test_weights_have_seven_bits_and_a_scale_for_each_channel(tiny_bundle: Path, tmp_path: Path) -> None:
    """With eight, processors without VNNI would overflow and say something else than those that have it."""
    model = quantise(core_of("small_cnn", 32, tiny_bundle, tmp_path / "bundle"), squares_of(16, 32)).model
    weights = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    kernels = [values for values in weights.values() if values.dtype == np.int8 and values.ndim == 4]
    assert len(kernels) == 4
    for kernel in kernels:
        assert np.abs(kernel.astype(int)).reshape(len(kernel), -1).max(axis=1).min() >= 63
        assert np.abs(kernel.astype(int)).max() <= 64


def test_what_is_worth_it_is_quantised_and_nothing_else(tiny_bundle: Path, tmp_path: Path) -> None:
    core = core_of("test_efficientnet", 64, tiny_bundle, tmp_path / "bundle")
    model = onnx.shape_inference.infer_shapes(core.model)
    chosen = set(nodes_to_quantise(model))
    kinds = Counter(node.op_type for node in model.graph.node if node.name in chosen)
    assert set(kinds) <= {"Conv", "Add"}
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    left = [node for node in layers if node.name not in chosen]
    shapes = {v.name: [dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    squeezed = [node for node in left if shapes[node.input[0]][2:] == [1, 1]]
    assert squeezed, "squeeze-and-excitation"
    assert [node.output[0] for node in left if node not in squeezed] == ["activation"]
    (last,) = [node for node in model.graph.node if node.op_type == "Gemm"]
    assert last.name not in chosen


def test_a_trunk_that_ends_in_one_place_is_quantised_to_its_end(tiny_bundle: Path, tmp_path: Path) -> None:
    core = core_of("test_resnet", 32, tiny_bundle, tmp_path / "bundle")
    chosen = set(nodes_to_quantise(core.model))
    assert all(node.name in chosen for node in core.model.graph.node if node.op_type == "Conv")


def test_one_odd_image_does_not_stretch_the_steps_of_all(tiny_bundle: Path, tmp_path: Path) -> None:
    core = core_of("test_efficientnet", 32, tiny_bundle, tmp_path / "bundle")
    usual = squares_of(80, 32)
    odd = np.random.default_rng(0).choice(np.array([0, 255], dtype=np.uint8), (1, 32, 32, 3))
    squares = squares_of(24, 32, seed=1)
    expected = run(core, squares)[0]
    without = relative(run(quantise(core, usual), squares)[0], expected)
    within = relative(run(quantise(core, np.concatenate([usual[:-1], odd])), squares)[0], expected)
    assert within < 1.5 * without


def test_transformers_keep_their_answers(tiny_bundle: Path, tmp_path: Path) -> None:
    core = core_of("test_vit", 32, tiny_bundle, tmp_path / "bundle")
    found = quantise(core, squares_of(32, 32))
    squares = squares_of(24, 32, seed=1)
    assert relative(run(found, squares)[0], run(core, squares)[0]) < 0.15
    kinds = Counter(node.op_type for node in found.model.graph.node)
    assert {"Softmax", "LayerNormalization"} <= set(kinds)
    assert len(found.model.SerializeToString()) < 0.4 * len(core.model.SerializeToString())


def test_too_few_images_are_refused(tiny_bundle: Path) -> None:
    core = make_core(read_bundle(tiny_bundle))
    with pytest.raises(ExportError, match=f"at least {MIN_CALIBRATION_IMAGES} images, and 3 came"):
        quantise(core, squares_of(3, 32))

"""Networks as ONNX: the same logits for any number of images, and maps that are exact or refused with the reason."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from foveal.errors import ExportError
from foveal.exporting import cores
from foveal.exporting.class_activation import find_linear_head
from foveal.exporting.cores import OPSET, Core, make_core
from foveal.model.build import Architecture, Classifier, build
from foveal.model.bundle import Bundle, write_bundle
from foveal.model.classical import NeighbourHead, TreesHead
from foveal.model.config import ClassicalHeadConfig

NUM_CLASSES = 3


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """Write the bundle of a network with random weights, its statistics those of noise."""

    def make(name: str | tuple[str, ...], side_px: int, fill: Callable[[Classifier], None] | None = None,
             **fields: Any) -> Bundle:  # fmt: skip
        torch.manual_seed(0)
        architecture = Architecture(name=name, num_classes=NUM_CLASSES, image_size=side_px, **fields)
        classifier = build(architecture)
        if fill is not None:
            fill(classifier)
        with torch.no_grad():
            for _ in range(3):
                classifier.train()(torch.rand(8, 3, side_px, side_px))
        spec = {
            "architecture": architecture.spec(),
            "class_names": ("a", "b", "<img onerror=alert(1)>"),
            "preprocessing": {
                "policy_version": 1,
                "max_pixels": 120_000_000,
                "size_px": side_px,
                "store_px": side_px,
                "fit": "squash",
                "interpolation": "bilinear",
                "background": (255, 255, 255),
                "mean": architecture.mean,
                "std": architecture.std,
            },
            "temperature": 2.0,
            "training_data": {"fingerprint": "0" * 64, "num_images": {"train": 1}},
            "weights": {"source": "none", "licence": "none"},
        }
        return write_bundle(tmp_path / "a network", spec, classifier.net.state_dict())

    return make


def squares_of(num: int, side_px: int) -> NDArray[np.uint8]:
    """Noise, but for the first, which has one colour."""
    squares = np.random.default_rng(num).integers(0, 256, (num, side_px, side_px, 3), dtype=np.uint8)
    squares[0] = (255, 0, 128)
    return squares


def run(core: Core, squares: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(core.model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"square": squares}))


def torch_logits(bundle: Bundle, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
    classifier = bundle.build()
    with torch.inference_mode():
        return np.asarray(classifier(torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255.0).numpy())


def check_same(bundle: Bundle, core: Core) -> None:
    side_px = bundle.spec.preprocessing.size_px
    session = onnxruntime.InferenceSession(core.model.SerializeToString(), providers=["CPUExecutionProvider"])
    for num in (1, 2, 7):
        squares = squares_of(num, side_px)
        expected = torch_logits(bundle, squares)
        found = session.run(None, {"square": squares})
        np.testing.assert_allclose(found[0], expected, atol=1e-4, rtol=1e-5)
        assert found[0].dtype == np.float32
        assert core.has_heatmap == (not core.heatmap_reason) == (len(found) == 2)
        if core.has_heatmap:
            head = find_linear_head(bundle.build())
            assert not isinstance(head, str)
            np.testing.assert_allclose(found[1].mean((2, 3)) + head.bias.numpy(), expected, atol=1e-4, rtol=1e-5)


EXACT = [
    ("small_cnn", 32, {}),
    ("test_resnet", 64, {"attention": "se", "batch_norm": True}),
    ("test_vit", 64, {"pool": "avg"}),
]


@pytest.mark.parametrize(("name", "side_px", "head"), EXACT)
def test_logits_and_maps_are_those_of_torch(
    name: str, side_px: int, head: dict[str, Any], make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle(name, side_px, head=head)
    core = make_core(bundle)
    assert core.has_heatmap, core.heatmap_reason
    check_same(bundle, core)


@pytest.mark.parametrize(
    ("name", "side_px"), [("test_vit_relpos", 32), ("test_convnext", 32), (("small_cnn", "test_resnet"), 32)]
)
def test_networks_without_exact_maps_give_logits(name: Any, side_px: int, make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle(name, side_px)
    core = make_core(bundle)
    assert [output.name for output in core.model.graph.output] == ["logits"]
    check_same(bundle, core)


INEXACT = [
    ("test_vit", 64, {}, "test_vit looks at a class token"),
    ("test_vit_relpos", 64, {}, "stands fc_norm"),
    ("test_convnext", 64, {}, "stands head.norm"),
    ("test_resnet", 64, {"pool": "max"}, r"model\.head\.pool=max"),
    ("test_resnet", 64, {"kind": "dense", "layers": (8,)}, "hidden layers"),
    ("test_resnet", 32, {}, "32 x 32 pixels the last feature map of test_resnet is one place"),
    (("small_cnn", "test_resnet"), 32, {}, "several networks"),
    ("mobilenetv3_small_100", 32, {}, "its last layer stands conv_head"),
    ("alexnet", 64, {}, r"stand classifier\.1, classifier\.4"),
]


@pytest.mark.parametrize(("name", "side_px", "head", "reason"), INEXACT)
def test_where_no_map_is_exact_the_reason_names_what_is_in_the_way(
    name: Any, side_px: int, head: dict[str, Any], reason: str
) -> None:
    architecture = Architecture.model_validate(
        {"name": name, "num_classes": NUM_CLASSES, "image_size": side_px, "head": head}
    )
    found = find_linear_head(build(architecture).eval())
    assert isinstance(found, str)
    assert re.search(reason, found), found


def test_a_map_changes_where_the_image_does(make_bundle: Callable[..., Bundle]) -> None:
    """The mean alone would also be right for maps whose places are mixed up."""
    core = make_core(make_bundle("small_cnn", 64))
    squares = squares_of(2, 64)
    squares[1] = squares[0]
    squares[1, :8, :8] = 255 - squares[1, :8, :8]
    maps = run(core, squares)[1]
    change = np.abs(maps[1] - maps[0]).sum(axis=0)
    assert change[:2, :2].any()
    assert not change[4:].any()
    assert not change[:, 4:].any()


def neighbours(classifier: Classifier) -> None:
    config, width = classifier.architecture.classical, classifier.num_features
    assert config is not None
    with torch.no_grad():
        rows = classifier.eval().pooled(torch.rand(config.num_references, 3, 16, 16))
    labels = torch.arange(config.num_references) % NUM_CLASSES
    head = NeighbourHead.of(config, rows + 0.1 * torch.randn(len(rows), width), labels, NUM_CLASSES)
    classifier.net.get_submodule("head").load_state_dict(head.state_dict())


def stumps(classifier: Classifier) -> None:
    """Three trees of one question each."""
    head = classifier.net.get_submodule("head")
    assert isinstance(head, TreesHead)
    is_forest = head.config.kind == "forest"
    with torch.no_grad():
        medians = classifier.eval().pooled(torch.rand(9, 3, 16, 16)).median(dim=0).values
    whole = torch.int32
    head.root, head.feature = torch.tensor([0, 1, 2], dtype=whole), torch.tensor([5, 6, 7] + [0] * 6, dtype=whole)
    head.threshold = torch.cat([medians[5:8], torch.zeros(6)])
    head.left = torch.tensor([3, 5, 7, 3, 4, 5, 6, 7, 8], dtype=whole)
    head.right = torch.tensor([4, 6, 8, 3, 4, 5, 6, 7, 8], dtype=whole)
    head.values = torch.rand(6, NUM_CLASSES if is_forest else 1)


CLASSICAL = [
    (neighbours, {"kind": "neighbours", "num_references": 20, "num_neighbours": 5, "distance": "cosine"}),
    (neighbours, {"kind": "neighbours", "num_references": 20, "num_neighbours": 3, "weighting": "inverse"}),
    (stumps, {"kind": "forest", "num_trees": 3, "num_nodes": 9, "num_leaves": 6, "depth": 1}),
    (stumps, {"kind": "boosting", "num_trees": 3, "num_nodes": 9, "num_leaves": 6, "depth": 1}),
]


@pytest.mark.parametrize(("fill", "fields"), CLASSICAL)
def test_classical_heads_export_too(
    fill: Callable[[Classifier], None], fields: dict[str, Any], make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle("small_cnn", 16, fill, classical=ClassicalHeadConfig.model_validate(fields))
    core = make_core(bundle)
    assert f"the head is {fields['kind']}" in core.heatmap_reason
    check_same(bundle, core)


def test_the_file_is_whole_and_says_nothing_of_this_machine(make_bundle: Callable[..., Bundle]) -> None:
    core = make_core(make_bundle("small_cnn", 32), with_heatmap=False)
    model = core.model
    assert "left out" in core.heatmap_reason
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
    (square,) = model.graph.input
    assert [dim.dim_param or dim.dim_value for dim in square.type.tensor_type.shape.dim] == ["batch", 32, 32, 3]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    content = model.SerializeToString()
    assert b"site-packages" not in content
    assert str(Path(cores.__file__).parents[3]).encode() not in content
    # Batch normalisation is in the convolutions, and all of the normalisation of the image in two operators.
    kinds = [node.op_type for node in model.graph.node]
    assert kinds[:5] == ["Transpose", "Cast", "Sub", "Div", "Conv"]
    assert "BatchNormalization" not in kinds
    assert kinds.count("Conv") == 4


def test_a_network_too_large_for_one_file_is_refused(
    make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle("small_cnn", 32)
    monkeypatch.setattr(cores, "LARGEST_FILE_MIB", 0.1)
    with pytest.raises(ExportError, match=r"has 1 MiB of weights") as caught:
        make_core(bundle)
    assert "torchscript" in caught.value.fix


def test_what_cannot_be_translated_is_refused(
    make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle("small_cnn", 32)

    def depends_on_data(self: Classifier, pixels: torch.Tensor) -> torch.Tensor:
        row = self.pooled(pixels)
        return self.classify(row if float(row.sum()) > 0.0 else -row)

    monkeypatch.setattr(Classifier, "forward", depends_on_data)
    with pytest.raises(ExportError, match="cannot export small_cnn to ONNX") as caught:
        make_core(bundle, with_heatmap=False)
    assert "--to torchscript" in caught.value.fix

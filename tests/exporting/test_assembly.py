"""The assembled graph: what goes in and out, and that it computes what the parts of foveal compute one by one."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from foveal.errors import ExportError
from foveal.exported.engine import OnnxPredictor
from foveal.exported.scan import check_self_contained
from foveal.exported.spec import ExportedMember, ExportSpec, LookSpec
from foveal.exporting import assembly
from foveal.exporting.assembly import assemble, heatmap_of, save_onnx
from foveal.exporting.cores import Core
from foveal.metrics import softmax
from foveal.model.bundle_spec import PreprocessingSpec, TrainingDataSpec, WeightsSpec
from foveal.model.voting import Vote, voted
from foveal.pixels.geometry import to_square, to_store

NAMES = ("<img src=x onerror=alert(1)>", '=HYPERLINK("x")', "a\nb\u00e9\u4e2d\U0001f600")
SIZE = 12
Arrays = dict[str, NDArray[Any]]


def made_core(seed: int, *, size: int = SIZE, num_cells: int = 3, has_heatmap: bool = True, opset: int = 20) -> Core:
    """A convolution, batch normalisation, a pooled map and a linear layer, names as plain as exporters give them.

    The layer's bias is added in a branch that reads it from the graph around it.
    """
    rng = np.random.default_rng(seed)
    weights = {
        "weight": rng.normal(size=(4, 3, 3, 3)) / 500,
        "scale": rng.uniform(0.5, 2.0, 4),
        "shift": rng.normal(size=4),
        "mean": rng.normal(size=4),
        "var": rng.uniform(0.5, 2.0, 4),
        "linear": rng.normal(size=(len(NAMES), 4, 1, 1)),
        "bias": rng.normal(size=(1, len(NAMES))),
    }
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.array(True), "yes"))
    initializers.append(numpy_helper.from_array(np.array([2, 3], np.int64), "places"))
    stride = size // num_cells
    branches = [
        helper.make_graph(
            [helper.make_node("Add", ["pooled", bias], [f"sum_{bias}"])], bias, [], [value(f"sum_{bias}", None)]
        )
        for bias in ("bias", "pooled")
    ]
    nodes = [
        helper.make_node("Transpose", ["square"], ["turned"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["turned"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["pixels", "weight"], ["conv"], pads=[1, 1, 1, 1], strides=[stride, stride]),
        helper.make_node("BatchNormalization", ["conv", "scale", "shift", "mean", "var"], ["normal"], name="bn"),
        helper.make_node("Relu", ["normal"], ["features"]),
        helper.make_node("Conv", ["features", "linear"], ["activation"]),
        helper.make_node("ReduceMean", ["activation", "places"], ["pooled"], keepdims=0),
        helper.make_node("If", ["yes"], ["logits"], then_branch=branches[0], else_branch=branches[1]),
    ]
    outputs = [value("logits", ["n", len(NAMES)])]
    if has_heatmap:
        outputs.append(value("activation", ["n", len(NAMES), num_cells, num_cells]))
    inputs = [helper.make_tensor_value_info("square", TensorProto.UINT8, ["n", size, size, 3])]
    graph = helper.make_graph(nodes, "core", inputs, outputs, initializers)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("org.of.nothing", seed + 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return Core(model, has_heatmap, "" if has_heatmap else "attention has no map")


def value(name: str, shape: Sequence[Any] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def look(number: int | None = None, size: int = SIZE, fit: Any = "crop") -> LookSpec:
    preprocessing = PreprocessingSpec(
        policy_version=1,
        max_pixels=1_000_000,
        size_px=size,
        store_px=size + (2 if fit == "crop" else 0),
        fit=fit,
        interpolation="bicubic",
        background=(9, 99, 199),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
    )
    return LookSpec(input="square" if number is None else f"square_{number}", preprocessing=preprocessing)


def described(members: Sequence[tuple[float, float, int]], looks: Sequence[LookSpec], **more: Any) -> ExportSpec:
    """Members: weight, temperature and look."""
    given: dict[str, Any] = {
        "format_version": 1,
        "foveal_version": "0",
        "libraries": {},
        "bundle_sha256": "0" * 64,
        "architecture": "three nets",
        "class_names": NAMES,
        "precision": "fp32",
        "opset": 20,
        "temperature": members[0][1],
        "looks": tuple(looks),
        "members": tuple(
            ExportedMember(name=f"m{number}", weight=weight, temperature=temperature, look=seen)
            for number, (weight, temperature, seen) in enumerate(members)
        ),
        "heatmap": True,
        "training_data": TrainingDataSpec(fingerprint="f", num_images={"train": 5}),
        "weights": WeightsSpec(source="none", licence="Apache-2.0; \u00a9 someone"),
    }
    return ExportSpec(**{**given, **more})


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def outputs_of(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    runner = session(model)
    names = [output.name for output in runner.get_outputs()]
    return dict(zip(names, (np.asarray(each) for each in runner.run(None, feeds)), strict=True))


def images(num_images: int, height: int, width: int) -> NDArray[np.uint8]:
    """Noise around a colour of its own for each, so that the networks say something else of each."""
    rng = np.random.default_rng(height)
    colours, noise = rng.integers(0, 200, (num_images, 1, 1, 3)), rng.integers(0, 56, (num_images, height, width, 3))
    return (colours + noise).astype(np.uint8)


def squares_of(pictures: NDArray[np.uint8], seen: LookSpec) -> NDArray[np.uint8]:
    geometry = seen.preprocessing.geometry()
    return np.stack([to_square(to_store(picture, geometry), geometry) for picture in pictures])


def core_outputs(core: Core, squares: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    logits, maps = session(core.model).run(["logits", "activation"], {"square": squares})
    return np.asarray(logits, np.float64), np.asarray(maps)


NO_IMAGE = np.zeros((0, 1, 1, 3), np.uint8)


@pytest.mark.parametrize(("num_images", "height", "width"), [(1, 30, 17), (5, 9, 80), (3, SIZE, SIZE)])
def test_one_network_from_images_and_from_squares(num_images: int, height: int, width: int) -> None:
    core, spec = made_core(0), described([(1.0, 1.7, 0)], [look()])
    model = assemble([core], spec)
    pictures = images(num_images, height, width)
    squares = squares_of(pictures, spec.looks[0])
    logits, maps = core_outputs(core, squares)
    for feeds in (
        {"image": pictures},
        {"image": NO_IMAGE, "square": squares},
        {"image": images(2, 4, 4), "square": squares},
    ):
        found = outputs_of(model, feeds)
        assert set(found) == {"probabilities", "heatmap"}
        assert found["probabilities"].dtype == found["heatmap"].dtype == np.float32
        np.testing.assert_allclose(found["probabilities"], softmax(logits, 1.7), atol=2e-6)
        np.testing.assert_allclose(found["heatmap"], maps, rtol=1e-5, atol=1e-5)
    assert np.ptp(found["probabilities"], axis=1).min() > 0.01
    if num_images > 1:
        assert np.ptp(found["probabilities"], axis=0).max() > 0.01


def test_what_it_says_of_itself_to_others() -> None:
    spec = described([(1.0, 1.0, 0)], [look()])
    model = assemble([made_core(0)], spec)
    runner = session(model)
    inputs = {each.name: (each.type, each.shape) for each in runner.get_inputs()}
    assert inputs == {"image": ("tensor(uint8)", ["batch", "height", "width", 3])}
    assert {each.name: each.shape[1:] for each in runner.get_overridable_initializers()} == {"square": [SIZE, SIZE, 3]}
    assert {each.name: each.shape for each in runner.get_outputs()} == {
        "probabilities": ["batch", 3],
        "heatmap": ["batch", 3, 3, 3],
    }
    meta = runner.get_modelmeta()
    assert ExportSpec.model_validate_json(meta.custom_metadata_map["foveal"]) == spec
    assert tuple(json.loads(meta.custom_metadata_map["class_names"])) == NAMES
    assert meta.custom_metadata_map["licence"] == "Apache-2.0; \u00a9 someone"
    assert meta.custom_metadata_map["pixel_policy_version"] == "1"
    assert "uint8 [batch, height, width, 3]" in meta.custom_metadata_map["input"]
    assert "three nets" in meta.custom_metadata_map["description"]
    assert meta.producer_name == "foveal"
    check_self_contained(model.SerializeToString())
    # The list of operators that nothing uses stays behind.
    assert [opset.domain for opset in model.opset_import] == [""]


@pytest.mark.parametrize("vote", ["soft", "weighted", "majority"])
@pytest.mark.parametrize("num_images", [1, 7])
def test_votes_are_those_of_the_ensemble(vote: Vote, num_images: int) -> None:
    """Members of equal names within, two of them of one look; each with its own temperature."""
    cores = [made_core(0), made_core(1, size=20, num_cells=5), made_core(2), made_core(0)]
    members = [(0.1, 0.7, 0), (0.4, 1.3, 1), (0.3, 2.0, 0), (0.2, 0.7, 0)]
    looks = [look(0), look(1, 20, "pad")]
    spec = described(members, looks, vote=vote, temperature=0.8, heatmap=False, heatmap_reason="sizes")
    model = assemble(cores, spec)
    pictures = images(num_images, 31, 22)
    squares = [squares_of(pictures, seen) for seen in looks]
    by_member = np.stack(
        [softmax(core_outputs(core, squares[m[2]])[0], m[1]) for core, m in zip(cores, members, strict=True)]
    )
    mixed = voted(by_member, vote, [member[0] for member in members])
    expected = softmax(np.log(np.maximum(mixed, 1e-30)), 0.8)
    for feeds in ({"image": pictures}, {"image": NO_IMAGE, "square_0": squares[0], "square_1": squares[1]}):
        found = outputs_of(model, feeds)
        assert set(found) == {"probabilities", "member_probabilities"}
        np.testing.assert_allclose(found["member_probabilities"], by_member, atol=2e-6)
        np.testing.assert_allclose(found["probabilities"], expected, atol=2e-6)
    assert heatmap_of(cores) == (False, "the members' maps are of different sizes (3 x 3, 5 x 5)")


def test_the_votes_differ() -> None:
    """Otherwise the test above could not tell them apart."""
    cores = [made_core(seed) for seed in (1, 2, 4)]
    pictures = images(9, 20, 20)
    answers = {}
    for vote in ("soft", "weighted", "majority"):
        members = [(0.7, 1.0, 0), (0.2, 1.0, 0), (0.1, 1.0, 0)]
        spec = described(members, [look()], vote=vote, heatmap=False)
        answers[vote] = outputs_of(assemble(cores, spec), {"image": pictures})["probabilities"]
    assert np.abs(answers["soft"] - answers["weighted"]).max() > 0.01
    assert np.abs(answers["soft"] - answers["majority"]).max() > 0.01


@pytest.mark.parametrize(("vote", "shares"), [("weighted", (0.8, 0.2)), ("soft", (0.5, 0.5)), ("majority", (0.5, 0.5))])
def test_the_heatmap_of_an_ensemble_is_the_mean_of_the_members(vote: Vote, shares: tuple[float, float]) -> None:
    cores = [made_core(0), made_core(1)]
    assert heatmap_of(cores) == (True, "")
    spec = described([(0.8, 1.0, 0), (0.2, 1.0, 0)], [look()], vote=vote)
    pictures = images(2, 25, 14)
    maps = [core_outputs(core, squares_of(pictures, spec.looks[0]))[1] for core in cores]
    found = outputs_of(assemble(cores, spec), {"image": pictures})["heatmap"]
    np.testing.assert_allclose(found, shares[0] * maps[0] + shares[1] * maps[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vote", [None, "soft", "weighted", "majority"])
def test_views_with_a_heatmap_take_no_more_runs_than_views(vote: Vote | None, tmp_path: Path) -> None:
    """The plain view gives its heatmap and its probabilities at once; both are those that are asked for apart."""
    members = [(0.8, 0.7, 0), (0.2, 1.6, 0)][: 1 if vote is None else 2]
    cores = [made_core(seed) for seed in range(len(members))]
    spec = described(members, [look()], vote=vote, temperature=0.7 if vote is None else 0.9)
    save_onnx(assemble(cores, spec), tmp_path / "model.onnx")
    predictor = OnnxPredictor(tmp_path, tta="dihedral", num_threads=1)
    pictures = images(3, 25, 14)
    seen = [predictor.prepare(picture) for picture in pictures]
    asked: list[list[str]] = []
    run = predictor._session.run
    predictor._session = SimpleNamespace(run=lambda names, feeds: asked.append(list(names)) or run(names, feeds))
    apart, maps = predictor.probabilities(seen), predictor.heatmaps(seen)
    assert len(asked) == 8 + 1
    asked.clear()
    together, same_maps = predictor.probabilities_and_heatmaps(seen)
    assert len(asked) == 8
    assert [names for names in asked if "heatmap" in names] == asked[:1]
    np.testing.assert_allclose(together, apart, atol=1e-6)
    np.testing.assert_allclose(same_maps, maps, rtol=1e-6, atol=1e-6)
    # By hand: each member's mean over the views, then the vote.
    views = [np.stack([each[predictor.looks[0]][view] for each in seen]) for view in range(8)]
    means = np.stack(
        [
            np.mean([softmax(core_outputs(core, view)[0], temperature) for view in views], axis=0)
            for core, (_, temperature, _) in zip(cores, members, strict=True)
        ]
    )
    mixed = means[0] if vote is None else softmax(np.log(voted(means, vote, [each[0] for each in members])), 0.9)
    np.testing.assert_allclose(together, mixed, atol=2e-6)


def test_squares_alone_where_the_resize_is_outside() -> None:
    core, spec = made_core(0), described([(1.0, 1.0, 0)], [look()], resize="outside")
    model = assemble([core], spec)
    assert [each.name for each in model.graph.input] == ["square"]
    assert "square" not in {each.name for each in model.graph.initializer}
    squares = images(4, SIZE, SIZE)
    found = outputs_of(model, {"square": squares})
    np.testing.assert_allclose(found["probabilities"], softmax(core_outputs(core, squares)[0], 1.0), atol=2e-6)


def test_it_runs_on_the_reference_evaluator_of_onnx() -> None:
    """It is ONNX, and no peculiarity of one runtime."""
    cores = [made_core(0), made_core(1)]
    spec = described([(0.5, 1.5, 0), (0.5, 1.0, 1)], [look(0), look(1, fit="pad")], vote="majority", temperature=1.2)
    model = assemble(cores, spec)
    pictures = images(2, 40, 13)
    expected = outputs_of(model, {"image": pictures})
    evaluator = ReferenceEvaluator(model)
    # It knows no inputs that can be left out, but the value that they have then is in the file.
    default = {
        each.name: numpy_helper.to_array(each) for each in model.graph.initializer if each.name.startswith("square_")
    }
    found = dict(zip(evaluator.output_names, evaluator.run(None, {"image": pictures, **default}), strict=True))
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5)


def test_the_network_is_optimised_as_if_it_stood_alone(tmp_path: Path) -> None:
    """The choice before it must not keep ONNX Runtime from folding constants and fusing layers."""

    def optimised(model: onnx.ModelProto, name: str) -> list[str]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(tmp_path / name)
        onnxruntime.InferenceSession(model.SerializeToString(), options)
        return [node.op_type for node in onnx.load(tmp_path / name).graph.node]

    core = made_core(0, has_heatmap=False)
    spec = described([(1.0, 1.0, 0)], [look()], heatmap=False)
    alone = optimised(core.model, "core.onnx")
    assert "BatchNormalization" not in alone
    # What decides between squares and images is all that comes before, and the softmax after.
    whole = optimised(assemble([core], spec), "whole.onnx")
    assert whole == ["Shape", "Gather", "Greater", "If", *alone, "Softmax"]


def test_probabilities_stay_finite_where_logits_are_large() -> None:
    cores = []
    for seed in (0, 1):
        core = made_core(seed)
        bias = next(each for each in core.model.graph.initializer if each.name == "bias")
        bias.CopyFrom(numpy_helper.from_array(np.array([[2e4, -2e4, 0]], np.float32), "bias"))
        cores.append(core)
    spec = described([(0.5, 0.1, 0), (0.5, 0.1, 0)], [look()], vote="soft")
    found = outputs_of(assemble(cores, spec), {"image": images(1, 5, 5)})["probabilities"]
    np.testing.assert_allclose(found, [[1.0, 0.0, 0.0]], atol=1e-6)


def changed(core: Core, change: Callable[[onnx.ModelProto], object]) -> Core:
    model = onnx.ModelProto()
    model.CopyFrom(core.model)
    change(model)
    return Core(model, core.has_heatmap, core.heatmap_reason)


def test_what_does_not_go_together_is_refused_with_all_reasons() -> None:
    spec = described([(0.5, 1.0, 0), (0.5, 1.0, 1)], [look(0), look(1, 16)], vote="soft")
    cores = [made_core(0, opset=19), made_core(1)]
    with pytest.raises(ExportError) as caught:
        assemble(cores, spec)
    text = str(caught.value)
    assert "network 1 is written in opset 19, and opset 20 is described" in text
    assert "network 2 sees squares [12, 12, 3], and its look has 16 pixels" in text
    with pytest.raises(ExportError, match="attention has no map"):
        assemble([made_core(0, has_heatmap=False)], described([(1.0, 1.0, 0)], [look()]))
    with pytest.raises(ExportError, match="2 members are described, and 1 networks came"):
        assemble(cores[1:], spec)
    with pytest.raises(ExportError, match=r"temperature 1\.0, and the whole 2\.0"):
        assemble(cores[1:], described([(1.0, 1.0, 0)], [look()], temperature=2.0))
    broken = changed(made_core(0), lambda model: model.graph.node.pop(0))
    with pytest.raises(ExportError, match="no valid ONNX"):
        assemble([broken], described([(1.0, 1.0, 0)], [look()]))


def test_one_file_that_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = assemble([made_core(0)], described([(1.0, 1.0, 0)], [look()]))
    path = tmp_path / "a folder" / "model.onnx"
    save_onnx(model, path)
    assert path.read_bytes() == model.SerializeToString(deterministic=True)
    assert [each.name for each in path.parent.iterdir()] == ["model.onnx"]
    before = path.read_bytes()
    monkeypatch.setattr(assembly, "MAX_BYTES", 500)
    with pytest.raises(ExportError, match="--int8"):
        save_onnx(model, path)
    assert path.read_bytes() == before
    with pytest.raises(ExportError, match="an ONNX file holds less than"):
        assemble([made_core(0)], described([(1.0, 1.0, 0)], [look()]))

"""Classical heads beside scikit-learn and XGBoost, which they must agree with."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from foveal.errors import ArtifactError
from foveal.experiments.probe.heads import Candidate, head_logits, head_module, linear_layer
from foveal.experiments.probe.network import with_head
from foveal.experiments.probe.trees import flattened, less_than, trees_of_booster, trees_of_forest
from foveal.model.build import Architecture, build
from foveal.model.bundle import read_bundle, write_bundle
from foveal.model.classical import SMALLEST_SHARE, NeighbourHead, make_classical
from foveal.model.config import ClassicalHeadConfig

NUM_FEATURES, NUM_CLASSES = 12, 4


def made(num: int, seed: int = 0, *, num_classes: int = NUM_CLASSES) -> tuple[np.ndarray, np.ndarray]:
    """Features as a network gives them, many of them exactly 0, and labels that they tell something about."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(num_classes, NUM_FEATURES))
    labels = rng.integers(0, num_classes, num)
    labels[:num_classes] = np.arange(num_classes)
    rows = np.maximum(centres[labels] + rng.normal(size=(num, NUM_FEATURES)), 0.0)
    return rows.astype(np.float32), labels


def probabilities(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).softmax(dim=1).numpy()


def neighbours(rows: np.ndarray, labels: np.ndarray, **settings: Any) -> NeighbourHead:
    config = ClassicalHeadConfig(kind="neighbours", num_references=len(rows), **settings)
    return NeighbourHead.of(config, torch.from_numpy(rows), torch.from_numpy(labels), NUM_CLASSES).eval()


def forest_of(rows: np.ndarray, labels: np.ndarray, **settings: Any) -> tuple[RandomForestClassifier, Candidate]:
    model = RandomForestClassifier(30, random_state=0, **settings).fit(rows, labels)
    return model, Candidate({}, *flattened("forest", trees_of_forest(model, NUM_CLASSES), np.zeros(NUM_CLASSES, "f4")))


@pytest.mark.parametrize("distance", ["cosine", "euclid"])
@pytest.mark.parametrize("weighting", ["equal", "inverse"])
@pytest.mark.parametrize("number", [1, 3, 7])
def test_neighbours_say_what_scikit_learn_says(distance: str, weighting: str, number: int) -> None:
    rows, labels = made(150)
    asked = np.concatenate([made(60, seed=1)[0], rows[:20]])  # some of them are kept: no distance at all
    reference = KNeighborsClassifier(
        number,
        weights={"equal": "uniform", "inverse": "distance"}[weighting],
        metric={"cosine": "cosine", "euclid": "euclidean"}[distance],
        algorithm="brute",
    ).fit(rows.astype(np.float64), labels)
    head = neighbours(rows, labels, num_neighbours=number, distance=distance, weighting=weighting)
    expected = reference.predict_proba(asked.astype(np.float64))
    if distance == "cosine" and weighting == "inverse":
        # Of an image to itself scikit-learn finds a distance of 1e-16, here it is 0: both let it alone decide.
        assert (expected[60:].max(axis=1) > 1 - 1e-6).all()
    np.testing.assert_allclose(probabilities(head_logits(head, asked)), expected, atol=1e-5)


def test_neighbours_by_distance_and_by_angle_differ() -> None:
    rows = np.array([[10.0, 0.0], [0.5, 1.0]], dtype=np.float32)
    asked = np.array([[1.0, 0.2]], dtype=np.float32)
    said = {
        distance: NeighbourHead.of(
            ClassicalHeadConfig(kind="neighbours", num_references=2, num_neighbours=1, distance=distance),
            torch.from_numpy(rows), torch.tensor([0, 1]), 2,
        )(torch.from_numpy(asked)).argmax().item()
        for distance in ("cosine", "euclid")
    }  # fmt: skip
    assert said == {"cosine": 0, "euclid": 1}


@pytest.mark.parametrize("settings", [{}, {"min_samples_leaf": 5}, {"max_depth": 2}, {"max_features": None}])
def test_a_forest_says_what_scikit_learn_says(settings: dict[str, Any]) -> None:
    rows, labels = made(200)
    model, candidate = forest_of(rows, labels, **settings)
    asked = np.concatenate([made(100, seed=1)[0], rows])
    said = head_logits(head_module(candidate, NUM_FEATURES, NUM_CLASSES), asked)
    np.testing.assert_allclose(probabilities(said), model.predict_proba(asked), atol=1e-5)


def test_images_on_a_threshold_go_the_same_way() -> None:
    """Features of few values: their middles, which are the thresholds, are asked about as well."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 4, (200, NUM_FEATURES)).astype(np.float32)
    labels = (rows[:, 0] + rows[:, 1] > 3).astype(np.int64) + (rows[:, 2] > 1)
    model, candidate = forest_of(rows, labels)
    asked = rng.choice(np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.5], dtype=np.float32), (300, NUM_FEATURES))
    said = head_logits(head_module(candidate, NUM_FEATURES, NUM_CLASSES), asked)
    expected = np.zeros((300, NUM_CLASSES))
    expected[:, model.classes_] = model.predict_proba(asked)  # the last class does not occur
    np.testing.assert_allclose(probabilities(said), expected, atol=1e-5)
    assert (said[:, 3] == np.log(np.float32(SMALLEST_SHARE))).all()


def test_thresholds_say_the_same_as_float32_and_as_less_than() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=3000).astype(np.float32)
    near = values.astype(np.float64) + rng.choice([-1e-9, 0.0, 1e-9], 3000)
    special = np.array([0.0, -0.0, 1.0, -1.0, 1e-20, np.float64(np.float32(0.1)), 0.1])
    thresholds = np.concatenate([near, special])
    asked = np.concatenate([values, special.astype(np.float32)])
    for x in (asked, np.nextafter(asked, np.float32(np.inf)), np.nextafter(asked, np.float32(-np.inf))):
        denormal = (np.abs(x) > 0) & (np.abs(x) < np.finfo(np.float32).tiny)
        same = (x.astype(np.float64) <= thresholds) == (x < less_than(thresholds))
        assert (same | denormal).all()


@pytest.mark.parametrize("num_classes", [2, 4])
def test_boosted_trees_say_what_xgboost_says(num_classes: int) -> None:
    xgboost = pytest.importorskip("xgboost")
    rows, labels = made(200, num_classes=num_classes)
    settings = {"objective": "multi:softprob", "num_class": num_classes, "max_depth": 4, "nthread": 1, "eta": 0.5}
    booster = xgboost.train(settings, xgboost.DMatrix(rows, label=labels), 12)
    trees, base = trees_of_booster(booster[:9])
    assert len(trees) == 9 * num_classes
    head = head_module(Candidate({}, *flattened("boosting", trees, base)), NUM_FEATURES, num_classes)
    asked = np.concatenate([made(100, seed=1)[0], rows])
    matrix = xgboost.DMatrix(asked)
    limit = {"iteration_range": (0, 9)}
    margins = booster.predict(matrix, output_margin=True, **limit)
    np.testing.assert_allclose(head_logits(head, asked), margins, atol=1e-5)
    np.testing.assert_allclose(probabilities(head_logits(head, asked)), booster.predict(matrix, **limit), atol=1e-5)


@pytest.mark.parametrize("classes", [(0, 1, 2, 3), (1, 3)])
def test_a_linear_model_of_standardised_features_becomes_a_layer(classes: tuple[int, ...]) -> None:
    rows, labels = made(200)
    labels = np.array(classes)[labels % len(classes)]
    mean, scale = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
    model = LogisticRegression(C=0.1, max_iter=500).fit((rows - mean) / scale, labels)
    layer = linear_layer(model.coef_, model.intercept_, model.classes_, mean, scale, NUM_CLASSES)
    said = probabilities(head_logits(head_module(Candidate({}, None, layer), NUM_FEATURES, NUM_CLASSES), rows))
    np.testing.assert_allclose(said[:, classes], model.predict_proba((rows - mean) / scale), atol=1e-5)
    assert (np.delete(said, classes, axis=1) == 0).all()


def all_heads() -> dict[str, nn.Module]:
    rows, labels = made(80)
    boosting = ClassicalHeadConfig(kind="boosting", num_trees=8, num_nodes=8, num_leaves=8)
    return {
        "neighbours": neighbours(rows, labels, num_neighbours=5, weighting="inverse"),
        "forest": head_module(forest_of(rows, labels)[1], NUM_FEATURES, NUM_CLASSES),
        "boosting": make_classical(boosting, NUM_FEATURES, NUM_CLASSES),
    }


@pytest.mark.parametrize("kind", ["neighbours", "forest", "boosting"])
def test_a_head_can_be_exported_for_any_number_of_images(kind: str) -> None:
    """Nothing in it depends on the data or on their number: what was traced with nine images holds for two."""
    head = all_heads()[kind].eval()
    rows = torch.from_numpy(made(9, seed=5)[0])
    exported = torch.export.export(head, (rows,), dynamic_shapes=({0: torch.export.Dim("num_images")},)).module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its older way of tracing deprecated, and many still need it
        traced = torch.jit.trace(head, rows)
    for num in (2, 5, 9):
        assert torch.equal(exported(rows[:num]), head(rows[:num]))
        assert torch.equal(traced(rows[:num]), head(rows[:num]))


@pytest.mark.parametrize(
    ("kind", "buffer"), [("neighbours", "labels"), ("forest", "left"), ("forest", "feature"), ("forest", "root")]
)
@pytest.mark.parametrize("value", [-1, 10_000_000])
def test_numbers_that_point_outside_are_refused_when_they_are_loaded(kind: str, buffer: str, value: int) -> None:
    head = all_heads()[kind]
    state = head.state_dict()
    state[buffer][0] = value
    with pytest.raises(RuntimeError, match=f"{buffer} of the head holds numbers outside"):
        head.load_state_dict(state)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "neighbours"},
        {"kind": "neighbours", "num_references": 3, "num_neighbours": 4},
        {"kind": "forest", "num_references": 3, "num_neighbours": 1},
        {"kind": "forest", "num_trees": 5, "num_nodes": 3, "num_leaves": 3},
        {"kind": "forest", "num_trees": 1, "num_nodes": 1, "num_leaves": 1, "depth": 1_000_000},
        {"kind": "pickle"},
    ],
)
def test_sizes_that_make_no_head_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"num_|kind|depth"):
        ClassicalHeadConfig(**settings)


def bundle_with(candidate: Candidate, name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    base = build(Architecture(name=name, num_classes=NUM_CLASSES, image_size=32)).eval()
    network = with_head(base, candidate)
    spec = {
        "architecture": network.architecture.spec(),
        "class_names": tuple("abcd"),
        "preprocessing": {
            "policy_version": 1, "max_pixels": 1_000_000, "size_px": 32, "store_px": 34, "fit": "crop",
            "interpolation": "bicubic", "background": (255, 255, 255),
            "mean": network.architecture.mean, "std": network.architecture.std,
        },
        "temperature": 1.0,
        "training_data": {"fingerprint": "0" * 64, "num_images": {"train": 1}},
        "weights": {"source": "none", "licence": "none"},
    }  # fmt: skip
    write_bundle(folder, spec, network.net.state_dict())
    return folder


def test_a_bundle_with_places_outside_is_refused(tmp_path: Path) -> None:
    base = build(Architecture(name="test_resnet", num_classes=NUM_CLASSES, image_size=32))
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, base.num_features)).astype(np.float32)
    model = RandomForestClassifier(3, random_state=0).fit(rows, rng.integers(0, NUM_CLASSES, 40))
    config, tensors = flattened("forest", trees_of_forest(model, NUM_CLASSES), np.zeros(NUM_CLASSES, "f4"))
    good = bundle_with(Candidate({}, config, tensors), "test_resnet", tmp_path / "good")
    assert read_bundle(good).build().architecture.classical == config
    bad = bundle_with(Candidate({}, config, tensors), "test_resnet", tmp_path / "bad")
    state = read_bundle(bad).state()
    state["head.right"][0] = config.num_nodes
    spec = read_bundle(bad).spec.model_dump(exclude={"format_version", "foveal_version", "files"}, exclude_none=True)
    write_bundle(bad, {key: value for key, value in spec.items() if key != "kind"}, state)
    with pytest.raises(ArtifactError, match="right of the head holds numbers outside"):
        read_bundle(bad).build()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "small_cnn"])
@pytest.mark.parametrize("is_layer", [True, False])
def test_a_whole_network_says_what_its_head_says_of_its_features(name: str, is_layer: bool) -> None:
    torch.manual_seed(0)
    size_px = 160 if name == "test_vit" else 64
    base = build(Architecture(name=name, num_classes=NUM_CLASSES, image_size=size_px)).eval()
    pixels = torch.rand(6, 3, size_px, size_px)
    with torch.inference_mode():
        features = base.pooled(pixels)
    rng = np.random.default_rng(0)
    if is_layer:
        weight = rng.normal(size=(NUM_CLASSES, base.num_features))
        candidate = Candidate({}, None, {"weight": torch.from_numpy(weight).float(), "bias": torch.arange(4.0)})
    else:
        head = NeighbourHead.of(
            ClassicalHeadConfig(kind="neighbours", num_references=6, num_neighbours=2, weighting="inverse"),
            features + 0.05 * features.std() * torch.randn_like(features),
            torch.tensor([0, 1, 2, 3, 0, 1]), NUM_CLASSES,
        )  # fmt: skip
        candidate = Candidate({}, head.config, head.state_dict())
    expected = head_logits(head_module(candidate, base.num_features, NUM_CLASSES), features.numpy())
    network = with_head(base, candidate)
    with torch.inference_mode():
        came = network(pixels).numpy()
    np.testing.assert_allclose(came, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())

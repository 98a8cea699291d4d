"""Explanations of runs and bundles: on the picture as a person sees it, for the right class, of every member."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from taught_networks import OBJECT_PX, SIDE_PX, coloured_square

from foveal.errors import ConfigError
from foveal.explaining.checks import check_maps, rank_correlation
from foveal.explaining.explainer import Explainer
from foveal.explaining.explanation import PICTURE_PX, Explanation
from foveal.explaining.pictures import overlay
from foveal.inference import Predictor
from foveal.model.build import Classifier
from foveal.model.bundle import read_bundle, write_bundle
from foveal.model.ensemble_bundle import write_ensemble

MakeTaught = Callable[[str], Classifier]


@pytest.fixture
def bundle_of(make_taught: MakeTaught, tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, fit: str = "crop") -> Path:
        classifier = make_taught(name)
        spec = {
            "architecture": classifier.architecture.spec(),
            "class_names": ("red", "<b>'green'\n=1"),
            "preprocessing": {
                **{"policy_version": 1, "max_pixels": 120_000_000, "size_px": SIDE_PX, "store_px": SIDE_PX},
                **{"fit": fit, "interpolation": "bicubic", "background": (90, 90, 90)},
                **{"mean": classifier.architecture.mean, "std": classifier.architecture.std},
            },
            "temperature": 1.3,
            "training_data": {"fingerprint": "0" * 64, "num_images": {"train": 4}},
            "weights": {"source": "none", "licence": "none"},
        }
        return write_bundle(tmp_path / f"{name}-{fit}", spec, classifier.net.state_dict()).path

    return make


def one(explanation: Explanation | list[Explanation]) -> Explanation:
    assert isinstance(explanation, Explanation)
    return explanation


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(64, 64), (64, 150), (170, 64)])
def test_the_peak_is_on_the_object_in_the_picture(
    bundle_of: Callable[..., Path], fit: str, size: tuple[int, int]
) -> None:
    height, width = size
    rng = np.random.default_rng(2)
    picture = np.repeat(rng.integers(60, 130, (height, width, 1), dtype=np.uint8), 3, axis=2)
    x, y = width // 2 - 24, height // 2 - 4
    side = OBJECT_PX if fit == "crop" else OBJECT_PX * max(size) // 64
    picture[y : y + side, x : x + side] = (230, 20, 20)
    found = one(Explainer(bundle_of("small_cnn", fit))(picture))
    assert found.prediction.predicted == found.explained == "red"
    assert found.size == size
    assert found.map.shape == size
    assert found.map.dtype == np.float32
    assert 0.0 <= found.map.min() < found.map.max() <= 1.0
    assert found.peak is not None
    assert x - 4 <= found.peak[0] <= x + side + 4
    assert y - 4 <= found.peak[1] <= y + side + 4
    inside = found.share_inside([(x, y, x + side, y + side)])
    assert inside is not None
    assert inside > 2 * side * side / (height * width)
    assert found.share_inside([(0, 0, width, height)]) == pytest.approx(1.0)
    drawn = overlay(found)
    assert drawn.shape == picture.shape
    left, top, right, bottom = found.seen
    if fit == "crop" and width > height:
        assert not found.map[:, : int(left) - 1].any()
        assert drawn[:, : int(left) - 1].mean() < 0.5 * picture[:, : int(left) - 1].mean()
    assert (right - left) <= width
    assert (bottom - top) <= height


def test_a_photograph_that_is_turned_by_exif_is_explained_upright(bundle_of: Callable[..., Path]) -> None:
    explain = Explainer(bundle_of("small_cnn"))
    picture, _ = coloured_square(np.random.default_rng(4), 0, 64, 90)
    upright = one(explain(picture))
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left of how it is to be seen
    Image.fromarray(np.rot90(picture)).save(stream, "PNG", exif=exif)
    turned = one(explain(stream.getvalue()))
    assert turned.size == (64, 90)
    assert np.array_equal(turned.picture, picture)
    np.testing.assert_allclose(turned.map, upright.map, atol=1e-5)
    assert turned.peak == pytest.approx(upright.peak)


def test_answers_are_those_of_predict_and_bad_images_fail_alone(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    path = bundle_of("test_resnet")
    rng = np.random.default_rng(1)
    images: list[object] = [coloured_square(rng, number % 2)[0] for number in range(5)]
    images[2:2] = [b"no image", tmp_path / "gone.jpg"]
    explain = Explainer(path, batch_size=3)
    found = explain(images)  # type: ignore[arg-type]
    said = Predictor(path)(images)  # type: ignore[arg-type]
    assert isinstance(found, list)
    assert isinstance(said, list)
    assert [each.prediction.status for each in found] == ["ok", "ok", "failed", "failed", "ok", "ok", "ok"]
    assert found[3].prediction.reason == "no such file"
    assert not found[2].is_ok
    for explanation, prediction in zip(found, said, strict=True):
        assert explanation.prediction.reason == prediction.reason
        np.testing.assert_allclose(explanation.prediction.probabilities, prediction.probabilities, atol=1e-6)
    alone = one(explain(images[5]))  # type: ignore[arg-type]
    np.testing.assert_allclose(alone.members[0].raw, found[5].members[0].raw, rtol=1e-3, atol=1e-6)


def test_another_class_has_another_map_and_a_wrong_one_is_refused(bundle_of: Callable[..., Path]) -> None:
    explain = Explainer(bundle_of("small_cnn"))
    picture, _ = coloured_square(np.random.default_rng(3), 0)
    own, other = one(explain(picture)), one(explain(picture, class_name="<b>'green'\n=1"))
    assert other.prediction.predicted == "red"
    assert other.explained == "<b>'green'\n=1"
    assert not np.allclose(own.map, other.map)
    with pytest.raises(ConfigError, match=r"no class 'rde'\. Near: red"):
        explain(picture, class_name="rde")


def test_an_ensemble_has_a_map_of_each_member_and_their_mean(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    paths = [bundle_of("small_cnn", "pad"), bundle_of("test_resnet", "crop")]
    members = [read_bundle(path) for path in paths]
    whole = write_ensemble(tmp_path / "both", members, ["a", "b"], vote="weighted", weights=[0.25, 0.75]).path
    picture, _ = coloured_square(np.random.default_rng(6), 0, 64, 100)
    found = one(Explainer(whole)(picture))
    alone = [one(Explainer(path)(picture, class_name=found.explained)) for path in paths]
    assert [member.name for member in found.members] == ["a", "b"]
    np.testing.assert_allclose(found.map, 0.25 * alone[0].map + 0.75 * alone[1].map, atol=1e-5)
    assert found.seen == (0, 0, 100, 64)
    assert alone[1].seen == pytest.approx((18, 0, 82, 64))
    with pytest.raises(ConfigError, match="has no attention"):
        Explainer(whole, method="rollout")


def test_a_large_picture_is_kept_small_and_its_map_is_not(bundle_of: Callable[..., Path]) -> None:
    picture = np.full((700, 2500, 3), 90, np.uint8)
    picture[300:500, 1200:1400] = (230, 20, 20)
    found = one(Explainer(bundle_of("small_cnn"))(picture))
    assert max(found.picture.shape) == PICTURE_PX
    assert found.map.shape == (700, 2500)
    assert found.peak is not None
    assert 1150 <= found.peak[0] <= 1450
    assert 250 <= found.peak[1] <= 550


def test_maps_of_the_network_change_with_random_weights_and_those_of_an_edge_detector_do_not(
    bundle_of: Callable[..., Path],
) -> None:
    explainer = Explainer(bundle_of("test_resnet"))
    rng = np.random.default_rng(8)
    seen = [explainer.predictor.prepare(coloured_square(rng, number % 2)[0]) for number in range(4)]
    classes = [number % 2 for number in range(4)]
    check = check_maps(explainer, seen, classes)
    assert check.passes
    assert check.rank_correlation < 0.4
    assert check.sentence.startswith("The maps change when the weights are drawn at random: mean rank correlation ")
    assert check.num_images == 4

    def edges(_: object, prepared: object, __: object) -> list[np.ndarray]:
        squares = np.stack([next(iter(each.values()))[0] for each in prepared]).astype(np.float32)  # type: ignore[attr-defined]
        return [np.hypot(*np.gradient(squares.mean(axis=3), axis=(1, 2))).astype(np.float32)]

    failed = check_maps(explainer, seen, classes, maps=edges)
    assert not failed.passes
    assert failed.rank_correlation == pytest.approx(1.0)
    assert failed.sentence.startswith("WARNING: the maps of HiRes-CAM hardly change")
    with pytest.raises(ConfigError, match="at least one image"):
        check_maps(explainer, [], [])


def test_rank_correlation_knows_order_and_constants() -> None:
    one_map = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert rank_correlation(one_map, one_map**3) == pytest.approx(1.0)
    assert rank_correlation(one_map, -one_map) == pytest.approx(-1.0)
    assert rank_correlation(one_map, np.zeros((3, 4), np.float32)) == 0.0

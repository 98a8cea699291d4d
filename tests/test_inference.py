"""The one inference path: the same answer however an image comes, and every image for itself."""

import io
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal.data.batches import Batches
from foveal.errors import ArtifactError, ConfigError, DataError
from foveal.inference import Predictor, predict_logits
from foveal.metrics import softmax
from foveal.model.build import Architecture, build
from foveal.model.bundle import read_bundle, update_bundle, write_bundle
from foveal.model.ensemble_bundle import write_ensemble
from foveal.model.voting import Vote
from foveal.pixels.policy import decode, to_square, to_store
from foveal.prediction import Prediction


@pytest.fixture
def predictor(tiny_bundle: Path) -> Predictor:
    return Predictor(tiny_bundle, device="cpu", batch_size=8)


@pytest.fixture
def files(tmp_path: Path, make_images: Callable[..., Path]) -> list[Path]:
    """Thirty-three images of three sizes."""
    folders = [make_images(tmp_path / f"of-{side}", num_per_class=4, side_px=side, seed=side) for side in (24, 40, 65)]
    return [file for folder in folders for file in sorted(folder.rglob("*.*"))][:33]


def probabilities(predictions: list[Prediction]) -> np.ndarray:
    return np.stack([prediction.probabilities for prediction in predictions])


def by_hand(bundle_path: Path, file: Path) -> np.ndarray:
    """Probabilities by the parts: decoded, scaled, cut, divided by 255, softened by the temperature."""
    bundle = read_bundle(bundle_path)
    geometry = bundle.spec.preprocessing.geometry()
    square = to_square(to_store(decode(file).pixels, geometry), geometry)
    with torch.inference_mode():
        logits = bundle.build()(torch.from_numpy(square.astype(np.float32) / 255.0).permute(2, 0, 1)[None])
    exponents = np.exp(logits[0].double().numpy() / 1.5)
    return exponents / exponents.sum()


def test_probabilities_are_those_of_the_parts(predictor: Predictor, tiny_bundle: Path, files: list[Path]) -> None:
    for file in files[::8]:
        found = predictor(file)
        assert isinstance(found, Prediction)
        expected = by_hand(tiny_bundle, file)
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
        assert (found.path, found.status, found.reason) == (str(file), "ok", "")
        assert found.predicted == ("discs", "squares", "stripes")[expected.argmax()]
        assert found.probability == found.probabilities.max()
    assert predictor.class_names == ("discs", "squares", "stripes")


def test_an_image_may_come_in_any_way(predictor: Predictor, files: list[Path]) -> None:
    file = next(path for path in files if path.suffix == ".png")
    pixels = np.asarray(Image.open(file))
    ways: list[Any] = [file, str(file), file.read_bytes(), Image.open(file), pixels, pixels.astype(np.uint16) * 257]
    expected = predictor(file)
    for way in ways:
        found = predictor(way)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
        assert found.path == (str(file) if isinstance(way, str | Path) else "")
    np.testing.assert_allclose(probabilities(predictor(ways)), expected.probabilities[None].repeat(6, 0), atol=1e-6)
    assert predictor([]) == []


def test_order_is_kept_and_the_size_of_batches_does_not_matter(tiny_bundle: Path, files: list[Path]) -> None:
    reference = Predictor(tiny_bundle, device="cpu", batch_size=1)(files)
    assert [prediction.path for prediction in reference] == [str(file) for file in files]
    assert np.ptp(probabilities(reference), axis=0).min() > 0.05, "the network tells these images apart"
    for batch_size, num_workers in ((7, 1), (32, 4), (100, 2)):
        found = Predictor(tiny_bundle, device="cpu", batch_size=batch_size, num_workers=num_workers)(files)
        assert [prediction.path for prediction in found] == [str(file) for file in files]
        np.testing.assert_allclose(probabilities(found), probabilities(reference), atol=1e-5)


def test_a_name_is_told_as_it_was_given(
    predictor: Predictor, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files[0].parent)
    for name in (f"./{files[0].name}", f".//{files[0].name}", f"../{files[0].parent.name}/{files[0].name}"):
        assert (predictor(name).path, predictor(name).status) == (name, "ok")


def faults(folder: Path) -> dict[str, tuple[object, str]]:
    """What may be wrong with one image, and the reason that is given."""
    (folder / "text.jpg").write_text("not an image at all, but some words")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:1500])
    return {
        "text": (folder / "text.jpg", "text"),
        "empty": (str(folder / "empty.png"), "empty"),
        "cut": (folder / "cut.jpg", "cut off"),
        "missing": (folder / "missing.jpg", "no such file"),
        "below a file": (folder / "text.jpg" / "x", "cannot be read"),
        "folder": (folder / "folder.png", "cannot be read: not a regular file"),
        "NUL": ("a\0b.png", "no such file"),
        "not UTF-8": ("caf\udce9.png", "no such file"),
        "no bytes": (b"", "empty"),
        "bytes": (b"junk" * 40, ""),
        "array": (np.zeros((3, 4, 5, 6), np.uint8), "shape"),
        "array of integers": (np.zeros((4, 5), np.int64), "int64"),
        "empty array": (np.zeros((0, 5), np.uint8), "empty"),
    }


def test_one_bad_image_among_many_fails_alone(tiny_bundle: Path, files: list[Path], tmp_path: Path) -> None:
    """Row 45."""
    predictor = Predictor(tiny_bundle, device="cpu", batch_size=32)
    reference = predictor(files[:31])
    for number, (name, (bad, reason)) in enumerate(faults(tmp_path).items()):
        place = number * 2
        found = predictor([*files[:place], bad, *files[place:31]])
        failed = found.pop(place)
        assert (failed.status, failed.predicted) == ("failed", ""), name
        assert reason in failed.reason, name
        assert failed.reason, name
        assert np.isnan(failed.probability), name
        assert np.isnan(failed.probabilities).all(), name
        assert failed.probabilities.shape == (3,)
        np.testing.assert_allclose(probabilities(found), probabilities(reference), atol=1e-5)


def test_a_batch_of_nothing_but_bad_images_fails_quietly(predictor: Predictor) -> None:
    assert [prediction.status for prediction in predictor(["none.jpg"] * 20)] == ["failed"] * 20


def test_the_eight_orientations_of_one_photo_are_one_prediction(
    predictor: Predictor, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Row 28, by Python and by the table that the command writes."""
    upright = Image.effect_noise((48, 32), 120).convert("RGB")
    upright.paste((250, 30, 30), (0, 0, 20, 10))
    undone = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that make each orientation
    paths = []
    for orientation in range(1, 9):
        stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undone[orientation]))
        exif = Image.Exif()
        exif[0x0112] = orientation
        paths.append(tmp_path / f"{orientation}.png")
        stored.save(paths[-1], exif=exif)
    found = probabilities(predictor(paths))
    np.testing.assert_array_equal(found, found[:1].repeat(8, 0))
    turned = predictor(np.asarray(upright)[::-1])
    assert np.abs(turned.probabilities - found[0]).max() > 1e-3, "the network sees a difference"

    table = tmp_path / "table.jsonl"
    foveal.predict(tiny_bundle, paths, out=table, device="cpu")
    rows = table.read_text().splitlines()
    assert len({row.partition('"status"')[2] for row in rows}) == 1


def test_memory_does_not_grow_with_the_number_of_images(tiny_bundle: Path) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = given = 0

    class Picture(np.ndarray):
        """An array that can be put into a set."""

        __hash__ = object.__hash__

    def pictures() -> Iterator[np.ndarray]:
        nonlocal most, given
        for number in range(3_000):
            picture = np.full((32, 32), number % 251, np.uint8).view(Picture)
            alive.add(picture)
            most, given = max(most, len(alive)), given + 1
            yield picture

    predictor = Predictor(tiny_bundle, device="cpu", batch_size=16, num_workers=2)
    num_done = 0
    for prediction in predictor.stream(pictures()):
        num_done += 1
        assert prediction.status == "ok"
        assert given - num_done <= 2 * 16
    assert num_done == 3_000
    assert most <= 2 * 16 + 2


def test_a_stream_that_is_left_early_leaves_no_threads(predictor: Predictor, files: list[Path]) -> None:
    stream = predictor.stream(files)
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_fault_of_the_list_itself_is_not_one_of_an_image(predictor: Predictor, files: list[Path]) -> None:
    def listed() -> Iterator[Path]:
        yield files[0]
        raise DataError("the list ends badly")

    with pytest.raises(DataError, match="ends badly"):
        list(predictor.stream(listed()))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"num_workers": 0}, {"batch_size": -1}])
def test_numbers_that_would_silently_predict_nothing_are_refused(tiny_bundle: Path, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        Predictor(tiny_bundle, **options)


def test_a_bundle_of_another_pixel_policy_is_refused_at_once(tiny_bundle: Path) -> None:
    file = tiny_bundle / "bundle.json"
    file.write_text(file.read_text().replace('"policy_version": 1', '"policy_version": 2'))
    with pytest.raises(ArtifactError, match="pixel policy 2"):
        Predictor(tiny_bundle, device="cpu")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stop_after", [1, 99])
def test_predicting_leaves_a_network_in_the_mode_it_was_in(
    tiny_bundle: Path, files: list[Path], *, training: bool, stop_after: int
) -> None:
    classifier = read_bundle(tiny_bundle).build().train(training)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    geometry = read_bundle(tiny_bundle).spec.preprocessing.geometry()
    source = [to_store(decode(file).pixels, geometry) for file in files]
    rows = np.arange(len(files))
    batches = Batches(source, rows, rows % 3, geometry, batch_size=8)  # type: ignore[arg-type]
    stream = predict_logits(classifier, batches, torch.device("cpu"))
    for _, (batch, logits) in zip(range(stop_after), stream, strict=False):
        assert logits.shape == (len(batch), 3)
        assert not classifier.training
    stream.close()  # type: ignore[attr-defined]
    assert classifier.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())


def test_logits_of_stored_images_are_those_of_the_files(
    predictor: Predictor, tiny_bundle: Path, files: list[Path]
) -> None:
    """What evaluation measures is what prediction says."""
    geometry = read_bundle(tiny_bundle).spec.preprocessing.geometry()
    source = [to_store(decode(file).pixels, geometry) for file in files]
    rows = np.arange(len(files))
    logits = predictor.logits([source], rows, batch_size=8, num_workers=1)
    assert logits.dtype == np.float32
    exponents = np.exp(logits.astype(np.float64) / 1.5)
    np.testing.assert_allclose(
        exponents / exponents.sum(axis=1, keepdims=True), probabilities(predictor(files)), atol=1e-5
    )
    none = predictor.logits([source], rows[:0], batch_size=8, num_workers=1)
    assert none.shape == (0, 3)


def test_mixed_precision_gives_logits_in_single_precision(tiny_bundle: Path, files: list[Path]) -> None:
    bundle = read_bundle(tiny_bundle)
    geometry = bundle.spec.preprocessing.geometry()
    source = [to_store(decode(file).pixels, geometry) for file in files[:8]]
    batches = Batches(source, np.arange(8), np.arange(8), geometry, batch_size=4)  # type: ignore[arg-type]
    classifier, device = bundle.build(), torch.device("cpu")
    single = torch.cat([logits for _, logits in predict_logits(classifier, batches, device)])
    mixed = torch.cat([logits for _, logits in predict_logits(classifier, batches, device, torch.bfloat16)])
    assert mixed.dtype == single.dtype == torch.float32
    assert 0 < (mixed - single).abs().max() < 0.2 * single.abs().max()


def test_latency_is_that_of_one_image_at_a_time(
    predictor: Predictor, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    forward = predictor.members[0].classifier.forward

    def slow(pixels: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(pixels.shape))
        time.sleep(1.0 if len(shapes) == 1 else 0.02)  # the first is the warm-up, which does not count
        return forward(pixels)

    monkeypatch.setattr(predictor.members[0].classifier, "forward", slow)
    found = predictor.measure_latency([*files[:5], files[0].parent / "missing.png"])
    assert shapes == [(1, 3, 32, 32)] * 6
    assert found
    assert 20.0 <= found["p50"] <= found["p95"] < 1000.0
    assert predictor.measure_latency([]) is None
    assert predictor.measure_latency([files[0].parent / "missing.png"]) is None


@pytest.fixture
def ensemble_of_two(tiny_bundle: Path, tmp_path: Path) -> dict[str, Path]:
    """Two networks of other sizes, colours under transparency and temperatures, and their three votes."""
    first = read_bundle(tiny_bundle)
    torch.manual_seed(2)
    classifier = build(Architecture(name="test_resnet", num_classes=3, image_size=48))
    state = {
        key: 8 * value if key.endswith("fc.weight") else value for key, value in classifier.net.state_dict().items()
    }
    spec = first.spec.model_dump(exclude={"format_version", "foveal_version", "files"})
    spec |= {"architecture": classifier.architecture.spec(), "temperature": 0.8}
    spec["preprocessing"] |= {"size_px": 48, "store_px": 56, "background": (0, 0, 0)}
    second = write_bundle(tmp_path / "second", spec, state)
    paths = {"first": first.path, "second": second.path}
    for vote in VOTES:
        paths[vote] = tmp_path / vote
        write_ensemble(paths[vote], [first, second], ["a", "b"], vote=vote, weights=[0.25, 0.75])
        update_bundle(paths[vote], temperature=0.6)
    return paths


VOTES: tuple[Vote, ...] = ("soft", "majority", "weighted")


def sharpened(mixed: np.ndarray) -> np.ndarray:
    """A mixture after a temperature of 0.6."""
    powers = mixed ** (1 / 0.6)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("tta", ["none", "flip"])
def test_an_ensemble_is_the_vote_of_its_members(
    ensemble_of_two: dict[str, Path], files: list[Path], tmp_path: Path, tta: str
) -> None:
    """Each member sees the image at its own size and on its own background, as it does alone."""
    see_through = tmp_path / "see-through.png"
    Image.effect_noise((40, 40), 90).convert("RGBA").save(see_through)
    half = Image.open(see_through)
    half.putalpha(Image.linear_gradient("L").resize((40, 40)))
    half.save(see_through)
    images = [*files[:9], see_through]

    def said(name: str) -> np.ndarray:
        return probabilities(Predictor(ensemble_of_two[name], device="cpu", batch_size=4, tta=tta)(images))

    first, second = said("first"), said("second")
    assert (first.argmax(axis=1) != second.argmax(axis=1)).any(), "they differ, so that the vote has something to do"
    np.testing.assert_allclose(said("soft"), sharpened((first + second) / 2), atol=2e-6)
    np.testing.assert_allclose(said("weighted"), sharpened(first / 4 + second * 3 / 4), atol=2e-6)
    votes = np.eye(3)[first.argmax(axis=1)] + np.eye(3)[second.argmax(axis=1)]
    np.testing.assert_allclose(said("majority"), sharpened((votes + (first + second) / 2) / 3), atol=2e-6)


def test_an_ensemble_says_the_same_of_stored_images(ensemble_of_two: dict[str, Path], files: list[Path]) -> None:
    predictor = Predictor(ensemble_of_two["weighted"], device="cpu")
    sources: list[Any] = [[to_store(decode(f).pixels, member.geometry) for f in files] for member in predictor.members]
    rows = np.arange(len(files))
    logits = predictor.logits(sources, rows, batch_size=8, num_workers=1).astype(np.float64)
    expected = probabilities(predictor(files))
    np.testing.assert_allclose(softmax(logits, predictor.temperature), expected, atol=1e-5)
    by_member = predictor.member_probabilities(sources, rows, batch_size=8, num_workers=1)
    for name, found in zip(("first", "second"), by_member, strict=True):
        np.testing.assert_allclose(
            found, probabilities(Predictor(ensemble_of_two[name], device="cpu")(files)), atol=1e-5
        )


def test_one_bad_image_fails_alone_in_an_ensemble(ensemble_of_two: dict[str, Path], files: list[Path]) -> None:
    predictor = Predictor(ensemble_of_two["soft"], device="cpu", batch_size=4)
    found = predictor([*files[:3], files[0].parent / "missing.png", *files[3:6]])
    assert isinstance(found, list)
    assert [prediction.status for prediction in found] == ["ok"] * 3 + ["failed"] + ["ok"] * 3
    assert found.pop(3).reason == "no such file"
    np.testing.assert_allclose(probabilities(found), probabilities(predictor(files[:6])), atol=1e-6)
    assert predictor.measure_latency([*files[:2], "missing.png"])
    assert predictor.measure_latency(["missing.png"]) is None


def test_the_verbs_take_an_ensemble(ensemble_of_two: dict[str, Path], make_images: Any, tmp_path: Path) -> None:
    data = make_images(tmp_path / "data", num_per_class=3)
    done = foveal.evaluate(ensemble_of_two["soft"], data, out=tmp_path / "evaluation", device="cpu")
    expected = probabilities(Predictor(ensemble_of_two["soft"], device="cpu")(sorted(data.rglob("*.*"))))
    assert done.metrics.num_images == 9
    assert done.metrics.temperature == 0.6
    assert foveal.predict(ensemble_of_two["soft"], [data], out=tmp_path / "p.csv", device="cpu").num_ok == 9
    labels = np.repeat(np.arange(3), 3)
    assert done.metrics.accuracy == pytest.approx(float((expected.argmax(axis=1) == labels).mean()))


def test_an_ensemble_is_no_start_for_a_training(
    ensemble_of_two: dict[str, Path], make_images: Any, tmp_path: Path
) -> None:
    data = make_images(tmp_path / "data", num_per_class=6)
    weights = f"model.weights={ensemble_of_two['soft']}"
    with pytest.raises(ArtifactError, match="is an ensemble, and one network is wanted here") as caught:
        foveal.train(data, tmp_path / "run", overrides=["model.name=test_resnet", "data.image_size=32", weights])
    assert "members/0" in caught.value.fix

"""Robustness: every figure that of a classifier on images that were corrupted by hand, and one sentence for all."""

import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from foveal.errors import ArtifactError
from foveal.evaluation.robustness import Corrupted, Robustness, Wrap, measure_robustness
from foveal.evaluation.robustness_plots import draw_robustness, example_path, write_examples
from foveal.metrics import wilson_interval
from foveal.pixels.corruptions import CORRUPTIONS, corrupt
from foveal.progress import Silence

NUM = 60


class Patches:
    """Dark, medium and bright patches, as a source of stored forms."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.labels = np.repeat([0, 1, 2], [40, 15, 5])
        levels = np.array([60, 130, 200])[self.labels] + rng.integers(-20, 21, NUM)
        self.images = np.clip(levels[:, None, None, None] + rng.integers(-9, 10, (NUM, 12, 12, 3)), 0, 255).astype(
            np.uint8
        )

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        return self.images[row]


def by_brightness(images: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """A classifier that sees nothing but how bright a picture is: light fools it, blur does not."""
    means = np.array([image.mean() for image in images])
    return -np.abs(means[:, None] - np.array([60.0, 130.0, 200.0]))


PATCHES = Patches()


def measured(names: tuple[str, ...] = CORRUPTIONS, **options: object) -> tuple[Robustness, int]:
    def classify(wrap: Wrap) -> NDArray[np.float64]:
        source = wrap(PATCHES)
        return by_brightness([source[row] for row in range(len(source))])

    clean = by_brightness([PATCHES[row] for row in range(NUM)])
    paths = np.array([f"{row}.png" for row in range(NUM)], dtype=object)
    settings: dict[str, object] = {"split": "test", "paths": paths, "groups": None, "progress": Silence(), **options}
    return measure_robustness(classify, clean, PATCHES.labels, names, **settings)  # type: ignore[arg-type]


def test_every_figure_is_that_of_images_corrupted_by_hand() -> None:
    found, _ = measured()
    assert [curve.name for curve in found.curves] == list(CORRUPTIONS)
    values = []
    for curve in found.curves:
        for at in curve.by_strength:
            said = by_brightness([corrupt(PATCHES[row], curve.name, at.strength, row=row) for row in range(NUM)])
            right = said.argmax(axis=1) == PATCHES.labels
            assert at.accuracy == pytest.approx(right.mean())
            recalls = [right[PATCHES.labels == number].mean() for number in range(3)]
            assert at.balanced_accuracy == pytest.approx(np.mean(recalls))
            values.append(right.mean())
            assert at.interval is not None
            assert at.interval[0] <= at.accuracy <= at.interval[1]
        assert curve.mean.accuracy == pytest.approx(np.mean(values[-5:]))
    assert found.clean.accuracy == 1.0
    assert found.clean.interval == pytest.approx(wilson_interval(NUM, NUM))
    assert found.mean.accuracy == pytest.approx(np.mean(values))
    assert found.kept.share == pytest.approx(np.mean(values))
    assert found.guess == pytest.approx(40 / 60)
    means = {curve.name: curve.mean.accuracy for curve in found.curves}
    assert means["blur"] == means["saturation"] == 1.0
    assert found.weakest == min(means, key=means.__getitem__) == "brighter"


def test_the_sentence_names_the_weakest_and_how_it_falls() -> None:
    found, _ = measured()
    at_three = found.curves[CORRUPTIONS.index("brighter")].by_strength[2].accuracy
    assert found.sentence.startswith(f"Accuracy 1.00 on the images as they are, {found.mean.accuracy:.2f} over 8 corr")
    assert f"the weakest is brighter: 1.00 -> {at_three:.2f} at strength 3." in found.sentence
    one, _ = measured(("brighter",), tta="flip")
    assert one.sentence.startswith("With flip, accuracy 1.00 on the images as they are")
    assert "over brighter at 5 strengths" in one.sentence
    assert "the weakest" not in one.sentence


def test_images_of_one_group_have_figures_and_no_interval() -> None:
    found, _ = measured(("noise",), groups=np.zeros(NUM, dtype=np.int64))
    assert found.clean.interval is found.mean.interval is found.kept.interval is None
    assert draw_robustness(found).startswith("<?xml")


def test_the_same_twice_and_in_threads() -> None:
    assert measured()[0] == measured()[0]
    source = Corrupted(PATCHES, "noise", 3)
    assert len(source) == NUM
    made: dict[int, bytes] = {}
    threads = [threading.Thread(target=lambda row=row: made.update({row: source[row].tobytes()})) for row in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [made[row] for row in range(8)] == [source[row].tobytes() for row in range(8)]
    assert len(set(made.values())) == 8


def test_it_is_read_as_it_was_written_and_damage_is_named(tmp_path: Path) -> None:
    found, _ = measured(("noise", "blur"))
    found.write(tmp_path / "robustness.json")
    assert Robustness.read(tmp_path / "robustness.json") == found
    (tmp_path / "robustness.json").write_text('{"split": "test"}')
    with pytest.raises(ArtifactError, match="damaged"):
        Robustness.read(tmp_path / "robustness.json")


def test_the_plot_has_a_panel_a_corruption() -> None:
    svg = draw_robustness(measured()[0])
    for name in CORRUPTIONS:
        assert f">{name}: " in svg


def test_the_pictures_of_an_earlier_measurement_do_not_stay(tmp_path: Path) -> None:
    write_examples(tmp_path, PATCHES[0], 0, ("noise", "blur"))
    assert len(list((tmp_path / "corrupted").iterdir())) == 11
    write_examples(tmp_path, PATCHES[1], 1, ("blur",))
    assert len(list((tmp_path / "corrupted").iterdir())) == 6
    assert example_path(tmp_path, "blur", 5).is_file()
    assert not example_path(tmp_path, "noise", 5).exists()

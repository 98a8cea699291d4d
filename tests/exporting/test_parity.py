"""The parity gate as a judge: what it lets through, what it stops, and what it says of both."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foveal.exporting.gate_images import GateImages, Sample
from foveal.exporting.parity import Answers, Limits, check_image_input, judge
from foveal.exporting.parity_facts import Parity
from foveal.metrics import wilson_interval

CLASSES = ("a", "b", "c")
FP32 = Limits("fp32", tolerance=1e-4, int8_points=1.0)
INT8 = Limits("int8", tolerance=1e-4, int8_points=1.0)
NUM = 200


def images(labels: np.ndarray, splits: tuple[str, ...] | None = None, learnt: np.ndarray | None = None) -> GateImages:
    return GateImages(
        samples=[Sample(Path(f"{at}.png")) for at in range(len(labels))],
        labels=labels,
        splits=splits or ("test",) * len(labels),
        groups=None,
        learnt=np.zeros(len(labels), dtype=bool) if learnt is None else learnt,
    )


def one_hot(classes: np.ndarray, top: float = 0.9) -> np.ndarray:
    rows = np.full((len(classes), len(CLASSES)), (1 - top) / 2)
    rows[np.arange(len(classes)), classes] = top
    return rows


def judged(
    bundle: np.ndarray, file: np.ndarray, chosen: GateImages | None, limits: Limits = FP32, **more: object
) -> Parity:
    answers = Answers(np.arange(len(bundle)), bundle, file, 0, ())
    return judge(
        replace(answers, **more), CLASSES, limits, names=[f"{at}.png" for at in range(len(bundle))], images=chosen,
        image_input=None,
    )  # fmt: skip


@pytest.fixture
def labels() -> np.ndarray:
    return np.arange(NUM) % 3


def test_equal_answers_pass_and_both_accuracies_are_told(labels: np.ndarray) -> None:
    said = labels.copy()
    said[:20] = (said[:20] + 1) % 3
    parity = judged(one_hot(said), one_hot(said), images(labels))
    assert parity.passed
    assert not parity.problems
    assert parity.agreement.count == NUM
    assert parity.agreement.interval == pytest.approx(wilson_interval(NUM, NUM))
    assert parity.accuracy is not None
    assert parity.accuracy.bundle == parity.accuracy.file == pytest.approx(0.9)
    assert parity.accuracy.bundle_interval is not None
    low, high = parity.accuracy.bundle_interval
    assert low < 0.9 < high
    assert parity.lost_points == 0.0
    assert "cannot be told apart" in parity.paired_sentence
    by_class = {each.name: each for each in parity.classes}
    for place, name in enumerate(CLASSES):
        inside = labels == place
        assert by_class[name].num_images == inside.sum()
        assert by_class[name].file == pytest.approx((said == labels)[inside].mean())


def test_one_image_of_another_class_stops_fp32_and_is_named(labels: np.ndarray) -> None:
    other = labels.copy()
    other[17] = (other[17] + 1) % 3
    parity = judged(one_hot(labels), one_hot(other), images(labels))
    assert not parity.passed
    assert "1 of 200 image gets another class" in parity.problems[0]
    (found,) = parity.disagreements
    assert (found.path, found.label, found.is_tie) == ("17.png", CLASSES[labels[17]], False)
    assert (found.bundle.predicted, found.file.predicted) == (CLASSES[labels[17]], CLASSES[other[17]])
    assert judged(one_hot(labels), one_hot(other), images(labels), INT8).passed  # half a point, and one is allowed


def test_a_tie_within_the_tolerance_agrees_and_is_reported(labels: np.ndarray) -> None:
    bundle, file = one_hot(labels), one_hot(labels)
    bundle[3], file[3] = (0.40001, 0.4, 0.19999), (0.4, 0.40001, 0.19999)
    parity = judged(bundle, file, images(labels))
    assert parity.passed
    assert (parity.agreement.count, parity.agreement.num_ties, parity.num_disagreements) == (NUM, 1, 1)
    assert parity.disagreements[0].is_tie
    file[3] = (0.4, 0.4004, 0.1996)
    assert not judged(bundle, file, images(labels)).passed


@pytest.mark.parametrize(("step", "passes"), [(0.9e-4, True), (1.1e-4, False)])
def test_probabilities_may_differ_by_the_tolerance_and_no_more(labels: np.ndarray, step: float, passes: bool) -> None:
    file = one_hot(labels)
    file[5] += (step, -step, 0.0)
    parity = judged(one_hot(labels), file, images(labels))
    assert parity.passed is passes
    assert parity.max_difference == pytest.approx(step)


def test_probabilities_that_are_no_numbers_stop_either(labels: np.ndarray) -> None:
    file = one_hot(labels)
    file[0] = np.nan
    for limits in (FP32, INT8):
        parity = judged(one_hot(labels), file, images(labels), limits)
        assert not parity.passed
        assert "no numbers" in " ".join(parity.problems)
        parity.model_dump_json()  # no NaN in what is written


@pytest.mark.parametrize(("num_wrong", "passes"), [(2, True), (3, False)])
def test_int8_may_lose_one_point_of_accuracy_and_no_more(labels: np.ndarray, num_wrong: int, passes: bool) -> None:
    other = labels.copy()
    other[:num_wrong] = (other[:num_wrong] + 1) % 3
    parity = judged(one_hot(labels), one_hot(other, 0.7), images(labels), INT8)
    assert parity.passed is passes
    assert parity.lost_points == pytest.approx(100 * num_wrong / NUM)
    if not passes:
        assert "1.50 percentage points" in parity.problems[0]


def test_int8_may_gain_and_needs_labels(labels: np.ndarray) -> None:
    bad = (labels + 1) % 3
    assert judged(one_hot(bad), one_hot(labels), images(labels), INT8).passed
    assert not judged(one_hot(labels), one_hot(labels), None, INT8).passed
    noise = judged(one_hot(labels), one_hot(labels), None)
    assert noise.passed
    assert not noise.is_real
    assert noise.accuracy is None


def test_each_split_is_told_with_what_the_model_knows_of_it(labels: np.ndarray) -> None:
    splits = ("test",) * 100 + ("val",) * 60 + ("train",) * 40
    said = labels.copy()
    said[:100:2] = (said[:100:2] + 1) % 3
    learnt = np.array([split == "train" for split in splits])
    learnt[0] = True
    parity = judged(one_hot(said), one_hot(said), images(labels, splits, learnt))
    found = {each.split: each for each in parity.splits}
    assert [each.num_images for each in parity.splits] == [100, 60, 40]
    assert found["test"].file == pytest.approx(0.5)
    assert found["train"].file == 1.0
    assert found["train"].seen == "trained on"
    assert "chosen and calibrated" in found["val"].seen
    assert found["test"].seen == "1 of 100 have the very bytes of a training image"
    unknown = judged(one_hot(said), one_hot(said), replace(images(labels), learnt=None))
    assert unknown.splits[0].num_learnt is None
    assert "not known" in unknown.splits[0].seen


def test_an_image_that_one_of_them_cannot_read_and_no_image_at_all_stop_it(labels: np.ndarray) -> None:
    problem = ("x.png: the file alone cannot read it: cut off",)
    assert judged(one_hot(labels), one_hot(labels), images(labels), problems=problem).problems == problem
    nothing = np.empty((0, 3))
    parity = judged(nothing, nothing, images(labels), num_unreadable=NUM)
    assert not parity.passed
    assert "could be read" in parity.problems[0]


def test_a_resize_of_its_own_stops_it(labels: np.ndarray) -> None:
    pixels = [np.full((4, 5, 3), value, dtype=np.uint8) for value in (10, 200)]

    def run(feeds: dict[str, np.ndarray]) -> np.ndarray:
        value = float(feeds["image"].mean()) if feeds["image"].size else float(feeds["square"].mean())
        return np.array([[value / 255, 1 - value / 255]])

    def feeds(image: np.ndarray, shift: int) -> dict[str, np.ndarray]:
        return {"square": image[None, :4, :4] + np.uint8(shift), "image": np.zeros((0, 1, 1, 3), np.uint8)}

    same = check_image_input(run, lambda image: feeds(image, 0), pixels)
    assert (same.num_images, same.max_difference) == (2, 0.0)
    other = check_image_input(run, lambda image: feeds(image, 1), pixels)
    assert other.max_difference == pytest.approx(1 / 255)
    answers = Answers(np.arange(NUM), one_hot(labels), one_hot(labels), 0, ())
    for check, passes in ((same, True), (other, False)):
        parity = judge(answers, CLASSES, FP32, names=["x"] * NUM, images=images(labels), image_input=check)
        assert parity.passed is passes

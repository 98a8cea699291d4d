"""Warnings of a training: each is raised by figures that show it, once, and healthy ones stay silent."""

import json
import math
from typing import Any

import numpy as np
import pytest

from foveal.training.watch import LEAST_EPOCHS, Watch

NAMES = ("ants", "bees", "wasps")
CHANCE = math.log(3)


def row(epoch: int, train_loss: float, val_loss: float, train_accuracy: float = 0.5) -> dict[str, Any]:
    figures = {"epoch": epoch, "train_loss": train_loss, "val_loss": val_loss, "train_accuracy": train_accuracy}
    return {**figures, "val_accuracy": 0.5, "val_top_3_accuracy": None}


def confusion(accuracy: float, num_images: int = 300) -> np.ndarray:
    """Three classes of the same size, the wrong answers spread over the others."""
    each = num_images // 3
    matrix = np.full((3, 3), round(each * (1.0 - accuracy) / 2.0))
    np.fill_diagonal(matrix, each - matrix.sum(axis=1) + np.diag(matrix))
    return matrix


ALL_BEES = np.array([[0, 100, 0], [0, 100, 0], [0, 100, 0]])


def told(watch: Watch, rows: list[dict[str, Any]], *matrices: np.ndarray) -> list[list[str]]:
    """What is said after each epoch; the last matrix holds on."""
    places = [min(i, len(matrices) - 1) for i in range(len(rows))]
    return [watch.observe(each, matrices[place], 1 / 3) for each, place in zip(rows, places, strict=True)]


def watch_of(steps_per_epoch: int = 100) -> Watch:
    return Watch(NAMES, steps_per_epoch=steps_per_epoch)


HEALTHY = [row(i + 1, CHANCE * 0.8**i, CHANCE * 0.85**i, 1 - 0.6 * 0.8**i) for i in range(20)]


def test_a_healthy_training_is_left_alone() -> None:
    matrices = [confusion(1 - 0.6 * 0.85**i) for i in range(20)]
    assert told(watch_of(), HEALTHY, *matrices) == [[]] * 20


def test_one_class_for_all_is_named_after_a_while_and_once() -> None:
    said = told(watch_of(), HEALTHY[:8], ALL_BEES)
    assert [len(each) for each in said] == [0, 0, 1, 0, 0, 0, 0, 0]
    assert "taken for 'bees'" in said[2][0]
    assert "33%" in said[2][0]


def test_one_class_at_first_is_no_matter() -> None:
    assert told(watch_of(), HEALTHY[:8], ALL_BEES, ALL_BEES, confusion(0.6)) == [[]] * 8
    # Epochs of a few steps have to be many.
    assert told(watch_of(steps_per_epoch=4), HEALTHY[:9], ALL_BEES) == [[]] * 9
    # Nor where validation holds nothing else.
    assert told(watch_of(), HEALTHY[:8], np.diag([0, 300, 0])) == [[]] * 8


def test_a_loss_that_does_not_fall_is_told() -> None:
    stuck = [row(i + 1, CHANCE + 0.002 * (-1) ** i, CHANCE) for i in range(8)]
    said = [sentence for each in told(watch_of(), stuck, confusion(0.36)) for sentence in each]
    assert len(said) == 1
    assert "the first epoch" in said[0]
    assert f"{CHANCE:.3f}" in said[0]


@pytest.mark.parametrize("start", [0.2 * CHANCE, 0.9 * CHANCE])
def test_a_loss_that_has_nothing_left_to_lose_is_not(start: float) -> None:
    """Good weights begin low; mixed labels keep the loss high though the network has learnt."""
    flat = [row(i + 1, start, 0.3) for i in range(8)]
    assert told(watch_of(), flat, confusion(0.9)) == [[]] * 8


def test_parting_is_told_with_the_epoch_that_it_began_in() -> None:
    rows = [row(i + 1, CHANCE * 0.75**i, CHANCE * (0.8**i if i < 5 else 0.41 + 0.1 * (i - 4))) for i in range(12)]
    said = [sentence for each in told(watch_of(), rows, confusion(0.7)) for sentence in each]
    assert len(said) == 1
    assert "have parted since epoch 5:" in said[0]


def test_a_validation_loss_that_jumps_or_stays_is_no_parting() -> None:
    jumps = [row(i + 1, CHANCE * 0.75**i, CHANCE * (1.5 if i % 3 == 2 else 0.8**i)) for i in range(12)]
    assert told(watch_of(), jumps, confusion(0.7)) == [[]] * 12
    stays = [row(i + 1, CHANCE * 0.75**i, CHANCE * max(0.4, 0.8**i)) for i in range(12)]
    assert told(watch_of(), stays, confusion(0.7)) == [[]] * 12
    # Both rise where the learning rate is too high for a while; that is another matter.
    both = [row(i + 1, CHANCE * (0.5 if i < 3 else 0.7), CHANCE * (0.5 if i < 3 else 0.8)) for i in range(8)]
    assert told(watch_of(), both, confusion(0.7)) == [[]] * 8


def test_validation_labels_that_look_shuffled_are_told() -> None:
    learnt = [row(i + 1, 0.1, CHANCE * 2, train_accuracy=0.97) for i in range(6)]
    said = [sentence for each in told(watch_of(), learnt, confusion(0.34)) for sentence in each]
    assert len(said) == 1
    assert said[0].startswith("The labels of validation look shuffled")
    assert "0.97" in said[0]
    assert "[0.27, 0.41]" in said[0]


def test_few_images_poor_training_or_a_real_result_are_not() -> None:
    learnt = [row(i + 1, 0.1, CHANCE * 2, train_accuracy=0.97) for i in range(6)]
    assert told(watch_of(), learnt, confusion(0.34, num_images=9)) == [[]] * 6  # too few to tell
    assert told(watch_of(), learnt, confusion(0.5)) == [[]] * 6  # poor, but no chance
    poor = [row(i + 1, 0.4 * CHANCE, CHANCE, train_accuracy=0.6) for i in range(6)]
    assert told(watch_of(), poor, confusion(0.34)) == [[]] * 6


def test_a_resumed_training_goes_on_as_if_it_had_not_been_interrupted() -> None:
    whole = told(watch_of(), HEALTHY[:8], ALL_BEES)
    for cut in range(1, 8):
        first = watch_of()
        said = told(first, HEALTHY[:cut], ALL_BEES)
        second = watch_of()
        second.restore(json.loads(json.dumps(first.state())))
        assert said + told(second, HEALTHY[cut:8], ALL_BEES) == whole
    assert sum(map(len, whole)) == 1
    assert LEAST_EPOCHS == 3

import numpy as np
import pytest

from foveal.auditing.wrong_labels import fit_noise, wrong_labels
from foveal.errors import MissingExtraError

NUM_CLASSES = 6


def simulated(spread: float, *, flipped: float, num: int = 2400, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Labels with their truth, and the exact logits of points around the corners of a simplex.

    For Gaussians of one width the logarithm of the posterior is linear in the point, so no model has to be trusted.
    """
    draw = np.random.default_rng(seed)
    truth = np.arange(num) % NUM_CLASSES
    points = np.eye(NUM_CLASSES)[truth] + spread * draw.normal(size=(num, NUM_CLASSES))
    logits = points / spread**2
    labels = truth.copy()
    wrong = draw.choice(num, round(flipped * num), replace=False)
    labels[wrong] = (labels[wrong] + draw.integers(1, NUM_CLASSES, len(wrong))) % NUM_CLASSES
    return labels, truth, logits


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_noise_and_temperature_are_told_apart(sharpness: float) -> None:
    labels, _, logits = simulated(0.55, flipped=0.06)
    noise = fit_noise(labels, logits * sharpness)
    # A random draw hits the right class once in six, and then nobody sees it.
    assert noise.share == pytest.approx(0.06 * NUM_CLASSES / (NUM_CLASSES - 1), rel=0.35)
    assert noise.temperature == pytest.approx(sharpness, rel=0.12)


def test_of_very_many_rows_some_are_enough() -> None:
    labels, _, logits = simulated(0.45, flipped=0.05, num=150_000)
    assert fit_noise(labels, logits).share == pytest.approx(0.06, rel=0.1)


@pytest.mark.parametrize(("spread", "recall", "precision"), [(0.25, 0.97, 0.95), (0.4, 0.65, 0.8), (0.6, 0.1, 0.6)])
def test_wrong_labels_are_found_as_far_as_the_models_can_tell(spread: float, recall: float, precision: float) -> None:
    """Where the classes overlap fewer are found, and what is found stays right."""
    labels, truth, logits = simulated(spread, flipped=0.05)
    suspects = wrong_labels(labels, logits)
    places = np.array([suspect.place for suspect in suspects])
    hits = labels[places] != truth[places]
    assert hits.mean() >= precision
    assert hits.sum() >= recall * (labels != truth).sum()
    suggested = np.array([suspect.suggested for suspect in suspects])
    assert (suggested == truth[places])[hits].mean() > 0.8
    assert (suggested != labels[places]).all()
    given = [suspect.given_probability for suspect in suspects]
    assert given == sorted(given)


@pytest.mark.parametrize("spread", [0.25, 0.4, 0.6])
def test_right_labels_of_hard_classes_are_left_alone(spread: float) -> None:
    labels, _, logits = simulated(spread, flipped=0.0, seed=1)
    assert len(wrong_labels(labels, logits)) <= 2


def test_models_that_learnt_nothing_accuse_nobody() -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(600) % 3
    assert len(wrong_labels(labels, draw.normal(size=(600, 3)))) <= 1


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    labels, _, logits = simulated(0.4, flipped=0.05, num=300)
    wrong_labels(labels, logits)
    assert capfd.readouterr() == ("", "")


def test_without_cleanlab_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveal.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="cleanlab") as caught:
        wrong_labels(np.array([0, 1]), np.eye(2))
    assert "foveal[labels]" in caught.value.fix

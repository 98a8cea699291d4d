"""Losses against torch and scikit-learn, and what they do to a class of which there is little."""

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional

from foveal.data.batches import TrainingBatches
from foveal.errors import ConfigError
from foveal.training.config import TrainConfig
from foveal.training.losses import Criterion, balanced_weights, effective_weights, make_criterion, weighted_mean

NAMES = ("a", "b", "c", "d")
COUNTS = np.array([90, 9, 1, 30])
GIVEN = {"a": 0.5, "b": 2.0, "c": 7.0, "d": 0.0}


def drawn(num_images: int = 37, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, hard and soft targets."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3.0 * torch.randn(num_images, 4, generator=generator)
    hard = torch.randint(0, 4, (num_images,), generator=generator)
    return logits, hard, torch.rand(num_images, 4, generator=generator).softmax(dim=1)


def mean_of(criterion: Criterion, logits: torch.Tensor, targets: torch.Tensor, num_parts: int = 1) -> torch.Tensor:
    parts = list(zip(logits.tensor_split(num_parts), targets.tensor_split(num_parts), strict=True))
    loss_sum = sum(criterion(*part).sum() for part in parts)
    weight_sum = sum(criterion.weights(part[1]).sum() for part in parts)
    return weighted_mean(torch.as_tensor(loss_sum), torch.as_tensor(weight_sum))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", ["none", "balanced", "effective", GIVEN])
@pytest.mark.parametrize("num_images", [1, 37])
def test_cross_entropy_is_torchs_in_value_and_slope(num_images: int, weights: object, smoothing: float) -> None:
    config = TrainConfig(class_weights=weights, label_smoothing=smoothing)  # type: ignore[arg-type]
    criterion = make_criterion(config, NAMES, COUNTS)
    logits, hard, soft = drawn(num_images)
    reference = {
        kind: nn.CrossEntropyLoss(weight=criterion.class_weights, label_smoothing=smoothing, reduction=kind)
        for kind in ("none", "mean", "sum")
    }
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    for mean, expected in (
        (mean_of(criterion, ours, hard, num_parts=3), reference["mean"](theirs, hard)),
        # torch divides by the images where targets are soft; by what the targets count it must be the same.
        (mean_of(criterion, ours, soft, 3), reference["sum"](theirs, soft) / criterion.weights(soft).sum()),
    ):
        torch.testing.assert_close(mean, expected, atol=1e-6, rtol=1e-6)
        slopes = torch.autograd.grad(mean, ours) + torch.autograd.grad(expected, theirs)
        torch.testing.assert_close(*slopes, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(criterion(logits, soft), reference["none"](logits, soft))
    if weights == "none":
        torch.testing.assert_close(mean_of(criterion, logits, soft), reference["mean"](logits, soft))


@pytest.mark.parametrize("config", [TrainConfig(), TrainConfig(loss="focal", focal_gamma=1.5)])
def test_a_soft_target_of_one_class_is_the_hard_one(config: TrainConfig) -> None:
    criterion = make_criterion(
        config.model_copy(update={"class_weights": "balanced", "label_smoothing": 0.1}), NAMES, COUNTS
    )
    logits, hard, _ = drawn()
    one_hot = functional.one_hot(hard, 4).float()
    torch.testing.assert_close(criterion(logits, one_hot), criterion(logits, hard))
    torch.testing.assert_close(criterion.weights(one_hot), criterion.weights(hard))
    # What mixup's authors write: the two labels' losses by their shares.
    mixed = 0.3 * one_hot + 0.7 * one_hot.roll(1, 0)
    torch.testing.assert_close(
        criterion(logits, mixed), 0.3 * criterion(logits, hard) + 0.7 * criterion(logits, hard.roll(1))
    )


def test_focal_loss_is_its_papers_and_cross_entropy_without_gamma() -> None:
    logits, hard, soft = drawn()
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0])
    p = logits.double().softmax(1)[torch.arange(37), hard]
    expected = -weights[hard] * (1 - p) ** 2 * p.log()
    torch.testing.assert_close(Criterion(weights, focal_gamma=2.0)(logits, hard), expected.float())
    for targets in (hard, soft):
        plain, focal = (Criterion(weights, label_smoothing=0.1, focal_gamma=gamma) for gamma in (None, 0.0))
        torch.testing.assert_close(focal(logits, targets), plain(logits, targets), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.001, 0.5, 1.0, 2.0, 5.0])
def test_the_slope_of_the_focal_loss_is_finite_where_an_image_is_certain(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0], [16.0, 0.0], [0.0, 0.0]], requires_grad=True)
    Criterion(focal_gamma=gamma)(logits, torch.tensor([0, 0, 0, 0])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[1].abs().sum() > 1.9, "what is certainly wrong is pulled at full strength"
    assert logits.grad[0].abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("gamma", [None, 2.0])
def test_it_is_computed_in_float32_whatever_comes_in(dtype: torch.dtype, gamma: float | None) -> None:
    logits, hard, soft = drawn()
    criterion = Criterion(torch.tensor([0.3, 1.0, 3.0, 2.0]), focal_gamma=gamma)
    logits = logits.to(dtype)
    for targets in (hard, soft.to(dtype)):
        with torch.autocast("cpu", torch.bfloat16):
            losses, weights = criterion(logits, targets), criterion.weights(targets)
        assert losses.dtype == weights.dtype == torch.float32
        wide = targets.float() if targets.is_floating_point() else targets
        torch.testing.assert_close(losses, criterion(logits.float(), wide), atol=0, rtol=0)


def test_balanced_weights_are_scikit_learns() -> None:
    labels = np.repeat(np.arange(4), COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(balanced_weights(COUNTS), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("counts", "beta"), [([90, 9, 1], 0.99), ([200_000, 5_000, 20], 0.9999), ([3_000, 3], 3002 / 3003)]
)
def test_effective_weights_are_the_papers(counts: list[int], beta: float) -> None:
    of_each = np.array(counts)
    weights = effective_weights(of_each)
    expected = (1 - beta) / (1 - beta ** of_each.astype(float))
    np.testing.assert_allclose(weights / weights.sum(), expected / expected.sum(), rtol=1e-6)
    assert (weights * of_each).sum() == pytest.approx(of_each.sum())
    assert 1 < weights[-1] / weights[0] < of_each[0] / of_each[-1], "milder than inverse frequency"


@pytest.mark.parametrize("make", [balanced_weights, effective_weights])
@pytest.mark.parametrize("counts", [[8, 0, 2], [0, 0, 0], [1, 0, 0], [1], [5, 5, 5]])
def test_a_class_without_images_counts_one_and_nothing_is_infinite(make: object, counts: list[int]) -> None:
    of_each = np.array(counts)
    weights = make(of_each)  # type: ignore[operator]
    assert np.isfinite(weights).all()
    assert (weights > 0).all()
    assert (weights[of_each == 0] == 1).all()
    present = of_each > 0
    np.testing.assert_allclose(weights[present], make(of_each[present]))  # type: ignore[operator]


def test_given_weights_follow_the_names_not_the_order() -> None:
    criterion = make_criterion(TrainConfig(class_weights=dict(reversed(GIVEN.items()))), NAMES, COUNTS)
    assert criterion.weights(torch.arange(4)).tolist() == list(GIVEN.values())
    loss_sum = criterion(*drawn()[:2])[drawn()[1] == 3].sum()
    assert float(loss_sum) == 0, "a class of weight 0 teaches nothing"


def test_all_that_is_wrong_with_given_weights_is_said_at_once() -> None:
    wish = {"cats": 1.0, "dog": 1.5, "zebra": 2.0}
    with pytest.raises(ConfigError, match=r"train\.class_weights") as caught:
        make_criterion(TrainConfig(class_weights=wish), ("cat", "dog", "eel"), np.array([4, 4, 4]))
    problems = "\n".join(caught.value.problems)
    assert "no class is called 'cats'; did you mean 'cat'?" in problems
    assert "no class is called 'zebra'" in problems
    assert "'cat' has no weight" in problems
    assert "'eel' has no weight" in problems
    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigError, match="nothing would be learnt"):
        make_criterion(TrainConfig(class_weights={"cat": 0.0, "dog": 3.0}), ("cat", "dog"), np.array([4, 0]))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_batch_of_which_nothing_counts_has_loss_and_slope_zero(smoothing: float) -> None:
    criterion = Criterion(torch.tensor([0.0, 1.0]), label_smoothing=smoothing)
    logits = torch.randn(5, 2, requires_grad=True)
    mean = mean_of(criterion, logits, torch.zeros(5, dtype=torch.int64))
    mean.backward()
    assert logits.grad is not None
    assert mean.item() == logits.grad.abs().sum().item() == 0.0


class Points:
    """A source of one-pixel images that overlap: a tenth of them are of the second class, a little lighter."""

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.labels = (np.arange(600) % 10 == 0).astype(np.int64)
        self.pixels = draw.normal(115 + 24 * self.labels[:, None], 20, (600, 3)).clip(0, 255).astype(np.uint8)

    def __len__(self) -> int:
        return 600

    def __getitem__(self, row: int) -> np.ndarray:
        return self.pixels[row][None, None]


def tried(config: TrainConfig) -> tuple[float, float, float]:
    """Recall of either class and mean largest probability on new points, after a training of a linear model."""
    source, new = Points(seed=3), Points(seed=4)
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.04)
    criterion = make_criterion(config, ("many", "few"), np.bincount(source.labels))
    batches = TrainingBatches(
        source, np.arange(600), source.labels, side_px=1, batch_size=60, seed=0, sampling=config.sampling
    )

    def unit(images: torch.Tensor) -> torch.Tensor:
        return (images.flatten(1).float() - 115) / 25

    for epoch in range(15):
        for batch in batches.epoch(epoch):
            loss = mean_of(criterion, model(unit(batch.images)), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    largest, predicted = model(unit(torch.from_numpy(new.pixels))).softmax(1).max(1)
    many, few = recall_score(new.labels, predicted.numpy(), average=None)
    return float(many), float(few), largest.mean().item()


def test_each_means_against_imbalance_raises_the_recall_of_the_rare_class() -> None:
    many, few, _ = tried(TrainConfig())
    assert few < 0.5 < 0.95 < many
    for wish in (
        {"class_weights": "balanced"},
        {"class_weights": "effective"},
        {"class_weights": {"many": 1.0, "few": 9.0}},
        {"sampling": "balanced"},
    ):
        now_many, now_few, _ = tried(TrainConfig.model_validate(wish))
        assert now_few > few + 0.3, wish
        assert many > now_many > 0.8, wish


def test_with_focal_loss_easy_images_count_less_and_the_model_grows_less_sure() -> None:
    # Alone it does not move the border between two classes: at equal odds it is as steep for either.
    sure = [tried(TrainConfig(loss="focal", focal_gamma=gamma))[2] for gamma in (0.0, 2.0, 5.0)]
    assert sure[0] > sure[1] + 0.05 > sure[2] + 0.1
    logits = torch.tensor([[4.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    slopes = {}
    for gamma in (0.0, 2.0):
        (slope,) = torch.autograd.grad(Criterion(focal_gamma=gamma)(logits, torch.tensor([0, 0])).sum(), logits)
        slopes[gamma] = slope.abs().sum(dim=1)
    assert slopes[2.0][0] / slopes[0.0][0] < 0.01, "what is easy"
    assert slopes[2.0][1] / slopes[0.0][1] > 0.5, "what is hard"

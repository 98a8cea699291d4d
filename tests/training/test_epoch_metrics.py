"""Running figures of an epoch against scikit-learn on everything at once."""

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch.nn import functional

from foveal.training.epoch_metrics import RunningMetrics


def drawn(num_images: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, num_classes, (num_images,), generator=generator)
    logits = torch.randn(num_images, num_classes, generator=generator)
    logits[torch.arange(num_images), labels] += 1.0
    return logits, labels


@pytest.mark.parametrize("num_classes", [2, 3, 4, 7])
def test_the_row_of_an_epoch_is_scikit_learns(num_classes: int) -> None:
    logits, labels = drawn(101, num_classes)
    running = RunningMetrics(num_classes, torch.device("cpu"))
    for part in torch.arange(101).split(16):
        running.update(logits[part], labels[part])
    predicted = logits.argmax(1).numpy()
    expected = {
        "val_loss": float(functional.cross_entropy(logits.double(), labels)),
        "val_accuracy": reference.accuracy_score(labels, predicted),
        "val_balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "val_macro_f1": reference.f1_score(labels, predicted, average="macro"),
        "val_macro_precision": reference.precision_score(labels, predicted, average="macro", zero_division=0),
        "val_macro_recall": reference.recall_score(labels, predicted, average="macro"),
    }
    if num_classes > 3:
        expected["val_top_3_accuracy"] = reference.top_k_accuracy_score(
            labels, logits.numpy(), k=3, labels=np.arange(num_classes)
        )
    row = running.row("val_")
    assert row.keys() == expected.keys()
    assert row.pop("val_loss") == pytest.approx(expected.pop("val_loss"), abs=1e-6)
    assert row == pytest.approx(expected, abs=1e-12)


def test_a_stated_loss_is_averaged_over_the_images_not_over_the_batches() -> None:
    running = RunningMetrics(3, torch.device("cpu"))
    logits, labels = drawn(10, 3)
    running.update(logits[:8], labels[:8], torch.tensor(1.0))
    running.update(logits[8:], labels[8:], torch.tensor(6.0))
    assert running.row("train_")["train_loss"] == pytest.approx(2.0)


def test_going_on_from_a_saved_state_changes_nothing() -> None:
    logits, labels = drawn(50, 5)
    whole, first, second = (RunningMetrics(5, torch.device("cpu")) for _ in range(3))
    whole.update(logits[:20], labels[:20])
    first.update(logits[:20], labels[:20])
    second.restore(first.state())
    for running in (whole, second):
        running.update(logits[20:], labels[20:])
    assert second.row("") == whole.row("")


def test_of_no_images_there_is_no_row() -> None:
    assert RunningMetrics(3, torch.device("cpu")).row("val_") == {}


def test_mixed_images_count_as_of_the_class_with_the_largest_share() -> None:
    logits, labels = drawn(60, 5)
    shares = torch.full((60, 5), 0.1)
    shares[torch.arange(60), labels] = 0.6
    soft, hard = (RunningMetrics(5, torch.device("cpu")) for _ in range(2))
    soft.update(logits, shares)
    hard.update(logits, labels)
    row, expected = soft.row(""), hard.row("")
    reference_loss = -(shares * logits.log_softmax(1)).sum(1).mean()
    assert row.pop("loss") == pytest.approx(float(reference_loss), abs=1e-6)
    expected.pop("loss")
    assert row == expected


def test_a_weighted_loss_is_the_sum_of_losses_by_the_sum_of_weights() -> None:
    logits, labels = drawn(50, 3)
    class_weights = torch.tensor([0.2, 1.0, 5.0])
    running = RunningMetrics(3, torch.device("cpu"))
    for part in torch.arange(50).split(12):
        weighted = functional.cross_entropy(logits[part], labels[part], class_weights)
        running.update(logits[part], labels[part], weighted, class_weights[labels[part]].sum())
    expected = functional.cross_entropy(logits, labels, class_weights)
    assert running.row("")["loss"] == pytest.approx(float(expected), rel=1e-6)
    nothing = RunningMetrics(3, torch.device("cpu"))
    nothing.update(logits, labels, torch.tensor(0.0), torch.tensor(0.0))
    assert nothing.row("")["loss"] == 0.0


def test_processes_together_have_the_figures_of_one() -> None:
    logits, labels = drawn(50, 5)
    whole = RunningMetrics(5, torch.device("cpu"))
    whole.update(logits, labels)
    ranks = [RunningMetrics(5, torch.device("cpu")) for _ in range(3)]
    for rank, running in enumerate(ranks):
        running.update(logits[rank::3], labels[rank::3])
    own = ranks[0].row("")
    gathered = zip(*(running.state().values() for running in ranks), strict=True)
    totals = iter([torch.stack(states).sum(0) for states in gathered])

    def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(next(totals))

    together = ranks[0].reduce(all_reduce)
    assert together.row("") == pytest.approx(whole.row(""), abs=1e-6)
    assert ranks[0].row("") == own, "what is reduced for a checkpoint within an epoch goes on by itself"
    assert whole.reduce(lambda tensor: tensor).row("") == whole.row("")

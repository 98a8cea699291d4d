"""The verdict in words must say what the numbers say."""

from collections.abc import Callable

import numpy as np
import pytest

from foveal.files import write_text
from foveal.metrics import SplitMetrics, softmax, summarise
from foveal.report.contents import read_run
from foveal.report.numbers import counted, duration, fine, percent
from foveal.report.words import Finding, confused_pairs, findings, headline
from foveal.run_folder import RunFolder

from .simulated_run import write_evaluation

SmallRun = Callable[..., RunFolder]


def said(run: RunFolder) -> dict[str, Finding]:
    return {finding.topic: finding for finding in findings(read_run(run))}


def replace_split(
    run: RunFolder, split: str, predicted: Callable[[np.ndarray], np.ndarray], claim: float = 0.9, **options: object
) -> SplitMetrics:
    """Let the model answer `predicted(labels)`, always with the probability `claim`."""
    manifest = read_run(run).manifest
    rows = manifest.of_split(split)
    labels, num_classes = manifest.take(rows).label_ids(), len(manifest.class_names)
    probabilities = np.full((len(labels), num_classes), (1 - claim) / (num_classes - 1))
    probabilities[np.arange(len(labels)), predicted(labels)] = claim
    metrics = summarise(
        labels, np.log(probabilities), class_names=manifest.class_names, split=split, num_resamples=200, **options
    )
    write_evaluation(run, manifest, rows, metrics, softmax(np.log(probabilities)), with_plots=False)
    return metrics


def test_a_good_run(small_run: SmallRun) -> None:
    run = small_run(sharpness=5.0)
    metrics = SplitMetrics.read(run.evaluation("test") / "metrics.json")
    head = headline(read_run(run))
    assert f"{head.value} {head.interval} {head.text}" == metrics.sentence()
    found = said(run)
    assert found["Against guessing"].level == "good"
    assert found["Leakage"].level == "good"
    assert "No copies of training images were found in test, and no declared group" in found["Leakage"].text
    assert "Near duplicates (resized, cropped or saved again) were not searched for." in found["Leakage"].text
    assert found["Looks at test"].text == "The test split has been looked at one time."
    assert found["Files"].text == "All 120 samples could be used."
    assert "Warning" not in found


def test_guessing_is_called_guessing(small_run: SmallRun) -> None:
    run = small_run()
    replace_split(run, "test", lambda labels: np.zeros_like(labels))
    finding = said(run)["Against guessing"]
    assert finding.level == "caution"
    assert "cannot be told apart from guessing" in finding.text
    replace_split(run, "test", lambda labels: (labels + 1) % 3)
    assert "worse than naming the largest class" in said(run)["Against guessing"].text


def test_overfitting_and_its_absence(small_run: SmallRun) -> None:
    run = small_run(num_each=80)
    replace_split(run, "train", lambda labels: labels)
    replace_split(run, "test", lambda labels: np.where(np.arange(len(labels)) % 3, labels, (labels + 1) % 3))
    finding = said(run)["Training against test"]
    assert finding.level == "caution"
    assert finding.text.startswith("The model overfits: accuracy is 1.00 on training images, 0.6")
    replace_split(run, "test", lambda labels: labels)
    assert said(run)["Training against test"].level == "good"


def test_probabilities_are_set_against_what_is_right(small_run: SmallRun) -> None:
    run = small_run(num_each=80)
    replace_split(run, "test", lambda labels: (labels + (np.arange(len(labels)) % 2)) % 3, claim=0.97)
    assert said(run)["Probabilities"].level == "caution"
    assert "too sure of itself" in said(run)["Probabilities"].text
    replace_split(run, "test", lambda labels: (labels + (np.arange(len(labels)) % 2)) % 3, claim=0.51)
    assert said(run)["Probabilities"].level == "good"
    replace_split(run, "test", lambda labels: labels, claim=0.51)
    assert "too careful" in said(run)["Probabilities"].text
    assert "as far as" not in said(run)["Probabilities"].text
    replace_split(run, "test", lambda labels: labels, claim=0.51, temperature=20.0)
    assert said(run)["Probabilities"].level == "caution"
    assert "20 is as far as a temperature goes" in said(run)["Probabilities"].text


def test_leakage_looks_warnings_and_quarantine_are_said(small_run: SmallRun) -> None:
    status = ["ok"] * 120
    status[3] = status[50] = status[90] = "quarantined"
    reason = [{3: "the file is empty", 50: "the file is empty", 90: "cut off"}.get(at) for at in range(120)]
    run = small_run(
        num_looks=4, siblings=5, warnings=["the store is full", "the store is full"], status=status, reason=reason
    )
    found = said(run)
    metrics = SplitMetrics.read(run.evaluation("test") / "metrics.json")
    assert metrics.leakage is not None
    assert found["Leakage"].text.startswith("5 test images are copies of training images or of their groups")
    without = metrics.leakage.accuracy_without_them
    assert without is not None
    assert f"without a copy in training it is {without:.2f}" in found["Leakage"].text
    assert "looked at 4 times" in found["Looks at test"].text
    assert found["Warning"].text == "the store is full (2 times)"
    assert found["Files"].text == (
        "3 of 120 samples could not be used and took no part: the file is empty: 2; cut off: 1."
    )
    assert {found[topic].level for topic in ("Leakage", "Looks at test", "Warning", "Files")} == {"caution"}


def test_imbalance_is_judged_by_training(small_run: SmallRun) -> None:
    labels = ["ape"] * 100 + ["bee"] * 12 + ["cat"] * 8
    run = small_run(num_each=40)
    assert "similar size" in said(run)["Balance"].text
    manifest = read_run(run).manifest.with_columns(label=labels)
    manifest.write(run.manifest)
    share = (np.array(labels)[manifest.of_split("train")] == "ape").mean()
    assert f"“ape” has {100 * share:.0f}\N{NO-BREAK SPACE}% of the images" in said(run)["Balance"].text


def test_without_a_test_split_it_says_so(small_run: SmallRun) -> None:
    run = small_run(splits=("train", "val"))
    assert "validation image" in headline(read_run(run)).text
    assert "chose the epoch" in said(run)["No test split"].text
    nothing = small_run(splits=())
    for split in ("train", "val"):
        (nothing.evaluation(split) / "metrics.json").unlink()
    assert said(nothing)["Evaluation"].level == "caution"


def test_the_weakest_class_in_images(small_run: SmallRun) -> None:
    run = small_run(num_each=100)
    metrics = replace_split(run, "test", lambda labels: np.where(labels == 1, 2, labels))
    finding = said(run)["Weakest class"]
    assert finding.level == "caution"
    assert finding.text.startswith(f"“bee” is found least often: 0 of {metrics.per_class[1].support} test images (0")


def test_the_kept_epoch_is_the_one_that_training_keeps(small_run: SmallRun) -> None:
    run = small_run(splits=())
    write_text(run.metrics, "epoch,val_macro_f1,val_loss\n1,0.8,0.5\n2,0.9,0.4\n3,0.9,0.3\n4,nan,nan\n5,0.7,0.2\n")
    assert read_run(run).best_epoch == 5
    config = run.config.read_text(encoding="utf-8")
    write_text(run.config, config.replace("monitor: val_loss", "monitor: val_macro_f1"))
    assert read_run(run).best_epoch == 3


def test_confused_pairs_are_the_largest_cells() -> None:
    labels, predicted = [0] * 10 + [1] * 5 + [2] * 4, [0] * 7 + [1] * 3 + [1] * 2 + [2] * 3 + [2] * 3 + [0]
    logits = np.eye(3)[predicted] * 4
    metrics = summarise(labels, logits, class_names=["a", "b", "c"], split="test", num_resamples=20)
    pairs = [(pair.true, pair.predicted, pair.times, pair.support, pair.rate) for pair in confused_pairs(metrics)]
    # Of two cells with 3, the one that is the larger share of its class comes first.
    assert pairs == [("b", "c", 3, 5, "60\xa0%"), ("a", "b", 3, 10, "30\xa0%"), ("c", "a", 1, 4, "25\xa0%")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (percent(0.0), "0\xa0%"),
        (percent(0.004), "<1\xa0%"),
        (percent(0.998), ">99\xa0%"),
        (percent(1.0), "100\xa0%"),
        (fine(0.99996), "0.9999"),
        (fine(1.0), "1.000"),
        (fine(None), "–"),
        (counted(1, "image"), "1 image"),
        (counted(2062, "class", "classes"), "2,062 classes"),
        (duration(0.0118), "12 ms"),
        (duration(59.7), "1 min 0 s"),
        (duration(3599.9), "1 h 0 min"),
        (duration(7325), "2 h 2 min"),
    ],
)
def test_numbers_never_round_to_what_is_not_true(text: str, expected: str) -> None:
    assert text == expected

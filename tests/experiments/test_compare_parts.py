"""Parts of a comparison by themselves: which images are the same, what is timed, and what a joule counter says."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from foveal.data.manifest import Manifest
from foveal.errors import DataError
from foveal.experiments.compare import costs as compare_costs
from foveal.experiments.compare.answers import Answers, align
from foveal.experiments.compare.comparison import pareto_front
from foveal.experiments.compare.costs import energy_meter, measure_speed, training_seconds
from foveal.files import write_json
from foveal.inference import Predictor
from foveal.metrics import summarise
from foveal.progress import Silence


def answers(
    rows: Sequence[tuple[str, str, str, tuple[int, int, int, int] | None]], classes: Sequence[str], told: Sequence[str],
    groups: Sequence[int] | None = None,
) -> Answers:  # fmt: skip
    """What a model says: path, label, sha256 and box of each image, and the class that it takes it for."""
    names = ("xmin", "ymin", "xmax", "ymax")
    boxes = {name: [None if row[3] is None else row[3][at] for row in rows] for at, name in enumerate(names)}
    manifest = Manifest.build(
        Path("/images"), path=[row[0] for row in rows], label=[row[1] for row in rows],
        sha256=[row[2] for row in rows], class_names=classes, **boxes,
    )  # fmt: skip
    probabilities = np.full((len(rows), len(classes)), 0.1 / (len(classes) - 1))
    probabilities[range(len(rows)), [classes.index(name) for name in told]] = 0.9
    labels = [classes.index(row[1]) for row in rows]
    metrics = summarise(labels, np.log(probabilities), class_names=list(classes), split="test")
    return Answers(metrics, manifest, probabilities, None if groups is None else np.array(groups), None, is_new=False)


def test_images_are_matched_by_bytes_and_box_whatever_their_order_names_and_classes() -> None:
    left, right = (0, 0, 5, 5), (5, 0, 9, 9)
    first = answers(
        [
            ("a/1.png", "a", "s1", None),
            ("a/2.png", "a", "s2", left),
            ("b/3", "b", "s2", right),
            ("b/4", "b", "s4", None),
        ],
        ["a", "b"],
        ["a", "b", "b", "a"],
        groups=[0, 1, 1, 2],
    )
    second = answers(
        [("x/4", "b", "s4", None), ("x/3", "b", "s2", right), ("y/1", "a", "s1", None), ("y/2", "a", "s2", left)],
        ["c", "b", "a"],
        ["b", "c", "a", "a"],
    )
    found = align({"first": first, "second": second})
    assert found.class_names == ("a", "b", "c")
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.right("first").tolist() == [True, False, True, False]
    assert found.right("second").tolist() == [True, True, False, True]
    np.testing.assert_allclose(found.probabilities["second"][2], [0.05, 0.05, 0.9])
    np.testing.assert_allclose(found.probabilities["first"][:, 2], 0.0)  # a class that it does not know
    assert found.groups is not None
    assert found.groups[1] == found.groups[2]
    assert len(set(found.groups.tolist())) == 3
    assert found.paths()[0] == Path("/images/a/1.png")


def test_copies_of_one_image_have_one_partner_each() -> None:
    rows = [("1.png", "a", "same", None), ("2.png", "a", "same", None), ("3.png", "b", "other", None)]
    first = answers(rows, ["a", "b"], ["a", "b", "b"])
    second = answers(rows[::-1], ["a", "b"], ["b", "b", "a"])
    found = align({"first": first, "second": second})
    assert found.right("first").tolist() == found.right("second").tolist() == [True, False, True]
    with pytest.raises(DataError, match="different images") as caught:
        align({"first": first, "one copy": answers(rows[1:], ["a", "b"], ["a", "b"])})
    assert caught.value.problems == ("first on 3 images, one copy on 2; 2 are the same",)


def test_a_slow_network_is_found_slow_and_a_busy_moment_hits_all(tiny_bundle: Path, tmp_path: Path) -> None:
    from PIL import Image

    image = tmp_path / "an image.png"
    Image.new("RGB", (40, 40), "red").save(image)
    predictors = {name: Predictor(tiny_bundle, device="cpu") for name in ("quick", "slow", "third")}
    order: list[str] = []

    def note(name: str, seconds: float) -> None:
        def hook(module: torch.nn.Module, inputs: object) -> None:
            del module, inputs
            order.append(name)
            compare_costs.time.sleep(seconds)

        predictors[name].members[0].classifier.register_forward_pre_hook(hook)

    note("quick", 0.0)
    note("slow", 0.05)
    note("third", 0.0)
    found = measure_speed(predictors, [image, tmp_path / "gone.png"], torch.device("cpu"), Silence())
    slow = found["slow"]
    assert slow.network_ms is not None
    assert slow.latency_ms is not None
    assert 50 <= slow.network_ms[0] <= slow.network_ms[1] < 500
    assert slow.latency_ms[0] >= 50
    assert slow.images_per_second is not None
    assert slow.images_per_second <= 32 / 0.05
    for name in ("quick", "third"):
        assert found[name].network_ms is not None
        assert found[name].images_per_second > slow.images_per_second  # type: ignore[operator]
    # Of each round's turns, the first is another model than in the round before.
    turns = [name for at, name in enumerate(order) if at == 0 or order[at - 1] != name]
    assert turns[:9] == ["quick", "slow", "third", "slow", "third", "quick", "third", "quick", "slow"]
    nothing = measure_speed({"quick": predictors["quick"]}, [tmp_path / "gone.png"], torch.device("cpu"), Silence())
    assert nothing["quick"].latency_ms is None
    assert nothing["quick"].undefined["latency_ms"] == "no image could be read"


def test_joules_are_summed_over_packages_and_over_the_end_of_the_counter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_costs, "_POWERCAP", tmp_path / "powercap")
    meter, reason = energy_meter(torch.device("cpu"))
    assert meter is None
    assert "no energy counter" in reason

    def count(zone: str, microjoules: int) -> None:
        folder = tmp_path / "powercap" / zone
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "energy_uj").write_text(f"{microjoules}\n")
        (folder / "max_energy_range_uj").write_text("10000000\n")

    for zone, start in (("intel-rapl:0", 9_000_000), ("intel-rapl:1", 1_000_000), ("intel-rapl:0:0", 5)):
        count(zone, start)
    meter, reason = energy_meter(torch.device("cpu"))
    assert meter is not None
    assert meter() == 0.0
    count("intel-rapl:0", 500_000)  # it went on from 0: 1.5 J
    count("intel-rapl:1", 3_000_000)  # 2 J
    count("intel-rapl:0:0", 9_999_999)  # a part of the first
    assert meter() == pytest.approx(3.5)
    count("intel-rapl:1", 3_250_000)
    assert meter() == pytest.approx(3.75)


def test_training_times_add_up_over_folds_and_are_unknown_where_one_is_missing(tmp_path: Path) -> None:
    for number in (0, 1):
        stages = {
            "train": {"wall_seconds": 2.0 + number, "cpu_seconds": 5.0},
            "decode": {"wall_seconds": 1.0, "cpu_seconds": 0.5},
        }
        write_json(tmp_path / str(number) / "timings.json", stages)
    found = training_seconds([tmp_path / "0", tmp_path / "1"])
    assert found == {
        "train_wall_seconds": 5.0,
        "train_cpu_seconds": 10.0,
        "total_wall_seconds": 7.0,
        "total_cpu_seconds": 11.0,
    }
    write_json(tmp_path / "1" / "timings.json", {"decode": {"wall_seconds": 1.0, "cpu_seconds": 0.5}})
    assert set(training_seconds([tmp_path / "0", tmp_path / "1"]).values()) == {None}
    assert set(training_seconds([]).values()) == {None}


def test_the_front_keeps_equals_and_leaves_out_what_was_not_timed() -> None:
    rows = [
        {"name": name, "accuracy": accuracy, "latency_cpu_p50_ms": milliseconds}
        for name, accuracy, milliseconds in (
            ("best", 0.9, 5.0), ("twin", 0.9, 5.0), ("quick", 0.8, 1.0), ("beaten", 0.8, 2.0), ("untimed", 1.0, None),
        )
    ]  # fmt: skip
    assert pareto_front(rows) == ["best", "twin", "quick"]
    assert pareto_front([]) == []

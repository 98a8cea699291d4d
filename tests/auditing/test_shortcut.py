"""Shortcuts: found where the file or the light gives a class away, and not found where they do not."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from made_facts import made_facts

from foveal.auditing.config import ShortcutConfig
from foveal.auditing.findings import Finding
from foveal.auditing.shortcut import shortcuts
from foveal.data.facts import Facts
from foveal.data.manifest import Manifest

NUM = 300


def manifest_of(labels: list[str], **columns: Any) -> Manifest:
    columns.setdefault("mode", ["RGB"] * len(labels))
    path = [f"{number}.jpg" for number in range(len(labels))]
    return Manifest.build(Path("/data"), path=path, label=labels, **columns)


def found_in(facts: Facts, labels: list[str], components: np.ndarray | None = None, **columns: Any) -> list[Finding]:
    components = np.arange(len(labels)) if components is None else components
    return list(shortcuts(manifest_of(labels, **columns), facts, components, ShortcutConfig()).findings)


LABELS = ["mask", "face", "hand"] * (NUM // 3)
IS_MASK = np.array(LABELS) == "mask"


def test_nothing_where_facts_say_nothing() -> None:
    for seed in range(5):
        assert found_in(made_facts(NUM, seed=seed), LABELS) == []
        assert found_in(made_facts(30, seed=seed), LABELS[:30]) == []


def test_a_class_of_another_format_and_size() -> None:
    facts = made_facts(
        NUM,
        format=np.where(IS_MASK, "PNG", "JPEG"),
        width_px=np.where(IS_MASK, 512, 640),
        height_px=np.where(IS_MASK, 512, 480),
    )
    (found,) = found_in(facts, LABELS)
    assert (found.finding, found.label, found.severity, found.value) == ("shortcut", "mask", "warning", 1.0)
    assert "format PNG of 100 %, and of 0 % of the others" in found.detail
    assert "size 512 × 512 px of 100 %, and of 0 % of the others" in found.detail


def test_bytes_mode_and_border() -> None:
    sparse = made_facts(NUM)
    sparse.num_bytes[IS_MASK] /= 4
    (found,) = found_in(sparse, LABELS)
    assert found.label == "mask"
    assert "median bytes a pixel 0.08, of the others 0.31" in found.detail
    (found,) = found_in(made_facts(NUM), LABELS, mode=np.where(IS_MASK, "L", "RGB").tolist())
    assert "colour mode L of 100 %" in found.detail
    rng = np.random.default_rng(0)
    rims = made_facts(NUM, border_brightness=np.where(IS_MASK, 0.98, rng.uniform(0.2, 0.9, NUM)))
    (found,) = found_in(rims, LABELS)
    assert found.severity == "warning"
    assert "border brightness 0.98" in found.detail


def test_light_is_a_note() -> None:
    (found,) = found_in(made_facts(NUM, brightness=np.where(IS_MASK, 0.8, 0.4)), LABELS)
    assert (found.severity, found.label) == ("note", "mask")
    assert "brightness 0.80, of the others 0.40" in found.detail


def test_a_part_of_a_class_is_not_the_class() -> None:
    some = IS_MASK & (np.arange(NUM) % 9 < 3)  # a third of the masks
    assert found_in(made_facts(NUM, format=np.where(some, "PNG", "JPEG")), LABELS) == []


def test_the_size_of_a_box_is_a_note_and_the_file_is_not_the_box() -> None:
    boxes = {"xmin": [0] * NUM, "ymin": [0] * NUM, "xmax": [20] * NUM, "ymax": [20] * NUM}
    boxes |= {"width": [640] * NUM, "height": [480] * NUM}
    facts = made_facts(NUM, width_px=np.where(IS_MASK, 40, 90), height_px=np.where(IS_MASK, 40, 90))
    (found,) = found_in(facts, LABELS, **boxes)
    assert (found.severity, found.label) == ("note", "mask")
    assert (
        "median size 40 × 40 px, of the others 90 × 90 px" in found.detail or "size 40 × 40 px of 100 %" in found.detail
    )


def test_siblings_never_help() -> None:
    """Videos of one class each, whose brightness tells the video: only a tree that cheats tells the class."""
    rng = np.random.default_rng(1)
    video = np.repeat(np.arange(60), 10)
    labels = [["a", "b"][number] for number in rng.integers(0, 2, 60)[video]]
    facts = made_facts(600, brightness=rng.uniform(0.2, 0.8, 60)[video])
    assert found_in(facts, labels, components=video) == []
    assert found_in(facts, labels) != []


def test_too_little_is_said() -> None:
    checked = shortcuts(manifest_of(LABELS[:12]), made_facts(12), np.arange(12), ShortcutConfig())
    assert checked.skipped
    assert not checked.findings
    assert shortcuts(manifest_of([]), made_facts(0), np.arange(0), ShortcutConfig()).skipped
    one_video = shortcuts(manifest_of(LABELS), made_facts(NUM), np.zeros(NUM, dtype=np.int64), ShortcutConfig())
    assert one_video.skipped


def test_many_classes_and_rows_are_cut_to_a_sample_and_quick() -> None:
    num = 60_000
    labels = [f"c{number % 300}" for number in range(num)]
    facts = made_facts(num, format=np.where(np.arange(num) % 300 == 7, "PNG", "JPEG"))
    begun = time.process_time()
    checked = shortcuts(manifest_of(labels), facts, np.arange(num), ShortcutConfig(max_classes=50))
    assert time.process_time() - begun < 5
    assert (
        checked.scope
        == "10,000 images of 50 classes were looked at; 250 classes were left out, being too many or too small."
    )
    assert [each.label for each in checked.findings] == ["c7"]

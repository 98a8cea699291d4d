"""Copies by name: what is one, and above all what is none."""

import time
from pathlib import Path

import pytest

from foveal.auditing.findings import Finding
from foveal.auditing.names import copies_by_name
from foveal.data.manifest import Manifest


def read(paths: list[str], labels: list[str] | None = None) -> tuple[list[set[str]], list[Finding]]:
    manifest = Manifest.build(Path("/data"), path=paths, label=labels or [path.split("/")[-2] for path in paths])
    codes, checked = copies_by_name(manifest)
    clusters: dict[int, set[str]] = {}
    for path, code in zip(paths, codes.tolist(), strict=True):
        if code >= 0:
            clusters.setdefault(code, set()).add(path)
    return list(clusters.values()), list(checked.findings)


@pytest.mark.parametrize(
    "copies",
    [
        "x1.jpg x1_aug_3.jpg x1_aug_4.jpg x1_augmented.jpg",
        "x.jpg|x (1).jpg|x (2).jpg",
        "x.jpg x_copy.jpg x_copy2.jpg",
        "x.jpg|x - Copy.jpg|x - Copy (2).jpg|Copy of x.jpg|x - Kopie.jpg",
        "x.png x_flip.png x_hflip.png x_flipped_v.png x-mirrored.png flipped_x.png",
        "IMG_12.JPG img_12_rot90.jpg IMG_12_rot_-15.jpg IMG_12_rotated_180deg.jpg IMG_12-rotate-7.5.jpg",
        "x.jpg x_bright.jpg x_brightness_1.2.jpg x_dark.jpg x_crop2.jpg x_blur3.jpg x_noise.jpg x_gray.jpg",
        "leaf7_flip_h_rot90.jpg leaf7_vflip.jpg leaf7_aug_1.jpg",
        "a_jpg.rf.0a1b2c3d4e5f60718293a4b5c6d7e8f9.jpg a_jpg.rf.ff1b2c3d4e5f60718293a4b5c6d7e8f9.jpg",
        "aug_0_1234.jpg aug_0_77.jpg",
        "c_original_k.jpg_123e4567-e89b-12d3-a456-426614174000.jpg "
        "c_original_k.jpg_223e4567-e89b-12d3-a456-426614174000.jpg",
        "x_orig.png x_flip.png",
        "holiday.jpg holiday.png",
        "x1.jpg_aug_1.jpg x1.jpg",
        "leaf_dark_1.jpg leaf_dark_1_aug_2.jpg",
        "Zürich 🐈\n3.jpg|Zürich 🐈\n3_flip.jpg",
        f"{'n' * 240}.jpg|{'n' * 240}_flip.jpg",
    ],
)
def test_copies_of_one_original(copies: str) -> None:
    paths = [f"cats/{name}" for name in (copies.split("|") if "|" in copies else copies.split(" "))]
    clusters, findings = read([*paths, "cats/other_1.jpg", "cats/other_2.jpg"])
    assert clusters == [set(paths)]
    assert len(findings) == len(paths) - 1
    assert {(each.severity, each.repair, each.value) for each in findings} == {("warning", "regroup", len(paths))}


@pytest.mark.parametrize(
    "names",
    [
        "IMG_0001.jpg IMG_0002.jpg IMG_0003.jpg",
        "cat.1.jpg cat.2.jpg cat.3.jpg",
        "0001.png 0002.png 0001.jpg 0002.jpg",  # two sources that count
        "airplane_0001.jpg airplane_0002.jpg",
        "10017_left.jpeg 10017_right.jpeg 10018_left.jpeg",
        "cat (1).jpg|cat (2).jpg|cat (3).jpg",  # a folder that was renamed at once
        "images.jpg|images (1).jpg|images (2).jpg",  # a search engine's name for anything
        "cat.jpg|" + "|".join(f"cat ({number}).jpg" for number in range(1, 9)),
        "leaf_dark_1.jpg leaf_dark_2.jpg street_light_3.jpg street_light_4.jpg",
        "apple_black_rot_01.jpg apple_black_rot_02.jpg",
        "img_aug_1.jpg img_aug_2.jpg img_aug_3.jpg",  # of what, nobody says
        "aug_0_1.jpg aug_1_2.jpg aug_2_3.jpg",
        "b1_jpg.rf.0a1b2c3d4e5f60718293a4b5c6d7e8f9.jpg b2_jpg.rf.ff1b2c3d4e5f60718293a4b5c6d7e8f9.jpg",
        "flipper_1.jpg flipper_2.jpg croppedcat.jpg copycat_1.jpg copycat_2.jpg august_1.jpg august_2.jpg",
        "2024-03-01_12-00-01.jpg 2024-03-01_12-00-02.jpg",
    ],
)
def test_what_is_no_copy(names: str) -> None:
    assert read([f"cats/{name}" for name in (names.split("|") if "|" in names else names.split(" "))]) == ([], [])


def test_an_original_is_sought_in_its_folder_then_in_the_other_splits() -> None:
    clusters, _ = read(["train/c/a1.jpg", "test/c/a1_flip.jpg", "test/d/a1.jpg"])
    assert clusters == [{"train/c/a1.jpg", "test/c/a1_flip.jpg"}]
    # Both splits count from 1: the copy is of the one beside it.
    clusters, _ = read(["train/c/01.jpg", "test/c/01.jpg", "test/c/01_rot90.jpg"])
    assert clusters == [{"test/c/01.jpg", "test/c/01_rot90.jpg"}]
    # Copies were made before they were split, and the original is gone.
    clusters, _ = read(["train/c/r4_aug_1.jpg", "val/c/r4_aug_2.jpg", "val/d/r4_aug_3.jpg"])
    assert clusters == [{"train/c/r4_aug_1.jpg", "val/c/r4_aug_2.jpg"}]


def test_an_original_in_another_class_is_a_note() -> None:
    clusters, findings = read(["train/dog/k55.jpg", "train/cat/k55_aug_1.jpg"])
    assert clusters == []
    assert [(each.finding, each.severity, each.row, each.related_row) for each in findings] == [
        ("copy_by_name", "note", 1, 0)
    ]


def test_files_that_all_say_the_same_count_are_told_once() -> None:
    """Keras writes the place in the batch, which is 0 throughout where pictures are augmented one at a time."""
    clusters, findings = read([f"c/aug_0_{number}.jpg" for number in range(30)])
    assert clusters == []
    assert [(each.row, each.label, each.value) for each in findings] == [(None, "c", 30.0)]


def test_boxes_and_quarantine() -> None:
    paths = ["p/x.jpg", "p/x.jpg", "p/x_flip.jpg", "p/x_rot90.jpg"]
    manifest = Manifest.build(
        Path("/data"),
        path=paths,
        label=list("abab"),
        status=["ok", "ok", "ok", "quarantined"],
        **{name: [0, 5, 0, 0] if name[1:] == "min" else [9, 9, 9, 9] for name in ("xmin", "ymin", "xmax", "ymax")},
    )
    codes, checked = copies_by_name(manifest)
    assert len(set(codes[:3].tolist())) == 1
    assert codes[0] >= 0
    assert codes[3] == -1
    assert [(each.row, each.related_row) for each in checked.findings] == [(2, 0)]


def test_a_hundred_thousand_names_take_a_moment() -> None:
    endings = ("", "_aug_1", "_flip", "_rot90", "_bright_1.2")
    paths = [f"c/IMG_{number // 5:06d}{endings[number % 5]}.jpg" for number in range(100_000)]
    begun = time.process_time()
    clusters, findings = read(paths)
    assert time.process_time() - begun < 10
    assert len(clusters) == 20_000
    assert len(findings) == 80_000

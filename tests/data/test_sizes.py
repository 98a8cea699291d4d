"""How large the samples are."""

from pathlib import Path

import pytest
from PIL import Image

from foveal.data.manifest import Manifest
from foveal.data.sizes import NUM_PEEKS, Sizes, peek_sizes


def manifest_of(folder: Path, sizes: list[tuple[int, int]], **columns: list[int | None]) -> Manifest:
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(folder / f"{number}.png")
    paths = [f"{number}.png" for number in range(len(sizes))]
    return Manifest.build(folder, path=paths, label=["a"] * len(paths), **columns)


def test_medians_of_shorter_side_and_aspect(tmp_path: Path) -> None:
    assert peek_sizes(manifest_of(tmp_path, [(40, 20), (30, 30), (25, 100)])) == Sizes(25, 2.0)


def test_an_upright_photo_counts_as_it_is_seen(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, [(40, 20)])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 20)).save(tmp_path / "0.png", exif=exif)
    assert peek_sizes(manifest) == Sizes(20, 3.0)


def test_boxes_count_where_there_are_boxes_and_nothing_is_opened(tmp_path: Path) -> None:
    edges = {"xmin": [0, 5, None], "ymin": [0, 5, None], "xmax": [10, 25, None], "ymax": [40, 25, None]}
    manifest = manifest_of(tmp_path, [(100, 100)] * 3, **edges)
    for file in tmp_path.iterdir():
        file.unlink()
    assert peek_sizes(manifest) == Sizes(15, 2.5)


def test_broken_missing_and_quarantined_files_do_not_count(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, [(40, 20)] * 4)
    (tmp_path / "0.png").write_bytes(b"broken")
    (tmp_path / "1.png").unlink()
    Image.new("RGB", (500, 500)).save(tmp_path / "2.png")
    manifest = manifest.with_columns(status=["ok", "ok", "quarantined", "ok"])
    assert peek_sizes(manifest) == Sizes(20, 2.0)


def test_without_any_image_the_usual_size_is_supposed(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, [(40, 20)])
    (tmp_path / "0.png").unlink()
    assert peek_sizes(manifest) == Sizes(224, 1.0)


def test_only_some_are_looked_at_spread_over_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_images = 3 * NUM_PEEKS
    manifest = manifest_of(tmp_path, [(10, 10)] * (num_images // 3) + [(30, 30)] * (2 * num_images // 3))
    from foveal.data import sizes

    seen: list[Path] = []
    decode = sizes.decode
    monkeypatch.setattr(sizes, "decode", lambda path: (seen.append(path), decode(path))[1])
    assert peek_sizes(manifest) == Sizes(30, 1.0)
    assert len(set(seen)) == NUM_PEEKS

from pathlib import Path

from foveal.data.hashes import with_hashes
from foveal.data.manifest import Manifest
from foveal.files import sha256_bytes


def test_every_file_is_read_once_and_what_cannot_be_is_quarantined(tmp_path: Path) -> None:
    names = ["a.jpg", "ü\n" + "n" * 240 + ".jpg", "empty.jpg", "gone.jpg", "folder", "a.jpg", "known.jpg"]
    (tmp_path / "folder").mkdir()
    for name, content in zip(names[:3], (b"one", b"two", b""), strict=True):
        (tmp_path / name).write_bytes(content)
    manifest = Manifest.build(
        tmp_path,
        path=names,
        label=["x"] * 7,
        sha256=[None] * 6 + ["k" * 64],
        xmin=[0, None, None, None, None, 5, None],
        ymin=[0, None, None, None, None, 5, None],
        xmax=[4, None, None, None, None, 9, None],
        ymax=[4, None, None, None, None, 9, None],
    )
    hashed = with_hashes(manifest, num_workers=2)
    one, two = sha256_bytes(b"one"), sha256_bytes(b"two")
    assert hashed.column("sha256").tolist() == [one, two, None, None, None, one, "k" * 64]
    assert hashed.usable().tolist() == [0, 1, 5, 6]
    assert hashed.column("reason").tolist()[2:5] == [
        "the file is empty (0 bytes)",
        "no such file",
        "cannot be read: not a regular file",
    ]
    assert with_hashes(hashed, num_workers=2) is hashed

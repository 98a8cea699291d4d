"""A made-up manifest of a million rows goes through the search for duplicates, `clean` and `split`.

Each row has a hash and a sketch like that of a photograph; 5 % of the rows are changed copies of another row (turned by
right angles or mirrored, brighter or darker, noisy) and 1 % exact ones. The images themselves are empty files, for the
verbs look whether they exist and, with all hashes known, read none. Each stage is a process, whose peak memory is
watched. Prints one JSON object on stdout.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from measuring import NotMeasuredError, watched

NUM_ROWS, NUM_CLASSES, NUM_FOLDERS = 1_000_000, 100, 1000
NEAR_SHARE, EXACT_SHARE = 0.05, 0.01
AT_ONCE = 20_000
SIDE_PX = 32


def make(folder: Path, num_rows: int, seed: int = 0) -> None:
    """Write images, manifest.parquet, sketches.npy, phashes.npy, and the truth: planted.npy, int64 [pairs, 3]."""
    from foveal.data.manifest import Manifest
    from foveal.data.sketch import SKETCH_BYTES

    generator = np.random.default_rng(seed)
    num_near, num_exact = int(NEAR_SHARE * num_rows), int(EXACT_SHARE * num_rows)
    chosen = generator.permutation(num_rows)[: 2 * (num_near + num_exact)].reshape(2, -1)
    is_exact = np.arange(num_near + num_exact) >= num_near
    label = generator.integers(0, NUM_CLASSES, num_rows)
    label[chosen[1]] = label[chosen[0]]
    hashes = np.frombuffer(generator.bytes(32 * num_rows), dtype="V32").copy()
    hashes[chosen[1][is_exact]] = hashes[chosen[0][is_exact]]
    phashes = generator.integers(0, 1 << 64, num_rows, dtype=np.uint64)
    phashes[chosen[1]] = phashes[chosen[0]]
    sketches = np.lib.format.open_memmap(folder / "sketches.npy", "w+", np.uint8, (num_rows, SKETCH_BYTES))
    for first in range(0, num_rows, AT_ONCE):
        rows = slice(first, min(first + AT_ONCE, num_rows))
        sketches[rows] = pictures(rows.stop - rows.start, generator)
    for first in range(0, len(is_exact), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        originals = sketches[chosen[0][part]]
        exact = is_exact[part][:, None]
        sketches[chosen[1][part]] = np.where(exact, originals, changed(originals, generator))
    sketches.flush()
    np.save(folder / "phashes.npy", phashes)
    np.save(folder / "planted.npy", np.stack([*chosen, is_exact], axis=1))
    paths = [f"{row % NUM_FOLDERS:03}/{row:07}.jpg" for row in range(num_rows)]
    for number in range(min(NUM_FOLDERS, num_rows)):
        (folder / "images" / f"{number:03}").mkdir(parents=True)
    for path in paths:
        (folder / "images" / path).touch()
    side = np.full(num_rows, 100)
    manifest = Manifest.build(
        folder / "images", path=paths, label=[f"class {number:02}" for number in label.tolist()], width=side,
        height=side, mode=["RGB"] * num_rows, sha256=[each.tobytes().hex() for each in hashes],
        phash=[f"{each:016x}" for each in phashes.tolist()],
    )  # fmt: skip
    manifest.write(folder / "manifest.parquet")


def pictures(number: int, generator: Generator) -> NDArray[np.uint8]:
    """Shapes and detail as in the small grey squares of CIFAR-10, of which about as many look alike by chance.

    Returns:
        uint8 [number, pixels].
    """
    total = np.zeros((number, SIDE_PX, SIDE_PX), np.float32)
    for side, strength in ((4, 0.9), (8, 0.7), (16, 0.55), (32, 0.15)):
        coarse = generator.standard_normal((number, side, side), dtype=np.float32)
        # Some pictures are soft and some are full of detail.
        coarse *= np.exp(0.5 * generator.standard_normal((number, 1, 1), dtype=np.float32))
        spread = _enlarging(side)
        total += strength * (spread @ coarse @ spread.T)
    total /= total.std(axis=(1, 2), keepdims=True)
    level = generator.uniform(90, 160, (number, 1, 1)).astype(np.float32)
    contrast = generator.uniform(25, 65, (number, 1, 1)).astype(np.float32)
    grey = level + contrast * total
    return grey.clip(0, 255).astype(np.uint8).reshape(number, -1)


def _enlarging(side: int) -> NDArray[np.float32]:
    """float32 [SIDE_PX, side]: linear interpolation."""
    places = np.linspace(0, side - 1, SIDE_PX)
    spread: NDArray[np.float32] = np.clip(1 - np.abs(places[:, None] - np.arange(side)), 0, 1).astype(np.float32)
    return spread


def changed(sketches: NDArray[np.uint8], generator: Generator) -> NDArray[np.uint8]:
    """Copies in one of the eight positions of a square, brighter or darker, with noise of 1.5 of 255."""
    squares = sketches.reshape(-1, SIDE_PX, SIDE_PX).copy()
    position = generator.integers(0, 8, len(squares))
    for turn in range(4):
        for mirrored in (0, 1):
            here = position == turn + 4 * mirrored
            turned = np.rot90(squares[here], turn, axes=(1, 2))
            squares[here] = turned[:, :, ::-1] if mirrored else turned
    gain = generator.uniform(0.8, 1.2, (len(squares), 1, 1))
    grey = squares * gain + generator.normal(0, 1.5, squares.shape)
    return grey.clip(0, 255).astype(np.uint8).reshape(len(squares), -1)


class SketchPixels:
    """What the search may look at more closely, where there are no images: the sketches, as colour pictures.

    Args:
        sketches: uint8 [rows, pixels].
    """

    def __init__(self, sketches: NDArray[np.uint8]) -> None:
        self._sketches = sketches

    def __len__(self) -> int:
        return len(self._sketches)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        return np.repeat(self._sketches[row].reshape(SIDE_PX, SIDE_PX, 1), 3, axis=2)


def find(folder: Path, out: Path) -> dict[str, Any]:
    """Search duplicates by content and write them as findings of an audit; tells how much of what was planted."""
    from foveal.auditing.copies import exact_duplicates, near_duplicates
    from foveal.auditing.duplicates import find_duplicates, group_copies
    from foveal.auditing.findings import FindingsTable
    from foveal.data.facts import MEASURES, Facts
    from foveal.data.manifest import Manifest
    from foveal.progress import Silence

    manifest = Manifest.read(folder / "manifest.parquet")
    sketches = np.load(folder / "sketches.npy", mmap_mode="r")
    num_rows = len(manifest)
    width = manifest.column("width")
    facts = Facts(
        is_known=np.ones(num_rows, np.bool_), format=np.full(num_rows, "JPEG", object),
        notes=np.full(num_rows, "", object), num_bytes=np.full(num_rows, 4000.0), width_px=width, height_px=width,
        measures=np.full((num_rows, len(MEASURES)), 0.5, np.float32), phash=np.load(folder / "phashes.npy"),
        sketch=sketches,
    )  # fmt: skip
    started = time.perf_counter()
    pairs = find_duplicates(manifest, facts, SketchPixels(sketches), num_workers=2, progress=Silence())
    seconds = time.perf_counter() - started
    del facts, sketches  # as an audit lets go of them
    findings = [*exact_duplicates(manifest, pairs).findings, *near_duplicates(manifest, pairs).findings]
    out.mkdir(parents=True, exist_ok=True)
    FindingsTable.of(findings, manifest).write(out)
    manifest.write(out / "manifest.parquet")
    cluster = group_copies(num_rows, pairs)
    planted = np.load(folder / "planted.npy")
    together = (cluster[planted[:, 0]] == cluster[planted[:, 1]]) & (cluster[planted[:, 0]] >= 0)
    np.save(folder / "found.npy", planted[together])
    is_exact = planted[:, 2] == 1
    found = set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))
    wanted = {(int(min(one, other)), int(max(one, other))) for one, other in planted[:, :2]}
    return {
        "search seconds": seconds,
        "recall near": float(together[~is_exact].mean()),
        "recall exact": float(together[is_exact].mean()),
        "num_pairs": len(found),
        "num_pairs_not_planted": len(found - wanted),
    }


def num_cut(folder: Path, split: Path) -> int:
    """Planted copies that the search had found and that lie in two splits for all that."""
    from foveal.data.manifest import Manifest

    before, after = Manifest.read(folder / "audit" / "manifest.parquet"), Manifest.read(split)
    place = dict(zip(after.column("sample_id").tolist(), after.column("split").tolist(), strict=True))
    splits = [place.get(each) for each in before.column("sample_id").tolist()]
    planted = np.load(folder / "found.npy")[:, :2].tolist()
    return sum(None not in (splits[a], splits[b]) and splits[a] != splits[b] for a, b in planted)


def measure(folder: Path, num_rows: int) -> dict[str, Any]:
    """All stages, each in a process of its own."""
    own = [sys.executable, str(Path(__file__).resolve()), "--folder", str(folder), "--rows", str(num_rows), "--stage"]
    foveal = [sys.executable, "-m", "foveal"]
    cleaned, split = folder / "cleaned.parquet", folder / "split.parquet"
    environment = {**os.environ, "FOVEAL_CACHE_DIR": str(folder / "cache")}
    commands = {
        "duplicates": [*own, "duplicates"],
        "clean": [*foveal, "clean", str(folder / "audit"), "--out", str(cleaned)],
        "split": [*foveal, "split", str(cleaned), "--out", str(split), "--no-near-duplicates"],
    }
    print(f"making {num_rows:,} rows in {folder}", file=sys.stderr, flush=True)
    watched([*own, "make"], environment)
    said: dict[str, Any] = {"num_rows": num_rows, "stages": {}}
    for name, command in commands.items():
        print(name, file=sys.stderr, flush=True)
        done = watched(command, environment)
        said["stages"][name] = {"seconds": done.seconds, "peak_bytes": done.peak_bytes}
        if name == "duplicates":
            said |= json.loads(done.stdout[done.stdout.index("{") :])
    return said | {"num_found_pairs_cut_by_split": num_cut(folder, split)}


def main() -> None:
    """Parse, run a stage or all of them, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=NUM_ROWS)
    parser.add_argument(
        "--folder", type=Path, help="an empty folder to keep everything in; a temporary one if not given"
    )
    parser.add_argument("--stage", choices=("make", "duplicates"), help="that alone, in this process")
    wanted = parser.parse_args()
    if wanted.stage and not wanted.folder:
        parser.error("--stage needs --folder")
    if wanted.stage == "make":
        make(wanted.folder, wanted.rows)
    elif wanted.stage:
        print(json.dumps(find(wanted.folder, wanted.folder / "audit")))
    else:
        with tempfile.TemporaryDirectory(prefix="foveal-million-") as scratch:
            folder = wanted.folder or Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            try:
                print(json.dumps(measure(folder, wanted.rows)))
            except NotMeasuredError as reason:
                sys.exit(str(reason))


if __name__ == "__main__":
    main()

"""A copy-set with everything in it that an audit should find, made from `sign_digits`, and the truth about it.

The originals go into train, val and test, 70/15/15 of each class. Into that are planted: copies of each kind in
`planted_copies.KINDS`, every one in another split than its original, in the same class; pictures under a second class;
foreign pictures; broken files; and wrong labels. Names are a camera's numbers and tell nothing. The same seed makes the
same set. The truth is written beside the set, as `planted.csv`.
"""

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from images import cifar10_archive, real_images
from planted_copies import KINDS, copy_of, encoded, reencoded
from planted_files import broken_files, foreign_pictures

SPLITS, SHARES = ("train", "val", "test"), (0.70, 0.15)
NUM_EACH, NUM_CONFLICTS, WRONG_SHARE = 50, 20, 0.05
SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Truth:
    """One thing that was planted.

    Attributes:
        kind: one of `planted_copies.KINDS`, or `conflict`, `foreign`, `broken`, `wrong_label`.
        path: where it lies below the set's folder.
        original_path: what it is a copy of; empty where it is none.
        original_label: the true class; empty where there is none.
        label: the class that it lies under.
        detail: the operations of a chain, or what a foreign picture or a broken file is.
    """

    kind: str
    path: str
    original_path: str
    original_label: str
    label: str
    detail: str


@dataclass(frozen=True)
class Original:
    """An image of the data, and where it goes."""

    source: Path
    label: str
    split: str

    def place(self, label: str | None = None) -> str:
        """Its path below the set's folder, under another class if one is given."""
        return f"{self.split}/{label or self.label}/{self.source.name}"


class Camera:
    """Names such as the images have, with numbers that are still free.

    Args:
        taken: the names that there are already.
        generator: draws the numbers.
    """

    def __init__(self, taken: Sequence[str], generator: Generator) -> None:
        numbers = sorted(int("0" + "".join(filter(str.isdigit, Path(name).stem))) for name in taken)
        free = sorted(set(range(numbers[0], max(numbers[-1], numbers[0] + 3 * len(taken)))) - set(numbers))
        self._numbers = generator.permutation(free).tolist()

    def name(self, suffix: str = ".JPG") -> str:
        """A name that nothing else has."""
        return f"IMG_{self._numbers.pop():04}{suffix}"


def draw_splits(source: Path, generator: Generator) -> list[Original]:
    """All images of a folder of class folders, shared out by class."""
    originals: list[Original] = []
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        bounds = np.cumsum([round(share * len(files)) for share in SHARES])
        for place, at in enumerate(generator.permutation(len(files)).tolist()):
            split = SPLITS[int(np.searchsorted(bounds, place, side="right"))]
            originals.append(Original(files[at], folder.name, split))
    return originals


class Planting:
    """A set in the making.

    Args:
        out: its folder, which must not exist or be empty.
        originals: what it is made of.
        generator: draws everything.
    """

    def __init__(self, out: Path, originals: Sequence[Original], generator: Generator) -> None:
        self.out, self.generator = out, generator
        self.labels = sorted({each.label for each in originals})
        self.camera = Camera([each.source.name for each in originals], generator)
        self.truth: list[Truth] = []
        self._waiting: list[Original] = [originals[at] for at in generator.permutation(len(originals)).tolist()]

    def copies(self, kind: str, number: int) -> None:
        """Plant copies of one kind, each of an original that nothing else was made of."""
        for _ in range(number):
            original = self._take()
            split = self._one_of([name for name in SPLITS if name != original.split])
            content, detail = copy_of(original.source, kind, self.generator)
            path = self._write(f"{split}/{original.label}/{self.camera.name()}", content)
            self._note(kind, path, original, original.label, detail)

    def conflicts(self, number: int) -> None:
        """Plant the same picture, encoded again, under a second class."""
        for _ in range(number):
            original = self._take()
            label = self._one_of([name for name in self.labels if name != original.label])
            with Image.open(original.source) as image:
                content = encoded(reencoded(image.convert("RGB")))
            path = self._write(f"{self._one_of(SPLITS)}/{label}/{self.camera.name()}", content)
            self._note("conflict", path, original, label, "")

    def wrong_labels(self, number: int) -> None:
        """Put originals that nothing was made of under another class."""
        for _ in range(number):
            original = self._take()
            label = self._one_of([name for name in self.labels if name != original.label])
            path = self._write(original.place(label), original.source.read_bytes())
            self.truth.append(Truth("wrong_label", path, "", original.label, label, ""))

    def files(self, kind: str, files: Sequence[tuple[str, str, bytes]]) -> None:
        """Plant files that are no copies: (what it is, suffix, content) each."""
        for detail, suffix, content in files:
            label = self._one_of(self.labels)
            path = self._write(f"{self._one_of(SPLITS)}/{label}/{self.camera.name(suffix)}", content)
            self.truth.append(Truth(kind, path, "", "", label, detail))

    def rest(self) -> None:
        """Write the originals that nothing was made of."""
        while self._waiting:
            original = self._waiting.pop()
            self._write(original.place(), original.source.read_bytes())

    def _take(self) -> Original:
        return self._waiting.pop()

    def _one_of(self, names: Sequence[str]) -> str:
        return names[int(self.generator.integers(len(names)))]

    def _write(self, path: str, content: bytes) -> str:
        target = self.out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as stream:
            stream.write(content)
        return path

    def _note(self, kind: str, path: str, original: Original, label: str, detail: str) -> None:
        self._write(original.place(), original.source.read_bytes())
        self.truth.append(Truth(kind, path, original.place(), original.label, label, detail))


def plant(source: Path, out: Path, seed: int, num_each: int = NUM_EACH) -> list[Truth]:
    """Make the set and return the truth about it."""
    generator = np.random.default_rng(seed)
    originals = draw_splits(source, generator)
    if len(originals) < (needed := num_each * len(KINDS) + NUM_CONFLICTS + int(WRONG_SHARE * len(originals))):
        sys.exit(f"{source} has {len(originals)} images in class folders; {needed} are needed.")
    planting = Planting(out, originals, generator)
    for kind in KINDS:
        planting.copies(kind, num_each)
    planting.conflicts(NUM_CONFLICTS)
    planting.wrong_labels(int(WRONG_SHARE * len(originals)))
    planting.files("foreign", foreign_pictures(generator, cifar10_archive()))
    planting.files("broken", broken_files(generator, [each.source for each in originals]))
    planting.rest()
    return planting.truth


def write_truth(truth: Sequence[Truth], file: Path) -> None:
    """Write the truth as CSV."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([field.name for field in fields(Truth)])
        writer.writerows(map(astuple, truth))


def read_truth(file: Path) -> list[Truth]:
    """Read what `write_truth` wrote."""
    with file.open(newline="", encoding="utf-8") as stream:
        return [Truth(**row) for row in csv.DictReader(stream)]


def main() -> None:
    """Parse, plant, say what was planted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "source", type=Path, nargs="?", default=real_images(),
        help="folder of class folders; sign_digits in $FOVEAL_DATA if not given",
    )  # fmt: skip
    parser.add_argument("out", type=Path, help="folder to make; planted.csv is written beside it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=NUM_EACH, help="copies of each kind (50)")
    wanted = parser.parse_args()
    if wanted.source is None or not wanted.source.is_dir():
        parser.error("SIGN_DIGITS: no such folder; give it, or set FOVEAL_DATA")
    if wanted.out.exists() and any(wanted.out.iterdir()):
        parser.error(f"OUT: {wanted.out} is not empty")
    wanted.out.mkdir(parents=True, exist_ok=True)
    truth = plant(wanted.source, wanted.out, wanted.seed, wanted.each)
    file = wanted.out.parent / "planted.csv"
    write_truth(truth, file)
    for kind, number in Counter(each.kind for each in truth).items():
        print(f"{number:5} {kind}")
    print(f"{sum(path.is_file() for path in wanted.out.rglob('*')):5} files in {wanted.out}\nThe truth is in {file}")


if __name__ == "__main__":
    main()

"""Runs `foveal audit --deep` on a set of `planted.py` and tells how much of what was planted it found.

A planted copy counts as found when pairs of findings connect it with its original; the share that was found as a pair
of the two is printed beside it. Found pairs that were not planted are listed in `extra_pairs.csv` and drawn side by
side in `extra_pairs_*.png`, the least alike first: photographs may be copies of each other by nature. Fill in the
column `is_copy` with yes or no and give the file with --judged: what is left counts as a mistake. Exits with 1 where a
target is missed. `--train` also trains on the set with leaks reported and with leaks dropped.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image, ImageDraw, ImageFont

from foveal.auditing.findings import FindingsTable
from planted import read_truth
from planted_scoring import FALSE_SHARE, TARGETS, WRONG_LABEL_PRECISION, ExtraPair, Score, score

FOVEAL = [sys.executable, "-m", "foveal"]
BLOCKING = 3
RECIPE = ("model.name=resnet18", "model.weights=none", "data.image_size=64", "train.epochs=15")
PAIRS_A_SHEET, COLUMNS, THUMBNAIL_PX = 60, 5, 120


def audit(images: Path, out: Path, settings: Sequence[str]) -> None:
    """Run the command as a person would; blocking findings are what is expected."""
    command = [*FOVEAL, "audit", str(images), "--out", str(out), "--deep", "--force", "--seed", "0"]
    done = subprocess.run([*command, *_set(settings)], stdout=sys.stderr, check=False)
    if done.returncode not in (0, BLOCKING):
        _give_up("audit", done.returncode)


def measure(images: Path, truth_file: Path, out: Path) -> Score:
    """Score the findings in `out`."""
    num_images = sum(path.is_file() for path in images.rglob("*"))
    return score(read_truth(truth_file), FindingsTable.read(out).rows(), num_images)


def read_judged(file: Path | None) -> dict[frozenset[str], str]:
    """What a person said of pairs of families: whether they are copies."""
    if file is None:
        return {}
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {frozenset((row["family"], row["related_family"])): row["is_copy"].strip().lower() for row in rows}


def genuine_of(judged: Mapping[frozenset[str], str]) -> set[frozenset[str]]:
    """Those that are copies."""
    return {families for families, word in judged.items() if word in ("yes", "y", "1", "true")}


def write_extra(pairs: Sequence[ExtraPair], judged: Mapping[frozenset[str], str], images: Path, out: Path) -> None:
    """List the pairs that were not planted, and draw them."""
    with (out / "extra_pairs.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["number", "path", "related_path", "family", "related_family", "similarity", "findings",
                         "num_files", "is_copy"])  # fmt: skip
        for number, pair in enumerate(pairs):
            word = judged.get(frozenset(pair.families), "")
            writer.writerow([number, pair.path, pair.related_path, *pair.families, f"{pair.similarity:.4f}",
                             "+".join(pair.findings), len(pair.paths), word])  # fmt: skip
    for old in out.glob("extra_pairs_*.png"):
        old.unlink()
    for first in range(0, len(pairs), PAIRS_A_SHEET):
        sheet = contact_sheet(pairs[first : first + PAIRS_A_SHEET], first, images)
        sheet.save(out / f"extra_pairs_{first // PAIRS_A_SHEET:02}.png")


def contact_sheet(pairs: Sequence[ExtraPair], first: int, images: Path) -> Image.Image:
    """Pairs side by side, each with its number in extra_pairs.csv and its similarity."""
    width, height = 2 * THUMBNAIL_PX + 16, THUMBNAIL_PX + 18
    num_rows = -(-len(pairs) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, num_rows * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for place, pair in enumerate(pairs):
        left, top = place % COLUMNS * width, place // COLUMNS * height
        pen.text((left + 2, top + 2), f"{first + place}: {pair.similarity:.3f}", fill="black", font=font)
        for side, path in enumerate((pair.path, pair.related_path)):
            with Image.open(images / path) as opened:
                picture = opened.convert("RGB").resize((THUMBNAIL_PX, THUMBNAIL_PX))
            sheet.paste(picture, (left + side * (THUMBNAIL_PX + 4), top + 16))
    return sheet


def lines_of(found: Score, genuine: set[frozenset[str]]) -> list[str]:
    """The score as a table for people."""
    lines = [f"{'planted':<14}{'number':>7}{'recall':>8}{'as a pair':>11}{'target':>8}"]
    for kind, each in found.recalls.items():
        direct = "" if each.num_direct is None else f"{each.num_direct / each.num_planted:.3f}"
        verdict = (
            ""
            if each.met
            else "  MISSED: "
            + ", ".join(f"{missed.path}{f' ({missed.detail})' if missed.detail else ''}" for missed in each.missed[:8])
        )
        lines.append(f"{kind:<14}{each.num_planted:>7}{each.recall:>8.3f}{direct:>11}{TARGETS[kind]:>8}{verdict}")
    precision = found.wrong_label_precision
    shown = "none flagged" if precision is None else f"{precision:.3f}"
    return [
        *lines,
        f"wrong labels: precision {shown} (target {WRONG_LABEL_PRECISION})",
        f"leaks: {found.leak_recall:.3f} of the copies planted across the border of training are told as leaks",
        "flagged though not planted: " + ", ".join(f"{number} as {kind}" for kind, number in found.num_flagged.items()),
        f"largest set connected by pairs: {found.largest_component} pictures",
        f"pairs that were not planted: {len(found.extra_pairs)}, in {found.false_share():.4f} of {found.num_images} "
        f"images; judged by eye to be no copies: at most {found.false_share(genuine):.4f} (target {FALSE_SHARE})",
    ]  # fmt: skip


def is_met(found: Score, genuine: set[frozenset[str]]) -> bool:
    """Whether every target was reached."""
    precise = (found.wrong_label_precision or 0.0) >= WRONG_LABEL_PRECISION
    return precise and found.false_share(genuine) <= FALSE_SHARE and all(each.met for each in found.recalls.values())


def to_dict(found: Score, genuine: set[frozenset[str]]) -> dict[str, Any]:
    """Plain values, for JSON."""
    return {
        "recall": {kind: each.recall for kind, each in found.recalls.items()},
        "missed": {kind: [missed.path for missed in each.missed] for kind, each in found.recalls.items()},
        "wrong_label_precision": found.wrong_label_precision,
        "leak_recall": found.leak_recall,
        "num_flagged_not_planted": dict(found.num_flagged),
        "num_extra_pairs": len(found.extra_pairs),
        "share_of_images_in_extra_pairs": found.false_share(),
        "share_of_images_in_false_pairs": found.false_share(genuine),
        "largest_component": found.largest_component,
        "num_images": found.num_images,
    }


def train(images: Path, run: Path, leaks: str) -> Mapping[str, Any]:
    """Train on the set and return the test accuracies and what the report says of leakage."""
    command = [*FOVEAL, "train", str(images), "--out", str(run), "--force", "--json", "--seed", "0"]
    command += _set([*RECIPE, f"data.leaks={leaks}"])
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        _give_up("train", done.returncode)
    metrics = json.loads((run / "evaluation" / "test" / "metrics.json").read_text(encoding="utf-8"))
    words = Words((run / "report.html").read_text(encoding="utf-8"))
    return {
        "num_test_images": metrics["num_images"],
        "accuracy": metrics["accuracy"],
        "interval": metrics["confidence_intervals"].get("accuracy"),
        "leakage": metrics["leakage"],
        "report": words.after("Leakage"),
    }


class Words(HTMLParser):
    """The text of a page, piece by piece.

    Args:
        page: HTML.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        """Keep a piece."""
        if text := " ".join(data.split()):
            self.pieces.append(text)

    def after(self, heading: str) -> str:
        """The piece that follows a heading; empty where there is none."""
        followers = [
            text for name, text in zip(self.pieces, self.pieces[1:], strict=False) if name.rstrip(":.") == heading
        ]
        return followers[0] if followers else ""


def _give_up(name: str, returncode: int) -> NoReturn:
    """End with 2, for 1 says that a target was missed."""
    print(f"foveal {name} failed with exit code {returncode}", file=sys.stderr)
    sys.exit(2)


def _set(settings: Sequence[str]) -> list[str]:
    return [text for setting in settings for text in ("--set", setting)]


def main() -> None:
    """Parse, audit, score, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="the set that planted.py made")
    parser.add_argument("--truth", type=Path, help="planted.csv beside the set if not given")
    parser.add_argument("--out", type=Path, help="the audit's folder; audit/ beside the set if not given")
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="for the audit"
    )
    parser.add_argument("--score-only", action="store_true", help="score the findings that --out holds already")
    parser.add_argument("--judged", type=Path, help="extra_pairs.csv with its column is_copy filled in")
    parser.add_argument("--train", action="store_true", help="also train with leaks reported and dropped")
    wanted = parser.parse_args()
    beside = wanted.images.resolve().parent
    out = wanted.out or beside / "audit"
    judged = read_judged(wanted.judged)
    genuine = genuine_of(judged)
    if not wanted.score_only:
        audit(wanted.images, out, wanted.settings)
    found = measure(wanted.images, wanted.truth or beside / "planted.csv", out)
    write_extra(found.extra_pairs, judged, wanted.images, out)
    print("\n".join(lines_of(found, genuine)))
    result: dict[str, Any] = to_dict(found, genuine)
    if wanted.train:
        result["training"] = {leaks: train(wanted.images, beside / f"run_{leaks}", leaks)
                              for leaks in ("report", "drop")}  # fmt: skip
        for leaks, said in result["training"].items():
            print(f"data.leaks={leaks}: accuracy {said['accuracy']:.3f} on {said['num_test_images']} test images; "
                  f"leakage: {said['leakage']}\n  the report: {said['report']}")  # fmt: skip
    (out / "recall.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if is_met(found, genuine) else 1)


if __name__ == "__main__":
    main()

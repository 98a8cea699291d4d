"""The share of each epoch that training waits for images, on images as cameras make them.

Photographs are grown to 500x375 pixels and saved as JPEG in a temporary folder; `foveal.train` trains on them with its
defaults, and its own `metrics.csv` says by epoch how much of the time went by before a batch was there. Decoding comes
before the first epoch and is told apart. Target: under 5 % from the second epoch on.

    python bench/waiting.py ../shared/data/sign_digits
    python bench/waiting.py ../shared/data/sign_digits --set data.store=off
"""

import argparse
import csv
import json
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import foveal
from recording import Record, add_out, print_table

WIDTH_PX, HEIGHT_PX = 500, 375
TARGET = 0.05


def grow(images: Path, folder: Path, num_images: int) -> int:
    """So many images of a folder of class folders, equally many of each class, grown; returns their number."""
    classes = sorted(each for each in images.iterdir() if each.is_dir())
    draw, num_grown = np.random.default_rng(0), 0
    for each in classes:
        files = sorted(file for file in each.iterdir() if file.is_file())
        (folder / each.name).mkdir(parents=True)
        for number in sorted(draw.permutation(len(files))[: -(-num_images // len(classes))].tolist()):
            with Image.open(files[number]) as image:
                grown = image.convert("RGB").resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC)
            grown.save(folder / each.name / f"{files[number].stem}.jpg", quality=92)
            num_grown += 1
    return num_grown


def main() -> None:
    """Grow, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder of class folders")
    parser.add_argument("--num-images", type=int, default=400, help="in all splits (default: 400)")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size-px", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other setting")
    add_out(parser, "waiting")
    wanted = parser.parse_args()
    record = Record("waiting", wanted.out)
    with tempfile.TemporaryDirectory(prefix="foveal-bench-") as name:
        scratch = Path(name)
        os.environ["FOVEAL_CACHE_DIR"] = str(scratch / "cache")
        num_images = grow(wanted.images, scratch / "images", wanted.num_images)
        settings = [f"model.name={wanted.model}", "model.weights=none", f"data.image_size={wanted.size_px}"]
        settings += [f"train.epochs={wanted.epochs}", "train.device=cpu", *wanted.set]
        run = foveal.train(scratch / "images", scratch / "run", overrides=settings).run
        with (run / "metrics.csv").open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        timings = json.loads((run / "timings.json").read_text(encoding="utf-8"))
    shares = [float(row["data_wait_share"]) for row in rows]
    print(f"{num_images} images of {WIDTH_PX}x{HEIGHT_PX}, {wanted.model} at {wanted.size_px} px; ", end="")
    print(f"decoding before the first epoch: {timings['decode']['wall_seconds']:.1f} s.\n")
    print_table(
        ("epoch", "waiting for data", "images/s", "seconds"),
        [(row["epoch"], f"{share:.2%}", row["images_per_second"], row["seconds"])
         for row, share in zip(rows, shares, strict=True)],
    )  # fmt: skip
    if later := shares[1:]:
        verdict = "met" if max(later) < TARGET else "MISSED"
        print(f"\nFrom the second epoch on at most {max(later):.2%}; target under {TARGET:.0%}: {verdict}.")
    content = {
        "num_images": num_images,
        "settings": settings,
        "data_wait_share": shares,
        "images_per_second": [float(row["images_per_second"]) for row in rows],
        "timings": timings,
    }
    record.write(content)


if __name__ == "__main__":
    main()

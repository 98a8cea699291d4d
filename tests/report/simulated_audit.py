"""An audit's folder as the audit leaves it, of real small images with planted faults, through the real writers."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from foveal.auditing.findings import Finding, FindingsTable
from foveal.data.manifest import Manifest
from foveal.files import sha256_file, write_json

SPLITS = ("train", "val", "test")


class AuditMaker:
    """Collects samples and findings, and writes them as an audit does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.samples: list[dict[str, Any]] = []
        self.findings: list[Finding] = []
        self.copies: set[int] = set()

    def add(self, path: str, label: str, split: str | None, **columns: Any) -> int:
        """One sample whose file lies there already; gives its row."""
        file = self.root / path
        known = {"status": "ok", "sha256": sha256_file(file) if file.is_file() else None}
        self.samples.append({"path": path, "label": label, "split": split} | known | columns)
        return len(self.samples) - 1

    def save(self, image: Image.Image, path: str, label: str, split: str | None, **columns: Any) -> int:
        """One sample and its file."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
        return self.add(path, label, split, width=image.width, height=image.height, mode=image.mode, **columns)

    def find(
        self, finding: str, severity: Any, row: int | None = None, related: int | None = None, **more: Any
    ) -> None:
        """One finding."""
        self.findings.append(Finding(finding, severity, row=row, related_row=related, **more))

    def write(self, folder: Path, *, class_names: Sequence[str] = (), **summary: Any) -> Path:
        """The three files; `summary` replaces keys of summary.json."""
        names = {name for sample in self.samples for name in sample}
        columns = {name: [sample.get(name) for sample in self.samples] for name in names}
        manifest = Manifest.build(self.root, class_names=class_names, **columns)
        folder.mkdir(parents=True, exist_ok=True)
        manifest.write(folder / "manifest.parquet")
        FindingsTable.of(self.findings, manifest).write(folder)
        write_json(folder / "summary.json", self._summary(manifest) | summary)
        return folder

    def _summary(self, manifest: Manifest) -> dict[str, Any]:
        usable = manifest.is_usable()
        label, split = manifest.column("label"), manifest.column("split")
        own = np.array([at not in self.copies for at in range(len(manifest))])
        classes = []
        for name in manifest.class_names:
            here = usable & (label == name)
            classes.append(
                {
                    "name": name,
                    "num_images": int(here.sum()),
                    "num_originals": int((here & own).sum()),
                    "num_quarantined": int((~usable & (label == name)).sum()),
                    "by_split": dict(Counter(str(each or "all") for each in split[here])),
                    "originals_by_split": dict(Counter(str(each or "all") for each in split[here & own])),
                }
            )
        leaking = {each.row for each in self.findings if each.finding == "leak"}
        leakage = {}
        for name in ("val", "test"):
            rows = np.flatnonzero(usable & (split == name))
            if len(rows):
                of_class = {
                    each: [
                        int((label[rows] == each).sum()),
                        sum(int(at) in leaking for at in rows[label[rows] == each]),
                    ]
                    for each in manifest.class_names
                }
                found = sum(int(at) in leaking for at in rows)
                leakage[name] = {
                    "num_images": len(rows),
                    "num_with_siblings_in_train": found,
                    "share": found / len(rows),
                    "by_class": of_class,
                }
        told: dict[str, list[Finding]] = {}
        for each in sorted(self.findings, key=lambda one: ("blocking", "warning", "note").index(one.severity)):
            told.setdefault(each.finding, []).append(each)
        num = int(usable.sum())
        widths, heights = manifest.column("width")[usable], manifest.column("height")[usable]
        return {
            "format_version": 1,
            "data": str(self.root),
            "data_format": "folder",
            "notes": [],
            "num_samples": len(manifest),
            "num_usable": num,
            "num_quarantined": len(manifest) - num,
            "num_files": len(manifest),
            "num_originals": int((usable & own).sum()),
            "classes": classes,
            "splits": {
                name: {"num_images": int(of_split.sum()), "share": float(of_split.sum() / num)}
                for name in SPLITS
                if (of_split := usable & (split == name)).any()
            },
            "leakage": leakage,
            "sizes": {
                name: [float(value) for value in np.nanquantile(values, [0, 0.05, 0.5, 0.95, 1])]
                for name, values in (("width_px", widths), ("height_px", heights), ("aspect", widths / heights))
                if np.isfinite(values).any()
            },
            "formats": dict(Counter(Path(str(path)).suffix[1:].upper() for path in manifest.column("path")[usable])),
            "modes": dict(Counter(str(mode) for mode in manifest.column("mode")[usable])),
            "findings": [
                {
                    "finding": kind,
                    "severity": found[0].severity,
                    "num": len(found),
                    "repair": found[0].repair,
                    "sentence": f"{len(found)} were found, such as: {found[0].detail or found[0].label}.",
                }
                for kind, found in told.items()
            ],
            "checks": [
                {"check": "files", "status": "done", "detail": "every file was decoded fully"},
                {"check": "near_duplicates", "status": "done", "detail": "perceptual hashes, then sketches"},
                {"check": "shortcut", "status": "done", "detail": "by size, format, brightness and border"},
                {"check": "off_domain", "status": "skipped", "detail": "it needs features of a network: --deep"},
                {"check": "wrong_label", "status": "skipped", "detail": "it needs a trained model: --deep"},
            ],
            "is_blocking": any(each.severity == "blocking" for each in self.findings),
            "seconds": {"decode": 3.21, "duplicates": 0.84, "shortcut": 1.1, "write": 0.05},
            "command": "foveal audit DATA --out AUDIT",
        }  # fmt: skip


def make_audit(
    folder: Path,
    names: Sequence[str] = ("ape", "bee", "cat"),
    *,
    num_each: int = 20,
    prefix: str = "",
    has_splits: bool = True,
    detail: str = "mirrored, then saved again",
) -> Path:
    """`folder`/audit: an audit of generated images in `folder`/images, with a few findings of every form."""
    rng = np.random.default_rng(0)
    maker = AuditMaker(folder / "images")
    rows: dict[str, list[int]] = {}
    for at, name in enumerate(names):
        colour = rng.integers(40, 215, size=3)
        for number in range(num_each):
            pixels = np.clip(colour + rng.normal(scale=25, size=(60, 72, 3)), 0, 255).astype(np.uint8)
            split = SPLITS[0 if number % 5 < 3 else number % 5 - 2] if has_splits else None
            row = maker.save(Image.fromarray(pixels), f"class{at}/{prefix}{number}.png", name, split)
            rows.setdefault(name, []).append(row)
    for at, (name, own) in enumerate(rows.items()):
        for number, row in enumerate(own[: min(10, num_each)]):
            original = Image.open(maker.root / maker.samples[row]["path"])
            copy = original.transpose(Image.Transpose.FLIP_LEFT_RIGHT).filter(ImageFilter.GaussianBlur(number / 6))
            split = "test" if has_splits else None
            twin = maker.save(copy, f"class{at}/{prefix}copy {number}.png", name, split)
            maker.copies.add(twin)
            kind, severity = ("leak", "blocking") if has_splits and number % 2 else ("near_duplicate", "warning")
            repair = "move" if kind == "leak" else "regroup"
            maker.find(kind, severity, twin, row, value=1 - number / 25, detail=detail, repair=repair)
        maker.find("blurred", "note", own[0], value=0.031 * (at + 1))
        maker.find("class_too_small", "warning", label=name, value=float(len(own)), detail="20 independent images")
        wrong = {"related_label": names[at - 1], "value": 0.02, "detail": "9 of 10 models disagree"}
        maker.find("wrong_label", "warning", own[-1], repair="relabel", **wrong)
        maker.find("shortcut", "warning", label=name, value=0.93, detail="its files are larger: 32 against 12 KB")
        broken = maker.root / f"class{at}" / f"{prefix}broken.jpg"
        broken.write_bytes(b"no image")
        reason = "a text file, not an image"
        row = maker.add(f"class{at}/{broken.name}", name, "train", status="quarantined", reason=reason)
        maker.find("unreadable", "warning", row, detail=reason, repair="quarantine")
    maker.find("class_imbalance", "note", value=1.0, detail="the classes are of one size")
    return maker.write(folder / "audit")

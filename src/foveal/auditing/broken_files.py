"""Files that cannot be used, JPEG files with damaged data, and files of which only the first frame is used."""

import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.checked import Checked
from foveal.auditing.findings import Finding
from foveal.data.facts import Facts
from foveal.data.manifest import Manifest
from foveal.pixels.strict_jpeg import CORRUPT_JPEG, is_available

_FIGURES = re.compile(r"\([^()]*[0-9][^()]*\)|[0-9]+(?:[.,][0-9]+)*")
_FRAMES = re.compile(r"animation with ([0-9]+) frames|([0-9]+) pages: first page taken")


def unreadable(manifest: Manifest, set_aside: NDArray[np.bool_] | None = None) -> Checked:
    """Every quarantined row, those of one reason side by side, the most frequent reason first.

    JPEG files with damaged data are told by `corrupt_jpeg`.

    Args:
        manifest: as the decode pass left it.
        set_aside: bool [rows], those that DATA, a manifest, had in quarantine already; they are told once, as a note.
    """
    quarantined = ~manifest.is_usable()
    before = quarantined & set_aside if set_aside is not None else np.zeros_like(quarantined)
    rows = np.flatnonzero(quarantined & ~before)
    reasons = [str(reason or "the reason is not known") for reason in manifest.column("reason")[rows]]
    kept = [place for place, reason in enumerate(reasons) if not reason.startswith(CORRUPT_JPEG)]
    faults = {place: fault_of(reasons[place]) for place in kept}
    counts = Counter(faults.values())
    findings = [
        Finding("unreadable", "warning", "quarantine", row=int(rows[place]), detail=_sentence(reasons[place]))
        for place in sorted(kept, key=lambda place: (-counts[faults[place]], faults[place], place))
    ]
    if num := int(np.count_nonzero(before)):
        findings.append(Finding("unreadable", "note", detail=f"{num:,} rows were in quarantine already."))
    return Checked("unreadable", findings)


def corrupt_jpeg(manifest: Manifest, facts: Facts) -> Checked:
    """JPEG files that a strict decoder refuses, and an ordinary one fills up with garbage (`pixels.strict_jpeg`)."""
    reasons = manifest.column("reason")
    rows = [row for row in np.flatnonzero(~manifest.is_usable()) if str(reasons[row]).startswith(CORRUPT_JPEG)]
    if not rows and not is_available() and (facts.format == "JPEG").any():
        return Checked(
            "corrupt_jpeg",
            skipped="simplejpeg, which tells damaged JPEG data, is not installed: pip install simplejpeg",
        )
    return Checked(
        "corrupt_jpeg",
        [
            Finding("corrupt_jpeg", "warning", "quarantine", row=int(row), detail=_sentence(reasons[row]))
            for row in rows
        ],
    )


def animated(facts: Facts) -> Checked:
    """Animations and files of several pages, of which the pixel policy takes the first; the value is their number."""
    findings = []
    for note in sorted({text for text in facts.notes.tolist() if text}):
        if found := _FRAMES.search(note):
            number = int(found[1] or found[2])
            what = "frames of an animation" if found[1] else "pages"
            findings += [
                Finding(
                    "animated", "note", row=row, value=number, detail=f"Only the first of {number:,} {what} is used."
                )
                for row in np.flatnonzero((facts.notes == note) & facts.is_known).tolist()
            ]
    return Checked("animated", findings)


def fault_of(reason: str) -> str:
    """What files of one fault have in common: no figures, and not what follows a colon or semicolon."""
    return _FIGURES.sub("…", re.split("[:;]", reason, maxsplit=1)[0]).strip().rstrip(".")


def _sentence(reason: str) -> str:
    """A reason as a sentence of its own."""
    text = reason.strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "…", "!", "?")) else text + "."

"""summary.json: the audit in figures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.checks import Known, Outcome
from foveal.auditing.findings import Finding
from foveal.auditing.ordering import ranked
from foveal.auditing.originals import class_counts
from foveal.types import SPLITS

FORMAT_VERSION = 1


def summarise(
    known: Known,
    outcome: Outcome,
    findings: Sequence[Finding],
    checks: Sequence[Mapping[str, str]],
    *,
    data: str,
    data_format: str,
    notes: Sequence[str],
    seconds: Mapping[str, float],
    command: str,
) -> dict[str, Any]:
    """All that the page and the terminal tell beside the findings themselves.

    Args:
        known: what the checks looked at.
        outcome: what they made of it.
        findings: of all checks, the deep ones too.
        checks: each check with its status, the deep ones too.
        data: DATA as it was given.
        data_format: what it was recognised as.
        notes: what reading it taught.
        seconds: wall time by stage.
        command: what repeats the audit.

    Returns:
        Plain values, for JSON.
    """
    manifest, facts = known.manifest, known.facts
    usable = manifest.is_usable()
    num_usable = int(usable.sum())
    codes = manifest.split_codes()
    counts = {name: int((usable & (codes == place)).sum()) for place, name in enumerate(SPLITS)}
    return {
        "format_version": FORMAT_VERSION,
        "data": data,
        "data_format": data_format,
        "notes": list(notes),
        "num_samples": len(manifest),
        "num_usable": num_usable,
        "num_quarantined": len(manifest) - num_usable,
        "num_files": len(np.unique(manifest.codes("path"))),
        "num_originals": outcome.originals.total,
        "classes": class_counts(manifest, outcome.originals),
        "splits": {
            name: {"num_images": count, "share": count / max(1, num_usable)} for name, count in counts.items() if count
        },
        "leakage": outcome.leakage,
        "sizes": {
            "width_px": _spread(facts.width_px),
            "height_px": _spread(facts.height_px),
            "aspect": _spread(
                np.maximum(facts.width_px, facts.height_px) / np.minimum(facts.width_px, facts.height_px)
            ),
        },
        "formats": _frequencies(facts.format[facts.is_known]),
        "modes": _frequencies(manifest.column("mode")[facts.is_known]),
        "findings": ranked(findings, manifest),
        "checks": [dict(check) for check in checks],
        "is_blocking": any(each.severity == "blocking" for each in findings),
        "seconds": {name: round(wall, 3) for name, wall in seconds.items()},
        "command": command,
    }


def _spread(values: NDArray[np.float64]) -> list[float]:
    """Least, 5 %, median, 95 % and largest of what is known."""
    known = values[~np.isnan(values)]
    if not len(known):
        return []
    return [round(float(value), 3) for value in np.quantile(known, [0.0, 0.05, 0.5, 0.95, 1.0])]


def _frequencies(values: NDArray[np.object_]) -> dict[str, int]:
    counts = Counter(str(value) for value in values.tolist() if value is not None)
    return dict(counts.most_common())

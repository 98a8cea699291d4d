"""Pictures that say little: tiny, blank, blurred, dark, overexposed, of an odd shape, of few values, or without colour.

Nearly every rule has two sides: the picture must be poor in itself, and poor for this data. So a set of 8-px digits is
not full of tiny pictures, nor one of night shots full of dark ones. What holds for most of a set is told once.

The measures are those of `foveal.data.facts`. The ideas of what to look for are those of CleanVision (Cleanlab, 2022),
whose thresholds are absolute.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.checked import Checked
from foveal.auditing.config import QualityConfig
from foveal.auditing.findings import Finding, Repair, Severity
from foveal.data.facts import Facts
from foveal.data.manifest import Manifest

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

MIN_PICTURES = 10
"""In fewer pictures than this there is no "usual", and only what is poor in itself is told."""
_CERTAINLY_BLANK = 0.008
_BLANK_SHARE = 0.15
_DARK_SHARE = 0.6
_FAR_OUT = 3.0
_MAD_TO_SIGMA = 1.4826
_LEAST_PIXELS = 64
_LEAST_PIXELS_OF_MASK = 256
_FEW_VALUES_OF_JPEG = 64


@dataclass(frozen=True)
class _Suspects:
    """The pictures that one rule points at.

    Attributes:
        poor: bool [rows], those that are poor in themselves; if they are most of all, that is told once.
        told: bool [rows], those of them that are told one by one.
        values: float64 [rows], the figure behind each.
        sentence: what is said of a picture, from its value.
        once: what is said of the whole set, after "62 % of the pictures ", from the median value of the poor ones.
    """

    poor: Mask
    told: Mask
    values: Floats
    sentence: Callable[[float], str]
    once: Callable[[float], str]
    severity: Severity = "warning"
    repair: Repair = "none"


def picture_quality(manifest: Manifest, facts: Facts, config: QualityConfig) -> list[Checked]:
    """All rules over all usable samples, one outcome a kind; of a box, what counts is its cutting.

    A picture that is blank or of a few values only is not called dark, blurred or grey as well.
    """
    known = facts.is_known & manifest.is_usable()
    kinds = ("tiny", "odd_aspect", "blank", "binarised", "dark", "overexposed", "blurred", "odd_channels")
    if not known.any():
        return [Checked(kind, skipped="No picture could be decoded.") for kind in kinds]
    seen = known & (facts.width_px * facts.height_px >= _LEAST_PIXELS)
    suspects = {
        "tiny": _tiny(manifest.codes("label"), facts, known, config),
        "odd_aspect": _odd_aspect(facts, known, config),
        "blank": _blank(facts, seen, config),
    }
    seen = seen & ~suspects["blank"].poor
    suspects["dark"] = _dark(facts, seen, config)
    suspects["overexposed"] = _overexposed(facts, seen, config)
    # What is left of a photograph in the dark, or in too much light, has few values, too.
    lit = seen & ~suspects["dark"].poor & ~suspects["overexposed"].poor
    suspects["binarised"] = _binarised(facts, lit, config)
    seen = seen & ~suspects["binarised"].poor
    suspects["blurred"] = _blurred(facts, seen, config)
    checked = [Checked(kind, _findings(kind, suspects[kind], known, config)) for kind in kinds if kind in suspects]
    return [*checked, Checked("odd_channels", _odd_channels(facts, seen, config))]


def _findings(kind: str, suspects: _Suspects, known: Mask, config: QualityConfig) -> list[Finding]:
    poor, told = suspects.poor & known, suspects.told & suspects.poor & known
    share = np.count_nonzero(poor) / np.count_nonzero(known)
    findings = []
    if np.count_nonzero(known) >= MIN_PICTURES and share > config.whole_set_share:
        value = float(np.median(suspects.values[poor]))
        severity: Severity = "note" if share >= 0.95 else suspects.severity
        sentence = f"{_percent(share)} of the pictures {suspects.once(value)}"
        findings.append(Finding(kind, severity, value=value, detail=sentence))
        if np.array_equal(told, poor):  # no picture is poorer than the others
            told = np.zeros_like(told)
    findings += [
        Finding(kind, suspects.severity, suspects.repair, row=row, value=value, detail=suspects.sentence(value))
        for row, value in zip(np.flatnonzero(told).tolist(), suspects.values[told].tolist(), strict=True)
    ]
    return findings


def _tiny(labels: NDArray[np.int64], facts: Facts, known: Mask, config: QualityConfig) -> _Suspects:
    """A shorter side that is small, and small for this data and this class: one of small cells is small as a whole."""
    side = np.minimum(facts.width_px, facts.height_px)
    usual = np.minimum(_usual(side, known), _usual_of_class(side, labels, known))
    poor = known & (side < config.tiny_px)
    return _Suspects(
        poor,
        side < config.tiny_share * usual,
        side,
        lambda value: f"Its shorter side is {value:,.0f} px.",
        lambda value: f"are small: a shorter side of {value:,.0f} px.",
    )


def _odd_aspect(facts: Facts, known: Mask, config: QualityConfig) -> _Suspects:
    longer, shorter = np.maximum(facts.width_px, facts.height_px), np.minimum(facts.width_px, facts.height_px)
    aspect = longer / np.maximum(shorter, 1)
    usual = _usual(aspect, known)
    return _Suspects(
        known & (aspect > config.odd_aspect),
        aspect > 2 * (usual if np.isfinite(usual) else 1.0),
        aspect,
        lambda value: f"Its longer side is {value:,.1f} times the shorter.",
        lambda value: f"are long and narrow: one side is {value:,.1f} times the other.",
    )


def _blank(facts: Facts, seen: Mask, config: QualityConfig) -> _Suspects:
    """Hardly any contrast; what is merely dark or overexposed, with something still to be seen in it, is told so."""
    contrast = facts.measure("contrast").astype(np.float64)
    limit = min(config.blank_contrast, _BLANK_SHARE * _usual(contrast, seen))
    dim = _dark(facts, seen, config).poor | _overexposed(facts, seen, config).poor
    poor = seen & ((contrast < _CERTAINLY_BLANK) | ((contrast < limit) & ~dim))
    return _Suspects(
        poor,
        poor,
        contrast,
        lambda value: f"It is of one tone: the luma spreads by {value:.3f} only.",
        lambda value: f"are of one tone: the luma spreads by {value:.3f} only.",
        repair="quarantine",
    )


def _binarised(facts: Facts, seen: Mask, config: QualityConfig) -> _Suspects:
    """Few distinct lumas, or, as JPEG leaves them, nearly all pixels at the two ends, or at two values of a few."""
    values = facts.measure("num_values").astype(np.float64)
    dark, bright = facts.measure("dark_share"), facts.measure("bright_share")
    ends = (dark + bright >= 0.97) & (np.minimum(dark, bright) >= 0.01)
    two = (facts.measure("top_two_share") >= 0.9) & (values <= _FEW_VALUES_OF_JPEG)
    large = facts.width_px * facts.height_px >= _LEAST_PIXELS_OF_MASK
    poor = seen & large & ((values <= config.binarised_values) | ends | two)

    def sentence(value: float) -> str:
        if value > config.binarised_values:
            return "Nearly all of its pixels are at one of two values."
        return f"It has {value:,.0f} distinct values of luma only."

    return _Suspects(poor, poor, values, sentence, lambda _: "are of a few values only, as masks and scans are.")


def _dark(facts: Facts, seen: Mask, config: QualityConfig) -> _Suspects:
    brightness, contrast = (facts.measure(name).astype(np.float64) for name in ("brightness", "contrast"))
    lights = brightness + 2 * contrast
    return _Suspects(
        seen & (lights < config.dark_luma),
        lights < _DARK_SHARE * _usual(lights, seen),
        brightness,
        lambda value: f"Nearly all of it is black: the mean luma is {value:.2f} of 1.",
        lambda value: f"are nearly black: the mean luma is {value:.2f} of 1.",
    )


def _overexposed(facts: Facts, seen: Mask, config: QualityConfig) -> _Suspects:
    brightness, contrast = (facts.measure(name).astype(np.float64) for name in ("brightness", "contrast"))
    missing = 1 - (brightness - 2 * contrast)
    return _Suspects(
        seen & (missing < 1 - config.overexposed_luma),
        missing < _DARK_SHARE * _usual(missing, seen),
        brightness,
        lambda value: f"Nearly all of it is white: the mean luma is {value:.2f} of 1.",
        lambda value: f"are nearly white: the mean luma is {value:.2f} of 1.",
    )


def _blurred(facts: Facts, seen: Mask, config: QualityConfig) -> _Suspects:
    """Far less sharp than the median, and far out in the distribution of the logarithm, by median and MAD.

    Pictures that hold no fine detail, such as a clear sky, can look the same; pictures that are soft throughout, such
    as cuttings of a few pixels that were enlarged, hide a blur. Of flat ones and of lines there is nothing to tell.
    """
    sharpness = facts.measure("sharpness").astype(np.float64)
    seen = seen & (sharpness > 0.0)
    usual = _usual(sharpness, seen)
    logs = np.log(np.maximum(sharpness, 1e-6))
    spread = _MAD_TO_SIGMA * _usual(np.abs(logs - _usual(logs, seen)), seen)
    enough = np.count_nonzero(seen) >= MIN_PICTURES
    poor = seen & (sharpness < config.blurred_share * usual) & (logs < _usual(logs, seen) - _FAR_OUT * spread) & enough
    return _Suspects(
        poor,
        poor,
        sharpness,
        lambda value: f"It is {usual / max(value, 1e-6):,.1f} times less sharp than the usual picture here.",
        lambda _: "are blurred.",
    )


def _odd_channels(facts: Facts, seen: Mask, config: QualityConfig) -> list[Finding]:
    """Grey pictures where colour is usual, or the reverse; those of a few values are left out, being grey anyway."""
    grey = seen & (facts.measure("saturation") < config.grey_saturation)
    num_seen, num_grey = np.count_nonzero(seen), np.count_nonzero(grey)
    if not 0 < num_grey < num_seen:
        return []
    share = num_grey / num_seen
    if config.minority_share < share < 1 - config.minority_share:
        sentence = f"{_percent(share)} of the pictures are grey, and the others have colour."
        return [Finding("odd_channels", "note", detail=sentence)]
    if share <= config.minority_share:
        odd, sentence = grey, f"It is grey, and {_percent(1 - share)} of the pictures have colour."
    else:
        odd, sentence = seen & ~grey, f"It has colour, and {_percent(share)} of the pictures are grey."
    return [Finding("odd_channels", "note", row=row, detail=sentence) for row in np.flatnonzero(odd).tolist()]


def _usual(values: Floats, known: Mask) -> float:
    """The median of the known values; infinite where they are too few to speak of a usual one."""
    chosen = values[known]
    return float(np.median(chosen)) if len(chosen) >= MIN_PICTURES else np.inf


def _usual_of_class(values: Floats, labels: NDArray[np.int64], known: Mask) -> Floats:
    """Each row's median of its class, float64 [rows]; infinite where the class is too small to have one."""
    rows = np.flatnonzero(known)
    order = rows[np.lexsort((values[rows], labels[rows]))]
    counts = np.bincount(labels[rows], minlength=int(labels.max()) + 1)
    middles = np.cumsum(counts) - counts + counts // 2
    medians = np.full(len(counts), np.inf)
    enough = counts >= MIN_PICTURES
    medians[enough] = values[order[middles[enough]]]
    return medians[labels]


def _percent(share: float) -> str:
    if share < 1 and round(1000 * share) == 1000:
        return "Nearly all" if share > 0.5 else "0 %"
    return "All" if share == 1 else f"{100 * share:.1f} %".replace(".0 %", " %")

"""What a file's name says of its making: the stem of its original, and how sure that is.

Names are read by RE2 through Arrow, whole columns at a time. A pattern never decides alone: `auditing.names` asks
whether the original is there, or whether several files name the same one.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from foveal.extras import require

if TYPE_CHECKING:
    import pyarrow as pa

PLAIN, EXPORTED, AUGMENTED, PERHAPS, COPY, NUMBERED, PREFIXED, COUNTED = range(8)
"""What a name may be:

- PLAIN: says nothing, or that it is the original (`x_orig`)
- EXPORTED: by a tool that writes the original's name and a hash (Roboflow `x_jpg.rf.HASH`, Augmentor
  `class_original_x.jpg_UUID`)
- AUGMENTED: ends in words that are used for nothing else (`x_aug_3`, `x_flip`, `x_rot90`)
- PERHAPS: ends in words that may also tell what is shown (`x_dark`, `x_crop2`)
- COPY: as file managers name copies (`x - Copy (2)`, `x_copy`, `Copy of x`)
- NUMBERED: `x (1)`, as browsers name a second download, and file managers number whole folders
- PREFIXED: begins with such words (`aug_x`, `flipped_x`)
- COUNTED: `aug_0_1234`, as Keras saves augmented images: place in the batch and a random number
"""

_IMAGE = r"(?:jpe?g|jfif|png|webp|bmp|tiff?|gif)"
_GAP = r"[ _.\-]+"
_SIGN = (
    r"(?:[hvxy]|lr|ud|left|right|horizontal(?:ly)?|vertical(?:ly)?|cw|ccw|neg|minus|pos|plus|by|of"
    r"|[+\-]?[0-9]+(?:[.,][0-9]+)?(?:deg(?:rees?)?|px|pct|%|x)?|\([0-9]+\))"
)
_TAIL = rf"(?:[ _.\-]*{_SIGN})*"
_CERTAIN = (
    r"(?:aug(?:m(?:ent(?:ed|ation)?)?)?|(?:[hv]|lr|ud|horizontal|vertical)?[_\-]?flip(?:ped)?|flip(?:lr|ud)"
    r"|mirror(?:ed)?|rotated|rotation|rotate|rot[ _\-]*[+\-]?[0-9]+(?:deg)?|bright(?:er|ened|ness)"
    r"|(?:colou?r)?jitter(?:ed)?|shear(?:ed)?|cutout|cutmix|mixup|randaug(?:ment)?|clahe|hsv|transposed?)"
)
_DOUBTFUL = (
    r"(?:bright|dark|darker|darkened|light|lighter|contrast|noise|noisy|blur|blurred|blurry|gauss(?:ian)?|crop|cropped|zoom"
    r"|zoomed|scale|scaled|resize|resized|shift|shifted|translate|translated|hue|sat|saturation|saturated|gamma|gr[ae]y"
    r"|gr[ae]yscale|sharp|sharpened|invert|inverted|equali[sz]ed?|elastic|distort|distorted|perspective|affine|rot|color"
    r"|colou?rized|compressed|thumb|thumbnail|small|large|edited|enhanced|padded|warp|warped)"
)
_COPY = r"(?:copy|copie|kopie|copia)"

_CANDIDATE = rf"\.rf\.|_original_|\)$|(?:^|[ _.\-])(?:{_CERTAIN}|{_DOUBTFUL}|{_COPY})(?:$|[ _.\-+0-9(hvxylu])"
_EXPORTED = (
    rf"^(?:(?P<base>(?s:.+?))(?:[._\-]{_IMAGE})?\.rf\.[0-9a-z]{{6,}}"
    rf"|(?s:.*?)_original_(?P<other>(?s:.+?))\.{_IMAGE}_[0-9a-f\-]{{32,36}})$"
)
_SUFFIXES = (
    (AUGMENTED, rf"(?:{_CERTAIN}{_TAIL})(?:{_GAP}(?:{_CERTAIN}|{_DOUBTFUL}|{_COPY}){_TAIL})*"),
    (COPY, rf"(?:{_COPY}{_TAIL})(?:{_GAP}{_COPY}{_TAIL})*"),
    (PERHAPS, rf"(?:{_DOUBTFUL}{_TAIL})(?:{_GAP}(?:{_CERTAIN}|{_DOUBTFUL}|{_COPY}){_TAIL})*"),
)
_NUMBERED = r"^(?P<base>(?s:.+?)) ?\([0-9]{1,3}\)$"
_COUNTED = r"^(?P<base>aug(?:mented|mentation)?[_\-][0-9]+)[_\-][0-9]+$"
_MADE = rf"(?:{_CERTAIN}|bright|noisy|blurred|cropped|zoomed|gr[ae]y)"
_PREFIXED = rf"^(?:{_COPY} (?:of|de|von|di) |{_MADE}{_TAIL}{_GAP})(?P<base>(?s:.+))$"
_ORIGINAL = r"[ _.\-]+orig(?:inal)?$"


def read_stems(stems: "pa.Array") -> tuple["pa.Array", NDArray[np.int64]]:
    """What each stem (a lower-case file name without its ending) says.

    Args:
        stems: text, one a file.

    Returns:
        The stem of the original each is named after, its own where it is plain; and int64 [files], the kind of name.
    """
    pa, compute = _arrow()
    kinds = np.zeros(len(stems), dtype=np.int64)
    bases = compute.replace_substring_regex(stems, _ORIGINAL, "")
    bases = compute.if_else(compute.equal(bases, ""), stems, bases)
    places = np.flatnonzero(_matches(stems, _CANDIDATE))
    if not places.size:
        return bases, kinds
    found = _Reading(stems.take(pa.array(places)))
    found.read(EXPORTED, _EXPORTED, then_on=True)
    found.read(COUNTED, _COUNTED)
    for kind, suffix in _SUFFIXES:
        found.read(kind, rf"^(?P<base>(?s:.+?)){_GAP}{suffix}$")
    found.read(PREFIXED, _PREFIXED)
    found.read(NUMBERED, _NUMBERED)
    named = found.kinds != PLAIN
    kinds[places[named]] = found.kinds[named]
    chosen = np.zeros(len(stems), dtype=np.bool_)
    chosen[places[named]] = True
    plain = compute.replace_substring_regex(found.bases.filter(pa.array(named)), rf"\.{_IMAGE}$", "")
    bases = compute.replace_with_mask(bases, pa.array(chosen), plain)
    # A name that counts beside its original only is a plain one where no file has the original's.
    weak = np.isin(kinds, (PERHAPS, NUMBERED, PREFIXED))
    known = compute.is_in(bases, value_set=bases.filter(pa.array(kinds == PLAIN)).unique())
    alone = weak & ~np.asarray(known.to_numpy(zero_copy_only=False), dtype=np.bool_)
    kinds[alone] = PLAIN
    return compute.if_else(pa.array(alone), stems, bases), kinds


class _Reading:
    """Names that are read by one pattern after the other; the first that fits says what a name is."""

    def __init__(self, stems: "pa.Array") -> None:
        self.bases = stems
        self.kinds = np.zeros(len(stems), dtype=np.int64)
        self._open = np.ones(len(stems), dtype=np.bool_)

    def read(self, kind: int, pattern: str, *, then_on: bool = False) -> None:
        """Read the names that no pattern has fitted yet; with `then_on`, what is left of them is read on."""
        pa, compute = _arrow()
        places = np.flatnonzero(self._open)
        parts = compute.extract_regex(self.bases.take(pa.array(places)), pattern)
        fits = np.asarray(parts.is_valid())
        if not fits.any():
            return
        parts = parts.filter(pa.array(fits))
        base = parts.field("base")
        if "other" in parts.type.names:
            base = compute.if_else(compute.equal(base, ""), parts.field("other"), base)
        chosen = np.zeros(len(self.bases), dtype=np.bool_)
        chosen[places[fits]] = True
        self.bases = compute.replace_with_mask(self.bases, pa.array(chosen), base)
        self.kinds[chosen] = kind
        self._open &= ~chosen | then_on


def split_paths(paths: "pa.Array") -> tuple["pa.Array", "pa.Array"]:
    """Folder and lower-case stem of each path; the ending is taken off where it is an image's."""
    _, compute = _arrow()
    parts = compute.extract_regex(paths, r"^(?P<folder>(?s:.*/)?)(?P<name>(?s:[^/]*))$")
    name = compute.utf8_lower(parts.field("name"))
    stem = compute.replace_substring_regex(name, rf"\.{_IMAGE}$", "")
    return parts.field("folder"), compute.if_else(compute.equal(stem, ""), name, stem)


def has_number(texts: "pa.Array") -> NDArray[np.bool_]:
    """Whether each text holds a digit: a name without one is rarely that of a single picture."""
    return _matches(texts, "[0-9]")


def tells_a_picture(texts: "pa.Array") -> NDArray[np.bool_]:
    """Whether each stem is more than a running number: it has a letter, or at least six digits."""
    return _matches(texts, r"\pL|[0-9]{6}")


def is_generic(texts: "pa.Array") -> NDArray[np.bool_]:
    """Whether each stem is one that browsers and tools give to anything."""
    return _matches(
        texts,
        r"^(?:images?|img|downloads?|unnamed|photos?|pic|pictures?|untitled|screen ?shot|index|file|default|thumb|scan"
        r"|maxresdefault|hqdefault|th|output|frame|sample|original|orig|copy|new|test|train)?$",
    )


def _matches(texts: "pa.Array", pattern: str) -> NDArray[np.bool_]:
    _, compute = _arrow()
    return np.asarray(compute.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False), dtype=np.bool_)


def _arrow() -> tuple[Any, Any]:
    purpose = "read file names"
    return (
        require("pyarrow", extra="train", purpose=purpose),
        require("pyarrow.compute", extra="train", purpose=purpose),
    )

"""Where groups come from, and their union under one name: what must never be cut by a split."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.data.manifest import Manifest
from foveal.data.split import COPIES, connected, is_of_copies
from foveal.errors import ConfigError
from foveal.extras import require
from foveal.files import natural_key, sha256_bytes

Integers = NDArray[np.int64]

LONGEST_NAME = 80


@dataclass(frozen=True)
class GroupSource:
    """What one source of groups brought together.

    Attributes:
        name: for a person, such as "near duplicates".
        num_samples: usable samples that share a group of this source with another.
        num_groups: groups of at least two.
    """

    name: str
    num_samples: int
    num_groups: int

    def sentence(self) -> str:
        """In one line."""
        return f"{self.name}: {self.num_samples:,} images in {self.num_groups:,} groups of two or more"


def regroup(
    manifest: Manifest, codes: Sequence[Integers] = (), *, names: NDArray[np.object_] | None = None
) -> Manifest:
    """Write the union of all groups into the column `group`.

    Joined are usable rows of one given group, one photograph (its boxes), the same bytes, one of `names`, or one number
    in any of `codes`, directly or by way of others. A union with one given group takes its name; with several, their
    names joined by "+" in natural order; with none, one of `names`; else it is called "copies-" and the first digits
    of its least sample_id. Rows that stand alone and have no group stay without. Done twice, the second changes
    nothing.

    Args:
        manifest: a group of it counts as given unless an earlier union of mere copies made its name.
        codes: int64 [rows] each, equal for rows that belong together and -1 where a row does not; as in `connected`.
        names: object [rows], names of further groups, None where there is none; one in the column `group` goes first.
    """
    usable, num_rows = manifest.is_usable(), len(manifest)
    given, given_names = _encoded(manifest.table["group"])
    further, further_names = _encoded(names if names is not None else [None] * num_rows)
    sources = [given, manifest.codes("path"), manifest.codes("sha256"), further, *codes]
    component = connected(num_rows, [np.where(usable, code, -1) for code in sources])
    sizes = np.bincount(component, minlength=1)
    title: dict[int, str] = {}
    own: set[int] = set()  # whose name is a given one as it stands, and is never changed
    is_made = np.array([is_of_copies(name) for name in given_names], dtype=np.bool_)
    least = _least_ids(manifest, component, sizes)
    for number, found in _names_of(component, given, given_names, usable & (given >= 0) & ~is_made[given]):
        title[number] = _joined(found)
        if len(found) == 1:
            own.add(number)
    for number, found in _names_of(component, further, further_names, usable & (further >= 0)):
        title.setdefault(number, _joined(found))
    for number, found in _names_of(component, given, given_names, usable & (given >= 0) & is_made[given]):
        title.setdefault(number, found[0] if len(found) == 1 else COPIES + least(number)[:8])
    for number in np.flatnonzero(sizes > 1).tolist():
        if number not in title:
            title[number] = COPIES + least(number)[:8]
    _tell_apart(title, own, least)
    return manifest.with_columns(group=_column(component, title, given, given_names, usable))


def names_by_pattern(manifest: Manifest, pattern: str) -> NDArray[np.object_]:
    """The group that a regular expression finds in each path: its group `group`, else its first, else the whole match.

    Returns:
        object [rows], None where it does not match.

    Raises:
        ConfigError: it matches no path of a usable row.
    """
    expression = re.compile(pattern)
    which: int | str = "group" if "group" in expression.groupindex else min(1, expression.groups)
    names = np.full(len(manifest), None, dtype=object)
    paths = manifest.table["path"].to_pylist()
    for row in manifest.usable().tolist():
        if match := expression.search(paths[row]):
            names[row] = match[which] or None
    if len(paths) and not any(name is not None for name in names):
        shown = [paths[row] for row in manifest.usable()[:5].tolist()]
        raise ConfigError(
            f"split.group_by: {pattern!r} finds a group in none of {len(manifest.usable()):,} paths.",
            problems=[f"path {path!r}" for path in shown],
            fix=r"mend the expression; '(\d+)_(left|right)' finds 10017 in 'a/10017_left.jpg'.",
        )
    return names


def group_sources(
    manifest: Manifest, clusters: Integers | None = None, names: NDArray[np.object_] | None = None
) -> list[GroupSource]:
    """What each source of groups brings together among the usable rows; those that bring nothing are left out.

    Args:
        manifest: before `regroup`.
        clusters: int64 [rows], number of the cluster of near duplicates; -1 where a row is in none.
        names: object [rows], as from `names_by_pattern`.
    """
    given, given_names = _encoded(manifest.table["group"])
    is_made = np.array([is_of_copies(name) for name in given_names] or [False], dtype=np.bool_)
    sources = [
        ("group given by the data", np.where(is_made[given], -1, given)),
        ("copies known from the manifest", np.where(is_made[given], given, -1)),
        ("boxes of one photograph", manifest.codes("path")),
        ("same bytes", _of_several_files(manifest)),
    ]
    if names is not None:
        sources.insert(1, ("regular expression on the path", _encoded(names)[0]))
    if clusters is not None:
        sources.append(("near duplicates", clusters))
    usable, found = manifest.is_usable(), []
    for name, code in sources:
        members = code[usable & (code >= 0)]
        _, place = np.unique(members, return_inverse=True)
        counts = np.bincount(place, minlength=1)
        if (counts > 1).any():
            found.append(GroupSource(name, int(counts[counts > 1].sum()), int((counts > 1).sum())))
    return found


def _of_several_files(manifest: Manifest) -> Integers:
    """A number for each content that lies in several files; -1 elsewhere, as in boxes of one photograph."""
    content, path = manifest.codes("sha256"), manifest.codes("path")
    pairs = np.unique(np.stack([content, path]), axis=1)[0]
    num_files = np.bincount(pairs[pairs >= 0], minlength=int(content.max(initial=-1)) + 2)
    return np.where(num_files[content] > 1, content, -1)


def _encoded(values: Any) -> tuple[Integers, list[str]]:
    """Texts as numbers into a list of the distinct ones, -1 where there is none."""
    pa = require("pyarrow", extra="train", purpose="read and write manifests")
    column = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else pa.array(values, pa.string())
    encoded = column.dictionary_encode()
    codes: Integers = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    # So that the number -1 finds something too, where nothing is named.
    return codes, encoded.dictionary.to_pylist() or [""]


def _names_of(
    component: Integers, codes: Integers, names: Sequence[str], rows: NDArray[np.bool_]
) -> Iterable[tuple[int, list[str]]]:
    """The distinct names in each component that has any."""
    pairs = np.unique(component[rows] * len(names) + codes[rows])
    numbers = pairs // len(names)
    starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist() or [0]
    places = (pairs % len(names)).tolist()
    for start, end in zip(starts, [*starts[1:], len(pairs)], strict=True) if pairs.size else ():
        yield int(numbers[start]), [names[place] for place in places[start:end]]


def _joined(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    ordered = sorted(names, key=natural_key)
    text = "+".join(ordered)
    if len(text) <= LONGEST_NAME:
        return text
    digest = sha256_bytes("\0".join(ordered).encode())[:8]
    return f"{text[: LONGEST_NAME - 24]}...+{len(ordered)}-{digest}"


def _least_ids(manifest: Manifest, component: Integers, sizes: Integers) -> Callable[[int], str]:
    """The least sample_id of a component, by its number."""
    compute = require("pyarrow.compute", extra="train", purpose="read and write manifests")
    ids = manifest.table["sample_id"]
    order = np.asarray(compute.sort_indices(ids).to_numpy(), dtype=np.int64)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    lowest = np.full(len(sizes), len(order), dtype=np.int64)
    np.minimum.at(lowest, component, rank)
    sorted_ids = ids.take(order).to_pylist()
    return lambda number: str(sorted_ids[lowest[number]])


def _tell_apart(title: dict[int, str], own: set[int], least: Callable[[int], str]) -> None:
    """Different unions get different names; a given name is not changed."""
    count = Counter(title.values())
    for number in [each for each, name in title.items() if count[name] > 1 and each not in own]:
        name = title[number]
        title[number] = COPIES + least(number) if is_of_copies(name) else f"{name} #{least(number)[:8]}"


def _column(
    component: Integers, title: dict[int, str], given: Integers, given_names: Sequence[str], usable: NDArray[np.bool_]
) -> Any:
    """The name of each row's union; a quarantined row follows the group that it was given."""
    pa = require("pyarrow", extra="train", purpose="read and write manifests")
    named = np.fromiter(title, dtype=np.int64, count=len(title))
    place = np.full(int(component.max(initial=-1)) + 1, -1, dtype=np.int64)
    place[named] = np.arange(len(named))
    union_of_given = np.full(len(given_names), -1, dtype=np.int64)
    rows = usable & (given >= 0)
    union_of_given[given[rows]] = place[component[rows]]
    apart = np.where(union_of_given[given] >= 0, union_of_given[given], given + len(named))
    places = np.where(usable, place[component] if len(component) else component, np.where(given >= 0, apart, -1))
    names = pa.array([*title.values(), *given_names], pa.string())
    return names.take(pa.array(places, mask=places < 0))

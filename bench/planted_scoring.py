"""How much of what was planted an audit found, and what it found that was not planted. Pure functions of two tables."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from planted import Truth
from planted_copies import KINDS

PAIRS = ("exact_duplicate", "near_duplicate", "label_conflict", "leak")
BROKEN = ("unreadable", "corrupt_jpeg")
TARGETS: dict[str, float] = (
    dict.fromkeys(KINDS[:5], 1.0)
    | dict.fromkeys(KINDS[5:-1], 0.98)
    | {"chain": 0.95, "conflict": 1.0, "foreign": 0.9, "broken": 1.0, "wrong_label": 0.8}
)
WRONG_LABEL_PRECISION, FALSE_SHARE = 0.6, 0.01
Finding = Mapping[str, Any]
"""A row of findings.parquet."""


@dataclass(frozen=True)
class Recall:
    """How many of one kind were found.

    Attributes:
        kind: what was planted.
        num_planted: how many there are.
        missed: those that were not found.
        num_direct: copies found as a pair with their own original, not by way of another picture.
    """

    kind: str
    num_planted: int
    missed: tuple[Truth, ...]
    num_direct: int | None = None

    @property
    def recall(self) -> float:
        """Share that was found."""
        return 1.0 - len(self.missed) / self.num_planted

    @property
    def met(self) -> bool:
        """Whether the target was reached."""
        return self.recall >= TARGETS[self.kind]


@dataclass(frozen=True)
class ExtraPair:
    """Two pictures that were found to be copies though nothing was planted between them or their originals.

    Attributes:
        path: one of the two, of the most alike pair where copies of the same two were found more than once.
        related_path: the other.
        families: what the two are copies of, or themselves, in order.
        similarity: of the pair, 0..1; 0 where none is told.
        findings: the kinds that tell of it.
        paths: all files in pairs between the two families.
    """

    path: str
    related_path: str
    families: tuple[str, str]
    similarity: float
    findings: tuple[str, ...]
    paths: frozenset[str]


@dataclass(frozen=True)
class Score:
    """All of it.

    Attributes:
        recalls: by kind, in the order in which they were planted.
        extra_pairs: the least alike first, for there the mistakes are.
        num_flagged: by finding, samples that were flagged and are none of what was planted.
        wrong_label_precision: share of the flagged labels that are wrong; None where none was flagged.
        leak_recall: share of the planted copies between train and val or test that a `leak` tells of.
        largest_component: pictures in the largest set connected by pairs.
    """

    recalls: Mapping[str, Recall]
    extra_pairs: Sequence[ExtraPair]
    num_flagged: Mapping[str, int]
    wrong_label_precision: float | None
    leak_recall: float
    largest_component: int
    num_images: int = field(default=0)

    def false_share(self, genuine: Iterable[frozenset[str]] = ()) -> float:
        """Share of the images in extra pairs, but for those between families that a person found to be copies."""
        known = set(genuine)
        false = [pair.paths for pair in self.extra_pairs if frozenset(pair.families) not in known]
        return len(frozenset().union(*false)) / max(1, self.num_images)


def score(truth: Sequence[Truth], findings: Sequence[Finding], num_images: int) -> Score:
    """Compare what was planted with what was found."""
    by_kind: dict[str, list[Truth]] = defaultdict(list)
    for each in truth:
        by_kind[each.kind].append(each)
    paths: dict[str, set[str]] = defaultdict(set)
    pairs: dict[str, set[frozenset[str]]] = defaultdict(set)
    for row in findings:
        if row["path"] is not None and row["related_path"] is None:
            paths[row["finding"]].add(row["path"])
        elif row["path"] is not None and row["path"] != row["related_path"]:
            pairs[row["finding"]].add(frozenset((row["path"], row["related_path"])))
    all_pairs = set().union(*(pairs[kind] for kind in PAIRS))
    component = _components(all_pairs)
    conflicting = _components(pairs["label_conflict"])
    broken = set().union(*(paths[kind] for kind in BROKEN))
    recalls: dict[str, Recall] = {}
    for kind, planted in by_kind.items():
        if kind in KINDS:
            missed = [each for each in planted if not _together(component, each)]
            direct = sum(frozenset((each.path, each.original_path)) in all_pairs for each in planted)
            recalls[kind] = Recall(kind, len(planted), tuple(missed), direct)
        elif kind == "conflict":
            missed = [each for each in planted if not _together(conflicting, each)]
            recalls[kind] = Recall(kind, len(planted), tuple(missed))
        else:
            found = {"broken": broken, "foreign": paths["off_domain"], "wrong_label": wrong_labels(findings)}[kind]
            recalls[kind] = Recall(kind, len(planted), tuple(each for each in planted if each.path not in found))
    right, flagged = _wrong_label_hits(truth, wrong_labels(findings))
    sizes = Counter(component.values())
    return Score(
        recalls=recalls,
        extra_pairs=_extra_pairs(truth, findings),
        num_flagged={
            "broken": len(broken - {each.path for each in by_kind["broken"]}),
            "foreign": len(paths["off_domain"] - {each.path for each in by_kind["foreign"]}),
            "wrong_label": flagged - right,
        },
        wrong_label_precision=right / flagged if flagged else None,
        leak_recall=_leak_recall(truth, pairs["leak"]),
        largest_component=max(sizes.values(), default=0),
        num_images=num_images,
    )


def wrong_labels(findings: Iterable[Finding]) -> set[str]:
    """The samples whose label an audit doubts."""
    return {row["path"] for row in findings if row["finding"] == "wrong_label" and row["path"] is not None}


def _wrong_label_hits(truth: Sequence[Truth], flagged: set[str]) -> tuple[int, int]:
    """How many of the flagged labels are wrong, and how many count; a foreign picture has no right label."""
    wrong = {each.path for each in truth if each.kind in ("wrong_label", "conflict")}
    counted = flagged - {each.path for each in truth if each.kind in ("foreign", "broken")}
    return len(counted & wrong), len(counted)


def _leak_recall(truth: Sequence[Truth], leaks: set[frozenset[str]]) -> float:
    """Of the copies planted across the border of training, those whose val or test side a `leak` names."""
    named = set().union(*leaks)
    expected = []
    for each in truth:
        sides = [path for path in (each.path, each.original_path) if not path.startswith("train/")]
        if each.kind in KINDS and len(sides) == 1:
            expected += sides
    return sum(path in named for path in expected) / max(1, len(expected))


def _together(component: Mapping[str, int], planted: Truth) -> bool:
    here = component.get(planted.path)
    return here is not None and here == component.get(planted.original_path)


def _components(pairs: Iterable[frozenset[str]]) -> dict[str, int]:
    """The number of the connected set of each path in the pairs."""
    parent: dict[str, str] = {}

    def root(path: str) -> str:
        parent.setdefault(path, path)
        while parent[path] != path:
            parent[path] = parent[parent[path]]
            path = parent[path]
        return path

    for one, other in pairs:
        parent[root(one)] = root(other)
    numbers: dict[str, int] = {}
    return {path: numbers.setdefault(root(path), len(numbers)) for path in list(parent)}


def _extra_pairs(truth: Sequence[Truth], findings: Sequence[Finding]) -> list[ExtraPair]:
    family = {each.path: each.original_path for each in truth if each.original_path}
    rows: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for row in findings:
        if row["finding"] in PAIRS and row["path"] is not None and row["related_path"] is not None:
            ends: tuple[str, str] = (row["path"], row["related_path"])
            one, other = sorted(family.get(path, path) for path in ends)
            if one != other:
                rows[one, other].append(row)
    extra = []
    for families, found in rows.items():
        best = max(found, key=_similarity)
        paths = frozenset(path for row in found for path in (row["path"], row["related_path"]))
        kinds = tuple(sorted({row["finding"] for row in found}))
        extra.append(ExtraPair(best["path"], best["related_path"], families, _similarity(best), kinds, paths))
    return sorted(extra, key=lambda pair: (pair.similarity, pair.families))


def _similarity(row: Finding) -> float:
    return 0.0 if row["value"] is None else float(row["value"])

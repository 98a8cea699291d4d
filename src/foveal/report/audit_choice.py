"""Which findings and which samples an audit's page shows as pictures."""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from foveal.report.audit_contents import COMPARED, AuditContents

MAX_CARDS = 24
MAX_CARDS_OF = {"exact_duplicate": 6, "copy_by_name": 12}
"""Fewer of those that need no eye to judge."""
MAX_PICTURES_OF_KIND = 16
"""Of kinds about one sample each."""
MAX_PICTURES = 440
"""In all cards together."""
MAX_PICTURE_BYTES = 4_200_000
"""In the whole page; where pictures are so rich that it takes more, there are fewer cards."""
NUM_OPEN_CARDS = 9
"""So many pairs are seen at once; the others unfold."""
AS_LIST = ("unreadable",)
"""Kinds about samples of which there is no picture."""

_LARGEST_FIRST = frozenset({"overexposed", "odd_aspect", "animated", "off_domain", "copy_by_name"})
"""Kinds whose most striking value is the largest; of the others it is the least, or nothing at all."""
_COPIES = frozenset({"exact_duplicate", "near_duplicate", "copy_by_name"})


def choose(
    values: Sequence[float | None], groups: Sequence[Sequence[Hashable]], number: int, *, largest_first: bool
) -> list[int]:
    """Places of the findings to show: half are the most striking, spread over the groups; half are evenly spaced.

    Args:
        values: one a finding; those without one come last.
        groups: for each way of grouping, the group of each finding. A group gets a second place only when each of the
            others has one, by the last way first.
        number: how many to choose.
        largest_first: whether a large value is the striking one.

    Returns:
        Places in `values`, the most striking first.
    """
    cost = np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)
    order = np.argsort(-cost if largest_first else cost, kind="stable")  # NaN sorts last
    if len(order) <= number:
        return [int(at) for at in order]
    turns = []
    for names in groups:
        seen: Counter[Hashable] = Counter()
        turn = np.empty(len(order), dtype=np.int64)
        for rank, at in enumerate(order):
            turn[rank] = seen[names[at]]
            seen[names[at]] += 1
        turns.append(turn)
    ranks = np.arange(len(order))
    striking = np.lexsort((ranks, *turns))[: number - number // 2]
    rest = np.setdiff1d(ranks, striking)
    spaced = rest[((np.arange(number // 2) + 0.5) * len(rest) / max(number // 2, 1)).astype(np.int64)]
    return [int(at) for at in order[np.sort(np.concatenate([striking, spaced]))]]


def chosen_findings(audit: AuditContents) -> dict[str, list[int]]:
    """Kind to the rows of the findings table that get a card, what matters first; few enough for a small page."""
    wished, sides = {}, {}
    for kind in audit.with_pictures:
        if kind not in AS_LIST:
            sides[kind] = 3 if kind in COMPARED else 2 if audit.about(kind) == "pair" else 1
            most = MAX_CARDS_OF.get(kind, MAX_PICTURES_OF_KIND if sides[kind] == 1 else MAX_CARDS)
            wished[kind] = min(most, len(audit.places.get(kind, [])))
    # Of many kinds each has fewer cards.
    most = MAX_CARDS
    while most > 1 and sum(min(number, most) * sides[kind] for kind, number in wished.items()) > MAX_PICTURES:
        most -= 1
    columns, chosen = audit.findings.columns, {}
    for kind, number in wished.items():
        places = audit.places.get(kind, [])
        picked = choose(
            [columns["value"][at] for at in places],
            [[columns["label"][at] for at in places], [columns["related_path"][at] or at for at in places]],
            min(number, most),
            largest_first=kind in _LARGEST_FIRST,
        )
        chosen[kind] = [places[at] for at in picked]
    return chosen


def samples_of_classes(audit: AuditContents, each: int, max_classes: int) -> dict[str, list[int]]:
    """Rows of usable samples, evenly spread over each class, copies left out where there are others."""
    usable = audit.manifest.usable()
    some = audit.manifest.take(usable)
    labels, names = some.label_ids(), audit.manifest.class_names
    is_copy = audit.is_named(_COPIES)[usable]
    rows = {}
    for at, name in enumerate(names[:max_classes]):
        of_class = np.flatnonzero(labels == at)
        own = of_class[~is_copy[of_class]]
        pool = usable[own if len(own) >= min(each, len(of_class)) else of_class]
        places = (np.arange(each) + 0.5) * len(pool) / each if len(pool) > each else np.arange(len(pool))
        rows[name] = [int(row) for row in pool[places.astype(np.int64)]]
    return rows


def typical_rows(audit: AuditContents, labels: set[str | None]) -> dict[str, int]:
    """For each class a usable sample of which nothing was found: class name to row of the manifest."""
    column = audit.manifest.column("label")
    usable = audit.manifest.is_usable()
    clean = usable & ~audit.is_named(audit.places)
    rows = {}
    for label in labels - {None}:
        of_class = column == label
        pool = np.flatnonzero(of_class & clean)
        if len(pool):
            rows[str(label)] = int(pool[len(pool) // 2])
    return rows

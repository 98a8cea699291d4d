"""Which findings the page shows as pictures, and the cards that show them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from foveal.pixels.policy import PixelPolicy
from foveal.report.audit_choice import (
    AS_LIST,
    MAX_CARDS,
    MAX_PICTURE_BYTES,
    NUM_OPEN_CARDS,
    chosen_findings,
    typical_rows,
)
from foveal.report.audit_contents import COMPARED, AuditContents
from foveal.report.audit_summary import Told, kind_of
from foveal.report.audit_words import REPAIR_WORDS
from foveal.report.numbers import fine, share
from foveal.report.thumbnails import Thumbnail, make_thumbnails
from foveal.types import Box


@dataclass(frozen=True)
class Side:
    """One picture of a card, with what is known of it.

    Attributes:
        thumbnail: the picture, or words.
        role: what it is there for, where that is not plain.
        split, label, path: as in the findings; any may be empty.
        box: its place in the file, where it is a part of one.
    """

    thumbnail: Thumbnail
    role: str
    split: str
    label: str
    path: str
    box: str


@dataclass(frozen=True)
class Card:
    """One finding with its pictures: one, the two of a pair, or one between two to compare it with."""

    sides: list[Side]
    value: str
    detail: str
    similarity: float | None = None


@dataclass(frozen=True)
class Block:
    """All that the page shows of one kind.

    Attributes:
        name: of the kind; also its anchor.
        form: `pairs`, `pictures` or `list`.
        cards, more_cards: those seen at once, and those that unfold.
        num_left: how many findings have no card.
        shown: which of them have one, in words.
    """

    told: Told
    form: str
    title: str
    why: str
    repair: str
    num: int
    cards: list[Card]
    more_cards: list[Card]
    num_left: int
    shown: str

    @property
    def name(self) -> str:
        """The name of the kind, also its anchor."""
        return self.told.finding


@dataclass(frozen=True)
class Pictures:
    """Everything that the page shows as pictures.

    Attributes:
        blocks: kind to its cards.
        of_class: class name to thumbnails of samples of it.
    """

    blocks: dict[str, Block]
    of_class: dict[str, list[Thumbnail]]

    @classmethod
    def of(cls, audit: AuditContents, samples: dict[str, list[int]]) -> "Pictures":
        """Choose the findings to show and make their pictures, and those of some samples of each class.

        Args:
            audit: the audit.
            samples: class name to rows of the manifest.
        """
        chosen = chosen_findings(audit)
        places = [at for shown in chosen.values() for at in shown]
        columns = audit.findings.columns
        ends = {
            end: dict(
                zip(
                    places,
                    audit.rows_of(
                        [columns[f"{end}sample_id"][at] for at in places], [columns[f"{end}path"][at] for at in places]
                    ).tolist(),
                    strict=True,
                )
            )
            for end in ("", "related_")
        }
        compared = [at for kind in COMPARED for at in chosen.get(kind, [])]
        typical = typical_rows(audit, {columns[name][at] for at in compared for name in ("label", "related_label")})
        wanted = [row for of_end in ends.values() for row in of_end.values() if row >= 0]
        wanted += [row for rows in samples.values() for row in rows] + [*typical.values()]
        shelf = _Shelf.of(audit, wanted)
        of_class = {name: [shelf.thumbnails[row] for row in rows] for name, rows in samples.items()}
        room = MAX_PICTURE_BYTES - sum(len(each.uri) for shown in of_class.values() for each in shown)
        cards = _thinned(
            {kind: [_card(shelf, kind, at, ends, typical) for at in shown] for kind, shown in chosen.items()}, room
        )
        return cls(
            {kind: _block(audit, told, cards.get(kind, [])) for kind, told in audit.with_pictures.items()}, of_class
        )


@dataclass(frozen=True)
class _Shelf:
    """The pictures that were made, and the boxes and labels of their rows."""

    audit: AuditContents
    thumbnails: dict[int, Thumbnail]
    boxes: dict[int, Box | None]
    paths: dict[int, str]
    splits: dict[int, str | None]

    @classmethod
    def of(cls, audit: AuditContents, rows: Iterable[int]) -> "_Shelf":
        wanted = sorted(set(rows))
        some = audit.manifest.take(np.array(wanted, dtype=np.int64))
        return cls(
            audit,
            make_thumbnails(audit.manifest, wanted, policy=PixelPolicy()),
            dict(zip(wanted, some.boxes(), strict=True)),
            dict(zip(wanted, some.table["path"].to_pylist(), strict=True)),
            dict(zip(wanted, some.table["split"].to_pylist(), strict=True)),
        )

    def side(self, at: int, row: int, *, is_related: bool) -> Side:
        """One end of a finding."""
        columns, end = self.audit.findings.columns, "related_" if is_related else ""
        return Side(
            thumbnail=self.thumbnails.get(row) or Thumbnail(problem="not in this audit’s manifest"),
            role="",
            split=columns[f"{end}split"][at] or "",
            label=columns[f"{end}label"][at] or "",
            path=columns[f"{end}path"][at] or "",
            box=_box_words(self.boxes.get(row)),
        )

    def typical(self, label: str, row: int | None, role: str) -> Side:
        """A sample of a class, to compare with."""
        if row is None:
            return Side(Thumbnail(problem="no other picture of this class"), role, "", label, "", "")
        box = _box_words(self.boxes[row])
        return Side(self.thumbnails[row], role, self.splits[row] or "", label, self.paths[row], box)


def _card(shelf: _Shelf, kind: str, at: int, ends: dict[str, dict[int, int]], typical: dict[str, int]) -> Card:
    columns = shelf.audit.findings.columns
    value, detail = columns["value"][at], columns["detail"][at] or ""
    words = _value_words(kind, value)
    detail = "" if detail == words else detail
    first = shelf.side(at, ends[""][at], is_related=False)
    if kind in COMPARED:
        given, other = columns["label"][at] or "", columns["related_label"][at] or ""
        sides = [
            first,
            shelf.typical(given, typical.get(given), "as labelled"),
            *([shelf.typical(other, typical.get(other), "suggested")] if other else []),
        ]
        return Card(sides, words, detail)
    if columns["related_path"][at] is None:
        return Card([first], words, detail)
    similarity = value if value is not None and kind in {"leak", "label_conflict", "near_duplicate"} else None
    sides = [first, shelf.side(at, ends["related_"][at], is_related=True)]
    return Card(
        sides, _value_words(kind, value), detail, None if similarity is None else min(max(similarity, 0.0), 1.0)
    )


def _thinned(cards: dict[str, list[Card]], max_bytes: int) -> dict[str, list[Card]]:
    """Fewer cards of each kind, evenly spaced, where their pictures take more than so many bytes."""
    most = MAX_CARDS
    kept = cards
    while (
        most > 1
        and sum(len(side.thumbnail.uri) for of in kept.values() for card in of for side in card.sides) > max_bytes
    ):
        most -= 1
        kept = {
            kind: [of[at] for at in np.linspace(0, len(of) - 1, min(most, len(of))).astype(np.int64)]
            for kind, of in cards.items()
        }
    return kept


def _block(audit: AuditContents, told: Told, cards: list[Card]) -> Block:
    about = audit.about(told.finding)
    num = max(told.num, len(audit.places.get(told.finding, [])))
    form = "list" if told.finding in AS_LIST else "pairs" if about == "pair" or told.finding in COMPARED else "pictures"
    num_open = NUM_OPEN_CARDS if form == "pairs" else MAX_CARDS
    return Block(
        told=told,
        form=form,
        title=told.kind.title,
        why=told.kind.why,
        repair=REPAIR_WORDS[told.repair],
        num=num,
        cards=cards[:num_open],
        more_cards=cards[num_open:],
        num_left=num - len(cards),
        shown=_shown_words(cards, form),
    )


def _shown_words(cards: list[Card], form: str) -> str:
    if form == "pairs" and any(card.similarity is not None for card in cards):
        return "the least similar pairs and a spread over the others"
    if len({card.value for card in cards}) > 1:
        return "the most striking ones and a spread over the others"
    return "some of them, of different classes where there are such"


def _value_words(kind: str, value: float | None) -> str:
    """The figure behind a finding, with what it is."""
    if value is None or np.isnan(value):
        return ""
    words = {
        "leak": f"similarity {share(value)}",
        "label_conflict": f"similarity {share(value)}",
        "near_duplicate": f"similarity {share(value)}",
        "exact_duplicate": "the same bytes",
        "copy_by_name": f"{value:,.0f} files of this original",
        "wrong_label": f"probability of the given label {share(value)}",
        "tiny": f"{value:,.0f} px",
        "odd_aspect": f"{value:,.0f} : 1" if value >= 100 else f"{value:.3g} : 1",
        "binarised": f"{value:,.0f} values" if value != 1 else "1 value",
        "animated": f"{value:,.0f} frames",
        "off_domain": f"{value:.3g} times the usual distance",
    }
    if kind in words:
        return words[kind]
    name = kind_of(kind).value.partition(",")[0]
    return f"{name} {fine(value)}".strip()


def _box_words(box: Box | None) -> str:
    return "" if box is None else "box {}, {} to {}, {}".format(*box)

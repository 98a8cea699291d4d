"""Sharing groups of samples out into parts, so that every part has its share of every class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

_MAX_ROUNDS = 6
SMALL_GROUP = 0.02
"""Groups of up to this share of the smallest part begin where their own draw puts them; larger ones are packed."""


@dataclass(frozen=True)
class _Groups:
    """Groups by number, and the classes in them as a sparse table in the order of the groups.

    Attributes:
        of_row: int64 [rows], each row's group.
        sizes: int64 [groups], samples of each.
        draws: uint64 [groups], a number drawn for each from its identity and the seed.
        starts: int64 [groups + 1], where a group's entries begin in the next two.
        classes: int64 [entries], a class that occurs in the group.
        counts: int64 [entries], how many samples of that class it has.
        placed: int64 [parts, classes], samples that lie in the parts already.
    """

    of_row: Integers
    sizes: Integers
    draws: NDArray[np.uint64]
    starts: Integers
    classes: Integers
    counts: Integers
    placed: Integers

    def entries(self, group: int) -> range:
        return range(int(self.starts[group]), int(self.starts[group + 1]))

    @property
    def of_entry(self) -> Integers:
        return np.repeat(np.arange(len(self.sizes)), np.diff(self.starts))


def stratify(
    groups: Integers,
    labels: Integers,
    identities: NDArray[np.uint64],
    fractions: Sequence[float],
    *,
    seed: int,
    placed: Integers | None = None,
) -> Integers:
    """Share rows out into parts; a group is never cut.

    Small groups of several samples begin where their own draw puts them. Then all groups are asked one after the other,
    those with the rarest class first and the large before the small, a few times over: each goes where it lessens the
    chi-square distance from the wished counts most, or stays where that gains nothing. A part that lacks a class gets a
    group of it, where there are enough. Last, the samples that stand alone fill up what is missing, class by class,
    with rounding by largest remainder. The result depends on content and seed alone, not on the order of the rows.

    Source: the order and the idea of remaining wishes from K. Sechidis, G. Tsoumakas, I. Vlahavas, "On the
    Stratification of Multi-Label Data", ECML PKDD 2011.

    Args:
        groups: int64 [rows], equal numbers belong together.
        labels: int64 [rows], class numbers from 0 on.
        identities: uint64 [rows], a hash of what each row is; the least of a group is the group's.
        fractions: the share of each part; positive, sum 1.
        seed: another seed, another draw.
        placed: int64 [parts, classes], samples that lie in the parts already and count for the shares.

    Returns:
        int64 [rows], the part of each row.
    """
    if len(fractions) == 1 or not len(groups):
        return np.zeros(len(groups), dtype=np.int64)
    num_classes = int(labels.max()) + 1
    if placed is None:
        placed = np.zeros((len(fractions), num_classes), dtype=np.int64)
    num_classes = max(num_classes, placed.shape[1])
    totals = np.bincount(labels, minlength=num_classes) + placed.sum(axis=0)
    table = _tabulate(groups, labels, identities, seed, placed)
    wishes: NDArray[np.float64] = np.asarray(fractions, dtype=np.float64)[:, None] * totals
    weights = 1.0 / np.maximum(wishes, 1e-9)
    wishes -= placed
    part = np.full(len(table.sizes), -1, dtype=np.int64)
    _place_groups(table, wishes, weights, totals, part)
    _cover(table, wishes, totals, part)
    _place_singles(table, wishes, fractions, part)
    _cover(table, wishes, totals, part)  # with all in place, a part can spare what it could not before
    return part[table.of_row]


def share_by_hash(
    groups: Integers, identities: NDArray[np.uint64], fractions: Sequence[float], *, seed: int
) -> Integers:
    """Share rows out so that the part of a group depends on its own identity and the seed alone.

    A group's hash is a place between 0 and 1. The first part lies in the middle, the last below it and the others
    above, so that a changed share moves groups between the first part and one other, and never more than it must.

    Args:
        groups: int64 [rows], equal numbers belong together.
        identities: uint64 [rows], a hash of what each row is; the least of a group is the group's.
        fractions: the share of each part; positive, sum 1.
        seed: another seed, another draw.

    Returns:
        int64 [rows], the part of each row.
    """
    _, of_row = np.unique(groups, return_inverse=True)
    return _by_draw(_draws(of_row, identities, seed), np.asarray(fractions))[of_row]


def _by_draw(draws: NDArray[np.uint64], fractions: NDArray[np.float64]) -> Integers:
    """The part that each draw falls into, where the parts share the draws out in the order of `_sequence`."""
    sequence = np.asarray(_sequence(len(fractions)), dtype=np.int64)
    return sequence[np.searchsorted(np.cumsum(fractions[sequence])[:-1], draws.astype(np.float64) / 2.0**64, "right")]


def least_of(groups: Integers, identities: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The identity of each row's group: the least in it, uint64 [rows]; groups are numbered from 0 on."""
    return _least(groups, identities)[groups]


def _least(groups: Integers, identities: NDArray[np.uint64]) -> NDArray[np.uint64]:
    least = np.full(int(groups.max(initial=-1)) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(least, groups, identities)
    return least


def _sequence(num_parts: int) -> list[int]:
    """The order of the parts along the draw: the first in the middle."""
    return list(dict.fromkeys((num_parts - 1, 0, *range(1, num_parts - 1))))


def _draws(of_row: Integers, identities: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A number for each group, drawn from the least identity in it."""
    # Scrambled twice, so that neighbouring seeds have nothing in common.
    return mixed(mixed(_least(of_row, identities), 0), seed + 1)


def mixed(values: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Scramble each value by itself, differently for each seed.

    Source: the finaliser of SplitMix64 (G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators",
    OOPSLA 2014).
    """
    state = values + np.array([seed % 2**64], dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    mixed_state: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed_state


def _tabulate(
    groups: Integers, labels: Integers, identities: NDArray[np.uint64], seed: int, placed: Integers
) -> _Groups:
    _, of_row = np.unique(groups, return_inverse=True)
    sizes = np.bincount(of_row)
    num_classes = int(labels.max()) + 1
    entries, counts = np.unique(of_row * num_classes + labels, return_counts=True)
    starts = np.searchsorted(entries // num_classes, np.arange(len(sizes) + 1))
    draws = _draws(of_row, identities, seed)
    return _Groups(of_row, sizes, draws, starts, entries % num_classes, counts, placed)


def _place_groups(
    table: _Groups, wishes: NDArray[np.float64], weights: NDArray[np.float64], totals: Integers, part: Integers
) -> None:
    """Place the groups of several samples, and take what they bring off the wishes.

    The chi-square distance is the sum over parts and classes of missing² / wish; what a group adds to it in a part
    is the sum over its classes of count (count - 2 missing) / wish.
    """
    rarity = np.empty(len(totals), dtype=np.int64)
    rarity[np.lexsort((np.arange(len(totals)), totals))] = np.arange(len(totals))
    rarest = np.minimum.reduceat(rarity[table.classes], table.starts[:-1])
    tier = np.log2(table.sizes).astype(np.int64)
    order = np.lexsort((table.draws, -tier, rarest))
    # Plain lists: a group has few classes, and numpy's overhead on so few numbers is many times the sum itself.
    missing, classes, counts = wishes.tolist(), table.classes.tolist(), table.counts.tolist()
    weight_of = weights.tolist()
    several = order[table.sizes[order] > 1].tolist()
    if not several:
        return
    place_of = dict.fromkeys(several, -1) | _first_places(table, wishes, np.asarray(several))
    for group, place in place_of.items():
        for e in table.entries(group) if place >= 0 else ():
            missing[place][classes[e]] -= counts[e]
    for _ in range(_MAX_ROUNDS):
        num_moved = 0
        for group in several:
            entries, before = table.entries(group), place_of[group]
            if before >= 0:
                for e in entries:
                    missing[before][classes[e]] += counts[e]
            costs = [
                sum(counts[e] * (counts[e] - 2.0 * lacks[classes[e]]) * weight[classes[e]] for e in entries)
                for lacks, weight in zip(missing, weight_of, strict=True)
            ]
            # Only a real gain moves a group, so that rounding never makes two parts play ball with it.
            chosen = costs.index(min(costs))
            if before >= 0 and costs[chosen] > costs[before] - 1e-9:
                chosen = before
            num_moved += chosen != before
            place_of[group] = chosen
            for e in entries:
                missing[chosen][classes[e]] -= counts[e]
        if not num_moved:
            break
    part[several] = list(place_of.values())
    wishes[:] = missing


def _first_places(table: _Groups, wishes: NDArray[np.float64], groups: Integers) -> dict[int, int]:
    """Where small groups stand before they are asked: where their own draw puts them, so that added ones move few.

    Large groups have no place yet: few of them would hardly fit where a draw has strewn them.
    """
    room = np.clip(wishes.sum(axis=1), 0.0, None)
    few = groups[table.sizes[groups] <= SMALL_GROUP * room.min()]
    return dict(zip(few.tolist(), _by_draw(table.draws[few], room / (room.sum() or 1.0)).tolist(), strict=True))


def _place_singles(table: _Groups, wishes: NDArray[np.float64], fractions: Sequence[float], part: Integers) -> None:
    """Place the samples that stand alone, class by class."""
    singles = np.flatnonzero(table.sizes == 1)
    if not singles.size:
        return
    label = table.classes[table.starts[singles]]
    order = np.lexsort((table.draws[singles], label))
    singles, label = singles[order], label[order]
    present = _presence(table, part, wishes.shape)
    carry = np.zeros(len(fractions))
    # The first part lies in the middle of the draw: when samples are added, those at its borders move between it and
    # another part, and never from one small part into the other.
    sequence = _sequence(len(fractions))
    for members in np.split(singles, np.flatnonzero(np.diff(label)) + 1):
        number = table.classes[table.starts[members[0]]]
        shares = _apportion(len(members), wishes[:, number], np.asarray(fractions), present[:, number] > 0, carry)
        part[members] = np.repeat(sequence, shares[sequence])


def _apportion(
    count: int,
    wish: NDArray[np.float64],
    fractions: NDArray[np.float64],
    present: NDArray[np.bool_],
    carry: NDArray[np.float64],
) -> Integers:
    """Whole numbers in the proportion of the wishes, that sum to `count`, by largest remainder.

    A part that has nothing of the class yet gets at least one, as far as they last. Of equal remainders, the part that
    came off worst so far (`carry`, brought up to date here) is served first.
    """
    quota = np.clip(wish, 0.0, None)
    quota = (quota if quota.sum() > 0 else fractions) * count / (quota.sum() or 1.0)
    shares = np.floor(quota + 1e-9).astype(np.int64)
    remainder = np.round(quota - shares, 9)
    winners = np.lexsort((-carry, -remainder))[: count - int(shares.sum())]
    shares[winners] += 1
    for part in np.flatnonzero((shares == 0) & ~present):
        spare = shares - (~present).astype(np.int64)
        donor = int(np.argmax(spare))
        if spare[donor] > 0:
            shares[donor] -= 1
            shares[part] += 1
    carry += quota - shares
    return shares


def _presence(table: _Groups, part: Integers, shape: tuple[int, ...]) -> Integers:
    """How many groups of each class each part has, int64 [parts, classes]."""
    present = np.zeros(shape, dtype=np.int64)
    present[:, : table.placed.shape[1]] = table.placed
    where = part[table.of_entry]
    np.add.at(present, (where[where >= 0], table.classes[where >= 0]), 1)
    return present


def _cover(table: _Groups, wishes: NDArray[np.float64], totals: Integers, part: Integers) -> None:
    """Give each part a group of each class that it lacks, where there are enough and none is left that stands alone."""
    num_parts = len(wishes)
    present = _presence(table, part, wishes.shape)
    num_singles = np.bincount(table.classes[part[table.of_entry] < 0], minlength=len(totals))
    num_lacking = np.count_nonzero(present == 0, axis=0)
    scarce = np.flatnonzero((num_lacking > num_singles) & (present.sum(axis=0) + num_singles >= num_parts))
    of_entry = table.of_entry
    for number in scarce[np.argsort(totals[scarce], kind="stable")].tolist():
        members = of_entry[(table.classes == number) & (part[of_entry] >= 0)]
        members = members[np.lexsort((table.draws[members], table.sizes[members]))]
        for needy in np.flatnonzero(present[:, number] == 0).tolist():
            donor = _donor(table, members, present, part, number, strict=True)
            if donor is None and needy == 0:
                # Without samples in the first part, the training, a class cannot be learnt at all.
                donor = _donor(table, members, present, part, number, strict=False)
            if donor is not None:
                entries = list(table.entries(donor))
                classes, counts = table.classes[entries], table.counts[entries]
                present[part[donor], classes] -= 1
                present[needy, classes] += 1
                wishes[part[donor], classes] += counts
                wishes[needy, classes] -= counts
                part[donor] = needy


def _donor(
    table: _Groups, members: Integers, present: Integers, part: Integers, number: int, *, strict: bool
) -> int | None:
    """The smallest group of a class whose part can spare it; `strict` spares the part's other classes, too."""
    for group in members.tolist():
        classes = table.classes[list(table.entries(group))] if strict else np.array([number])
        if (present[part[group], classes] > 1).all():
            return int(group)
    return None

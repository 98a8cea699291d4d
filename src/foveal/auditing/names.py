"""Copies by name: which files were made from one original, as their names say."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from foveal.auditing import name_patterns as patterns
from foveal.auditing.checked import Checked
from foveal.auditing.findings import Finding
from foveal.data.manifest import Manifest
from foveal.extras import require

if TYPE_CHECKING:
    import pyarrow as pa

Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

MAX_NUMBERED = 3
"""Files `x (1)`, `x (2)` ... beside `x` from which on they are a numbered folder and no copies of `x`."""
MAX_OF_ONE_COUNT = 20
"""Files `aug_0_...` of one folder, all with the same count, from which on the count does not tell originals apart."""


@dataclass(frozen=True)
class _Files:
    """The files behind the usable rows, one entry a path.

    Attributes:
        of_row: int64 [rows], each row's file; -1 where it is not usable.
        first_row: int64 [files].
        label: int64 [files]; 0 throughout where one file has several labels, as a photograph with boxes may.
        paths: text [files].
        base: text [files], the stem of the original that the name tells.
        kind: int64 [files], what the name is; see `name_patterns`.
        here: int64 [files], equal for files of one folder and base.
        in_class: int64 [files], equal for files of one label and base.
        tells_picture: bool [files], whether the base is more than a short number.
        is_specific: bool [files], whether the base is none that tools give to anything; of plain names, true.
        has_number: bool [files], whether there is a digit in the base; of plain names, true.
    """

    of_row: Integers
    first_row: Integers
    label: Integers
    paths: "pa.Array"
    base: "pa.Array"
    kind: Integers
    here: Integers
    in_class: Integers
    tells_picture: Mask
    is_specific: Mask
    has_number: Mask


def copies_by_name(manifest: Manifest) -> tuple[Integers, Checked]:
    """Files that were made from one original, by their names.

    A name that ends as copies do (`x_aug_3`, `x_rot90`, `x_flip`, `x - Copy`, `x_crop2`) counts where its original `x`
    is there: in the same folder, or else in one other folder of the class, such as that of another split. Without the
    original, several files count that name the same one, if the words are used for nothing else (`aug`, `flip`, not
    `dark` or `crop`) and the original's stem holds a number, as that of a single picture does. `x (1)` counts beside
    `x` only, and not where a whole folder is numbered so. Names that tools write (`x_jpg.rf.HASH`, Augmentor's) count
    wherever two share an original. In one folder, `x.jpg` and `x.png` are one picture, unless `x` is a short number.

    Running numbers (`IMG_0001`, `cat.1`, `airplane_0001`) and the two sides of a patient (`10017_left`) are no copies.
    What was renamed after it was made is not found here, but by its content.

    Returns:
        int64 [rows], the cluster of each row, -1 alone; and the findings: each copy against its original, or against
        the first where that is not there; and notes about copies whose original is in another class.
    """
    files = _read_files(manifest)
    if not len(files.kind):
        return np.full(len(manifest), -1, dtype=np.int64), Checked("copy_by_name", skipped="No file can be used.")
    cluster, unknown = _clusters(files)
    findings = _tell_copies(files, cluster) + _tell_unknown(files, unknown, manifest)
    findings += _tell_other_classes(files, cluster)
    codes = np.where(files.of_row >= 0, cluster[files.of_row], -1)
    return codes, Checked("copy_by_name", findings)


def _read_files(manifest: Manifest) -> _Files:
    pa = require("pyarrow", extra="train", purpose="read file names")
    compute = require("pyarrow.compute", extra="train", purpose="read file names")
    rows, labels = manifest.usable(), manifest.codes("label")
    encoded = manifest.table["path"].take(pa.array(rows)).combine_chunks().dictionary_encode()
    paths, file = encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)
    _, at = np.unique(file, return_index=True)
    first_row = rows[at]
    of_row = np.full(len(manifest), -1, dtype=np.int64)
    of_row[rows] = file
    label = labels[first_row]
    if len(file) > len(paths) and (labels[rows] != label[file]).any():
        label = np.zeros_like(label)
    folder, stem = patterns.split_paths(paths)
    base, kind = patterns.read_stems(stem)
    base_code = _codes(base)
    here = _codes(compute.binary_join_element_wise(folder, base, ""))
    _, in_class = np.unique(label * (int(base_code.max(initial=0)) + 1) + base_code, return_inverse=True)
    return _Files(
        of_row,
        first_row,
        label,
        paths,
        base,
        kind,
        here,
        in_class.astype(np.int64),
        *_qualities(base, here, kind),
    )


def _qualities(base: "pa.Array", here: Integers, kind: Integers) -> tuple[Mask, Mask, Mask]:
    """What is asked of a few names only, and so read of those only; see `_Files`."""
    plain = kind == patterns.PLAIN
    counts = np.bincount(here[plain], minlength=int(here.max(initial=0)) + 1)
    asked = np.flatnonzero((plain & (counts[here] > 1)) | ~plain)
    texts, qualities = base.take(asked), []
    for read in (patterns.tells_a_picture, lambda some: ~patterns.is_generic(some), patterns.has_number):
        quality = np.ones(len(base), dtype=np.bool_)
        quality[asked] = read(texts)
        qualities.append(quality)
    return qualities[0], qualities[1], qualities[2]


def _codes(texts: "pa.Array") -> Integers:
    values: Integers = texts.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return values


def _clusters(files: _Files) -> tuple[Integers, Integers]:
    """The cluster of each file, -1 alone; and the folders' codes of counted copies whose originals are not told."""
    kind, here, in_class = files.kind, files.here, files.in_class
    num_here = int(here.max()) + 1
    plain = kind == patterns.PLAIN
    is_here = np.bincount(here[plain], minlength=num_here) > 0
    # In how many folders of a class there is an original of that stem, and in which, if it is one.
    pairs = np.unique(here[plain], return_index=True)[1]
    there = in_class[plain][pairs]
    num_folders = np.bincount(there, minlength=int(in_class.max()) + 1)
    only_folder = np.full(len(num_folders), -1, dtype=np.int64)
    only_folder[there] = here[plain][pairs]
    # Copies without an original are of the class, wherever they lie: copies are made first and split apart afterwards.
    joins = np.where(is_here[here], here, np.where(num_folders[in_class] == 1, only_folder[in_class], -1))
    orphan = (joins < 0) & ~plain
    target = np.where(joins >= 0, joins, num_here + np.where(num_folders[in_class] == 0, in_class, -num_here + here))
    told = _is_told(files, joins, orphan)
    unknown = _same_counts(files) if (kind == patterns.COUNTED).any() else np.empty(0, dtype=np.int64)
    told &= ~np.isin(here, unknown)
    same_stem = _same_stem(files)
    code = np.where(told, target, -1)
    has_copy = np.zeros(num_here, dtype=np.bool_)
    has_copy[target[told & (joins >= 0)]] = True
    code = np.where(plain & (has_copy[here] | same_stem), here, code)
    sizes = np.bincount(code[code >= 0], minlength=int(code.max(initial=0)) + 1)
    code = np.where((code >= 0) & (sizes[code] > 1), code, -1)
    _, numbered = np.unique(code, return_inverse=True)
    return np.where(code < 0, -1, numbered.astype(np.int64)), unknown


def _is_told(files: _Files, joins: Integers, orphan: Mask) -> Mask:
    """Whether each file's name is enough to call it a copy."""
    kind = files.kind
    told = (kind != patterns.PLAIN) & files.is_specific & ~orphan
    certain = np.isin(kind, (patterns.AUGMENTED, patterns.COPY))
    told |= orphan & certain & files.has_number & files.is_specific
    told |= orphan & (kind == patterns.EXPORTED) & files.is_specific
    told |= kind == patterns.COUNTED
    # `x (1)` lies beside its `x`, and with few others.
    numbered = kind == patterns.NUMBERED
    counts = np.bincount(files.here[numbered], minlength=int(files.here.max()) + 1)
    kept: Mask = told & (~numbered | ((joins == files.here) & (counts[files.here] <= MAX_NUMBERED)))
    return kept


def _same_counts(files: _Files) -> Integers:
    """The codes of counted names that are all a folder has, many files to one count: they tell no originals apart."""
    counted = np.flatnonzero(files.kind == patterns.COUNTED)
    folders = [path.rpartition("/")[0] for path in files.paths.take(counted).to_pylist()]
    codes: dict[str, set[int]] = {}
    for folder, code in zip(folders, files.here[counted].tolist(), strict=True):
        codes.setdefault(folder, set()).add(code)
    sizes = np.bincount(files.here[counted])
    alone = [code for found in codes.values() if len(found) == 1 for code in found if sizes[code] > MAX_OF_ONE_COUNT]
    return np.array(sorted(alone), dtype=np.int64)


def _same_stem(files: _Files) -> Mask:
    """Plain files of one folder that differ by the ending of their name only, or as `x` and `x_orig` do."""
    plain = files.kind == patterns.PLAIN
    counts = np.bincount(files.here[plain], minlength=int(files.here.max()) + 1)
    same: Mask = plain & (counts[files.here] > 1) & files.tells_picture
    return same


def _tell_copies(files: _Files, cluster: Integers) -> list[Finding]:
    members = np.flatnonzero(cluster >= 0)
    if not members.size:
        return []
    sizes = np.bincount(cluster[members])
    # Each cluster's original first: a plain name before others, then in the order of the rows.
    order = members[np.lexsort((files.first_row[members], files.kind[members] != patterns.PLAIN, cluster[members]))]
    begins = np.flatnonzero(np.diff(cluster[order], prepend=-1))
    leader = np.full(len(sizes), -1, dtype=np.int64)
    leader[cluster[order[begins]]] = order[begins]
    lead = leader[cluster[order]]
    copies = order != lead
    order, lead = order[copies], lead[copies]
    names = _names(files, np.concatenate([order, lead]))
    findings = []
    for place, (file, original) in enumerate(zip(order.tolist(), lead.tolist(), strict=True)):
        name, other = names[place], names[place + len(order)]
        if files.kind[file] == patterns.PLAIN:
            detail = f"{name!r} and {other!r} lie in one folder, and by their names they are one picture."
        elif files.kind[original] == patterns.PLAIN:
            detail = f"{name!r} says that it was made from {other!r}."
        else:
            detail = f"{name!r} and {other!r} say that they were made from one original."
        findings.append(
            Finding(
                "copy_by_name",
                "warning",
                "regroup",
                row=int(files.first_row[file]),
                related_row=int(files.first_row[original]),
                value=float(sizes[cluster[file]]),
                detail=detail,
            )
        )
    return findings


def _tell_unknown(files: _Files, unknown: Integers, manifest: Manifest) -> list[Finding]:
    """One warning a class and folder of augmented files that do not say what they were made from."""
    names: Any = manifest.column("label")
    findings = []
    for code in unknown.tolist():
        members = np.flatnonzero((files.here == code) & (files.kind == patterns.COUNTED))
        name, path = _names(files, members[:1])[0], files.paths[int(members[0])].as_py()
        detail = (
            f"{len(members):,} files in {path.rpartition('/')[0]!r} are augmented copies by their name, as {name!r}"
        )
        findings.append(
            Finding(
                "copy_by_name",
                "warning",
                label=names[files.first_row[members[0]]],
                value=float(len(members)),
                detail=f"{detail} is; of what, their names do not tell.",
            )
        )
    return findings


def _tell_other_classes(files: _Files, cluster: Integers) -> list[Finding]:
    """Copies by name whose original is in another class, where there is only one file of that stem."""
    certain = np.isin(files.kind, (patterns.AUGMENTED, patterns.COPY, patterns.EXPORTED, patterns.PERHAPS))
    asked = np.flatnonzero(certain & (cluster < 0) & files.has_number & files.is_specific)
    if not asked.size:
        return []
    base = _codes(files.base)
    plain = np.flatnonzero(files.kind == patterns.PLAIN)
    counts = np.bincount(base[plain], minlength=int(base.max()) + 1)
    original = np.full(len(counts), -1, dtype=np.int64)
    original[base[plain]] = plain
    asked = asked[counts[base[asked]] == 1]
    found = original[base[asked]]
    differs = (files.label[asked] != files.label[found]) & files.tells_picture[asked]
    asked, found = asked[differs], found[differs]
    names = _names(files, np.concatenate([asked, found]))
    return [
        Finding(
            "copy_by_name",
            "note",
            "regroup",
            row=int(files.first_row[file]),
            related_row=int(files.first_row[other]),
            detail=f"{names[place]!r} says that it was made from {names[place + len(asked)]!r}, of another class.",
        )
        for place, (file, other) in enumerate(zip(asked.tolist(), found.tolist(), strict=True))
    ]


def _names(files: _Files, places: Integers) -> list[str]:
    return [path.rpartition("/")[2] for path in files.paths.take(places).to_pylist()]

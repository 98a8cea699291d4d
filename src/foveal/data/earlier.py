"""What an earlier manifest says of the samples of a new one, also of those that were moved or renamed since."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.data.manifest import BOX_COLUMNS, Manifest
from foveal.extras import require

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Earlier:
    """The places that samples had in an earlier manifest.

    Attributes:
        split: int64 [rows], by its place in `SPLITS`; -1 where a row was not in it, or had none.
        fold: int64 [rows], -1 where a row had none.
        is_there: bool [rows], whether a row was in it, usable.
        num_folds: of the earlier manifest; 0 where it has none.
        num_moved: rows that were found by their content under another name.
        num_changed: rows of the same name whose content is another now.
        num_gone: usable rows of the earlier manifest that are not there now.
    """

    split: Integers
    fold: Integers
    is_there: NDArray[np.bool_]
    num_folds: int
    num_moved: int
    num_changed: int
    num_gone: int


def recall(manifest: Manifest, old: Manifest) -> Earlier:
    """Find each usable row in an earlier manifest: by its sample_id, else by its content and box.

    Args:
        manifest: the new one, with hashes where moved files are to be found again.
        old: the earlier one; of its rows only the usable ones count.
    """
    pa = require("pyarrow", extra="train", purpose="read manifests")
    compute = require("pyarrow.compute", extra="train", purpose="read manifests")
    rows, old_rows = manifest.usable(), old.usable()
    # Of copies that lie in several splits, the one in train speaks for all.
    split = old.split_codes()[old_rows]
    old_rows = old_rows[np.argsort(np.where(split < 0, 9, split), kind="stable")]
    needed = ["sample_id", "sha256", *BOX_COLUMNS]
    new_table, old_table = manifest.table.select(needed).take(rows), old.table.select(needed).take(old_rows)

    def places(values: Any, known: Any) -> Integers:
        found = compute.index_in(values, value_set=known.combine_chunks(), skip_nulls=True).fill_null(-1)
        result: Integers = np.asarray(found.to_numpy(), dtype=np.int64)
        return result

    by_name = places(new_table["sample_id"], old_table["sample_id"])
    new_content, old_content = _contents(new_table), _contents(old_table)
    by_content = places(new_content, old_content)
    where = np.where(by_name >= 0, by_name, by_content)
    both = np.flatnonzero(by_name >= 0)
    differs = compute.not_equal(new_content.take(pa.array(both)), old_content.take(pa.array(by_name[both])))
    found = where >= 0
    source = old_rows[where[found]]
    result = {name: np.full(len(manifest), -1) for name in ("split", "fold")}
    result["split"][rows[found]] = old.split_codes()[source]
    old_fold = old.column("fold")
    old_fold = np.where(np.isnan(old_fold), -1, old_fold).astype(np.int64)
    result["fold"][rows[found]] = old_fold[source]
    is_there = np.zeros(len(manifest), dtype=np.bool_)
    is_there[rows[found]] = True
    return Earlier(
        **result,
        is_there=is_there,
        num_folds=int(old_fold[old_rows].max(initial=-1)) + 1,
        # A new copy of a file that is still there was not moved.
        num_moved=len(np.setdiff1d(where[found & (by_name < 0)], by_name)),
        num_changed=int(compute.sum(differs).as_py() or 0),
        num_gone=len(old_rows) - len(np.unique(where[found])),
    )


def _contents(table: Any) -> Any:
    """Hash and box of each row as one text; null where the hash is not known."""
    pa = require("pyarrow", extra="train", purpose="read manifests")
    compute = require("pyarrow.compute", extra="train", purpose="read manifests")
    corners = [table[name].cast(pa.string()).fill_null("") for name in BOX_COLUMNS]
    return compute.binary_join_element_wise(table["sha256"], *corners, ",", null_handling="emit_null")

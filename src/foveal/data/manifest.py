"""The manifest: one row a sample, the one currency between verbs."""

import functools
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from foveal.errors import ArtifactError, DataError
from foveal.extras import require
from foveal.files import atomic_writer, natural_key, write_csv
from foveal.types import SPLITS, Box, Split

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 1
COLUMNS: tuple[str, ...] = (
    *("sample_id", "path", "label", "split", "group", "fold", "xmin", "ymin", "xmax", "ymax"),
    *("width", "height", "mode", "sha256", "phash", "status", "reason"),
)
BOX_COLUMNS: tuple[str, ...] = ("xmin", "ymin", "xmax", "ymax")
STATUSES: tuple[str, ...] = ("ok", "quarantined")

_INTEGERS = frozenset({"fold", *BOX_COLUMNS, "width", "height"})
_ALWAYS_KNOWN = frozenset({"sample_id", "path", "label", "status"})
_METADATA_KEY = b"foveal.manifest"
_MAKE_AGAIN = "make the manifest again: foveal split DATA --out manifest.parquet"


def _pyarrow(module: str = "pyarrow") -> Any:
    return require(module, extra="train", purpose="read and write manifests")


@functools.cache
def manifest_schema() -> "pa.Schema":
    """The columns of a manifest with their Arrow types; text, or int32 for fold, box and size."""
    pa = _pyarrow()
    return pa.schema(
        [pa.field(c, pa.int32() if c in _INTEGERS else pa.string(), nullable=c not in _ALWAYS_KNOWN) for c in COLUMNS]
    )


def sample_ids(paths: Sequence[str], boxes: Sequence[Box | None]) -> list[str]:
    """A name for each sample that depends on its path below the root and its box alone: 16 hexadecimal digits."""
    return [_sample_id(path, box) for path, box in zip(paths, boxes, strict=True)]


def _sample_id(path: str, box: Box | None) -> str:
    content = path.encode("utf-8", errors="surrogateescape")
    if box is not None:
        content += b"\0" + ",".join(map(str, box)).encode()
    return hashlib.sha256(content).hexdigest()[:16]


@dataclass(frozen=True, eq=False, repr=False)
class Manifest:
    """All samples of a data set with what is known of them; the unusable ones stay in it with their reason.

    Attributes:
        table: the rows, with exactly the columns of `manifest_schema()`.
        images_root: absolute folder that the paths are relative to.
        class_names: the classes in natural order; a contract, for a label's number is its place here.
    """

    table: "pa.Table"
    images_root: Path
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        missing = [name for name in COLUMNS if name not in self.table.column_names]
        if missing or len(self.table.column_names) != len(COLUMNS):
            raise DataError(
                f"A manifest has the columns {', '.join(COLUMNS)}; came {', '.join(self.table.column_names)}.",
                problems=[f"{name} is missing" for name in missing],
            )
        if len(set(self.class_names)) != len(self.class_names):
            raise DataError("A manifest's class names must differ from each other.")
        unknown = [name for name in sorted(_ALWAYS_KNOWN) if self.table[name].null_count]
        if unknown:
            raise DataError(f"A manifest has rows without {' and '.join(unknown)}.")
        table = self.table.select(list(COLUMNS)).cast(manifest_schema()).replace_schema_metadata(None)
        object.__setattr__(self, "table", table)

    @classmethod
    def build(
        cls, images_root: Path, *, path: Sequence[str], label: Sequence[str], class_names: Collection[str] = (),
        **columns: Any,
    ) -> Self:  # fmt: skip
        """A manifest from columns; what is not given is unknown, and every row is usable.

        Args:
            images_root: folder that the paths are relative to.
            path: each sample's path, with `/` between folders.
            label: each sample's class name.
            class_names: all classes; those of the rows if not given. Put in natural order here.
            **columns: any other columns of a manifest, with None or NaN where unknown.
        """
        pa = _pyarrow()
        columns = {"path": path, "label": label, **columns}
        boxes = list(_boxes(*(columns.get(name, [None] * len(path)) for name in BOX_COLUMNS)))
        columns.setdefault("status", ["ok"] * len(path))
        if "sample_id" not in columns:
            columns["sample_id"] = sample_ids(path, boxes)
        arrays = [
            _to_arrow(name, columns[name]) if columns.get(name) is not None else pa.nulls(len(path), field.type)
            for name, field in zip(COLUMNS, manifest_schema(), strict=True)
        ]
        table = pa.Table.from_arrays(arrays, schema=manifest_schema())
        return cls(table, Path(images_root).absolute(), tuple(sorted(class_names or set(label), key=natural_key)))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest that foveal wrote.

        Raises:
            ArtifactError: the file is missing, damaged, was not made by foveal, or by a newer one.
        """
        pa, parquet = _pyarrow(), _pyarrow("pyarrow.parquet")
        try:
            with path.open("rb") as stream:
                file = parquet.ParquetFile(stream, page_checksum_verification=True)
                header = _read_header(path, file.schema_arrow.metadata or {})
                table = file.read()
            return cls(table, Path(header["images_root"]), tuple(header["class_names"]))
        except FileNotFoundError as error:
            raise ArtifactError(f"{path} does not exist.", fix="check the path, or " + _MAKE_AGAIN) from error
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path} is damaged or no Parquet file: {error}.", fix=_MAKE_AGAIN) from error
        except DataError as error:
            raise ArtifactError(
                f"{path} is damaged: {error.message}", problems=error.problems, fix=_MAKE_AGAIN
            ) from error

    def write(self, path: Path) -> None:
        """Write the manifest durably: as CSV where the name ends in `.csv` (for people), else as Parquet.

        Raises:
            FovealError: the disk is full or the folder cannot be written.
        """
        if path.suffix.lower() == ".csv":
            columns = (self.table[name].to_pylist() for name in COLUMNS)
            write_csv(path, COLUMNS, zip(*columns, strict=True))
            return
        header = {
            "format_version": FORMAT_VERSION,
            "images_root": str(self.images_root),
            "class_names": list(self.class_names),
        }
        # ASCII JSON holds lone surrogates as escapes, so that a root whose name is not UTF-8 survives.
        table = self.table.replace_schema_metadata({_METADATA_KEY: json.dumps(header).encode("ascii")})
        with atomic_writer(path) as stream:
            _pyarrow("pyarrow.parquet").write_table(table, stream, compression="zstd", write_page_checksum=True)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        return f"Manifest({len(self)} samples, {len(self.class_names)} classes, images_root={str(self.images_root)!r})"

    def column(self, name: str) -> NDArray[Any]:
        """One column: text as object with None where unknown, numbers as float64 with NaN where unknown."""
        column = self.table[name]
        if name in _INTEGERS:
            column = column.cast("float64")
        values: NDArray[Any] = column.to_numpy()
        return values

    def codes(self, name: str) -> NDArray[np.int64]:
        """A column as numbers that are equal where its values are, int64 [n]; -1 where unknown."""
        encoded = self.table[name].combine_chunks().dictionary_encode()
        values: NDArray[np.int64] = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return values

    def is_usable(self) -> NDArray[np.bool_]:
        """Whether each row's status is ok, bool [n]."""
        return np.asarray(_pyarrow("pyarrow.compute").equal(self.table["status"], "ok").to_numpy(), dtype=np.bool_)

    def usable(self) -> NDArray[np.int64]:
        """Numbers of the rows whose status is ok, in order, int64."""
        return np.flatnonzero(self.is_usable())

    def of_split(self, name: Split) -> NDArray[np.int64]:
        """Numbers of the usable rows of one split, in order, int64."""
        return np.flatnonzero(self.is_usable() & (self.split_codes() == SPLITS.index(name)))

    def split_codes(self) -> NDArray[np.int64]:
        """Each row's split by its place in `SPLITS`, int64 [n]; -1 where there is none."""
        return self._places_in("split", SPLITS)

    def label_ids(self) -> NDArray[np.int64]:
        """Each row's label by its place in `class_names`, int64 [n].

        Raises:
            DataError: a label is no class of this manifest.
        """
        places = self._places_in("label", self.class_names)
        if (places < 0).any():
            foreign = sorted(set(self.column("label")[places < 0]), key=natural_key)
            raise DataError(
                f"The manifest has {len(self.class_names)} classes, and labels that are none of them.",
                problems=[f"label {name!r}" for name in foreign],
                fix=_MAKE_AGAIN,
            )
        return places

    def absolute_paths(self) -> list[Path]:
        """Where each row's image lies."""
        root = self.images_root
        known: dict[str, Path] = {}
        return [known.get(path) or known.setdefault(path, root / path) for path in self.table["path"].to_pylist()]

    def boxes(self) -> list[Box | None]:
        """Each row's box, or None where the whole image is the sample."""
        return list(_boxes(*(self.table[name].to_pylist() for name in BOX_COLUMNS)))

    def with_columns(self, **columns: Any) -> Self:
        """The same rows with some columns replaced; None and NaN mean unknown.

        Raises:
            DataError: a name is no column of a manifest, or a length differs.
        """
        table = self.table
        for name, values in columns.items():
            if name not in COLUMNS or len(values) != len(self):
                raise DataError(f"{name} with {len(values)} values does not fit a manifest of {len(self)} rows.")
            place = COLUMNS.index(name)
            table = table.set_column(place, manifest_schema().field(place), _to_arrow(name, values))
        return type(self)(table, self.images_root, self.class_names)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Self:
        """The manifest of some rows, by number or by mask, with the same classes."""
        numbers = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return type(self)(self.table.take(numbers), self.images_root, self.class_names)

    def fingerprint(self) -> str:
        """What the usable rows are, as 64 hexadecimal digits: content (or path), box, label and split, in any order."""
        pa, compute = _pyarrow(), _pyarrow("pyarrow.compute")
        rows = self.table.take(self.usable())
        parts = [compute.coalesce(rows["sha256"], rows["path"])]
        parts += [rows[name].cast(pa.string()).fill_null("") for name in (*BOX_COLUMNS, "label", "split")]
        # No value holds a NUL, so the joined text can be read in one way only.
        lines = compute.binary_join_element_wise(*parts, "\0").to_pylist()
        return hashlib.sha256("\0".join(sorted(lines)).encode()).hexdigest()

    def _places_in(self, name: str, values: Sequence[str]) -> NDArray[np.int64]:
        pa, compute = _pyarrow(), _pyarrow("pyarrow.compute")
        places = compute.index_in(self.table[name], value_set=pa.array(values, pa.string())).fill_null(-1)
        # A null in `values` cannot be, so a null in the column finds no place.
        result: NDArray[np.int64] = places.to_numpy().astype(np.int64)
        return result


def is_manifest(path: Path) -> bool:
    """Whether a Parquet file says of itself that it is a manifest of foveal.

    Raises:
        ArtifactError: the file is damaged or no Parquet file.
    """
    pa, parquet = _pyarrow(), _pyarrow("pyarrow.parquet")
    try:
        with path.open("rb") as stream:
            return _METADATA_KEY in (parquet.ParquetFile(stream).schema_arrow.metadata or {})
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is damaged or no Parquet file: {error}.", fix="get or make it again.") from error


def _read_header(path: Path, metadata: dict[bytes, bytes]) -> dict[str, Any]:
    if _METADATA_KEY not in metadata:
        raise ArtifactError(f"{path} is a Parquet table, but no manifest of foveal.", fix=_MAKE_AGAIN)
    try:
        header = json.loads(metadata[_METADATA_KEY])
        version, names = header["format_version"], header["class_names"]
        whole = isinstance(version, int) and isinstance(header["images_root"], str)
        whole = whole and isinstance(names, list) and all(isinstance(name, str) for name in names)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ArtifactError(f"{path} is damaged: its header cannot be read.", fix=_MAKE_AGAIN)
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {version}, and this foveal reads up to {FORMAT_VERSION}.",
            fix="pip install --upgrade foveal",
        )
    checked: dict[str, Any] = header
    return checked


def _to_arrow(name: str, values: Any) -> "pa.Array":
    pa = _pyarrow()
    kind = manifest_schema().field(name).type
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.cast(kind)
    if name in _INTEGERS:
        # By way of float64, where NaN and None both mean unknown and int32 is exact.
        values = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return pa.array(values, type=kind, from_pandas=True)


def _boxes(xmin: Sequence[Any], ymin: Sequence[Any], xmax: Sequence[Any], ymax: Sequence[Any]) -> Iterator[Box | None]:
    for left, top, right, bottom in zip(xmin, ymin, xmax, ymax, strict=True):
        known = left is not None and left == left  # NaN differs from itself
        yield (int(left), int(top), int(right), int(bottom)) if known else None

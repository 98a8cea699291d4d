"""The index of the store: one SQLite file that many processes and threads may use at once."""

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from foveal.errors import ArtifactError

WAIT_SECONDS = 60.0
"""How long to wait for another process that writes."""

Change = tuple[str, tuple[object, ...]]
"""A statement with its values."""

_KEYS_AT_ONCE = 500
_CACHE_KIB = 32 << 10

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, num_bytes INTEGER, modified_ns INTEGER, sha256 TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS images (
    sha256 TEXT, policy TEXT, width INTEGER, height INTEGER, mode TEXT, format TEXT, notes TEXT, reason TEXT,
    PRIMARY KEY (sha256, policy)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pixels (
    form TEXT, sha256 TEXT, box TEXT, shard TEXT, start INTEGER, height INTEGER, width INTEGER, reason TEXT,
    PRIMARY KEY (form, sha256, box)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (
    sha256 TEXT, policy TEXT, box TEXT, version INTEGER, jpeg_check INTEGER, record BLOB,
    PRIMARY KEY (sha256, policy, box));
CREATE TABLE IF NOT EXISTS shards (shard TEXT PRIMARY KEY, form TEXT, last_used REAL) WITHOUT ROWID;
"""


class Index:
    """One connection to the index, which the threads of a process take turns at.

    Args:
        file: made with its folder where it is missing.

    Raises:
        ArtifactError: the file cannot be written or is damaged; so do all methods.
    """

    def __init__(self, file: Path) -> None:
        self._folder = file.parent
        self._turn = threading.Lock()
        with self._explained(), ExitStack() as half_open:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                file, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            half_open.callback(self._connection.close)
            self._share()
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
            self._connection.executescript(_SCHEMA)
            half_open.pop_all()

    def _share(self) -> None:
        """Choose the journal that readers and a writer can share; SQLite does not wait for its turn to do that."""
        give_up_at = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() > give_up_at:
                    raise
                time.sleep(0.02)
            else:
                return

    def rows(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """What a query finds."""
        with self._turn, self._explained():
            return self._connection.execute(statement, values).fetchall()

    def rows_of(
        self, statement: str, keys: Sequence[object], values: tuple[object, ...] = ()
    ) -> Iterator[tuple[Any, ...]]:
        """What a query finds of many keys, in any order.

        Args:
            statement: ends in `IN`; the keys follow.
            keys: what is looked for.
            values: of the placeholders before.
        """
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            some = keys[start : start + _KEYS_AT_ONCE]
            yield from self.rows(f"{statement} ({','.join('?' * len(some))})", (*values, *some))

    def apply(self, changes: Iterable[Change]) -> None:
        """Make all of the changes or none; quickest where equal statements follow each other."""
        with self._turn, self._explained(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            for statement, alike in groupby(changes, key=itemgetter(0)):
                self._connection.executemany(statement, (values for _, values in alike))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            wait = "wait until the other process is done, or "
            delete = "delete that folder (it is only a cache), or "
            raise ArtifactError(
                f"The index of the image store in {self._folder} cannot be used: {error}.",
                fix=f"{wait if _is_busy(error) else delete}set FOVEAL_CACHE_DIR to another place.",
            ) from error


def _is_busy(error: Exception) -> bool:
    """Whether another process is at work for longer than SQLite waits."""
    # The lower byte is the kind, the upper ones say more of it.
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY

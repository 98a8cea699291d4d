"""Where a study keeps its trials: a SQLite file in its folder, or a PostgreSQL server that many workers share."""

import hashlib
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from foveal.errors import ArtifactError, ConfigError
from foveal.extras import require
from foveal.file_lock import locked_in_turn

DATABASE = "study.db"
HEARTBEAT_SECONDS, GRACE_SECONDS = 20, 120
"""How often a worker says that its trial goes on, and after how long a silence it is taken for dead."""

_SQLITE_MARK = b"SQLite format 3\x00"
_PATIENCE_SECONDS = 60


class StorageError(ArtifactError):
    """The storage of a study is damaged or out of reach, which is no fault of the trial that finds out."""


class StudyStorage:
    """The storage of one study, and the right to change it.

    Args:
        folder: of the study.
        url: of a PostgreSQL server's database; None for a file in the folder.

    Raises:
        ConfigError: the URL is none that can be used.
        MissingExtraError: optuna or the driver is not installed.
    """

    def __init__(self, folder: Path, url: str | None) -> None:
        require("optuna", extra="train", purpose="tune")
        self._folder = folder
        self._url = None if url is None else _checked_url(url)
        self._rdb: Any = None
        self._engine: Any = None
        # Many folders share a server, each with its own name there.
        self.study_name = "study" if url is None else folder.resolve().name

    @property
    def shown(self) -> str:
        """Where it is, without a password."""
        if self._url is None:
            return DATABASE
        return str(self._url.render_as_string(hide_password=True))

    @property
    def is_server(self) -> bool:
        """Whether workers of other machines see it."""
        return self._url is not None

    @contextmanager
    def mutex(self, name: str = "study") -> Iterator[None]:
        """Be the only one to change the study for the length of the block; it ends with the process, however that ends.

        Raises:
            StorageError: the server cannot be reached.
            ArtifactError: the folder's disk has no locks.
        """
        if self._url is None:
            with locked_in_turn(self._folder / f".{name}.lock"):
                yield
            return
        sqlalchemy = require("sqlalchemy", extra="train", purpose="tune")
        with self.speaking():
            if self._engine is None:
                self._engine = sqlalchemy.create_engine(self._url, poolclass=sqlalchemy.pool.NullPool)
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        with closing(connection):
            with self.speaking():
                key = int.from_bytes(hashlib.sha256(f"foveal {name} {self.study_name}".encode()).digest()[:7], "big")
                # Falls with the connection, and so with the process.
                connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": key})
            yield

    def open(self, *, has_trials: bool) -> Any:
        """The storage as Optuna takes it; call it with the mutex held.

        Args:
            has_trials: whether the folder shows that trials were run, so that the storage must hold them.

        Raises:
            StorageError: it is damaged, gone, or cannot be reached; nothing is written then.
        """
        optuna = require("optuna", extra="train", purpose="tune")
        file = self._folder / DATABASE
        if self._url is None:
            self._check_file(file, has_trials=has_trials)
            # Four slashes, for the path is absolute; braces would be a template of Optuna's.
            path = str(file.resolve()).replace("{", "{{").replace("}", "}}")
            url: Any = f"sqlite:///{path}"
            options: dict[str, Any] = {"connect_args": {"timeout": _PATIENCE_SECONDS}}
        else:
            url = self._url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
            options = {"pool_pre_ping": True, "pool_size": 2}
        with self.speaking(), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._rdb = optuna.storages.RDBStorage(
                url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS
            )
            names = [study.study_name for study in optuna.get_all_study_summaries(self._rdb, include_best_trial=False)]
        if has_trials and self.study_name not in names:
            raise StorageError(
                f"{self._folder} holds trials of a study, and its storage {self.shown} does not hold the study "
                f"{self.study_name!r}.",
                fix="bring the storage back from a copy; or start anew with --force, or with another --out.",
            )
        return self._rdb

    def close(self) -> None:
        """Let go of all connections."""
        for engine in (self._rdb.engine if self._rdb is not None else None, self._engine):
            if engine is not None:
                engine.dispose()

    def beat(self, trial_id: int) -> None:
        """Say that a trial goes on."""
        self._rdb.record_heartbeat(trial_id)

    def silent_trials(self, study_id: int) -> set[int]:
        """Ids of running trials of which nothing was heard for longer than the grace period, by the server's clock."""
        # Optuna's public way to it, `fail_stale_trials`, ends such a trial for good; here it is to go on.
        return set(self._rdb._get_stale_trial_ids(study_id))

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Turn what a database says into an error that says what to do."""
        optuna = require("optuna", extra="train", purpose="tune")
        exc = require("sqlalchemy.exc", extra="train", purpose="tune")
        try:
            yield
        except (optuna.exceptions.StorageInternalError, exc.SQLAlchemyError) as error:
            cause: BaseException = error
            while isinstance(cause, optuna.exceptions.StorageInternalError | exc.SQLAlchemyError):
                following = getattr(cause, "orig", None) or cause.__cause__
                if following is None:
                    break
                cause = following
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
            raise StorageError(
                f"The study's storage {self.shown} cannot be used: {reason}.",
                fix="see that the server runs, and that the database and its rights are there; then the same command "
                "goes on."
                if self._url is not None
                else "see that the disk is there and has space; then the same command goes on.",
            ) from error

    def _check_file(self, file: Path, *, has_trials: bool) -> None:
        """Refuse a database that is not whole, before anything opens it to write.

        Raises:
            StorageError: it is gone, no SQLite database, or damaged.
        """
        if not file.exists() or (not has_trials and file.stat().st_size == 0):
            if has_trials:
                raise self._torn(file, "it is gone")
            return
        with file.open("rb") as stream:
            mark = stream.read(len(_SQLITE_MARK))
        if mark != _SQLITE_MARK:
            raise self._torn(file, "it is empty" if not mark else "it is no SQLite database")
        try:
            # Not read-only: what a killed process left half-written is rolled back from its journal.
            with closing(
                sqlite3.connect(f"{file.resolve().as_uri()}?mode=rw", uri=True, timeout=_PATIENCE_SECONDS)
            ) as db:
                faults = [row[0] for row in db.execute("PRAGMA quick_check(1)")]
        except sqlite3.DatabaseError as error:
            raise self._torn(file, str(error)) from error
        if faults != ["ok"]:
            raise self._torn(file, faults[0].splitlines()[-1])

    def _torn(self, file: Path, reason: str) -> StorageError:
        return StorageError(
            f"The study's storage {file} is damaged: {reason}. Nothing was changed; the folders of its trials are "
            f"whole in {self._folder / 'runs'}.",
            fix=f"bring {DATABASE} back from a copy; or begin a new study with another --out, or in this folder with "
            "--force, which removes the trials.",
        )


def _checked_url(url: str) -> Any:
    """A URL of a PostgreSQL database, with the driver that is ours.

    Raises:
        ConfigError: it is none.
        MissingExtraError: the driver is not installed.
    """
    sqlalchemy = require("sqlalchemy", extra="train", purpose="tune")
    exc = require("sqlalchemy.exc", extra="train", purpose="tune")
    fix = "give it as in --storage postgresql+psycopg://user:password@host:5432/database."
    try:
        parsed = sqlalchemy.make_url(url)
    except (exc.ArgumentError, ValueError) as error:
        raise ConfigError("--storage is no URL of a database.", fix=fix) from error
    if parsed.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise ConfigError(
            f"--storage names {parsed.drivername!r}, and a study is kept in SQLite (without --storage) or PostgreSQL.",
            fix=fix,
        )
    require("psycopg", extra="postgres", purpose="keep a study in PostgreSQL")
    return parsed.set(drivername="postgresql+psycopg")

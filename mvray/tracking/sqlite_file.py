"""SQLite databases that appear under their names when they are whole.

MLflow makes a database by a hundred migrations, none of which it can take up again in the middle.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

BESIDE = ("", "-journal", "-wal", "-shm")
"""What SQLite appends to a database's name for the files beside it."""


def make_whole(file: Path, fill: Callable[[Path], None]) -> None:
    """Make the database ``file`` unless it is there: ``fill`` makes it under the name that it is given.

    A kill or a full disk leaves no ``file``; the next call begins anew. Of several processes that call this at once
    one fills it and the others wait for that. Raises what ``fill`` raises.
    """
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    lock_path, fresh = file.with_name(f".{file.name}.lock"), file.with_name(f".{file.name}.new")
    with lock_path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            _remove(fresh)
            try:
                fill(fresh)
                _settle(fresh)
                fresh.rename(file)
            except BaseException:
                _remove(fresh)
                raise
        lock_path.unlink(missing_ok=True)  # whoever opens another one finds the database


def _settle(file: Path) -> None:
    """All of the database into its one file, and that onto the disk: files beside it do not follow a renaming."""
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA journal_mode = DELETE")
    with file.open("rb") as written:
        os.fsync(written.fileno())


def _remove(file: Path) -> None:
    for ending in BESIDE:
        file.with_name(f"{file.name}{ending}").unlink(missing_ok=True)


def make_mlflow_tables(file: Path) -> None:
    """Fill a new ``file`` with the tables of MLflow's tracking store."""
    import sqlalchemy
    from mlflow.store.db import utils

    initialize: Callable[[Any], None] = utils._initialize_tables  # as `mlflow db upgrade` does; MLflow has no types
    engine = sqlalchemy.create_engine(f"sqlite:///{file}")
    try:
        initialize(engine)
    finally:
        engine.dispose()

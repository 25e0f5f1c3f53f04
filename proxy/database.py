"""The catalog's database on disk: opened and checked, or put aside when its content is damaged."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from pathlib import Path
from typing import Any

import diskcache

from mesh.errors import StoreUnusable
from proxy.aside import names_aside

log = logging.getLogger(__name__)


def open_database(root: Path) -> Any:
    """Open the diskcache in a folder. A damaged one is put aside and replaced: its content can be asked for again.

    Raises StoreUnusable when the database cannot be opened for another reason, or cannot be replaced.
    """
    try:
        return _opened(root)
    except Exception as error:
        if not is_damage(error):
            raise _refusal(root, error) from error
        aside = _aside(root)
        log.error("the catalog in %s is damaged (%s): it is begun anew, the old one is kept in %s", root, error, aside)
    try:
        root.rename(aside)
        return _opened(root)
    except Exception as error:
        raise _refusal(root, error) from error


def _opened(root: Path) -> Any:
    """Open, or create, the database in a folder, and check it. Raises whatever the failing call raises."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # a folder of another user, to which we may be able to write nevertheless
        root.chmod(0o700)  # it holds metadata of private repositories
    cache = diskcache.Cache(
        str(root),
        eviction_policy="none",  # `proxy.room` makes room
        sqlite_synchronous=1,  # survives a kill; a power cut may lose the last seconds
        sqlite_temp_store=2,  # in memory: a container may have no folder for temporary files. For all connections
        timeout=5,
    )
    try:
        [(verdict,)] = cache._sql("PRAGMA quick_check(1)").fetchall()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        cache._sql("CREATE INDEX IF NOT EXISTS Cache_store_time ON Cache (store_time)")  # as other policies have it
        cache.set("opened", time.time())  # is it writable?
    except BaseException:
        cache.close()
        raise
    return cache


def first_of(error: Exception) -> Exception:
    """The error that began it. After some errors SQLite ends the transaction by itself; then the rollback fails, too.

    That second error looks like damage, whatever the first one was.
    """
    while isinstance(error, sqlite3.OperationalError) and isinstance(error.__context__, sqlite3.Error):
        error = error.__context__
    return error


def is_damage(error: Exception) -> bool:
    """Whether the content of the file is wrong, and not the disk, the memory, our permissions or another program.

    sqlite3 raises OperationalError for all of these, and also for unknown tables.
    """
    if isinstance(error, sqlite3.OperationalError):
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF == sqlite3.SQLITE_ERROR
    return not isinstance(error, OSError | MemoryError | diskcache.Timeout)


def _aside(root: Path) -> Path:
    """An unused name for a damaged catalog.

    Raises StoreUnusable when all names are in use.
    """
    names = names_aside(root)
    for aside in names:
        if not aside.exists():
            return aside
    raise StoreUnusable(
        f"the catalog in {root} is damaged, as {len(names)} were before it: "
        f"check the disk, then delete {root}.damaged and those with numbers"
    )


def _refusal(root: Path, error: Exception) -> StoreUnusable:
    reason = "another program has locked it" if isinstance(error, diskcache.Timeout) else error
    return StoreUnusable(
        f"cannot open the catalog in {root}: {reason}. It was not changed. Make room on the disk, stop what else uses "
        "it, or let this user write there, and start again; or move it away, and the node makes a new one"
    )

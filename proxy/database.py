"""The catalog's database on disk: opened and tried, or put aside when its content is damaged."""

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

_SIZE_LIMIT = 1 << 30  # bytes on disk; diskcache then drops what was stored longest ago


def open_database(root: Path) -> Any:
    """A diskcache in a folder. A damaged one is put aside and begun anew: what it held can be asked again.

    Raises StoreUnusable when it cannot be told whether it is damaged, or not be begun anew.
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
    """Open, or make, the database in a folder, and try it. What it raises depends on what is wrong."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # somebody else's folder, which we may write to all the same
        root.chmod(0o700)  # it holds what private repositories are about
    cache = diskcache.Cache(
        str(root),
        size_limit=_SIZE_LIMIT,
        eviction_policy="least-recently-stored",
        sqlite_synchronous=1,  # survives a kill; a power cut may cost the last seconds
        timeout=5,
    )
    try:
        [(verdict,)] = cache._sql("PRAGMA quick_check(1)").fetchall()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        cache.set("opened", time.time())  # whether it can be written to
    except BaseException:
        cache.close()
        raise
    return cache


def is_damage(error: Exception) -> bool:
    """Whether it is the file's content that is wrong, not the disk, the memory, our rights or another program.

    OperationalError is what sqlite3 makes of all of these, and of tables that are not those we know.
    """
    if isinstance(error, sqlite3.OperationalError):
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF == sqlite3.SQLITE_ERROR
    return not isinstance(error, OSError | MemoryError | diskcache.Timeout)


def _aside(root: Path) -> Path:
    """A name for a damaged catalog; never one that another has."""
    names = names_aside(root)
    for aside in names:
        if not aside.exists():
            return aside
    raise StoreUnusable(
        f"the catalog in {root} is damaged, as {len(names)} were before it: "
        f"check the disk, then delete what is called {root}.damaged…"
    )


def _refusal(root: Path, error: Exception) -> StoreUnusable:
    reason = "another program has locked it" if isinstance(error, diskcache.Timeout) else error
    return StoreUnusable(
        f"cannot open the catalog in {root}: {reason}. Nothing in it was changed: make room on the disk, end what else "
        "uses it, or see to it that this user may write there, and start again; or move it away: it is begun anew"
    )

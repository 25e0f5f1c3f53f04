"""Values by key, kept over restarts.

diskcache stores them. Values that were read are also kept in a small cache in memory; one that is not there costs the
event loop about 30 µs of SQLite; large ones are read in a thread. A single thread writes to disk, one batch after the
other. A `kill -9` loses what is not written yet.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import diskcache
import msgspec

from mesh.threads import Pool
from proxy.database import first_of, is_damage, open_database
from proxy.large import LARGE
from proxy.room import Room, after

log = logging.getLogger(__name__)

_MEMORY = 16 << 20  # bytes, roughly: values as they are on disk, plus Python's overhead for each
_OVERHEAD = 500
_SHARE = 8  # a value larger than this part of the memory is read from disk each time, and displaces no others

T = TypeVar("T")


class Records:
    """Typed values by key; bytes are stored as they are. Belongs to the event loop's thread.

    `answers` and `lasting` are the beginnings of keys with room of their own on disk: see `Room`.

    Raises StoreUnusable when it cannot be opened, as when the disk is full or another program has locked it.
    """

    def __init__(self, root: Path, *, answers: Sequence[str], lasting: Sequence[str]) -> None:
        self._disk = open_database(root)
        self._room = Room(self._disk, answers=answers, lasting=lasting)
        self._memory: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._memory_size = 0
        self._pending: dict[str, bytes] = {}
        self._batch: dict[str, bytes] = {}  # being written to disk
        self._writer = Pool(1, "catalog")
        self._reader = Pool(1, "catalog-read")  # of large bodies
        self._writing: asyncio.Future[None] | None = None
        self._is_broken = False

    async def close(self) -> None:
        """Wait until everything is on disk."""
        while self._writing is not None:
            await self._writing
            await asyncio.sleep(0)  # callbacks of a finished write may run after we are woken
        for executor in (self._reader, self._writer):  # each thread has a connection of its own
            await asyncio.get_running_loop().run_in_executor(executor, self._disk.close)
            executor.shutdown()
        self._disk.close()  # this thread's connection

    def keys(self, start: str) -> list[str]:
        """All keys that begin with `start`, sorted."""
        keys = {key for key in (*self._pending, *self._batch) if key.startswith(start)}
        between = start, after(start)
        try:
            keys.update(key for (key,) in self._disk._sql("SELECT key FROM Cache WHERE key > ? AND key < ?", between))
        except (sqlite3.Error, diskcache.Timeout) as error:
            self._complain("read", error)
        return sorted(keys)

    def get(self, key: str, kind: type[T]) -> T | None:
        if key in self._memory:
            self._memory.move_to_end(key)
            known: T | None = self._memory[key][0]
            return known
        value, size = self._read(key, kind)
        if size is not None:
            self._remember(key, value, size)
        return value

    async def get_body(self, key: str, size: int) -> bytes | None:
        """A value of bytes that is expected to have `size`; a large one is read in a thread."""
        if size <= LARGE or key in self._memory or key in self._pending or key in self._batch:
            return self.get(key, bytes)
        body, _ = await asyncio.get_running_loop().run_in_executor(self._reader, self._read, key, bytes)
        if body is not None:
            self._remember(key, body, len(body))
        return body

    def remembers(self, key: str) -> bool:
        """Whether there is a value in memory."""
        return key in self._memory and self._memory[key][0] is not None

    def read(self, key: str, kind: type[T]) -> T | None:
        """The written value, past the cache in memory."""
        return self._read(key, kind)[0]

    def set(self, key: str, value: object) -> None:
        raw = value if isinstance(value, bytes) else msgspec.msgpack.encode(value)
        self._remember(key, value, len(raw))
        self._write_soon(key, raw)

    def set_on_disk(self, key: str, value: object) -> None:
        """Keep a value on disk alone: for `read`."""
        self._write_soon(key, msgspec.msgpack.encode(value))

    # --- inside

    def _read(self, key: str, kind: type[T]) -> tuple[T | None, int | None]:
        """The written value, past the cache in memory, and its size in bytes; (None, None) on an error."""
        raw = self._pending.get(key, self._batch.get(key))
        try:
            if raw is None and not self._is_broken:
                raw = self._disk.get(key)
            value: Any = raw if raw is None or kind is bytes else msgspec.msgpack.decode(raw, type=kind)
        except Exception as error:  # diskcache raises anything for a damaged row
            self._complain("read", error, is_all=isinstance(error, sqlite3.Error) and is_damage(error))
            return None, None
        return value, len(raw or b"")

    def _write_soon(self, key: str, raw: bytes) -> None:
        self._pending[key] = raw
        if self._writing is None:
            self._flush()

    def _flush(self) -> None:
        """Write what is pending to disk, in one transaction; what is set meanwhile goes with the next one."""
        self._batch, self._pending = self._pending, {}
        if self._batch and not self._is_broken:
            self._writing = asyncio.get_running_loop().run_in_executor(self._writer, self._write, self._batch)
            self._writing.add_done_callback(lambda _: self._flush())
        else:
            self._batch, self._writing = {}, None

    def _write(self, batch: dict[str, bytes]) -> None:
        try:
            self._room.write(batch)
        except Exception as error:
            first = first_of(error)
            self._complain("written", first, is_all=is_damage(first))

    def _complain(self, done: str, error: Exception, *, is_all: bool = False) -> None:
        """Log an error; `is_all`: it concerns the whole catalog, not one value or one attempt."""
        if is_all:
            if not self._is_broken:
                log.error("the catalog cannot be %s (%s): kept in memory only until the next start", done, error)
            self._is_broken = True
        else:
            log.warning("the catalog cannot be %s: %s", done, error)

    def _remember(self, key: str, value: object, size: int) -> None:
        if key in self._memory:
            self._memory_size -= self._memory.pop(key)[1]
        size += len(key) + _OVERHEAD
        if size > _MEMORY // _SHARE:
            return
        self._memory[key] = value, size
        self._memory_size += size
        while self._memory_size > _MEMORY:
            self._memory_size -= self._memory.popitem(last=False)[1][1]

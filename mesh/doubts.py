"""Blobs in doubt: complete blobs whose file may have changed since its bytes were proven.

Another program or a repair of the disk wrote to the file, a copy of the data directory lost the file's times, or a peer
received a piece that is not as it was. Such bytes are not sent to anyone until the whole file has been read again; a
blob that does not match its digest is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path

from mesh import layout
from mesh.adopt import take_again
from mesh.content import Digest
from mesh.entries import Entry
from mesh.errors import StoreUnusable
from mesh.partial import write_manifest
from mesh.turns import Turns

log = logging.getLogger(__name__)


class Doubts:
    """The blobs of a store that are in doubt. Belongs to the event loop's thread.

    Files are read in the threads of `disk`. `path` returns a blob's file, `mark` writes its public mark again, `drop`
    deletes it, `is_over` says that the store is closed.
    """

    def __init__(
        self,
        entries: Mapping[Digest, Entry],
        disk: Executor,
        *,
        path: Callable[[Digest], Path],
        mark: Callable[[Digest], None],
        drop: Callable[[Digest], None],
        is_over: Callable[[], bool],
    ) -> None:
        self._entries = entries
        self._disk = disk
        self._path = path
        self._mark = mark
        self._drop = drop
        self._is_over = is_over

    def __contains__(self, digest: Digest) -> bool:
        entry = self._entries.get(digest)
        if entry is None:
            return False
        is_touched = entry.stamp is not None and entry.stamp.is_doubtful(self._path(digest))
        return entry.is_doubted or is_touched

    def add(self, digest: Digest) -> None:
        """Record that a blob's bytes are not what was proven, whatever the file's times say."""
        if (entry := self._entries.get(digest)) is not None:
            entry.is_doubted = True

    async def __aiter__(self) -> AsyncIterator[Digest]:
        turns = Turns()  # each file that is shared with another program costs a stat(2)
        for digest in list(self._entries):
            await turns.give()
            if digest in self:
                yield digest

    async def settle(self, digest: Digest) -> None:
        """Read a blob in doubt from beginning to end, and keep it only if it still matches its digest.

        When the file cannot be read now, or keeps changing, the blob stays in doubt.
        """
        if (entry := self._entries.get(digest)) is None:
            return  # the blob has been removed meanwhile
        log.info("the file of %s may have changed since it was proven: reading it anew", digest)
        entry.users += 1
        try:
            loop, file = asyncio.get_running_loop(), self._path(digest)
            again = await loop.run_in_executor(self._disk, take_again, file, digest, entry.size, self._is_over)
        except (OSError, StoreUnusable) as error:
            log.info("cannot prove %s anew yet: %s", digest, error)
            if not isinstance(error, OSError) or error.errno != errno.EIO:
                return
            again = None  # a bad sector: reading again will not help
        finally:
            entry.users -= 1
        if self._entries.get(digest) is not entry:
            return
        if again is None:
            log.warning("blob %s was changed by another program, or by the disk; dropped", digest)
            self._drop(digest)
            return
        stamp, pieces = again
        entry.is_doubted = False
        path = self._path(digest)
        with contextlib.suppress(OSError):  # if this fails, the blob is in doubt again after the next start
            if entry.stamp is not None:
                entry.stamp = stamp
                stamp.write(layout.stamp_of(path))
                self._mark(digest)
            else:
                entry.modified = stamp.modified
                write_manifest(layout.manifest_of(path), entry.size, pieces)
                layout.set_proven(layout.manifest_of(path), stamp.modified)

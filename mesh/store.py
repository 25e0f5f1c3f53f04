"""Blobs on disk: what is complete and proven, what is still partial, and what has to make room.

A complete blob is one read-only file named by its digest; it gets that name only after its bytes were
proven and flushed, by one rename. A partial blob is a sparse file with a journal beside it (`mesh.partial`).
Nothing else is kept: the directory is the index, and a blob's time of access is when it was last used.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mesh import layout
from mesh.blob import Blob
from mesh.content import Digest
from mesh.doubts import Doubts
from mesh.entries import Entry, PartialEntry, Uses, check_fits, eviction_order, no_room
from mesh.errors import StoreUnusable
from mesh.marks import Marks
from mesh.partial import Partial, read_manifest
from mesh.shared import Stamp

log = logging.getLogger(__name__)

# Writing the time of use to disk more often than this would cost more than the order is worth.
_TOUCH_SECONDS = 60.0


class Store:
    """All blobs of one data directory. Belongs to the event loop's thread; only `Partial` writes elsewhere.

    `max_size` is the budget in bytes for complete and partial blobs together. `is_pinned` is asked before a
    blob is evicted.

    Raises StoreInUse when another process holds the directory, StoreUnusable when it cannot be used.
    """

    def __init__(self, root: Path, max_size: int, *, is_pinned: Callable[[Digest], bool] = lambda _: False) -> None:
        self._blobs = root / "blobs"
        self._folder = str(self._blobs)  # opening a blob is on every answer's way, and Path is slow
        self._partials = root / "partial"
        self.max_size = max_size
        self.evicted_bytes = 0
        self._is_pinned = is_pinned
        self._entries: dict[Digest, Entry] = {}
        self._marks = Marks(self._marked)
        self.doubts = Doubts(
            self._entries,
            path=self._path,
            mark=self._marks.write,
            drop=self._drop_file,
            is_over=lambda: self._lock_fd < 0,  # closed: nobody waits for a large file then
        )
        self._partial_entries: dict[Digest, PartialEntry] = {}
        self._making_room = asyncio.Lock()
        self._flushes: set[asyncio.Future[None]] = set()  # of proven blobs: what is on its way to the disk cannot go
        self._taking_over: set[Digest] = set()
        self._stuck: set[Digest] = set()  # what could not be evicted: said once of each, tried each time
        self._lock_fd = -1
        try:
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._partials.mkdir(parents=True, exist_ok=True)
            self._lock_fd = layout.lock(root)
            self._scan()
        except OSError as error:
            raise StoreUnusable(f"cannot use the data directory {root}: {error}") from error
        uses = [*(e.used_at for e in self._entries.values()), *(e.used_at for e in self._partial_entries.values())]
        self._uses = Uses(max(uses, default=0.0))
        self.size = sum(e.size for e in self._entries.values()) + sum(e.held for e in self._partial_entries.values())

    def close(self) -> None:
        for entry in self._partial_entries.values():
            if entry.partial is not None:
                entry.partial.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # --- complete blobs

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def blobs(self) -> Iterator[tuple[Digest, int, float]]:
        """Digest, size in bytes and time of last use (seconds since the epoch) of every complete blob."""
        for digest, entry in self._entries.items():
            yield digest, entry.size, entry.used_at

    def partials(self) -> Iterator[tuple[Digest, int]]:
        """Digest and bytes on disk of every partial blob."""
        for digest, entry in self._partial_entries.items():
            yield digest, entry.held

    def open(self, digest: Digest, size: int | None = None) -> Blob | None:
        """A complete blob for reading, or None when we do not have it (or not with this size).

        Raises StoreUnusable when it cannot be opened just now.
        """
        entry = self._entries.get(digest)
        if entry is None or digest in self._taking_over:
            return None
        try:
            fd = os.open(self._name(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            log.warning("blob %s is gone from disk", digest)
            is_public = self.is_public(digest)
            self._forget(digest)
            self.mark_public(digest, is_public=is_public)  # for who fetches it again
            return None
        except OSError as error:  # too many open files, a bad disk: no reason to have it again from elsewhere
            raise StoreUnusable(f"cannot open {digest}: {error}") from error
        about = os.fstat(fd)
        actual = about.st_size
        if entry.stamp is not None and (now := Stamp.of(fd)) != entry.stamp:
            os.close(fd)
            if not now.looks_like(entry.stamp):
                log.warning("blob %s was changed by the program that shares its file; dropped", digest)
                self._drop_file(digest)
            return None  # otherwise it is in doubt
        if actual != entry.size:
            os.close(fd)
            log.error("blob %s has %d bytes on disk instead of %d; dropped", digest, actual, entry.size)
            self._drop_file(digest)
            return None
        if entry.stamp is None:
            entry.is_doubted |= about.st_mtime_ns != entry.modified
        if entry.is_doubted or size not in (None, actual):
            os.close(fd)
            return None
        self._touch(digest, entry)
        entry.users += 1

        def release() -> None:
            entry.users -= 1

        return Blob(digest, actual, fd, entry.stamp, release)

    def manifest(self, digest: Digest, size: int) -> dict[int, bytes]:
        """BLAKE3 digest of every piece of a complete blob of this size; {} without one. Reads a small file."""
        try:
            return read_manifest(layout.manifest_of(self._path(digest)), size) if digest in self._entries else {}
        except OSError:
            return {}

    def is_public(self, digest: Digest) -> bool:
        """Whether anybody could get this blob from the Hub: then it may be shared with anybody."""
        return digest in self._marks

    def mark_public(self, digest: Digest, *, is_public: bool = True) -> None:
        """Remember, over restarts too, that anybody could get this blob, or that not everybody can any more."""
        self._marks.set(digest, is_public=is_public)

    async def remove(self, digest: Digest) -> int:
        """Drop a blob, complete or partial, that nobody is using; returns the bytes it freed.

        Raises StoreUnusable when its file cannot be removed: its bytes still count then.
        """
        freed = 0
        entry = self._entries.get(digest)
        if entry is not None and not entry.users and digest not in self._taking_over:
            freed += await self._delete(self._path(digest), entry.size, lambda: self._forget(digest))
        return freed + await self.remove_partial(digest)

    async def remove_partial(self, digest: Digest) -> int:
        """Drop what has arrived of a blob, unless it is in use; returns the bytes it freed. Raises StoreUnusable."""
        partial = self._partial_entries.get(digest)
        if partial is None or partial.partial is not None:
            return 0

        def forget() -> None:
            del self._partial_entries[digest]
            self.size -= partial.held

        return await self._delete(partial.path, partial.held, forget)

    # --- partial blobs

    def open_partial(self, digest: Digest, size: int) -> Partial:
        """The partial blob to write into, as it was left or new. Closed by `close_partial` or `commit`."""
        entry = self._partial_entries.get(digest)
        if entry is not None and entry.partial is not None:
            raise RuntimeError(f"{digest} is being filled already")
        path = self._partials / f"{digest.algorithm}-{digest.hex}"
        try:
            partial = Partial(path, digest, size)
        except OSError as error:
            raise layout.refusal(error, f"to begin {digest}", f"write {path}") from error
        held = partial.journaled_bytes
        if entry is not None:
            self.size -= entry.held
        self.size += held
        self._partial_entries[digest] = PartialEntry(path, held, self._uses.now(), partial)
        return partial

    def close_partial(self, partial: Partial) -> None:
        """Put a partial blob aside; what it holds is kept for the next time."""
        entry = self._partial_entries.get(partial.digest)
        partial.close()
        if entry is not None and entry.partial is partial:
            entry.partial = None
            entry.used_at = self._uses.now()
            self._account(entry, partial.journaled_bytes)
            if not partial.journaled_bytes:
                del self._partial_entries[partial.digest]
                Partial.remove(entry.path)

    async def commit(self, partial: Partial) -> None:
        """Give a proven blob its final name. After this it survives a power cut.

        Raises StoreFull or StoreUnusable when the disk refuses; the partial blob is then still there.
        """
        final = self._path(partial.digest)
        flush = asyncio.get_running_loop().create_future()
        self._flushes.add(flush)
        try:
            await asyncio.to_thread(layout.make_durable, partial, final, self._marks.mode(partial.digest))
        except OSError as error:
            raise layout.refusal(error, f"to keep {partial.digest}", f"keep {partial.digest}") from error
        finally:
            self._flushes.discard(flush)
            flush.set_result(None)
        entry = self._partial_entries.pop(partial.digest, None)
        if entry is not None:
            self.size -= entry.held
        self._add(partial.digest, partial.size)
        self._marks.write(partial.digest)  # it may have changed meanwhile

    async def adopt(
        self, digest: Digest, size: int, staged: Path, pieces: Sequence[bytes], stamp: Stamp | None = None
    ) -> None:
        """Make a proven file from elsewhere on this file system a blob, in place of what is here of it.

        `pieces`: the BLAKE3 digest of each. `stamp`: the file keeps its name elsewhere. Raises OSError.
        """
        final = self._path(digest)
        mode = self._marks.mode(digest)
        self._taking_over.add(digest)  # neither read nor removed until we know whose file it is
        try:
            stamp = await asyncio.to_thread(layout.take_over, staged, final, size, pieces, mode, stamp)
            self._add(digest, size, stamp)
        finally:
            self._taking_over.discard(digest)
        self._marks.write(digest)
        with contextlib.suppress(StoreUnusable):  # it counts, and may go some other time
            await self.remove_partial(digest)

    def is_of(self, digest: Digest, file: os.stat_result) -> bool:
        """Whether this very file, or a copy made of it when it was as it is now, is our blob."""
        try:
            ours = self._path(digest).stat()
        except OSError:
            return False
        return (ours.st_mtime_ns, ours.st_size) == (file.st_mtime_ns, file.st_size)

    def check_fits(self, digest: Digest, size: int) -> None:
        """Raise StoreFull for what cannot be kept whole, whatever is evicted: then nothing should be."""
        if digest not in self._entries:  # in doubt, or being taken over
            free, known = layout.free_bytes(self._folder), (self._entries, self._partial_entries)
            kept = (self._is_pinned, self._is_elsewhere)
            check_fits(digest, size, *known, *kept, max_size=self.max_size, used=self.size, free=free)

    async def reserve(self, partial: Partial, count: int) -> None:
        """Make sure that `count` more bytes fit before they are written, evicting what was used longest ago.

        Raises StoreFull when there is nothing left to evict: StoreBusy when there will be again.
        """
        async with self._making_room:
            if not await self._make_room(count, keep=partial.digest):
                known = (self._entries, self._partial_entries, self._is_pinned)
                raise no_room(partial.digest, count, *known, max_size=self.max_size, used=self.size)
            entry = self._partial_entries[partial.digest]
            self._account(entry, entry.held + count)

    def release(self, partial: Partial, count: int) -> None:
        """Give back a reservation that was not written."""
        entry = self._partial_entries.get(partial.digest)
        if entry is not None:
            self._account(entry, max(0, entry.held - count))

    async def fit(self) -> bool:
        """Make room until the budget is kept: it may be smaller than at the last start."""
        async with self._making_room:
            return await self._make_room(0, keep=None)

    async def evict(self, count: int) -> bool:
        """Free at least `count` bytes whatever the budget says: the disk itself is full."""
        async with self._making_room:
            return await self._make_room(self.max_size - self.size + count, keep=None, is_for_disk=True)

    # --- inside

    async def _make_room(self, count: int, keep: Digest | None, *, is_for_disk: bool = False) -> bool:
        while self.size + count > self.max_size:
            for digest in eviction_order(self._entries, self._partial_entries, self._is_pinned):
                if digest == keep or (is_for_disk and self._is_elsewhere(digest)):
                    continue
                try:
                    freed = await self.remove(digest)
                except StoreUnusable as error:
                    if digest not in self._stuck:
                        log.warning("%s cannot make room: %s", digest, error)
                    self._stuck.add(digest)
                    continue
                if freed:
                    self.evicted_bytes += freed
                    log.info("evicted %s: %d bytes", digest, freed)
                if self.size + count <= self.max_size:
                    return True
            if not self._flushes:
                return False
            await asyncio.wait(self._flushes, return_when=asyncio.FIRST_COMPLETED)
        return True

    def _is_elsewhere(self, digest: Digest) -> bool:
        """Whether another program has the very file: the disk gets nothing back when we let go of it."""
        entry = self._entries.get(digest)
        return entry is not None and entry.stamp is not None and layout.has_another_name(self._path(digest))

    def _account(self, entry: PartialEntry, held: int) -> None:
        self.size += held - entry.held
        entry.held = held

    def _name(self, digest: Digest) -> str:
        return f"{self._folder}/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"

    def _path(self, digest: Digest) -> Path:
        return Path(self._name(digest))

    def _marked(self, digest: Digest) -> Path | None:
        """The file whose mode says whether a blob is public: never one of somebody else's."""
        entry, path = self._entries.get(digest), self._path(digest)
        if entry is None:
            return None
        return path if entry.stamp is None else layout.stamp_of(path)

    def _touch(self, digest: Digest, entry: Entry) -> None:
        now, entry.used_at = time.time(), self._uses.now()
        if abs(now - entry.touched_at) > _TOUCH_SECONDS:
            entry.touched_at = now
            with contextlib.suppress(OSError):  # only the order of eviction after a restart depends on it
                if (file := self._marked(digest)) is not None:  # to touch a shared one would be a change
                    os.utime(file, ns=(int(entry.used_at * 1e9), file.stat().st_mtime_ns))

    def _add(self, digest: Digest, size: int, stamp: Stamp | None = None) -> None:
        """Another file has this name now, whatever had it before."""
        before = self._entries.get(digest)
        self.size += size - (before.size if before is not None else 0)
        modified = layout.modified_as_proven(self._name(digest))
        self._entries[digest] = Entry(size, self._uses.now(), stamp=stamp, modified=modified)

    def _forget(self, digest: Digest) -> None:
        entry = self._entries.pop(digest, None)
        self._marks.forget(digest)
        if entry is not None:
            self.size -= entry.size

    async def _delete(self, path: Path, size: int, forget: Callable[[], None]) -> int:
        gone: Path | None = None
        try:
            gone = layout.set_aside(path, self._partials)
            forget()
            await asyncio.to_thread(gone.unlink, missing_ok=True)
        except OSError as error:
            if gone is not None:
                self.size += size  # until the next start, which tries again
            raise StoreUnusable(f"cannot remove {path}: {error}") from error
        return size

    def _drop_file(self, digest: Digest) -> None:
        self._forget(digest)
        with contextlib.suppress(OSError):
            layout.unlink(self._path(digest))

    def _scan(self) -> None:
        for digest, file, stamp in layout.find_blobs(self._blobs):
            used_at = layout.stamp_of(Path(file.path)).stat().st_atime if stamp is not None else file.stat().st_atime
            about = file.stat()
            self._entries[digest] = Entry(about.st_size, used_at, stamp=stamp, modified=about.st_mtime_ns)
            self._marks.read(digest)
        for digest, file in layout.find_partials(self._partials, {d: self._path(d) for d in self._entries}):
            path = Path(file.path)
            self._partial_entries[digest] = PartialEntry(path, Partial.journaled(path), file.stat().st_mtime)
        for digest, entry in self._entries.items():  # now that all have what belongs to them
            if entry.stamp is None:
                entry.is_doubted = layout.modified_as_proven(self._name(digest)) != entry.modified

"""Blobs on disk: complete and proven ones, partial ones, and the eviction that makes room for them.

A complete blob is one read-only file named by its digest. It gets that name by a single rename, only after its bytes
were proven and flushed. A partial blob is a sparse file with a journal beside it (`mesh.partial`). There is no other
index than the directory, and a file's access time is when the blob was last used.
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
from mesh.threads import NICE, Pool

log = logging.getLogger(__name__)

# Seconds between two writes of a blob's time of use to disk: more would cost more than the eviction order is worth.
_TOUCH_SECONDS = 60.0


class Store:
    """All blobs of one data directory. Belongs to the event loop's thread; only `Partial` is written by other threads.

    `max_size` is the budget in bytes for complete and partial blobs together. A blob for which `is_pinned` returns
    true is never evicted.

    Raises StoreInUse when another process holds the directory, StoreUnusable when it cannot be used.
    """

    def __init__(self, root: Path, max_size: int, *, is_pinned: Callable[[Digest], bool] = lambda _: False) -> None:
        self._blobs = root / "blobs"
        self._folder = str(self._blobs)  # a blob is opened for every answer, and Path is slow
        self._partials = root / "partial"
        self.max_size = max_size
        self.evicted_bytes = 0
        self.on_gone: Callable[[Digest], None] = lambda _: None  # called for each complete blob that is here no more
        self._is_pinned = is_pinned
        self._entries: dict[Digest, Entry] = {}
        # For work on whole blobs, which can take minutes: in the default executor, short work would wait for it.
        self.disk = Pool(8, "disk", NICE)
        self._marks = Marks(self._marked)
        self.doubts = Doubts(
            self._entries,
            self.disk,
            path=self._path,
            mark=self._marks.write,
            drop=self._drop_file,
            is_over=lambda: self._lock_fd < 0,  # a closed store does not wait until a large file has been read
        )
        self._partial_entries: dict[Digest, PartialEntry] = {}
        self._making_room = asyncio.Lock()
        self._flushes: set[asyncio.Future[None]] = set()  # of proven blobs, which cannot be evicted meanwhile
        self._taking_over: set[Digest] = set()
        self._stuck: set[Digest] = set()  # blobs that could not be evicted: logged once, tried each time
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
        self.disk.shutdown(wait=False)  # what is queued still runs

    # --- complete blobs

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def blobs(self) -> Iterator[tuple[Digest, int, float]]:
        """Digest, size in bytes and time of last use (seconds since the epoch) of every complete blob."""
        for digest, entry in self._entries.items():
            yield digest, entry.size, entry.used_at

    def partials(self) -> Iterator[tuple[Digest, int, int]]:
        """Digest, full size in bytes and bytes on disk of every partial blob."""
        for digest, entry in self._partial_entries.items():
            yield digest, entry.size, entry.held

    def open(self, digest: Digest, size: int | None = None) -> Blob | None:
        """Open a complete blob for reading. None if it is not here, is in doubt, or has another size.

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
            self.mark_public(digest, is_public=is_public)  # for when it is fetched again
            return None
        except OSError as error:  # too many open files, or a bad disk: no reason to fetch the blob again
            raise layout.refusal(error, f"to open {digest}", f"open {digest}") from error
        about = os.fstat(fd)
        actual = about.st_size
        if entry.stamp is not None and (now := Stamp.of(fd)) != entry.stamp:
            os.close(fd)
            if not now.looks_like(entry.stamp):
                log.warning("blob %s was changed by the program that shares its file; dropped", digest)
                self._drop_file(digest)
            return None  # dropped, or in doubt
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
        """Piece → BLAKE3 digest of a complete blob of this size; {} without one. Reads a small file."""
        try:
            return read_manifest(layout.manifest_of(self._path(digest)), size) if digest in self._entries else {}
        except OSError:
            return {}

    def is_public(self, digest: Digest) -> bool:
        """Whether anybody could get this blob from the origin, so that it may be shared with any node."""
        return digest in self._marks

    def mark_public(self, digest: Digest, *, is_public: bool = True) -> None:
        """Remember, across restarts, whether anybody could get this blob from the origin."""
        self._marks.set(digest, is_public=is_public)

    async def remove(self, digest: Digest) -> int:
        """Delete a blob, complete or partial, unless it is in use; returns the bytes freed.

        Raises StoreUnusable when its file cannot be removed; its bytes then still count.
        """
        freed = 0
        entry = self._entries.get(digest)
        if entry is not None and not entry.users and digest not in self._taking_over:
            freed += await self._delete(self._path(digest), entry.size, lambda: self._forget(digest))
        return freed + await self.remove_partial(digest)

    async def remove_partial(self, digest: Digest) -> int:
        """Delete a partial blob, unless it is in use; returns the bytes freed. Raises StoreUnusable."""
        partial = self._partial_entries.get(digest)
        if partial is None or partial.partial is not None:
            return 0

        def forget() -> None:
            del self._partial_entries[digest]
            self.size -= partial.held

        return await self._delete(partial.path, partial.held, forget)

    # --- partial blobs

    def open_partial(self, digest: Digest, size: int) -> Partial:
        """Open a partial blob, as it was left or new; `close_partial` closes it. Raises StoreFull or StoreUnusable."""
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
        self._partial_entries[digest] = PartialEntry(path, size, held, self._uses.now(), partial)
        return partial

    def close_partial(self, partial: Partial) -> None:
        """Close a partial blob. What it holds is kept for the next time."""
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

        Raises StoreFull or StoreUnusable when the disk refuses; the blob is then still a partial one.
        """
        final, loop = self._path(partial.digest), asyncio.get_running_loop()
        flush, mode = loop.create_future(), self._marks.mode(partial.digest)
        self._flushes.add(flush)
        try:
            await loop.run_in_executor(self.disk, layout.make_durable, partial, final, mode)
        except OSError as error:
            raise layout.refusal(error, f"to keep {partial.digest}", f"keep {partial.digest}") from error
        finally:
            self._flushes.discard(flush)
            flush.set_result(None)
        entry = self._partial_entries.pop(partial.digest, None)
        if entry is not None:
            self.size -= entry.held
        self._add(partial.digest, partial.size)
        self._marks.write(partial.digest)  # the mark may have changed meanwhile

    async def adopt(
        self, digest: Digest, size: int, staged: Path, pieces: Sequence[bytes], stamp: Stamp | None = None
    ) -> None:
        """Make a proven file from elsewhere on this file system a blob, in place of any complete or partial one.

        `pieces` are the BLAKE3 digests of its pieces; `stamp` is given if the file keeps another name. Raises OSError.
        """
        loop, final, mode = asyncio.get_running_loop(), self._path(digest), self._marks.mode(digest)
        self._taking_over.add(digest)  # neither read nor removed while either file may have the name
        try:
            stamp = await loop.run_in_executor(self.disk, layout.take_over, staged, final, size, pieces, mode, stamp)
            self._add(digest, size, stamp)
        finally:
            self._taking_over.discard(digest)
        self._marks.write(digest)
        with contextlib.suppress(StoreUnusable):  # its bytes still count, and it can be removed later
            await self.remove_partial(digest)

    def is_of(self, digest: Digest, file: os.stat_result) -> bool:
        """Whether the blob's file is this very file, or a copy made of it in its present state."""
        try:
            ours = self._path(digest).stat()
        except OSError:
            return False
        return (ours.st_mtime_ns, ours.st_size) == (file.st_mtime_ns, file.st_size)

    def check_fits(self, digest: Digest, size: int) -> None:
        """Raise StoreFull if a blob cannot fit whatever is evicted, so that nothing is evicted in vain."""
        if digest not in self._entries:  # otherwise it is here, though in doubt or being taken over
            free, known = layout.free_bytes(self._folder), (self._entries, self._partial_entries)
            kept = (self._is_pinned, self._is_elsewhere)
            check_fits(digest, size, *known, *kept, max_size=self.max_size, used=self.size, free=free)

    async def reserve(self, partial: Partial, count: int) -> None:
        """Make sure that `count` more bytes fit before they are written, evicting the blobs used longest ago.

        Raises StoreFull when nothing is left to evict, StoreBusy when something will be once it is no longer in use.
        """
        async with self._making_room:
            if not await self._make_room(count, keep=partial.digest):
                known = (self._entries, self._partial_entries, self._is_pinned)
                raise no_room(partial.digest, count, *known, max_size=self.max_size, used=self.size)
            entry = self._partial_entries[partial.digest]
            self._account(entry, entry.held + count)

    def release(self, partial: Partial, count: int) -> None:
        """Give back a reservation of `count` bytes that were not written."""
        entry = self._partial_entries.get(partial.digest)
        if entry is not None:
            self._account(entry, max(0, entry.held - count))

    async def fit(self) -> bool:
        """Evict until the budget is kept: it may be smaller than at the last start. False if that fails."""
        async with self._making_room:
            return await self._make_room(0, keep=None)

    async def evict(self, count: int) -> bool:
        """Free at least `count` bytes whatever the budget: the disk itself is full. False if that fails."""
        async with self._making_room:
            return await self._make_room(self.max_size - self.size + count, keep=None, is_for_disk=True)

    # --- internals

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
        """Whether the file has another name elsewhere, so that deleting it here frees nothing on disk."""
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
        """The file whose mode says whether a blob is public; never a file that another program shares."""
        entry, path = self._entries.get(digest), self._path(digest)
        if entry is None:
            return None
        return path if entry.stamp is None else layout.stamp_of(path)

    def _touch(self, digest: Digest, entry: Entry) -> None:
        now, entry.used_at = time.time(), self._uses.now()
        if abs(now - entry.touched_at) > _TOUCH_SECONDS:
            entry.touched_at = now
            with contextlib.suppress(OSError):  # only the eviction order after a restart depends on it
                if (file := self._marked(digest)) is not None:  # not a shared file: that would move its ctime
                    os.utime(file, ns=(int(entry.used_at * 1e9), file.stat().st_mtime_ns))

    def _add(self, digest: Digest, size: int, stamp: Stamp | None = None) -> None:
        """Account for a file that has just got a blob's name, perhaps in place of another one."""
        before = self._entries.get(digest)
        self.size += size - (before.size if before is not None else 0)
        modified = layout.modified_as_proven(self._name(digest))
        self._entries[digest] = Entry(size, self._uses.now(), stamp=stamp, modified=modified)

    def _forget(self, digest: Digest) -> None:
        entry = self._entries.pop(digest, None)
        self._marks.forget(digest)
        if entry is not None:
            self.size -= entry.size
            self.on_gone(digest)

    async def _delete(self, path: Path, size: int, forget: Callable[[], None]) -> int:
        gone: Path | None = None
        try:
            gone = layout.set_aside(path, self._partials)
            forget()
            # Not in `disk`: downloads wait for room. Evictions come one at a time and leave threads to others.
            await asyncio.to_thread(gone.unlink, missing_ok=True)
        except OSError as error:
            if gone is not None:
                self.size += size  # counted until the next start, which tries to delete it again
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
            path, about = Path(file.path), file.stat()  # the file has had its full size since it was opened first
            self._partial_entries[digest] = PartialEntry(path, about.st_size, Partial.journaled(path), about.st_mtime)
        for digest, entry in self._entries.items():  # only now: `find_partials` may have restored manifests
            if entry.stamp is None:
                entry.is_doubted = layout.modified_as_proven(self._name(digest)) != entry.modified

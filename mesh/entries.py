"""The records that a store keeps of its complete and partial blobs, and the order in which it evicts them."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.content import Digest
from mesh.errors import StoreBusy, StoreFull
from mesh.partial import Partial
from mesh.shared import Stamp


class Uses:
    """Clock for times of use, in seconds since the epoch: each is later than the one before, even if clocks go back.

    `last` is the latest time of use known at the start.
    """

    def __init__(self, last: float = 0.0) -> None:
        self._last = last

    def now(self) -> float:
        self._last = max(time.time(), self._last + 1e-6)
        return self._last


@dataclass(slots=True)
class Entry:
    """A complete blob. Sizes in bytes, times in seconds since the epoch."""

    size: int
    used_at: float  # last use; at the start, the access time of its file
    touched_at: float = 0.0  # when `used_at` was last written to the file system, by the wall clock
    users: int = 0  # open `Blob`s and running proofs; a blob in use is not evicted
    stamp: Stamp | None = None  # set when another program has the file too
    modified: int = 0  # time of the file's last write before its proof, in nanoseconds since the epoch
    is_doubted: bool = False  # its file was written to since the proof, or a piece of it is not as it was


@dataclass(slots=True)
class PartialEntry:
    """A partial blob. Times in seconds since the epoch."""

    path: Path
    size: int  # bytes of the whole blob
    held: int  # bytes counted against the budget: on disk, or reserved for pieces under way
    used_at: float
    partial: Partial | None = None  # set while it is in use


def eviction_order(
    entries: Mapping[Digest, Entry], partials: Mapping[Digest, PartialEntry], is_kept: Callable[[Digest], bool]
) -> Iterator[Digest]:
    """Yield the blobs that may be evicted, least recently used first: those neither in use nor `is_kept`.

    Mostly only the first is needed, so the rest is sorted only as it is asked for.
    """
    idle = [(entry.used_at, digest) for digest, entry in entries.items() if not entry.users]
    idle += [(entry.used_at, digest) for digest, entry in partials.items() if entry.partial is None]
    heapq.heapify(idle)
    while idle:
        _, digest = heapq.heappop(idle)
        if not is_kept(digest):
            yield digest


def check_fits(
    digest: Digest,
    size: int,
    entries: Mapping[Digest, Entry],
    partials: Mapping[Digest, PartialEntry],
    is_pinned: Callable[[Digest], bool],
    is_elsewhere: Callable[[Digest], bool],
    *,
    max_size: int,
    used: int,
    free: int,
) -> None:
    """Raise StoreFull if a blob of `size` bytes cannot be kept whole, whatever is evicted.

    `used` of the budget's `max_size` bytes are taken; `free` bytes are free on the disk. Evicting a blob that
    `is_elsewhere` frees budget but no disk space.
    """
    if size > max_size:
        raise StoreFull(f"{size} bytes can never fit in --max-size {max_size}")
    partial = partials.get(digest)
    lacking = size - (partial.held if partial is not None else 0)
    if lacking <= min(free, max_size - used):
        return
    others = [(other, entry.size) for other, entry in entries.items()]
    others += [(other, entry.held) for other, entry in partials.items() if other != digest]
    pinned = sum(count for other, count in others if is_pinned(other))
    if size + pinned > max_size:
        raise StoreFull(f"{size} bytes do not fit in --max-size {max_size} beside the {pinned} that are pinned")
    evictable = sum(count for other, count in others if not is_pinned(other) and not is_elsewhere(other))
    if lacking > free + evictable:
        raise StoreFull(f"the disk lacks room for {lacking} bytes: {free} are free, and {evictable} can make room")


def no_room(
    digest: Digest,
    count: int,
    entries: Mapping[Digest, Entry],
    partials: Mapping[Digest, PartialEntry],
    is_pinned: Callable[[Digest], bool],
    *,
    max_size: int,
    used: int,
) -> StoreFull:
    """Return what to raise when `count` more bytes of a blob do not fit and nothing is left to evict.

    That is StoreBusy if there is room once other blobs are no longer in use, otherwise StoreFull.
    """
    in_use = sum(entry.size for other, entry in entries.items() if entry.users and not is_pinned(other))
    in_use += sum(
        entry.held
        for other, entry in partials.items()
        if entry.partial is not None and other != digest and not is_pinned(other)
    )
    text = f"{count} more bytes do not fit in --max-size {max_size} ({used} in use, nothing left to evict"
    if used + count - in_use > max_size:
        return StoreFull(f"{text})")
    return StoreBusy(f"{text} until others are done)")

"""What a store remembers of each blob, complete or partial, and which of them go first when there is no room."""

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
    """The times of uses, in seconds since the epoch: each is later than all before, though clocks may be set back.

    `last`: when the latest known of was.
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
    used_at: float  # as the file system keeps it
    touched_at: float = 0.0  # when the file system was told, by the wall clock
    users: int = 0
    stamp: Stamp | None = None  # when the file has a name elsewhere too
    modified: int = 0  # when its file was last written to, as it was proven; in nanoseconds since the epoch
    is_doubted: bool = False  # somebody has written to it since


@dataclass(slots=True)
class PartialEntry:
    """A partial blob."""

    path: Path
    held: int  # bytes accounted for: what is on disk plus what is reserved for pieces under way
    used_at: float
    partial: Partial | None = None  # while in use


def eviction_order(
    entries: Mapping[Digest, Entry], partials: Mapping[Digest, PartialEntry], is_kept: Callable[[Digest], bool]
) -> Iterator[Digest]:
    """What nobody is using and what is not to be kept, beginning with what was used longest ago.

    Most often the first is all that is needed, so the rest is not put in order before it is asked for.
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
    """Raise StoreFull if a blob of `size` bytes cannot be kept whole, whatever makes room for it.

    `used` of `max_size` bytes are, and `free` are on the disk. What `is_elsewhere` goes from the budget, not the disk.
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
    """What to raise for `count` more bytes of a blob when nothing is left to evict; StoreBusy if there will be."""
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

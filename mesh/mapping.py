"""Stretches of files mapped into memory, shared by all who send from the same place at the same time.

Page tables cost more than one would think: sixty-four readers of one blob, each with a mapping of its own, spend a
fifth of their CPU time on filling them.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading

STRETCH = 32 << 20  # bytes between the starts of mappings; each is twice as long, so that a turn never ends at one


class Mapping:
    """`start` and `stop` are offsets in the file, in bytes."""

    __slots__ = ("_map", "key", "start", "stop", "users")

    def __init__(self, key: tuple[int, int, int, int], fd: int, start: int, stop: int) -> None:
        self.key = key
        self.start, self.stop = start, stop
        self.users = 0
        self._map = mmap.mmap(fd, stop - start, access=mmap.ACCESS_READ, offset=start)

    def __contains__(self, position: int) -> bool:
        return self.start <= position < self.stop

    def view(self, position: int, end: int) -> memoryview:
        """The bytes from `position` to `end`, or to the end of the mapping."""
        return memoryview(self._map)[position - self.start : min(end, self.stop) - self.start]

    def close(self) -> None:
        # A view can still be alive in a thread when its reader is cancelled; the mapping then goes with it.
        with contextlib.suppress(BufferError):
            self._map.close()


class Mappings:
    """Those in use. May be used from any thread. Nothing stays mapped when nobody sends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mappings: dict[tuple[int, int, int, int], Mapping] = {}

    def __len__(self) -> int:
        return len(self._mappings)

    def take(self, fd: int, position: int) -> Mapping:
        """One with `position` in it; give it back. Raises ValueError when the file ends before."""
        file = os.fstat(fd)
        start = position // STRETCH * STRETCH
        key = (file.st_dev, file.st_ino, file.st_size, start)
        with self._lock:
            mapping = self._mappings.get(key)
            if mapping is None:
                mapping = Mapping(key, fd, start, min(start + 2 * STRETCH, file.st_size))
                self._mappings[key] = mapping
            mapping.users += 1
        return mapping

    def give_back(self, mapping: Mapping) -> None:
        with self._lock:
            mapping.users -= 1
            if mapping.users:
                return
            del self._mappings[mapping.key]
        mapping.close()

"""The proof of a whole blob: its digest, computed over the prefix as the prefix grows."""

from __future__ import annotations

import os
import threading

from blake3 import blake3

from mesh.content import Digest

_READ = 1 << 20
_space = threading.local()


def piece_digest(fd: int, start: int, stop: int) -> bytes:
    """Return the BLAKE3 digest of the bytes of a file from `start` up to `stop`. Blocks: call it in a worker thread.

    Raises OSError when the file cannot be read or is too short.
    """
    hasher, buffer = blake3(), _buffer()
    while start < stop:
        count = os.preadv(fd, [buffer[: stop - start]], start)
        if not count:
            raise OSError("it is shorter than it was")
        hasher.update(buffer[:count])
        start += count
    return hasher.digest()


class Proof:
    """Hashes a file in order, in steps. Only one thread at a time may call `extend`."""

    def __init__(self, digest: Digest, size: int, fd: int) -> None:
        self._digest = digest
        self._hasher = digest.hasher(size)
        self._fd = fd
        self.size = size
        self.hashed = 0  # bytes of the prefix hashed so far

    def extend(self, stop: int) -> None:
        """Hash up to `stop`; all bytes before it must be on disk. Blocks: call it in a worker thread.

        Raises OSError when the file cannot be read or is too short.
        """
        buffer = _buffer()
        while self.hashed < stop:
            count = os.preadv(self._fd, [buffer[: stop - self.hashed]], self.hashed)
            if not count:
                raise OSError(f"the file of {self._digest} ends at {self.hashed}, before {stop}")
            self._hasher.update(buffer[:count])
            self.hashed += count

    @property
    def is_complete(self) -> bool:
        return self.hashed == self.size

    def holds(self) -> bool:
        """Whether the blob is complete and matches its digest."""
        return self.is_complete and self._hasher.hexdigest() == self._digest.hex


def _buffer() -> memoryview:
    """The calling thread's buffer: one per thread, not per blob, as threads are few however many blobs arrive."""
    try:
        buffer: memoryview = _space.buffer
    except AttributeError:
        buffer = _space.buffer = memoryview(bytearray(_READ))
    return buffer

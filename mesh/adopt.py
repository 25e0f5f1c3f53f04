"""Taking over a file that was here before, under another program's name: proven first, and never shared for writing.

Whoever owns the file may change or delete it at any time. So it becomes a copy of our own, and the copy is what is
proven; where the file system can (Btrfs, XFS), the copy shares the disk blocks of the original until one of
the two is written to. Hard links are not made: the other program's next write would go into what we serve.
"""

from __future__ import annotations

import os
from pathlib import Path

from blake3 import blake3

from mesh.content import Digest, Pieces

_STEP = 1 << 30  # bytes asked of the kernel at a time
_READ = 1 << 20


def stage(source: Path, staged: Path, digest: Digest, size: int) -> list[bytes] | None:
    """Copy `source` to `staged` and prove the copy; the BLAKE3 digests of its pieces, None if it is something else.

    Blocks for as long as it takes to read the file: call it in a thread. Raises OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    theirs = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        ours = os.open(staged, flags, 0o600)
        try:
            _copy(theirs, ours, size)
            if os.fstat(ours).st_size != size:
                return None
            pieces = _prove(ours, digest, size)
            os.fsync(ours)
            return pieces
        finally:
            os.close(ours)
    finally:
        os.close(theirs)


def _copy(theirs: int, ours: int, size: int) -> None:
    """At most `size` bytes. The kernel shares blocks where it can."""
    done = 0
    while done < size:
        try:
            count = os.copy_file_range(theirs, ours, min(_STEP, size - done), done, done)
        except (AttributeError, OSError):  # macOS; two file systems
            count = os.pwrite(ours, os.pread(theirs, min(_READ, size - done), done), done)
        if not count:
            return
        done += count


def _prove(fd: int, digest: Digest, size: int) -> list[bytes] | None:
    whole, cut, found = digest.hasher(size), Pieces.of(size), []
    buffer = memoryview(bytearray(_READ))
    for piece in range(cut.count):
        start, stop = cut.span(piece)
        part = blake3()
        while start < stop:
            count = os.preadv(fd, [buffer[: stop - start]], start)
            if not count:
                return None
            whole.update(buffer[:count])
            part.update(buffer[:count])
            start += count
        found.append(part.digest())
    return found if whole.hexdigest() == digest.hex else None

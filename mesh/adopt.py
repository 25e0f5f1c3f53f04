"""Taking over a file that was here before, under another program's name: proven first, and on disk once if it can be.

Where the file system can (Btrfs, XFS), ours is a clone: the two share their blocks until one is written to. Elsewhere
ours is a second name of the same file, and what its owner writes to it later is noticed (`mesh.shared`). Between two
file systems it is a copy.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from mesh.content import Digest, Pieces
from mesh.errors import StoreUnusable
from mesh.shared import Stamp

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_STEP = 64 << 20  # bytes asked of the kernel at a time
_READ = 1 << 20
_ATTEMPTS = 3
# The clock of file times ticks in milliseconds: a write must be told from one that came before the proof.
_SETTLED_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Taken:
    """A proven file, ready to be renamed: the BLAKE3 digest of each piece, and a stamp if its owner has it too."""

    staged: Path
    pieces: list[bytes]
    stamp: Stamp | None


def take(
    source: Path,
    staged: Path,
    digest: Digest,
    size: int,
    *,
    may_copy: bool = True,
    is_over: Callable[[], bool] = lambda: False,
) -> Taken | None:
    """Clone, link or copy `source` to `staged` and prove that; None if it is something else than `digest`.

    Blocks for as long as it takes to read the file, or until `is_over`: call it in a thread. Raises OSError;
    StoreUnusable when somebody is writing to the file just now, or it is over.
    """
    theirs = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        stamp = Stamp.of(theirs)
        if stamp.size != size:
            return None
        if not _clone(theirs, staged):
            if _link(source, staged, stamp):
                before, stamp = stamp, Stamp.of(theirs)  # with the change that our link is
                if not stamp.looks_like(before):
                    raise StoreUnusable("it is being written to")
                if time.time() - stamp.modified / 1e9 < _SETTLED_SECONDS:
                    raise StoreUnusable("it was written to a moment ago")
                pieces = prove(theirs, digest, size, is_over)
                stamp.check(theirs)
                return Taken(staged, pieces, stamp) if pieces is not None else None
            if not may_copy:
                raise OSError("it is on another file system")
            _copy(theirs, staged, size, is_over)
        ours = os.open(staged, os.O_RDWR | os.O_CLOEXEC)
        try:
            pieces = prove(ours, digest, size, is_over)
            os.fsync(ours)
            os.utime(ours, ns=(time.time_ns(), stamp.modified))  # by this we know it as taken over
            return Taken(staged, pieces, None) if pieces is not None else None
        finally:
            os.close(ours)
    finally:
        os.close(theirs)


def take_again(file: Path, digest: Digest, size: int, is_over: Callable[[], bool]) -> tuple[Stamp, list[bytes]] | None:
    """Prove a file of ours anew, as another program did something to it; None if it is not `digest` any more.

    Returns how it is now, and the BLAKE3 digest of each piece. Blocks as `take` does. Raises OSError; StoreUnusable
    when it is being changed all the time, or it is over.
    """
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            stamp = Stamp.of(fd)
            if stamp.size != size or (pieces := prove(fd, digest, size, is_over)) is None:
                return None
            if Stamp.of(fd) == stamp:
                return stamp, pieces
    finally:
        os.close(fd)
    raise StoreUnusable("it is being changed")


def prove(fd: int, digest: Digest, size: int, is_over: Callable[[], bool]) -> list[bytes] | None:
    """The BLAKE3 digests of the pieces of a file, None if the file is not `digest`. Raises as `take` does."""
    whole, cut, found = digest.hasher(size), Pieces.of(size), []
    buffer = memoryview(bytearray(_READ))
    for piece in range(cut.count):
        start, stop = cut.span(piece)
        part = blake3()
        while start < stop:
            _check(is_over)
            count = os.preadv(fd, [buffer[: stop - start]], start)
            if not count:
                return None
            whole.update(buffer[:count])
            part.update(buffer[:count])
            start += count
        found.append(part.digest())
    return found if whole.hexdigest() == digest.hex else None


def _clone(theirs: int, staged: Path) -> bool:
    # What a process that died left there may be a second name of the very file: never written to, only taken away.
    staged.unlink(missing_ok=True)
    ours = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.ioctl(ours, _FICLONE, theirs)
    except OSError:  # another file system, or one that cannot
        return False
    else:
        return True
    finally:
        os.close(ours)


def _link(source: Path, staged: Path, stamp: Stamp) -> bool:
    """A second name for the file that was opened. False where that cannot be: file systems, owners."""
    staged.unlink()
    try:
        os.link(source, staged, follow_symlinks=False)
    except OSError:
        return False
    return staged.stat().st_ino == stamp.inode


def _check(is_over: Callable[[], bool]) -> None:
    if is_over():
        raise StoreUnusable("the node is stopping")


def _copy(theirs: int, staged: Path, size: int, is_over: Callable[[], bool]) -> None:
    staged.unlink(missing_ok=True)
    ours = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        done = 0
        while done < size:
            _check(is_over)
            try:
                count = os.copy_file_range(theirs, ours, min(_STEP, size - done), done, done)
            except (AttributeError, OSError):  # macOS; two file systems
                count = os.pwrite(ours, os.pread(theirs, min(_READ, size - done), done), done)
            if not count:
                return
            done += count
    finally:
        os.close(ours)

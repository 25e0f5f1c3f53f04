"""Adoption of a file that another program already has on disk: it is proven first, and stored only once if possible.

Where the file system supports it (Btrfs, XFS), the blob is a clone: both files share their blocks until one is written
to. Elsewhere the blob is a hard link to the same file, and later writes by the file's owner are detected
(`mesh.shared`). Across file systems it is a copy.
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
_STEP = 64 << 20  # bytes per copy_file_range(2) call; between calls the copy can be stopped
_READ = 1 << 20  # bytes per read
_ATTEMPTS = 3  # proofs of a file that keeps changing
# Seconds since a linked file was last written to before it may be proven. File times advance in steps of milliseconds:
# a write in the same step as the proof could not be told from one before it.
_SETTLED_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Taken:
    """A proven file, ready to be renamed: the BLAKE3 digest of each piece, and a stamp if its owner shares the file."""

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
    """Clone, link or copy `source` to `staged` and prove the result; None if it is not the blob named by `digest`.

    Blocks while it reads the whole file, or until `is_over()`: call it in a worker thread. Raises OSError;
    StoreUnusable when another program is writing to the file, or when `is_over()`.
    """
    theirs = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        stamp = Stamp.of(theirs)
        if stamp.size != size:
            return None
        if not _clone(theirs, staged):
            if _link(source, staged, stamp):
                before, stamp = stamp, Stamp.of(theirs)  # the new link has moved the time of change
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
            os.utime(ours, ns=(time.time_ns(), stamp.modified))  # lets `Store.is_of` recognise the copy
            return Taken(staged, pieces, None) if pieces is not None else None
        finally:
            os.close(ours)
    finally:
        os.close(theirs)


def take_again(file: Path, digest: Digest, size: int, is_over: Callable[[], bool]) -> tuple[Stamp, list[bytes]] | None:
    """Prove a blob's file again after it was changed in some way; None if it is not `digest` any more.

    Returns the file's present stamp and the BLAKE3 digest of each piece. Blocks as `take` does. Raises OSError;
    StoreUnusable when the file changed during each of the attempts, or when `is_over()`.
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
    """Return the BLAKE3 digests of the pieces of a file; None if the file is not `digest`.

    Raises OSError; StoreUnusable when `is_over()`.
    """
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
    # A process that died may have left a hard link to the source itself here: remove it, never write to it.
    staged.unlink(missing_ok=True)
    ours = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.ioctl(ours, _FICLONE, theirs)
    except OSError:  # the files are on two file systems, or on one that cannot clone
        return False
    else:
        return True
    finally:
        os.close(ours)


def _link(source: Path, staged: Path, stamp: Stamp) -> bool:
    """Give the opened file the name `staged` as well. False where that fails, as across file systems or owners."""
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
            except (AttributeError, OSError):  # macOS has no such call; some file systems refuse it
                count = os.pwrite(ours, os.pread(theirs, min(_READ, size - done), done), done)
            if not count:
                return
            done += count
    finally:
        os.close(ours)

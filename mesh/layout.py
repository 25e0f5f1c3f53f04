"""The layout of a store on disk: one file per blob, its piece digests beside it, and a lock on the data directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mesh.content import Digest
from mesh.descriptors import unusable
from mesh.errors import StoreFull, StoreInUse, StoreUnusable
from mesh.partial import Partial, write_manifest
from mesh.shared import Stamp

log = logging.getLogger(__name__)

STAMP = ".shared"  # suffix of a blob's stamp, if another program has the file too
_MANIFEST = ".pieces"  # suffix of a blob's piece digests
_GONE = "gone-"  # prefix, in the folder of partial blobs, of files that are still to be deleted


def unlink(path: Path) -> None:
    """Delete a complete blob, its manifest and its stamp. Raises OSError."""
    manifest_of(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    stamp_of(path).unlink(missing_ok=True)


def set_aside(path: Path, folder: Path) -> Path:
    """Rename the file of a blob, complete or partial, out of the way; returns the file that is left to delete.

    Deleting a large file takes a while, and its name may be needed again at once. Raises OSError, with nothing changed.
    """
    gone = folder / (_GONE + path.name)
    with contextlib.suppress(FileNotFoundError):
        path.rename(gone)
    with contextlib.suppress(OSError):  # without the blob these files mean nothing
        for beside in (Partial.journal_of(path), manifest_of(path), stamp_of(path)):
            beside.unlink(missing_ok=True)
    return gone


def modified_as_proven(path: str) -> int:
    """Return the time of last write that the blob's file at `path` had when it was proven; -1 if not known.

    In nanoseconds since the epoch. It is kept as the manifest's time of last write, while a later write to the blob's
    file moves the file's own.
    """
    try:
        return os.stat(path + _MANIFEST).st_mtime_ns  # noqa: PTH116  # of each blob, at each start
    except OSError:
        return -1


def set_proven(manifest: Path, modified: int) -> None:
    """Keep the time of last write of a blob's file in its manifest, or in the journal that becomes it. Raises OSError.

    `modified` is in nanoseconds since the epoch.
    """
    os.utime(manifest, ns=(modified, modified))


def find_blobs(folder: Path) -> Iterator[tuple[Digest, os.DirEntry[str], Stamp | None]]:
    """Yield the complete blobs in a folder, with the stamp of those whose file is shared. Raises OSError."""
    for algorithm in ("sha256", "git-sha1"):
        for prefix in scandir(folder / algorithm):
            files = scandir(Path(prefix.path))
            shared = {file.name for file in files if file.name.endswith(STAMP)}
            for file in files:
                with contextlib.suppress(ValueError, FileNotFoundError):  # not a blob of ours; leave it alone
                    digest, about, stamp = Digest(algorithm, file.name), file.stat(), None
                    if file.name + STAMP in shared:
                        stamp = Stamp.read(stamp_of(Path(file.path)))
                    if stamp is not None and stamp.inode != about.st_ino:  # died between writing stamp and renaming
                        is_shared = about.st_nlink > 1  # the file found instead: if shared, it is in doubt
                        stamp = Stamp(about.st_ino, about.st_mtime_ns, about.st_size, 0) if is_shared else None
                    yield digest, file, stamp


def find_partials(folder: Path, complete: Mapping[Digest, Path]) -> Iterator[tuple[Digest, os.DirEntry[str]]]:
    """Yield the partial blobs in a folder, finishing there what a process that died had left half done.

    `complete` has the files of the complete blobs. Raises OSError.
    """
    files = scandir(folder)
    names = {file.name for file in files}
    for file in files:
        path = Path(file.path)
        if file.name.startswith(_GONE):
            with contextlib.suppress(OSError):  # a leftover file must not prevent the start
                path.unlink()
            continue
        algorithm, _, hexdigits = path.stem.rpartition("-")
        try:
            digest = Digest(algorithm, hexdigits)  # type: ignore[arg-type]  # checked by Digest itself
        except ValueError:
            continue  # not a file of ours
        if digest in complete:
            if not path.suffix:  # the process died after the whole blob was adopted from elsewhere
                with contextlib.suppress(OSError):
                    Partial.remove(path)
            elif path.suffix == ".journal" and path.stem not in names:  # died between the renames of `make_durable`
                path.rename(manifest_of(complete[digest]))
        elif not path.suffix:
            yield digest, file


def scandir(path: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a directory; none when it does not exist or is not a directory. Raises OSError."""
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def lock(root: Path) -> int:
    """Keep other processes out of the directory until the descriptor is closed. Raises StoreInUse and OSError."""
    fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StoreInUse(
            f"{root} is in use by another hubmesh node; stop it, or give this one its own --data-dir"
        ) from None
    return fd


def refusal(error: OSError, room_for: str, otherwise: str) -> StoreFull | StoreUnusable:
    """Return what to raise when the disk refuses: "no room on disk `room_for`", or "cannot `otherwise`"."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"no room on disk {room_for}: {error.strerror}")
    return unusable(f"cannot {otherwise}", error)


def make_durable(partial: Partial, final: Path, mode: int) -> None:
    """Flush a proven partial blob to disk and give it its final name, with file mode `mode`.

    Raises OSError, always before the file has that name. Blocks: call it in a worker thread.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.fsync(partial.fd)
    except OSError:
        # The kernel may now consider pages clean that it could not write, so a second fsync would report success
        # (https://lwn.net/Articles/752063/). Readers of this file go on; the next attempt writes to a new file.
        partial.abandon()
        raise
    set_proven(Partial.journal_of(partial.path), os.fstat(partial.fd).st_mtime_ns)
    os.fchmod(partial.fd, 0o600)  # as long as it is partial it must not be marked public, and must stay writable
    partial.path.rename(final)
    try:
        os.fchmod(partial.fd, mode)
        flush_directory(final.parent)
        # The journal becomes the manifest. If the process dies before this, the next start moves it.
        Partial.journal_of(partial.path).rename(manifest_of(final))
    except OSError as error:  # the blob has its name all the same, at least until a power cut
        log.warning("%s is kept, but not all that belongs to it: %s", partial.digest, error)


def free_bytes(folder: str) -> int:
    """Return the free bytes of the file system that holds a directory; sys.maxsize if it cannot tell."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return sys.maxsize
    return disk.f_bavail * disk.f_frsize


def has_another_name(file: Path) -> bool:
    try:
        return file.stat().st_nlink > 1
    except OSError:
        return False


def manifest_of(path: Path) -> Path:
    return path.with_suffix(_MANIFEST)


def stamp_of(path: Path) -> Path:
    return path.with_suffix(STAMP)


def take_over(
    staged: Path, final: Path, size: int, pieces: Sequence[bytes], mode: int, stamp: Stamp | None
) -> Stamp | None:
    """Give a proven file from elsewhere a blob's name, replacing its present file; returns the new stamp, if shared.

    The stamp is written before the rename: a process that dies in between leaves a stamp that fits no file.
    Raises OSError. Blocks: call it in a worker thread.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(manifest_of(final), size, pieces)
    set_proven(manifest_of(final), staged.stat().st_mtime_ns)
    if stamp is not None:
        stamp.write(stamp_of(final))
    else:
        staged.chmod(mode)
    staged.rename(final)
    if stamp is not None and (renamed := Stamp.of(final)).looks_like(stamp):  # the rename moved the time of change
        stamp = renamed
        stamp.write(stamp_of(final))
    flush_directory(final.parent)
    return stamp


def flush_directory(path: Path) -> None:
    """Flush a directory, so that new names and renames in it survive a power cut. Raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

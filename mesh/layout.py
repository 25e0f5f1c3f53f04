"""How the blobs of a store lie on disk: a file each, the digests of its pieces beside it, and a lock on the whole."""

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
from mesh.errors import StoreFull, StoreInUse, StoreUnusable
from mesh.partial import Partial, write_manifest
from mesh.shared import Stamp

log = logging.getLogger(__name__)

STAMP = ".shared"
_MANIFEST = ".pieces"
_GONE = "gone-"  # what a file is called, in the folder of partial blobs, that only waits to be deleted


def unlink(path: Path) -> None:
    """Delete a complete blob and what lies beside it."""
    manifest_of(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    stamp_of(path).unlink(missing_ok=True)


def set_aside(path: Path, folder: Path) -> Path:
    """Take its name from a blob's file, complete or partial, at once; returns the file that is left to delete.

    Deleting a large file takes a while, in which the name may be another's. Raises OSError; then nothing has changed.
    """
    gone = folder / (_GONE + path.name)
    with contextlib.suppress(FileNotFoundError):
        path.rename(gone)
    with contextlib.suppress(OSError):  # without the blob they say nothing
        for beside in (Partial.journal_of(path), manifest_of(path), stamp_of(path)):
            beside.unlink(missing_ok=True)
    return gone


def modified_as_proven(path: str) -> int:
    """When the blob's file at `path` had last been written to as it was proven, in nanoseconds since the epoch, or -1.

    It is kept as the time of the manifest. What is done to the file's bytes moves the file's own.
    """
    try:
        return os.stat(path + _MANIFEST).st_mtime_ns  # noqa: PTH116  # of each blob, at each start
    except OSError:
        return -1


def set_proven(manifest: Path, modified: int) -> None:
    """Keep in a manifest, or what will be one, when its blob's file was last written to. Raises OSError."""
    os.utime(manifest, ns=(modified, modified))


def find_blobs(folder: Path) -> Iterator[tuple[Digest, os.DirEntry[str], Stamp | None]]:
    """The complete blobs in a folder, and the stamp of those whose file has a name elsewhere. Raises OSError."""
    for algorithm in ("sha256", "git-sha1"):
        for prefix in scandir(folder / algorithm):
            files = scandir(Path(prefix.path))
            shared = {file.name for file in files if file.name.endswith(STAMP)}
            for file in files:
                with contextlib.suppress(ValueError, FileNotFoundError):  # not ours; leave it alone
                    digest, about, stamp = Digest(algorithm, file.name), file.stat(), None
                    if file.name + STAMP in shared:
                        stamp = Stamp.read(stamp_of(Path(file.path)))
                    if stamp is not None and stamp.inode != about.st_ino:  # we died before its file got this name
                        is_shared = about.st_nlink > 1  # what has it instead: then it is in doubt
                        stamp = Stamp(about.st_ino, about.st_mtime_ns, about.st_size, 0) if is_shared else None
                    yield digest, file, stamp


def find_partials(folder: Path, complete: Mapping[Digest, Path]) -> Iterator[tuple[Digest, os.DirEntry[str]]]:
    """The partial blobs in a folder. What a process that died left half done there is brought to its end.

    `complete`: the blobs that we have all of, and where. Raises OSError.
    """
    files = scandir(folder)
    names = {file.name for file in files}
    for file in files:
        path = Path(file.path)
        if file.name.startswith(_GONE):
            with contextlib.suppress(OSError):  # no reason not to start
                path.unlink()
            continue
        algorithm, _, hexdigits = path.stem.rpartition("-")
        try:
            digest = Digest(algorithm, hexdigits)  # type: ignore[arg-type]  # checked by Digest itself
        except ValueError:
            continue  # not ours
        if digest in complete:
            if not path.suffix:  # the process died when the whole had come from elsewhere
                with contextlib.suppress(OSError):
                    Partial.remove(path)
            elif path.suffix == ".journal" and path.stem not in names:  # it died between two renames
                path.rename(manifest_of(complete[digest]))
        elif not path.suffix:
            yield digest, file


def scandir(path: Path) -> list[os.DirEntry[str]]:
    """The entries of a directory; none when it is not there, or none: not ours."""
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
    """What to raise when the disk refuses: "no room on disk `room_for`", or "cannot `otherwise`"."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"no room on disk {room_for}: {error.strerror}")
    return StoreUnusable(f"cannot {otherwise}: {error}")


def make_durable(partial: Partial, final: Path, mode: int) -> None:
    """Give a proven partial blob its final name for good. Raises OSError, before it has that name."""
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.fsync(partial.fd)
    except OSError:
        # The kernel may now take for clean what it could not write, and would say next time that all is well
        # (https://lwn.net/Articles/752063/). Whoever reads it goes on; what comes next is written to another file.
        partial.abandon()
        raise
    set_proven(Partial.journal_of(partial.path), os.fstat(partial.fd).st_mtime_ns)
    os.fchmod(partial.fd, 0o600)  # public only under its final name, and until then it may be opened again
    partial.path.rename(final)
    try:
        os.fchmod(partial.fd, mode)
        flush_directory(final.parent)
        # The journal follows, as the record of the piece digests: if we die here, the next start moves it.
        Partial.journal_of(partial.path).rename(manifest_of(final))
    except OSError as error:  # it is there all the same, at least until the power is cut
        log.warning("%s is kept, but not all that belongs to it: %s", partial.digest, error)


def free_bytes(folder: str) -> int:
    """What may still be written to the disk that a directory is on; no bound if it does not say."""
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
    """Give a proven file from elsewhere a blob's name, in place of what has it now; its stamp then. Raises OSError.

    Who else has the file is written down before it gets the name: dying in between leaves a stamp that fits nothing.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(manifest_of(final), size, pieces)
    set_proven(manifest_of(final), staged.stat().st_mtime_ns)
    if stamp is not None:
        stamp.write(stamp_of(final))
    else:
        staged.chmod(mode)
    staged.rename(final)
    if stamp is not None and (renamed := Stamp.of(final)).looks_like(stamp):  # a rename is a change, too
        stamp = renamed
        stamp.write(stamp_of(final))
    flush_directory(final.parent)
    return stamp


def flush_directory(path: Path) -> None:
    """What was named or renamed in it keeps its name, whenever the power is cut. Raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

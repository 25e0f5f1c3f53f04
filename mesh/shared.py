"""A blob's file that has another name elsewhere: another program may write to it, and that must be noticed.

Every write moves a file's modification time (mtime), and nothing that leaves its bytes alone does; but the mtime can be
set back (`rsync --times`, `touch -r`). The change time (ctime) cannot be set, but also moves when a name is added or
removed. So both are recorded when the bytes are proven. Bytes of such a file count only if both are unchanged *after*
they were copied out: then they are the bytes that were proven. If the ctime alone has moved, the file is in doubt and
has to be proven again.
Sending straight from the page cache would leave a gap between the check and the sending.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import StoreUnusable


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file's state: inode, size in bytes, mtime (`modified`) and ctime (`changed`) in nanoseconds since the epoch."""

    inode: int
    modified: int
    size: int
    changed: int

    @classmethod
    def of(cls, file: int | Path) -> Stamp:
        """The present stamp of a file, given as a path or a descriptor. Raises OSError."""
        about = os.stat(file)  # noqa: PTH116  # works for a descriptor, too
        return cls(about.st_ino, about.st_mtime_ns, about.st_size, about.st_ctime_ns)

    @classmethod
    def read(cls, path: Path) -> Stamp | None:
        try:
            numbers = [int(number) for number in path.read_text("ascii").split()]
        except (OSError, ValueError):
            return None
        # Old versions wrote no ctime. With a ctime of 0 the file is in doubt.
        return cls(*numbers, *[0] * (4 - len(numbers))) if len(numbers) in (3, 4) else None

    def looks_like(self, other: Stamp) -> bool:
        """Whether both can stand for the same bytes: they differ in nothing but the ctime."""
        return (self.inode, self.modified, self.size) == (other.inode, other.modified, other.size)

    def is_doubtful(self, file: Path) -> bool:
        """Whether something that need not be a write was done to the file: only its ctime has moved."""
        try:
            now = Stamp.of(file)
        except OSError:
            return False
        return now != self and now.looks_like(self)

    def write(self, path: Path) -> None:
        fresh = path.with_suffix(".shared.new")
        # The mode says whether the blob is public (see mesh.marks): not until it is marked so.
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, f"{self.inode} {self.modified} {self.size} {self.changed}\n".encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        fresh.rename(path)

    def check(self, fd: int) -> None:
        """Raise StoreUnusable if the file has changed since. Raises OSError."""
        if Stamp.of(fd) != self:
            raise StoreUnusable("a file that is shared with another program was changed by it")

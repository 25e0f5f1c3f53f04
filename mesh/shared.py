"""A blob's file that has a name elsewhere too: another program may write to it, and we must notice.

Every write moves a file's time of modification. So the time it had when its bytes were proven is kept, and bytes of
such a file count only if it is still the same *after* they were copied out: what was read before was proven then.
Sending straight from the page cache would leave a gap between the look and the sending.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import StoreUnusable


@dataclass(frozen=True, slots=True)
class Stamp:
    """Which file (`inode`), and when it was last written to (`modified`, nanoseconds since the epoch)."""

    inode: int
    modified: int
    size: int

    @classmethod
    def of(cls, fd: int) -> Stamp:
        about = os.fstat(fd)
        return cls(about.st_ino, about.st_mtime_ns, about.st_size)

    @classmethod
    def read(cls, path: Path) -> Stamp | None:
        try:
            inode, modified, size = map(int, path.read_text("ascii").split())
        except (OSError, ValueError):
            return None
        return cls(inode, modified, size)

    def write(self, path: Path) -> None:
        fresh = path.with_suffix(".shared.new")
        # Its mode says whether the blob is public (see mesh.store): not until it is marked so.
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, f"{self.inode} {self.modified} {self.size}\n".encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        fresh.rename(path)

    def check(self, fd: int) -> None:
        """Raise StoreUnusable when somebody has written to the file since."""
        if Stamp.of(fd) != self:
            raise StoreUnusable("a file that is shared with another program was changed by it")

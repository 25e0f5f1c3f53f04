"""A blob's file that has a name elsewhere too: another program may write to it, and we must notice.

Every write moves a file's time of modification, and so does nothing that leaves its bytes alone; but that time can be
put back (`rsync --times`, `touch -r`). The time of the last change cannot, though it is moved by a new name, too, or by
one that goes. So both are kept as they were when the bytes were proven, and bytes of such a file count only if they are
still the same *after* they were copied out: what was read before was proven then. When the time of change alone has
moved, the file is in doubt: it is proven anew.
Sending straight from the page cache would leave a gap between the look and the sending.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import StoreUnusable


@dataclass(frozen=True, slots=True)
class Stamp:
    """Which file (`inode`), when it was last written to and changed in any way (nanoseconds since the epoch)."""

    inode: int
    modified: int
    size: int
    changed: int

    @classmethod
    def of(cls, file: int | Path) -> Stamp:
        """The file's (an open one's) stamp as it is now. Raises OSError."""
        about = os.stat(file)  # noqa: PTH116  # of a descriptor, too
        return cls(about.st_ino, about.st_mtime_ns, about.st_size, about.st_ctime_ns)

    @classmethod
    def read(cls, path: Path) -> Stamp | None:
        try:
            numbers = [int(number) for number in path.read_text("ascii").split()]
        except (OSError, ValueError):
            return None
        # Without the time of change, as it was once written, there is doubt.
        return cls(*numbers, *[0] * (4 - len(numbers))) if len(numbers) in (3, 4) else None

    def looks_like(self, other: Stamp) -> bool:
        """Whether it can be the same bytes: nothing but the time of change tells the two apart."""
        return (self.inode, self.modified, self.size) == (other.inode, other.modified, other.size)

    def is_doubtful(self, file: Path) -> bool:
        """Whether something was done to the file that need not be a write."""
        try:
            now = Stamp.of(file)
        except OSError:
            return False
        return now != self and now.looks_like(self)

    def write(self, path: Path) -> None:
        fresh = path.with_suffix(".shared.new")
        # Its mode says whether the blob is public (see mesh.store): not until it is marked so.
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, f"{self.inode} {self.modified} {self.size} {self.changed}\n".encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        fresh.rename(path)

    def check(self, fd: int) -> None:
        """Raise StoreUnusable when somebody has written to the file since."""
        if Stamp.of(fd) != self:
            raise StoreUnusable("a file that is shared with another program was changed by it")

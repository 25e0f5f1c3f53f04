"""How much disk a node may use when nobody said."""

from __future__ import annotations

import shutil
from pathlib import Path

_SHARE = 0.9
# On a disk that is nearly full just now: it may have room tomorrow, and how full it is shows at each write anyway.
_FLOOR = 10 << 30
_FLOOR_SHARE = 0.1


def default_budget(data_dir: Path, held: int) -> int:
    """See `budget`, for the disk that a directory is on. Raises OSError."""
    usage = shutil.disk_usage(data_dir)
    return budget(usage.total, usage.free, held)


def budget(total: int, free: int, held: int) -> int:
    """Bytes for blobs on a disk of `total` bytes, `free` of them free, when the node has `held` there already. Pure.

    90 % of what is free or held. So it is the same at each start, however much has come in since, and follows what
    others do to the disk. At least a tenth of the disk, up to 10 GiB.
    """
    return max(int((free + held) * _SHARE), min(int(total * _FLOOR_SHARE), _FLOOR))

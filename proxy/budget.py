"""The default size limit for blobs, for nodes without --max-size."""

from __future__ import annotations

import shutil
from pathlib import Path

_SHARE = 0.9
# Bytes. A disk that is nearly full now may have room tomorrow, and a full disk is noticed at each write anyway.
_FLOOR = 10 << 30
_FLOOR_SHARE = 0.1


def default_budget(data_dir: Path, held: int) -> int:
    """See `budget`, for the disk that holds `data_dir`. Raises OSError."""
    usage = shutil.disk_usage(data_dir)
    return budget(usage.total, usage.free, held)


def budget(total: int, free: int, held: int) -> int:
    """Bytes for blobs on a disk of `total` bytes, `free` of them free, when the node has `held` there already. Pure.

    90 % of what is free or held, so it does not depend on how much the node holds already, and follows what other
    programs do to the disk. But at least a tenth of the disk, up to 10 GiB.
    """
    return max(int((free + held) * _SHARE), min(int(total * _FLOOR_SHARE), _FLOOR))

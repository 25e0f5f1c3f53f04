"""How much disk a node may use when nobody said."""

from __future__ import annotations

import shutil
from pathlib import Path

_SHARE = 0.9


def default_budget(data_dir: Path) -> int:
    """90 % of what was free when this data directory was first used, in bytes; remembered in it.

    Remembered, or each restart would take 90 % of what the last one left. Raises OSError.
    """
    file = data_dir / "max-size"
    try:
        return int(file.read_text())
    except (FileNotFoundError, ValueError):
        pass
    data_dir.mkdir(parents=True, exist_ok=True)
    budget = int(shutil.disk_usage(data_dir).free * _SHARE)
    temporary = file.with_suffix(".new")
    temporary.write_text(str(budget))
    temporary.replace(file)
    return budget

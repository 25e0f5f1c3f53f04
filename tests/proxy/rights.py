"""What the system would refuse other users than root, whom tests may run as."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def refusing(name: str) -> Callable[..., os.stat_result]:
    """A `Path.stat` that may not look at files of this name."""
    really = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return really(path, **options)

    return stat

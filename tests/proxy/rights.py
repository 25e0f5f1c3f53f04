"""Simulates missing permissions, which root, whom tests may run as, never lacks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def refusing(name: str) -> Callable[..., os.stat_result]:
    """Return a `Path.stat` that fails with PermissionError for files of this name."""
    really = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return really(path, **options)

    return stat

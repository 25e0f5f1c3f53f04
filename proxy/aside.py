"""Where a damaged file or folder is put, to be looked at."""

from __future__ import annotations

from pathlib import Path

MAX_DAMAGED = 9  # whose disk damages more has to look at it first


def names_aside(path: Path) -> list[Path]:
    """All names beside it, in the order in which they are used."""
    return [
        path.with_name(path.name + (".damaged" if number == 1 else f".damaged-{number}"))
        for number in range(1, MAX_DAMAGED + 1)
    ]

"""Names for damaged files and folders, which are kept for inspection."""

from __future__ import annotations

from pathlib import Path

MAX_DAMAGED = 9  # after so many, the operator has to look at the disk first


def names_aside(path: Path) -> list[Path]:
    """All names for a damaged `path`, in the order in which they are used."""
    return [
        path.with_name(path.name + (".damaged" if number == 1 else f".damaged-{number}"))
        for number in range(1, MAX_DAMAGED + 1)
    ]

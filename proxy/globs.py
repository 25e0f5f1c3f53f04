"""Selecting paths of a repository by globs, without blocking the event loop for longer than some milliseconds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

from mesh.turns import Turns


async def chosen(paths: Iterable[str], include: Iterable[str], exclude: Iterable[str]) -> list[str]:
    """The paths that match a glob of `include` (or all if there is none) and no glob of `exclude`.

    As in huggingface_hub, a glob that ends in a slash means everything below that folder.
    """
    turns = Turns()
    wanted, unwanted = await _compiled(include, turns), await _compiled(exclude, turns)
    return [
        path
        for path in paths
        if (not wanted or await _matches(path, wanted, turns)) and not await _matches(path, unwanted, turns)
    ]


async def _compiled(globs: Iterable[str], turns: Turns) -> list[re.Pattern[str]]:
    """Compile globs without fnmatch(), which would cache thousands of patterns from any node's order."""
    patterns = []
    for glob in dict.fromkeys(globs):
        patterns.append(re.compile(translate(f"{glob}*" if glob.endswith("/") else glob)))
        await turns.give()
    return patterns


async def _matches(path: str, patterns: list[re.Pattern[str]], turns: Turns) -> bool:
    for pattern in patterns:
        await turns.give()
        if pattern.match(path):
            return True
    return False

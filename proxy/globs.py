"""Which paths of a repository an order is about. Whoever sent it, the loop is held for some milliseconds at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

from mesh.turns import Turns


async def chosen(paths: Iterable[str], include: Iterable[str], exclude: Iterable[str]) -> list[str]:
    """Those that match a glob of `include`, or all if there is none, and none of `exclude`."""
    turns = Turns()
    wanted, unwanted = await _compiled(include, turns), await _compiled(exclude, turns)
    return [
        path
        for path in paths
        if (not wanted or await _matches(path, wanted, turns)) and not await _matches(path, unwanted, turns)
    ]


async def _compiled(globs: Iterable[str], turns: Turns) -> list[re.Pattern[str]]:
    """Not by fnmatch(), which would keep what it makes of thirty thousand globs, whoever sends them."""
    patterns = []
    for glob in dict.fromkeys(globs):
        patterns.append(re.compile(translate(glob)))
        await turns.give()
    return patterns


async def _matches(path: str, patterns: list[re.Pattern[str]], turns: Turns) -> bool:
    for pattern in patterns:
        await turns.give()
        if pattern.match(path):
            return True
    return False

"""Which paths of a repository an order is about. Whoever sent it, the loop is held for some milliseconds at a time."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from fnmatch import translate

_SLICE_SECONDS = 0.003


async def chosen(paths: Iterable[str], include: Iterable[str], exclude: Iterable[str]) -> list[str]:
    """Those that match a glob of `include`, or all if there is none, and none of `exclude`."""
    turns = _Turns()
    wanted, unwanted = await _compiled(include, turns), await _compiled(exclude, turns)
    return [
        path
        for path in paths
        if (not wanted or await _matches(path, wanted, turns)) and not await _matches(path, unwanted, turns)
    ]


class _Turns:
    """Of the loop: all others have theirs whenever we have had it for a while."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    async def give(self) -> None:
        if time.perf_counter() - self._began >= _SLICE_SECONDS:
            await asyncio.sleep(0)
            self._began = time.perf_counter()


async def _compiled(globs: Iterable[str], turns: _Turns) -> list[re.Pattern[str]]:
    """Not by fnmatch(), which would keep what it makes of thirty thousand globs, whoever sends them."""
    patterns = []
    for glob in dict.fromkeys(globs):
        patterns.append(re.compile(translate(glob)))
        await turns.give()
    return patterns


async def _matches(path: str, patterns: list[re.Pattern[str]], turns: _Turns) -> bool:
    for pattern in patterns:
        await turns.give()
        if pattern.match(path):
            return True
    return False

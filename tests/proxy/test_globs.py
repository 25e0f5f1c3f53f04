"""Choosing paths by globs: as fnmatch() does, but without filling its cache, and without blocking the loop."""

from __future__ import annotations

import asyncio
import fnmatch

from hypothesis import given
from hypothesis import strategies as st

from proxy.globs import chosen

TEXT = st.text(alphabet="ab/.*?[!]-", max_size=8)


@given(st.lists(TEXT, max_size=6), st.lists(TEXT, max_size=3), st.lists(TEXT, max_size=3))
def test_the_same_paths_as_by_fnmatch(paths: list[str], include: list[str], exclude: list[str]) -> None:
    def matches(path: str, globs: list[str]) -> bool:
        return any(fnmatch.fnmatch(path, glob) for glob in globs)

    expected = [path for path in paths if (not include or matches(path, include)) and not matches(path, exclude)]
    assert asyncio.run(chosen(paths, include, exclude)) == expected


async def test_others_have_their_turns_meanwhile_and_nothing_is_kept() -> None:
    paths = [f"part-{n}/" + "a" * 200 for n in range(5000)]
    globs = [f"*a*a*a*a*{n}" for n in range(32)]
    kept = fnmatch._compile_pattern.cache_info().currsize  # type: ignore[attr-defined]
    turns = 0
    async with asyncio.TaskGroup() as group:
        choosing = group.create_task(chosen(paths, [*globs, "part-7*"], globs))
        while not choosing.done():
            turns += 1
            await asyncio.sleep(0)
    assert len(await choosing) == 111
    assert turns > 10
    assert fnmatch._compile_pattern.cache_info().currsize == kept  # type: ignore[attr-defined]

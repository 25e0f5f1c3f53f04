"""Choosing paths by globs: as huggingface_hub does, but without filling its cache, and without blocking the loop."""

from __future__ import annotations

import asyncio
import fnmatch

from huggingface_hub.utils import filter_repo_objects
from hypothesis import given
from hypothesis import strategies as st

from proxy.globs import chosen

TEXT = st.text(alphabet="ab/.*?[!]-", max_size=8)
FOLDER = st.sampled_from(["a/", "a/b/", "*/"])
GLOBS = st.lists(TEXT | FOLDER, max_size=3)


@given(st.lists(TEXT | st.sampled_from(["a/b", "a/b/a"]), max_size=6), GLOBS, GLOBS)
def test_the_same_paths_as_in_a_download(paths: list[str], include: list[str], exclude: list[str]) -> None:
    expected = filter_repo_objects(paths, allow_patterns=include or None, ignore_patterns=exclude)
    assert asyncio.run(chosen(paths, include, exclude)) == list(expected)


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

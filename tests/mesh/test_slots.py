"""Slots: never more than there are, except for users that have none; and none is lost."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from mesh.slots import Slots

COUNT, LIMIT = 3, 6  # one for each of four users when one of them has three


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 30)), max_size=40))
def test_nobody_is_left_without_and_none_is_lost(steps: list[tuple[str, int]]) -> None:
    """Each step requests a slot for some user, or ends an earlier request, at any time."""

    async def run() -> None:
        slots, held = Slots(COUNT, LIMIT), dict.fromkeys("abcd", 0)
        asking: list[asyncio.Task[None]] = []

        async def have(whose: str) -> None:
            async with slots.one(whose):
                held[whose] += 1
                assert sum(held.values()) <= LIMIT
                assert sum(count - 1 for count in held.values() if count) < COUNT  # beyond the one for each
                try:
                    await asyncio.Event().wait()
                finally:
                    held[whose] -= 1

        wanted: dict[str, set[asyncio.Task[None]]] = {whose: set() for whose in "abcd"}
        for whose, number in steps:
            if number < len(asking):
                asking[number].cancel()  # perhaps at the moment it is given one
            else:
                asking.append(asyncio.create_task(have(whose)))  # noqa: TID251
                wanted[whose].add(asking[-1])
            if number % 2:
                for _ in range(4):
                    await asyncio.sleep(0)
                for somebody, tasks in wanted.items():
                    alive = [task for task in tasks if not task.done()]
                    assert bool(held[somebody]) == bool(alive)
                assert sum(held.values()) >= min(COUNT, sum(not task.done() for task in asking))
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            for _ in range(COUNT):
                group.create_task(slots.one("e").__aenter__())

    asyncio.run(run())


async def test_there_is_a_limit_to_that() -> None:
    slots = Slots(1, 2)
    async with slots.one("a"), slots.one("b"):
        third = asyncio.create_task(slots.one("c").__aenter__())  # noqa: TID251
        await asyncio.sleep(0)
        assert not third.done()
    async with asyncio.timeout(5):
        await third

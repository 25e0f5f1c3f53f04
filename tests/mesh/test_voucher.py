"""Asking the origin to vouch for a piece ends with the node."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mesh import voucher
from mesh.content import Digest, Pieces
from mesh.tasks import Tasks
from mesh.voucher import Voucher


class Endless:
    """A transfer from an origin that sends nothing."""

    began: threading.Event
    ended: threading.Event

    def __init__(self, *_: object) -> None:
        pass

    def run(self, *_: object) -> None:
        self.began.set()
        assert self.ended.wait(20), "nobody ended it"

    def cancel(self) -> None:
        self.ended.set()


async def test_a_node_that_stops_does_not_wait_for_the_rest_of_the_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    Endless.began, Endless.ended = threading.Event(), threading.Event()
    monkeypatch.setattr(voucher, "Transfer", Endless)
    tasks = Tasks()

    @asynccontextmanager
    async def slot(_: object) -> Any:
        yield

    async def locate() -> object:
        return object()

    size = 3 << 20
    partial = SimpleNamespace(
        digest=Digest("sha256", "a" * 64), size=size, pieces=Pieces.of(size), have={0}, trusted=set[int]()
    )
    reader = SimpleNamespace(is_whole=False, frontier=lambda: 0, stop=1000)
    with ThreadPoolExecutor(1) as pool:
        house = SimpleNamespace(tasks=tasks, pool=pool, origin_slots=SimpleNamespace(one=slot), origin_connections=None)
        fetcher = SimpleNamespace(can_fetch=True, ways=SimpleNamespace(locate=locate))
        fill = SimpleNamespace(partial=partial, readers=[reader])
        Voucher(cast("Any", house), cast("Any", fill), cast("Any", fetcher), lambda: None).look()
        assert await asyncio.to_thread(Endless.began.wait, 20)
        await tasks.close()
        assert Endless.ended.is_set()

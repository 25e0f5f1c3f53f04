"""A client gets its first byte, or an answer, before it gives up, counted from its request on."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.test_utils import make_mocked_request

from proxy import files
from proxy.files import Files
from proxy.hub.client import Client
from proxy.hub.errors import HubError
from proxy.hub.urls import FileRoute
from tests.hub.process import HubProcess
from tests.proxy.parts import TINY, parts


class Late:
    """Blobs, and a reader of one, whose first byte takes `seconds`."""

    is_crowd = False

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def read(self, *_: object, **__: object) -> Late:
        return self

    def ready(self, position: int) -> int:
        return position

    async def wait(self, position: int) -> None:
        await asyncio.sleep(self._seconds)

    def close(self) -> None:
        pass


async def test_what_finding_out_takes_is_part_of_the_wait(hub: HubProcess, tmp_path, monkeypatch):
    hub.folder.commit(TINY.id, {"w.safetensors": b"w" * 5000})
    monkeypatch.setattr(files, "_FIRST_BYTE_SECONDS", 2.0)
    hub.turn(latency={"resolve": 1.0})
    async with parts(hub.url, tmp_path) as node:
        answers = Files(resolver=node.resolver, catalog=node.catalog, blobs=Late(1.5), outflow=None)  # type: ignore[arg-type]
        route = FileRoute(TINY, "main", "w.safetensors")
        with pytest.raises(HubError) as caught:
            await answers.handle(make_mocked_request("GET", route.target), route, Client())
        assert caught.value.status == 429

"""Work on whole blobs, which can take minutes, does not delay what clients wait for."""

import asyncio
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest

from mesh.content import Digest
from mesh.stats import Stats
from mesh.store import Store
from proxy.hf_cache import HfCache
from proxy.hub.xet import HEADER, Xorb
from proxy.large import LARGE, work_on
from proxy.xet import Xet

LIMIT = 20.0  # seconds, on any machine
WHOLE = os.urandom(LARGE + 1)
DIGEST = Digest("sha256", hashlib.sha256(WHOLE).hexdigest())


async def flush(store, folder):
    partial = store.open_partial(Digest("sha256", "a" * 64), 1)
    try:
        await store.commit(partial)
    finally:
        store.close_partial(partial)


async def prove_again(store, folder):
    await store.doubts.settle(DIGEST)


async def take_over(store, folder):
    await store.adopt(Digest("sha256", "a" * 64), 1, folder / "staged", [])


async def look_through_a_cache(store, folder):
    file = folder / "cache" / "models--acme--tiny" / "blobs" / ("a" * 64)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"?")
    os.utime(file, (1, 1))
    blobs = SimpleNamespace(settle_doubts=AsyncMock(), swarms={})
    await HfCache(folder / "cache", folder, store=store, blobs=blobs, resolver=None).run()


JOBS = {
    "mesh.layout.make_durable": flush,
    "mesh.doubts.take_again": prove_again,
    "mesh.layout.take_over": take_over,
    "proxy.hf_cache.scan": look_through_a_cache,
    "proxy.hf_cache.take": look_through_a_cache,
}


@pytest.mark.parametrize("work", JOBS)
async def test_a_client_does_not_wait_for_work_on_whole_blobs(tmp_path, monkeypatch, work):
    loop, began, may_end, sent = asyncio.get_running_loop(), asyncio.Event(), threading.Event(), bytearray()
    store, response = Store(tmp_path, 1 << 30), SimpleNamespace(write=AsyncMock(side_effect=sent.extend))
    (tmp_path / "staged").write_bytes(WHOLE)
    await store.adopt(DIGEST, len(WHOLE), tmp_path / "staged", [])

    def endless(*_, **__):
        loop.call_soon_threadsafe(began.set)
        assert may_end.wait(LIMIT)
        raise OSError("a slow disk that fails in the end")

    monkeypatch.setattr(work, endless)
    loop.set_default_executor(ThreadPoolExecutor(1))
    job = loop.create_task(JOBS[work](store, tmp_path))
    try:
        async with asyncio.timeout(LIMIT / 2):
            await began.wait()
            assert await work_on(WHOLE, len) == len(WHOLE)
            with store.open(DIGEST) as blob:
                xet = Xet(**dict.fromkeys(("passes", "files", "blobs", "resolver", "catalog")), stats=Stats())
                await xet._send(response, blob, list(Xorb(len(WHOLE), 0).spans(0, HEADER + 100)))
        assert sent[HEADER:] == WHOLE[:100]
    finally:
        may_end.set()
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        store.close()

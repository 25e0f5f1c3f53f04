"""Unforeseen errors in the tasks of a swarm: they are logged, and no reader waits for what will not come."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from mesh.blobs import Blobs
from mesh.content import Digest
from mesh.errors import Unavailable
from mesh.exchange import MeshExchange
from mesh.partial import Partial
from mesh.proof import Proof
from mesh.store import Store
from tests.mesh.origin import Origin, node

MIB = 1 << 20


class _UnforeseenError(Exception):
    pass


def fail(*_: Any) -> Any:
    raise _UnforeseenError


def begin(store: Store, digest: Digest) -> None:
    """Leave the journal of an earlier process, which lists the first piece."""
    partial = store.open_partial(digest, 2 * MIB)
    partial.record(0, b"\1" * 32, trusted=True)
    partial.add(0, b"\1" * 32, trusted=True)
    store.close_partial(partial)


async def read(blobs: Blobs, origin: Origin) -> None:
    reader = await blobs.read(origin.digest, 2 * MIB, 0, 2 * MIB, origin, is_whole=True)
    try:
        position = 0
        async with asyncio.timeout(10):
            while position < 2 * MIB:
                await reader.wait(position)
                position = reader.ready(position)
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("owner", "what"),
    [(Proof, "extend"), (Partial, "recheck"), (MeshExchange, "report")],
    ids=["proof", "recheck", "exchange"],
)
async def test_readers_are_told_and_the_log_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, owner: type, what: str
) -> None:
    content = random.Random(1).randbytes(2 * MIB)
    async with Origin(content).running() as origin, node(tmp_path) as (house, blobs):
        begin(house.store, origin.digest)
        with monkeypatch.context() as broken:
            broken.setattr(owner, what, fail)
            with pytest.raises(Unavailable, match="the log says why"):
                await read(blobs, origin)
            async with asyncio.timeout(10):
                while blobs.swarms:
                    await asyncio.sleep(0)
        assert "_UnforeseenError" in caplog.text
        await read(blobs, origin)


async def test_a_blob_is_stored_although_what_hears_of_it_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Origin(random.Random(1).randbytes(2 * MIB)).running() as origin, node(tmp_path) as (house, blobs):
        house.brought = fail
        async with asyncio.timeout(10):
            await blobs.want(origin.digest, 2 * MIB, origin)
            while blobs.swarms:
                await asyncio.sleep(0)
        assert origin.digest in house.store
        assert "_UnforeseenError" in caplog.text

"""Several nodes and one origin: one copy is fetched, and every node gets the right bytes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from math import inf
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web

from mesh import queue
from mesh.access import OriginAccess
from mesh.content import Digest
from mesh.errors import BlobCorrupt, StoreFull, Unavailable
from mesh.exchange import Envelope
from mesh.membership import State
from mesh.mesh import Announcement
from mesh.messages import Report
from tests.mesh.members import until
from tests.mesh.nodes import Node, mesh_node
from tests.mesh.origin import Origin
from tests.mesh.test_swarm import read

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MIB = 1 << 20
KEY = b"a key that all nodes of the test share"


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


async def introduce(nodes: list[Node]) -> None:
    for node in nodes[1:]:
        await node.mesh.gossip.join(nodes[0].address)
    await until(lambda: all(len(node.mesh.members.alive()) == len(nodes) - 1 for node in nodes), 15)


async def known(nodes: list[Node], holder: Node, digest: Digest) -> None:
    """Wait until the blob's tracker knows of its holder; a holder that is the tracker needs no announcement."""
    leader = holder.mesh.exchange.tracker_of(digest)
    tracker = next(node for node in nodes if node.mesh.node_id == leader)
    await until(lambda: tracker is holder or tracker.mesh.directory.holders(digest))


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def start(stack: AsyncExitStack, root: Path, count: int, **options: object) -> list[Node]:
    nodes = [await stack.enter_async_context(mesh_node(root / str(i), **options)) for i in range(count)]  # type: ignore[arg-type]
    await introduce(nodes)
    return nodes


@pytest.mark.parametrize("key", [None, KEY], ids=["open", "keyed"])
async def test_all_nodes_cold_at_once_cost_the_origin_one_copy(
    stack: AsyncExitStack, tmp_path: Path, key: bytes | None
) -> None:
    origin = await stack.enter_async_context(Origin(content(24 * MIB + 5)).running())
    nodes = await start(stack, tmp_path, 5, key=key)
    bodies = await asyncio.gather(*(read(node.blobs, origin) for node in nodes))
    assert all(body == origin.content for body in bodies)
    assert origin.sent == len(origin.content)
    assert sum(node.house.stats.peer_received for node in nodes) == 4 * len(origin.content)


async def test_what_one_node_holds_the_others_never_fetch(stack: AsyncExitStack, tmp_path: Path) -> None:
    origin = await stack.enter_async_context(Origin(content(5 * MIB)).running())
    nodes = await start(stack, tmp_path, 3)
    assert await read(nodes[0].blobs, origin) == origin.content
    digest = origin.digest
    await known(nodes, nodes[0], digest)
    assert await read(nodes[1].blobs, origin) == origin.content
    assert origin.sent == len(origin.content)


@pytest.mark.parametrize(("quick", "seconds", "most"), [(inf, 10.0, 3), (0.0, 0.2, 1)], ids=["quick", "slow"])
async def test_of_a_slow_peer_pieces_are_asked_one_after_the_other(
    stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: float, seconds: float, most: int
) -> None:
    """On such a slow line, a reader of parallel pieces would have none of them until all have arrived."""
    monkeypatch.setattr(queue, "QUICK", quick)
    origin = await stack.enter_async_context(Origin(content(4 * MIB)).running())
    asked, highest, are_together = 0, 0, asyncio.Event()
    sending: dict[int, web.Request] = {}

    @web.middleware
    async def slow(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal asked, highest
        if not request.path.startswith("/mesh/blobs/"):
            return await handler(request)
        number = asked = asked + 1
        sending[number] = request
        still_there = [some for some in sending.values() if some.transport is not None]
        highest = max(highest, len(still_there))
        if highest == 3:
            are_together.set()
        if number > 1:  # the first one shows how long a piece takes
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await are_together.wait()
        del sending[number]
        return await handler(request)

    def tamper(app: web.Application) -> None:
        app.middlewares.append(slow)

    holder = await stack.enter_async_context(mesh_node(tmp_path / "holder", tamper=tamper))
    node = await stack.enter_async_context(mesh_node(tmp_path / "node"))
    await introduce([holder, node])
    assert await read(holder.blobs, origin) == origin.content
    await known([holder, node], holder, origin.digest)
    assert await read(node.blobs, origin) == origin.content
    assert origin.sent == len(origin.content)
    assert highest == most


async def test_a_host_that_reads_as_slowly_as_it_can_leaves_others_their_turn(
    stack: AsyncExitStack, tmp_path: Path
) -> None:
    origin = await stack.enter_async_context(Origin(content(16 * MIB)).running())
    node = await stack.enter_async_context(mesh_node(tmp_path / "node"))
    assert await read(node.blobs, origin) == origin.content
    url, whole = f"http://{node.address}/mesh/blobs/{origin.digest}", {"Range": f"bytes=0-{16 * MIB - 1}"}

    async def at(host: str) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(local_addr=(host, 0), limit=0)
        return await stack.enter_async_context(aiohttp.ClientSession(connector=connector, read_bufsize=1024))

    greedy, other = await at("127.0.0.2"), await at("127.0.0.3")
    begun = [await greedy.get(url, headers=whole) for _ in range(33)]  # none of them reads on
    assert [answer.status for answer in begun] == [206] * 32 + [503]
    async with other.get(url, headers=whole) as answer:
        assert await answer.read() == origin.content
    for answer in begun:
        answer.close()


@pytest.mark.parametrize("is_missed", [False, True])
async def test_a_tracker_that_starts_anew_is_told_again_who_holds_what(
    stack: AsyncExitStack, tmp_path: Path, is_missed: bool
) -> None:
    """However soon it is back, even as tracker of the same blobs. One that only refutes a claim is not told again."""
    origin = await stack.enter_async_context(Origin(content(MIB)).running())
    seed = await stack.enter_async_context(mesh_node(tmp_path / "seed", role="seed"))
    node = await stack.enter_async_context(mesh_node(tmp_path / "node"))
    await introduce([seed, node])
    assert await read(node.blobs, origin) == origin.content
    await until(lambda: seed.mesh.directory.holders(origin.digest))
    holds = node.mesh._announced
    assert holds == {origin.digest: seed.mesh.node_id}

    def heard(more: int, state: State = State.ALIVE) -> None:
        claim = seed.mesh.members.me
        claim = msgspec.structs.replace(claim, incarnation=claim.incarnation + more, state=state)
        node.mesh.gossip._tell(node.mesh.members.merge([claim], time.monotonic()))

    heard(1)
    assert node.mesh._announced == holds
    seed.mesh.directory.forget(node.mesh.node_id)
    if is_missed:
        heard(1, State.LEFT)
    heard(10)
    await until(lambda: seed.mesh.directory.holders(origin.digest))


async def test_only_the_seed_goes_out(stack: AsyncExitStack, tmp_path: Path) -> None:
    origin = Origin(content(12 * MIB))

    async def access(hint: bytes, digest: Digest, size: int) -> OriginAccess | None:
        return origin if hint == b"the way" else None

    await stack.enter_async_context(origin.running())
    seed = await stack.enter_async_context(mesh_node(tmp_path / "seed", role="seed", access=access))
    nodes = [seed, *[await stack.enter_async_context(mesh_node(tmp_path / str(i))) for i in range(3)]]
    await introduce(nodes)
    origin.hint = b"the way"
    bodies = await asyncio.gather(*(read(node.blobs, origin) for node in nodes[1:]))
    assert all(body == origin.content for body in bodies)
    assert origin.sent == len(origin.content) == seed.house.stats.origin_received


async def test_what_a_tracker_has_fetched_itself_the_nodes_that_wait_for_it_get_at_once(
    stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the blob: the tracker may have proven and stored it before it would report its piece to itself."""
    monkeypatch.setattr("mesh.tracker._HOLD_SECONDS", 30.0)
    monkeypatch.setattr("mesh.exchange._LOCAL_INTERVAL", 0.3)  # storing the blob takes less
    origin = Origin(content(2000))

    async def access(hint: bytes, digest: Digest, size: int) -> OriginAccess | None:
        return origin

    await stack.enter_async_context(origin.running())
    seed = await stack.enter_async_context(mesh_node(tmp_path / "seed", role="seed", access=access))
    node = await stack.enter_async_context(mesh_node(tmp_path / "node"))
    await introduce([seed, node])
    origin.hint = b"the way"
    async with asyncio.timeout(5.0):  # sooner than a starving reader is rescued
        assert await read(node.blobs, origin) == origin.content
    assert node.house.stats.peer_received == origin.sent == 2000


async def test_a_seed_that_cannot_find_out_what_it_is_sent_for_keeps_nobody_waiting(
    stack: AsyncExitStack, tmp_path: Path
) -> None:
    origin = await stack.enter_async_context(Origin(content(2 * MIB)).running())
    origin.hint = b"the way"

    async def access(hint: bytes, digest: Digest, size: int) -> OriginAccess | None:
        await asyncio.sleep(60)
        return None

    seed = await stack.enter_async_context(mesh_node(tmp_path / "seed", role="seed", access=access))
    node = await stack.enter_async_context(mesh_node(tmp_path / "node"))
    await introduce([seed, node])
    async with asyncio.timeout(5.0):  # sooner than a starving reader is rescued
        await node.blobs.want(origin.digest, 2 * MIB, origin)


@pytest.mark.parametrize("who", ["tracker", "other"])
async def test_a_node_that_dies_on_the_way_costs_at_most_what_it_held(
    stack: AsyncExitStack, tmp_path: Path, who: str
) -> None:
    origin = await stack.enter_async_context(Origin(content(32 * MIB), pause=0.01).running())
    nodes = await start(stack, tmp_path, 4)
    tracker = nodes[0].mesh.exchange.tracker_of(origin.digest)
    victim = next(node for node in nodes if (node.mesh.node_id == tracker) == (who == "tracker"))
    others = [node for node in nodes if node is not victim]
    reads = [asyncio.ensure_future(read(node.blobs, origin)) for node in others]  # noqa: TID251
    dying = asyncio.ensure_future(read(victim.blobs, origin))  # noqa: TID251
    await until(lambda: origin.sent > 8 * MIB)
    fetched = victim.house.stats.origin_received
    await victim.stop_answering()
    dying.cancel()
    bodies = await asyncio.gather(*reads)
    assert all(body == origin.content for body in bodies)
    # Pieces that only the dead node held, pieces in flight, and pieces fetched twice while a new tracker learned.
    assert origin.sent <= len(origin.content) + fetched + 16 * MIB


async def test_everybody_finishes_when_the_origin_is_cut_off_after_one_copy(
    stack: AsyncExitStack, tmp_path: Path
) -> None:
    origin = Origin(content(16 * MIB))
    async with origin.running():
        nodes = await start(stack, tmp_path, 3)
        assert await read(nodes[0].blobs, origin, 0, 8 * MIB) == origin.content[: 8 * MIB]
        assert await read(nodes[1].blobs, origin, 8 * MIB, 16 * MIB) == origin.content[8 * MIB :]
        holders = [nodes[0].blobs.swarms[origin.digest], nodes[1].blobs.swarms[origin.digest]]
        await until(lambda: sum(len(swarm.fill.partial.have) for swarm in holders) >= 16)
    for node in nodes[:2]:
        node.blobs.swarms[origin.digest].want(None)
    assert await read(nodes[2].blobs, origin) == origin.content


@pytest.mark.parametrize("key", [None, KEY], ids=["open", "keyed"])
async def test_a_lying_peer_is_named_and_nobody_gets_a_wrong_byte(
    stack: AsyncExitStack, tmp_path: Path, key: bytes | None
) -> None:
    origin = await stack.enter_async_context(Origin(content(6 * MIB)).running())

    def lie(app: web.Application) -> None:
        async def wrong(request: web.Request) -> web.Response:
            start, stop = map(int, request.headers["Range"].removeprefix("bytes=").split("-"))
            return web.Response(
                status=206,
                body=bytes(stop + 1 - start),
                headers={"Content-Range": f"bytes {start}-{stop}/{len(origin.content)}"},
            )

        app.router.add_get("/mesh/blobs/{digest}", wrong)

    liar = await stack.enter_async_context(mesh_node(tmp_path / "liar", key=key, tamper=lie))
    nodes = [liar, *[await stack.enter_async_context(mesh_node(tmp_path / str(i), key=key)) for i in range(2)]]
    await introduce(nodes)
    assert await read(liar.blobs, origin) == origin.content
    await known(nodes, liar, origin.digest)
    for node in nodes[1:]:
        body = b""
        for _ in range(3):  # an open mesh detects it at the end: that attempt fails, and the next is clean
            with contextlib.suppress(BlobCorrupt):
                body = await read(node.blobs, origin)
                break
        assert body == origin.content
    rejected = [node.house.stats.pieces_rejected[liar.mesh.node_id] for node in nodes[1:]]
    assert rejected[0] > 0


@pytest.mark.parametrize("is_liar", [False, True], ids=["honest", "liar"])
async def test_in_an_open_mesh_a_range_of_what_peers_brought_is_vouched_for_by_the_origin(
    stack: AsyncExitStack, tmp_path: Path, is_liar: bool
) -> None:
    origin = Origin(content(16 * MIB), gate=asyncio.Event(), gate_at=8 * MIB)
    await stack.enter_async_context(origin.running())

    def lie(app: web.Application) -> None:
        async def wrong(request: web.Request) -> web.Response:
            start, stop = map(int, request.headers["Range"].removeprefix("bytes=").split("-"))
            headers = {"Content-Range": f"bytes {start}-{stop}/{len(origin.content)}"}
            return web.Response(status=206, body=bytes(stop + 1 - start), headers=headers)

        if is_liar:
            app.router.add_get("/mesh/blobs/{digest}", wrong)

    peer = await stack.enter_async_context(mesh_node(tmp_path / "peer", tamper=lie))
    node = await stack.enter_async_context(mesh_node(tmp_path / "node"))
    await introduce([peer, node])
    assert await read(peer.blobs, origin, 0, 8 * MIB) == origin.content[: 8 * MIB]
    whole = asyncio.get_running_loop().create_task(read(node.blobs, origin))
    await until(lambda: origin.digest in node.blobs.swarms)
    partial = node.blobs.swarms[origin.digest].fill.partial
    # The rest never arrives, so no digest of the whole can prove what is here.
    await until(lambda: all(piece in partial.have for piece in range(8)))
    assert 3 not in partial.trusted
    if is_liar:
        with pytest.raises(BlobCorrupt):
            await read(node.blobs, origin, 3 * MIB, 4 * MIB)
        with pytest.raises(BlobCorrupt):
            await whole
        assert await read(node.blobs, origin, 3 * MIB, 4 * MIB) == origin.content[3 * MIB : 4 * MIB]
        await until(lambda: node.house.stats.pieces_rejected[peer.mesh.node_id] > 0)
    else:
        before = origin.sent
        assert await read(node.blobs, origin, 3 * MIB, 4 * MIB) == origin.content[3 * MIB : 4 * MIB]
        assert origin.sent - before == MIB
        origin.gate.set()
        assert await whole == origin.content


@pytest.mark.parametrize("who", ["itself", "another"])
async def test_who_has_let_go_of_a_blob_is_no_holder_any_more(stack: AsyncExitStack, tmp_path: Path, who: str) -> None:
    """It then fetches like any other node: at once, and once."""
    size = 12 * MIB
    one = await stack.enter_async_context(Origin(content(size), pause=0.04).running())
    lead = await stack.enter_async_context(mesh_node(tmp_path / "lead", role="seed", key=KEY))
    holder = await stack.enter_async_context(mesh_node(tmp_path / "holder", key=KEY))
    other = await stack.enter_async_context(mesh_node(tmp_path / "other", key=KEY))
    await introduce([lead, holder, other])
    await holder.blobs.want(one.digest, size, one)
    await known([lead, holder, other], holder, one.digest)
    for node in (lead, holder, other):
        while node.blobs.swarms:
            await asyncio.sleep(0.02)
        await node.house.store.remove(one.digest)
    one.sent = 0
    asker = holder if who == "itself" else other
    async with asyncio.timeout(9.0):  # pieces of a holder that has none would be waited for longer
        await asker.blobs.want(one.digest, size, one)
    assert one.sent == size
    await known([lead, holder, other], asker, one.digest)  # it is a holder again


@pytest.mark.parametrize("key", [None, KEY], ids=["open", "keyed"])
async def test_a_node_that_evicts_a_blob_says_so_and_only_that_node(
    stack: AsyncExitStack, tmp_path: Path, key: bytes | None
) -> None:
    origin = await stack.enter_async_context(Origin(content(2000)).running())
    lead = await stack.enter_async_context(mesh_node(tmp_path / "lead", role="seed", key=key))
    holder = await stack.enter_async_context(mesh_node(tmp_path / "holder", key=key))
    other = await stack.enter_async_context(mesh_node(tmp_path / "other", key=key))
    await introduce([lead, holder, other])
    await holder.blobs.want(origin.digest, 2000, origin)
    await known([lead, holder, other], holder, origin.digest)
    await lead.blobs.want(origin.digest, 2000, origin)  # a tracker that is a holder itself needs no message
    ledger = lead.mesh.tracker.ledger(origin.digest)
    assert ledger is not None
    await until(lambda: not ledger.is_wanted and not lead.blobs.swarms)

    async def say_gone(of: str, digest: Digest) -> None:
        body = {"node": of, "digests": [], "gone": [str(digest)]}
        path, encoded = "/mesh/holdings", msgspec.msgpack.encode(body)
        headers = other.mesh.auth.sign("POST", path, encoded)
        connector = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))  # a stranger's address
        url = f"http://{lead.address}{path}"
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post(url, data=encoded, headers=headers) as answer,
        ):
            assert answer.status == (200 if key is None else 403)

    assert msgspec.convert({"node": "one of an earlier version", "digests": ()}, Announcement).gone == ()
    await say_gone(holder.mesh.node_id, origin.digest)
    assert lead.mesh.directory.holders(origin.digest) == [holder.mesh.node_id]
    for node in (lead, holder):
        assert ledger.held == 1
        await node.house.store.remove(origin.digest)
    await until(lambda: not ledger.held and not lead.mesh.directory.holders(origin.digest))
    async with asyncio.timeout(5.0):  # sooner than a starving reader is rescued
        assert await read(other.blobs, origin) == origin.content


async def test_in_an_open_mesh_a_node_is_taken_off_the_ledger_only_by_itself(
    stack: AsyncExitStack, tmp_path: Path
) -> None:
    origin = await stack.enter_async_context(Origin(content(2000)).running())
    lead = await stack.enter_async_context(mesh_node(tmp_path / "lead", role="seed"))
    holder = await stack.enter_async_context(mesh_node(tmp_path / "holder"))
    await introduce([lead, holder])
    await holder.blobs.want(origin.digest, 2000, origin)
    await known([lead, holder], holder, origin.digest)

    async def say_empty(host: str) -> None:
        connector = aiohttp.TCPConnector(local_addr=(host, 0))
        body = msgspec.msgpack.encode(Envelope(2000, Report(holder.mesh.node_id, have=bytes(1))))
        url = f"http://{lead.address}/mesh/swarms/{origin.digest}"
        async with aiohttp.ClientSession(connector=connector) as session, session.post(url, data=body) as answer:
            assert answer.status == 200

    await say_empty("127.0.0.2")
    ledger = lead.mesh.tracker.ledger(origin.digest)
    assert ledger is not None
    assert ledger.held == 1
    assert lead.mesh.directory.holders(origin.digest) == [holder.mesh.node_id]
    await say_empty("127.0.0.1")
    assert not ledger.held


async def test_a_blob_that_is_read_anew_is_still_here(stack: AsyncExitStack, tmp_path: Path) -> None:
    """Nodes that are told that it is not here fetch another copy from the origin."""
    origin = await stack.enter_async_context(Origin(content(MIB)).running())
    holder = await stack.enter_async_context(mesh_node(tmp_path))
    await holder.blobs.want(origin.digest, MIB, origin)
    await until(lambda: not holder.blobs.swarms)
    os.utime(holder.house.store._path(origin.digest), (0, 0))
    session = await stack.enter_async_context(aiohttp.ClientSession())
    statuses: list[int] = []
    while 206 not in statuses:
        url = f"http://{holder.address}/mesh/blobs/{origin.digest}"
        async with session.get(url, headers={"Range": "bytes=0-9"}) as answer:
            statuses.append(answer.status)
        await asyncio.sleep(0.01)
    assert set(statuses) == {503, 206}


async def test_a_stranger_s_word_on_a_blob_s_size_does_not_keep_us_from_it(
    stack: AsyncExitStack, tmp_path: Path
) -> None:
    one = await stack.enter_async_context(Origin(content(2 * MIB)).running())
    node = await stack.enter_async_context(mesh_node(tmp_path / "node"))
    envelope = msgspec.msgpack.encode(Envelope(2 * MIB + 1, Report("stranger")))
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{node.address}/mesh/swarms/{one.digest}", data=envelope) as answer,
    ):
        assert answer.status == 200
    async with asyncio.timeout(10.0):
        await node.blobs.want(one.digest, 2 * MIB, one)


async def test_strangers_blobs_take_a_bounded_place(
    stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.tracker._MAX_PIECES", 100)
    node = await stack.enter_async_context(mesh_node(tmp_path / "node"))
    async with aiohttp.ClientSession() as session:
        for number in range(10):
            digest = Digest("sha256", f"{number:064x}")
            envelope = msgspec.msgpack.encode(Envelope(30 * MIB, Report("stranger")))
            async with session.post(f"http://{node.address}/mesh/swarms/{digest}", data=envelope) as answer:
                assert answer.status == 200
    led = [number for number in range(10) if Digest("sha256", f"{number:064x}") in node.mesh.tracker]
    assert led == [7, 8, 9], "the newest, as nobody takes part in the others"


async def test_a_swarm_that_cannot_begin_is_an_error_for_who_waits(
    stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await stack.enter_async_context(Origin(content(2 * MIB)).running())
    node = await stack.enter_async_context(mesh_node(tmp_path / "node"))
    monkeypatch.setattr("mesh.tracker._MAX_LEDGERS", 0)
    async with asyncio.timeout(10.0):
        with pytest.raises(Unavailable, match="leads as many swarms as it can"):
            await node.blobs.want(one.digest, 2 * MIB, one)


async def test_what_a_node_that_gives_up_was_sent_for_others_have_at_once(
    stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example because its disk is full. Otherwise its leases would live for 20 s."""
    gate = asyncio.Event()
    origin = await stack.enter_async_context(Origin(content(8 * MIB), gate=gate).running())
    nodes = await start(stack, tmp_path, 3)
    tracker = nodes[0].mesh.exchange.tracker_of(origin.digest)
    leader = next(node for node in nodes if node.mesh.node_id == tracker)
    loser = next(node for node in nodes if node is not leader)
    reads = [asyncio.ensure_future(read(node.blobs, origin)) for node in nodes if node is not loser]  # noqa: TID251
    losing = asyncio.ensure_future(read(loser.blobs, origin))  # noqa: TID251
    await until(lambda: origin.digest in loser.blobs.swarms and loser.blobs.swarms[origin.digest].fetcher.runs)
    loser.blobs.swarms[origin.digest].fill.finish(StoreFull("the disk is full"))
    with pytest.raises(StoreFull):
        await losing
    gate.set()
    async with asyncio.timeout(5.0):
        assert all(body == origin.content for body in await asyncio.gather(*reads))

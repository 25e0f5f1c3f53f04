"""Gossip between real servers on loopback: joining, dying, returning, leaving, and hostile messages."""

import asyncio
import logging
import socket
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from mesh import auth, protocol
from mesh.auth import NotAuthentic
from mesh.errors import MeshError
from mesh.gossip import MAX_AHEAD, TARGET, Gossip
from mesh.membership import MAX_CLAIMS, MAX_INCARNATION, Address, Claim, Members, State
from mesh.protocol import MAX_MESSAGE
from mesh.tasks import Tasks
from tests.mesh.members import Node, until

KEY = b"k" * 32
NOW = 1_800_000_000  # seconds since the epoch


@asynccontextmanager
async def mesh(*names, key=None):
    """Run nodes that have all joined the first of them."""
    nodes = [await Node(name, key).start() for name in names]
    try:
        for node in nodes[1:]:
            await node.gossip.join(nodes[0].address)
        yield nodes
    finally:
        for node in nodes:
            await node.stop()


def all_know(nodes):
    names = {node.auth.node_id for node in nodes}
    return all(node.known == names - {node.auth.node_id} for node in nodes)


@pytest.mark.parametrize("key", [None, KEY])
async def test_five_nodes_find_each_other_and_notice_who_dies_and_who_returns(key):
    async with mesh("a", "b", "c", "d", "e", key=key) as nodes:
        await until(lambda: all_know(nodes))
        await nodes[2].stop()
        rest = nodes[:2] + nodes[3:]
        await until(lambda: all_know(rest))
        assert any(change.parted and change.member.node_id == "c" for change in nodes[0].changes)
        # It knows no other node when it returns: the others find it at its old address.
        await nodes[2].start()
        await until(lambda: all_know(nodes))
        assert len({node.members.digest() for node in nodes}) == 1


async def test_a_seed_that_is_none_any_more_is_not_made_one_by_an_answer_that_was_under_way():
    async with mesh("seed", "me") as (seed, me):
        is_asked, may_go_on = asyncio.Event(), asyncio.Event()
        ask = me.gossip._ask

        async def slow(address, body, node_id):
            answer = await ask(address, body, node_id)
            is_asked.set()
            await may_go_on.wait()
            return answer

        me.gossip._ask = slow
        joining = me.tasks.start(me.gossip.join(seed.address, named_seed=True), name="join")
        await is_asked.wait()
        me.gossip.unname_seed(seed.address)
        may_go_on.set()
        assert await joining == "seed"
        assert not me.members.get("seed").named_seed
        await me.gossip.join(seed.address, named_seed=True)
        assert me.members.get("seed").named_seed


async def test_a_node_that_leaves_is_gone_at_once_and_without_being_suspected():
    async with mesh("a", "b", "c") as nodes:
        await until(lambda: all_know(nodes))
        await nodes[1].gossip.leave()
        await until(lambda: all_know([nodes[0], nodes[2]]))
        for node in (nodes[0], nodes[2]):
            assert [c.member.state for c in node.changes if c.member.node_id == "b"][-1] == State.LEFT
            assert not any(c.member.state == State.SUSPECT for c in node.changes if c.member.node_id == "b")


async def test_a_wrongly_suspected_node_stays():
    async with mesh("a", "b", "c") as nodes:
        await until(lambda: all_know(nodes))
        before = nodes[1].members.me.incarnation
        nodes[0].gossip.failed("b", OSError())
        assert nodes[0].members.get("b").state == State.SUSPECT
        await until(lambda: all(n.members.get("b").incarnation > before for n in (nodes[0], nodes[2])))
        assert not any(change.parted for node in nodes for change in node.changes)


async def test_lists_travel_only_while_there_is_news():
    async with mesh("a", "b", "c") as nodes:
        await until(lambda: all_know(nodes) and len({node.members.digest() for node in nodes}) == 1)
        count = nodes[0].exchanges
        await until(lambda: nodes[0].exchanges > count + 5)
        message = nodes[1].gossip._message(with_claims=False)
        assert len(nodes[0].gossip.handle(message, "127.0.0.1")) < 100
        # Everything was said on first contact, through a wildcard address, and no node was told a loopback address.
        assert {claim.host for claim in nodes[0].members.snapshot(0.0)} == {""}


async def test_on_a_busy_machine_nobody_is_accused_who_speaks_and_lists_are_rare():
    """Otherwise a mesh of hundreds on few cores would spend them on suspicions and on lists that refute these."""
    now = [0.0]
    members = Members(Claim("a", 1, State.ALIVE, "", 1, "peer", "1"))
    members.merge([Claim(name, 1, State.ALIVE, "10.0.0.1", 1, "peer", "1") for name in ("busy", "silent")], 0.0)
    asked = set()

    async def ask(address, body, node_id):
        asked.add(node_id)
        now[0] += 0.001
        if node_id == "busy":
            members.heard(node_id, now[0])  # for example because it delivers a piece
        raise TimeoutError

    tasks = Tasks()
    gossip = Gossip(members, ask, tasks, interval=0.0, clock=lambda: now[0])
    question = msgspec.msgpack.encode(["", SENDER_CLAIM, b"x", []])

    def is_answered_with_a_list():
        return bool(gossip._decode(gossip.handle(question, "127.0.0.1")).claims)

    assert [is_answered_with_a_list() for _ in range(3)] == [True] * 3
    gossip.start()
    await until(lambda: asked >= {"busy", "silent"} and members.get("silent").state != State.ALIVE)
    await tasks.close()
    assert members.get("busy").state == State.ALIVE
    gossip._interval = 1.0
    now[0] += 60.0
    assert [is_answered_with_a_list() for _ in range(3)] == [True, False, False]


@pytest.mark.parametrize(("others", "patience"), [(50, 0.0), (51, 15.0)])
async def test_among_many_a_silent_process_counts_as_hung_only_after_a_while(others, patience):
    now = [0.0]
    members = Members(Claim("a", 1, State.ALIVE, "", 1, "peer", "1"))
    members.merge([Claim(f"n{i}", 1, State.ALIVE, "10.0.0.1", 1, "peer", "1") for i in range(others)], 0.0)

    async def ask(address, body, node_id):
        now[0] += 1.0
        raise TimeoutError

    gossip = Gossip(members, ask, Tasks(), clock=lambda: now[0])
    while members.get("n0").state == State.ALIVE:
        assert now[0] <= 20.0
        await gossip._probe(members.get("n0"))
    assert max(1.0, patience) == now[0]
    # A node that breaks the connection is not merely busy.
    gossip.failed("n1", ConnectionResetError())
    assert members.get("n1").state == State.SUSPECT


async def test_who_was_late_itself_says_so_for_a_while():
    now = [100.0]
    gossip = Gossip(Members(Claim("a", 1, State.ALIVE, "", 1, "peer", "1")), None, Tasks(), clock=lambda: now[0])
    assert not gossip.is_strained
    gossip._late_at = now[0]
    assert gossip.is_strained
    now[0] += 10.0
    assert not gossip.is_strained


async def test_ready_with_the_first_answer_or_when_none_comes():
    async with mesh("a") as (a,):
        await asyncio.wait_for(a.gossip.ready.wait(), 5)  # nobody to wait for
        b = await Node("b").start(settle=60.0)
        try:
            assert not b.gossip.ready.is_set()
            await b.gossip.join(a.address)
            assert b.gossip.ready.is_set()
            assert await b.gossip.join(b.address) == "b"  # its own address is among the seeds
            assert b.known == {"a"}
        finally:
            await b.stop()


async def test_two_meshes_do_not_mix_and_the_log_says_once_what_is_wrong(caplog):
    async with mesh("a", key=KEY) as (a,), mesh("b", key=b"o" * 32) as (b,), mesh("c") as (c,):
        for node, other in ((a, b), (b, a), (a, c), (c, a)):
            for _ in range(2):
                with pytest.raises(NotAuthentic):
                    await node.gossip.join(other.address)
        assert a.known == b.known == c.known == set()
        warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        # One line per pair and direction at either end, however often they try.
        assert len(warnings) == 8
        assert f"cannot talk to {b.address}: it has another mesh key (--mesh-key-file)" in warnings
        assert any(text.startswith(f"cannot talk to {a.address}: it has a mesh key, but") for text in warnings)
        assert any(text.startswith(f"cannot talk to {c.address}: it has no mesh key, but") for text in warnings)


@pytest.mark.parametrize("key", [None, KEY], ids=["open", "keyed"])
@pytest.mark.parametrize("version", [1, protocol.VERSION + 1])
async def test_nodes_of_two_versions_of_the_protocol_do_not_mix_and_the_log_says_so_once(
    key, version, caplog, monkeypatch
):
    async with mesh("a", key=key) as (a,):
        if version == 1:  # as it was before meshes had versions
            monkeypatch.setattr(auth, "mesh_name", lambda key_name, is_tls: key_name)
        else:
            monkeypatch.setattr(protocol, "VERSION", version)
        async with mesh("b", key=key) as (b,):
            monkeypatch.undo()
            for _ in range(2):
                with pytest.raises((MeshError, ValueError)):
                    await b.gossip.join(a.address)
                with pytest.raises((MeshError, ValueError)):
                    await a.gossip.join(b.address)
            assert a.known == b.known == set()
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    spoken = "an earlier version" if version == 1 else f"version {version}"
    said = f"ignoring nodes of another mesh: they have {spoken} of the mesh protocol, where this node speaks version 2"
    assert sum(said in text for text in warnings) == 1, warnings
    assert len(warnings) == 2  # and one at the other node


def claims(count):
    return [Claim(f"n{n}", 1, State.ALIVE, "10.0.0.1", 1, "peer", "1") for n in range(count)]


SENDER_CLAIM = Claim("liar", 1, State.ALIVE, "", 1, "peer", "1")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"{}",
        bytes(MAX_MESSAGE + 1),
        b"\x94\xa0\xdd\xff\xff\xff\xff",
        b"\x94" * 100_000,
        msgspec.msgpack.encode(["", SENDER_CLAIM, b"x", claims(MAX_CLAIMS + 1)]),
        msgspec.msgpack.encode(["another mesh", SENDER_CLAIM, b"x", []]),
        msgspec.msgpack.encode(["", SENDER_CLAIM, b"x" * 1000, []]),
        msgspec.msgpack.encode(["", ["liar", 1, 9, "", 1, "peer", "1"], b"x", []]),
        msgspec.msgpack.encode(["", ["liar", 1, 0, "", 1, "king", "1"], b"x", []]),
        msgspec.msgpack.encode(["", ["liar", 1 << 60, 0, "", 1, "peer", "1"], b"x", []]),
        msgspec.msgpack.encode(["", SENDER_CLAIM, b"x", [["li/ar", 1, 0, "", 1, "peer", "1"]]]),
    ],
    ids=range(13),
)
async def test_a_message_that_is_not_sane_is_refused_and_changes_nothing(body):
    me = Members(Claim("a", 1, State.ALIVE, "", 1, "peer", "1"))
    with pytest.raises(ValueError):
        Gossip(me, None, Tasks()).handle(body, "127.0.0.1")
    assert me.alive() == ()


async def test_the_fullest_message_fits():
    me = Members(Claim("a" * 128, 1, State.ALIVE, "", 1, "peer", "1"))
    me.merge(
        [Claim(f"{n:0128}", (1 << 53) - 1, State.ALIVE, "h" * 253, 65535, "peer", "v" * 32) for n in range(1999)], 0.0
    )
    gossip = Gossip(me, None, Tasks())
    message = gossip._message(with_claims=True)
    assert len(message) <= MAX_MESSAGE
    assert gossip._decode(message)


async def test_nobody_can_speak_for_another_in_a_keyed_mesh():
    me = Members(Claim("a", 1, State.ALIVE, "", 1, "peer", "1"))
    message = msgspec.msgpack.encode(["", SENDER_CLAIM, b"x", []])
    with pytest.raises(ValueError, match="sends a message as"):
        Gossip(me, None, Tasks()).handle(message, "10.0.0.2", "somebody")


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("has_met", [False, True])
@pytest.mark.parametrize(
    "incarnation",
    [MAX_INCARNATION - 1, MAX_INCARNATION - 3, NOW + MAX_AHEAD + 1, NOW + MAX_AHEAD, NOW + 9],
)
async def test_no_word_of_anybody_banishes_a_node_for_ever(state, has_met, incarnation):
    """Both hear the claim; a second later they speak to each other, and both are members again."""
    now = NOW
    a, b = (Members(Claim(name, NOW - 5, State.ALIVE, "10.0.0.1", 1, "peer", "1")) for name in "ab")
    gossips = [Gossip(members, None, Tasks(), wall=lambda: now) for members in (a, b)]

    def talk():
        for teller, hearer in (gossips, gossips[::-1]):
            hearer.handle(teller._message(with_claims=True), "10.0.0.1")

    if has_met:
        talk()
    lie = Claim("a", incarnation, state, "10.6.6.6", 6, "seed", "1")
    for gossip in gossips:
        gossip.handle(msgspec.msgpack.encode(["", SENDER_CLAIM, b"x", [lie]]), "10.0.0.6")
    now += 1
    for _ in range(2):
        talk()
    found = b.get("a")
    assert (found.state, found.role, str(found.address)) == (State.ALIVE, "peer", "10.0.0.1:1")
    assert a.digest() == b.digest()


async def test_a_claim_that_is_too_far_ahead_is_passed_over_and_the_rest_of_its_message_is_not():
    me = Members(Claim("a", 1, State.ALIVE, "", 1, "peer", "1"))
    far = msgspec.structs.replace(claims(1)[0], incarnation=NOW + MAX_AHEAD + 1)
    gossip = Gossip(me, None, Tasks(), wall=lambda: NOW)
    gossip.handle(msgspec.msgpack.encode(["", SENDER_CLAIM, b"x", [far, *claims(3)[1:]]]), "10.0.0.2")
    assert [member.node_id for member in me.alive()] == ["liar", "n1", "n2"]


async def test_a_node_whose_clock_begins_at_1970_still_finds_those_whose_clock_is_right():
    me = Members(Claim("a", 1, State.ALIVE, "", 1, "peer", "1"))
    gossip = Gossip(me, None, Tasks(), wall=lambda: 1.0)
    right = [msgspec.structs.replace(claim, incarnation=NOW) for claim in claims(1)]
    gossip.handle(msgspec.msgpack.encode(["", SENDER_CLAIM, b"x", right]), "10.0.0.2")
    assert me.get("n0") is not None


@pytest.mark.parametrize("is_called", [False, True])
@pytest.mark.parametrize("state", [State.GONE, State.LEFT])
@pytest.mark.parametrize("away", [300, 1200, 3000])
async def test_a_node_whose_clock_has_gone_back_is_a_member_again_however_long_it_was_away(away, state, is_called):
    now = float(away)
    me = Members(Claim("a", NOW, State.ALIVE, "10.0.0.1", 1, "peer", "1"))
    me.merge([Claim("b", NOW + 7200, state, "10.0.0.2", 1, "peer", "1")], 0.0)
    me.merge(claims(MAX_CLAIMS), 0.0)  # a full message
    back = Members(Claim("b", NOW, State.ALIVE, "10.0.0.2", 1, "peer", "1"))

    async def ask(address, body, node_id):
        return gossips[address.host].handle(body, str(gossips[address.host].members.me.host))

    gossips = {
        members.me.host: Gossip(members, ask, Tasks(), clock=lambda: now, wall=lambda: NOW) for members in (me, back)
    }
    if is_called:
        await gossips["10.0.0.1"].join(Address("10.0.0.2", 1))
    else:
        await gossips["10.0.0.2"].join(Address("10.0.0.1", 1))
    assert me.get("b").state == State.ALIVE
    assert back.get("a").state == State.ALIVE


async def test_a_copied_data_directory_is_said_once(caplog):
    me = Members(Claim("a", 1, State.ALIVE, "", 1, "peer", "1"))
    gossip = Gossip(me, None, Tasks())
    double = Claim("a", 1, State.ALIVE, "", 2, "peer", "1")
    for _ in range(2):
        gossip.handle(msgspec.msgpack.encode(["", double, b"x", []]), "10.0.0.2")
    [record] = caplog.records
    assert "another node, at 10.0.0.2 port 2, has our node id" in record.getMessage()


@pytest.mark.parametrize(("incarnation", "said"), [(1, 0), (7, 1)])
async def test_a_node_that_finds_its_copy_says_so_and_not_when_it_finds_itself(caplog, incarnation, said):
    async def ask(address, body, node_id):
        return msgspec.msgpack.encode(["", Claim("a", incarnation, State.ALIVE, "", 1, "peer", "1"), b"x", []])

    gossip = Gossip(Members(Claim("a", 1, State.ALIVE, "", 1, "peer", "1")), ask, Tasks())
    for _ in range(2):
        assert await gossip.join(Address("10.0.0.2", 1)) == "a"
    assert sum("delete the file node-id" in record.getMessage() for record in caplog.records) == said


@pytest.mark.parametrize("harm", ["silence", "endless", "junk", "other"])
async def test_a_member_that_answers_nonsense_is_soon_gone(harm):
    async def answer(request):
        if harm == "silence":
            await asyncio.sleep(60)
        if harm == "other":
            return web.Response(body=msgspec.msgpack.encode(["", SENDER_CLAIM, b"x", []]))
        if harm == "junk":
            return web.Response(body=b"\xff" * 1000)
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(1 << 16))

    app = web.Application()
    app.router.add_post(TARGET, answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    port = listener.getsockname()[1]
    try:
        async with mesh("a", "b") as nodes:
            await until(lambda: all_know(nodes))
            for node in nodes:  # it was a member once: hearsay alone makes no member
                node.members.merge([Claim("bad", 1, State.ALIVE, "", port, "peer", "1")], 0.0)
            await until(lambda: all("bad" not in node.known for node in nodes), 30)
            assert {"a", "b"} <= nodes[0].known | nodes[1].known
    finally:
        await runner.cleanup()

"""Hearsay about other nodes in a mesh without a key: it makes no node a peer, and few of them are called."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from mesh.discovery import dns
from mesh.gossip import Gossip
from mesh.hosts import is_fit
from mesh.membership import Address, Claim, Members, Role, State
from mesh.protocol import Message
from mesh.rumours import Rumours
from mesh.tasks import Tasks
from tests.mesh.members import Node, until


def claim(
    node_id: str = "x", incarnation: int = 1, *, host: str = "10.0.0.9", port: int = 8091, role: Role = "peer"
) -> Claim:
    return Claim(node_id, incarnation, State.ALIVE, host, port, role, "1")


@pytest.fixture
def members() -> Members:
    return Members(claim("me", host=""))


@pytest.fixture
def rumours(members: Members) -> Rumours:
    return Rumours(members)


def test_who_speaks_for_itself_holds_and_whoever_it_names_does_not(rumours: Rumours) -> None:
    said = [claim("a", host="10.0.0.1"), claim("b", host="10.0.0.2")]
    assert rumours.sift(said, 0.0, sender="a", teller="10.0.0.1") == said[:1]
    assert rumours.sift(said, 0.0, sender="a", teller="10.0.0.7") == []  # it claims another address than its own
    assert rumours.sift(said, 0.0, sender="a", teller="10.0.0.7", has_answered=True) == said[:1]
    assert rumours.sift(said, 0.0, sender="s", teller="10.0.0.7", has_answered=True, is_believed=True) == said


def test_who_does_not_answer_is_tried_ever_more_rarely_whatever_is_said_of_it(rumours: Rumours) -> None:
    tried = []
    for now in range(1000):
        told = claim("x", incarnation=now, host=f"10.0.0.{now % 200}", port=now + 1)
        rumours.sift([told], float(now), sender="liar", teller="10.6.6.6")
        tried += [now for _ in rumours.due(float(now))]
    assert tried == [0, 5, 20, 80, 380, 680, 980]


def test_one_host_is_not_tried_often_for_many_names(rumours: Rumours) -> None:
    tried = 0
    for now in range(60):
        told = [claim(f"n{now}-{n}", port=n + 1) for n in range(100)]
        rumours.sift(told, float(now), sender="liar", teller="10.6.6.6")
        tried += len(rumours.due(float(now)))
    assert 16 <= tried <= 16 + 60 / 4
    assert len(rumours) == 1000


def test_what_is_said_of_one_host_keeps_nobody_from_another(rumours: Rumours) -> None:
    told = [claim(f"n{n}", host="10.6.6.6", port=n + 1) for n in range(1000)]
    rumours.sift(told, 0.0, sender="liar", teller="10.0.0.1")
    assert len(rumours.due(0.0)) == 4
    for now in range(1, 200):
        rumours.sift([claim("x", host="10.0.0.7")], float(now), sender="a", teller="10.0.0.2")
        if "x" in [found.node_id for found, _ in rumours.due(float(now))]:
            break
    assert now < 120


def test_a_named_seed_is_asked_before_they_are_tried(rumours: Rumours) -> None:
    told = [claim(f"n{n}", host=f"10.0.1.{n}") for n in range(3)]
    assert rumours.sift(told, 0.0, sender="a", teller="10.0.0.1", may_wait=True) == []
    assert rumours.is_fresh
    assert rumours.due(1.0) == []
    assert rumours.sift(told[:2], 1.0, sender="s", teller="10.0.0.7", is_believed=True) == told[:2]
    assert [found.node_id for found, _ in rumours.due(9.0)] == ["n2"]
    assert not rumours.is_fresh


def test_a_peer_is_not_led_away_by_others_but_may_be_suspected_by_them(members: Members, rumours: Rumours) -> None:
    known = claim("x")
    members.merge([known], 0.0)
    away = [claim("x", 5, host="10.6.6.6"), claim("x", 5, port=22), claim("x", 5, role="seed")]
    assert rumours.sift(away, 0.0, sender="liar", teller="10.6.6.6") == []
    assert rumours.sift([claim("x", 2)], 0.0, sender="liar", teller="10.6.6.6") == [claim("x", 2)]
    gone = msgspec.structs.replace(away[0], state=State.GONE)
    [held] = rumours.sift([gone], 0.0, sender="liar", teller="10.6.6.6")
    assert (held.state, held.incarnation, held.host, held.port) == (State.GONE, 5, known.host, known.port)
    unknown = msgspec.structs.replace(gone, node_id="y")
    assert rumours.sift([unknown], 0.0, sender="liar", teller="10.6.6.6") == []
    assert len(rumours) == 1


@pytest.mark.parametrize(
    ("host", "teller", "fit"),
    [
        ("10.0.0.2", "10.0.0.1", True),
        ("node.lan", "10.0.0.1", True),
        ("2001:db8::1", "10.0.0.1", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("", "127.0.0.1", True),
        ("127.0.0.1", "10.0.0.1", False),
        ("::ffff:127.0.0.1", "10.0.0.1", False),
        ("localhost", "10.0.0.1", False),
        ("LOCALHOST", "10.0.0.1", False),
        ("localhost.", "10.0.0.1", False),
        ("a.LocalHost.", "10.0.0.1", False),
        ("LOCALHOST", "127.0.0.1", True),
        ("169.254.169.254", "10.0.0.1", False),
        ("169.254.1.2", "169.254.1.1", True),
        ("fe80::1", "10.0.0.1", False),
        ("::ffff:169.254.169.254", "10.0.0.1", False),
        ("0.0.0.0", "10.0.0.1", False),
        ("::", "127.0.0.1", False),
        ("224.0.0.251", "10.0.0.1", False),
        ("ff02::1", "10.0.0.1", False),
        ("255.255.255.255", "10.0.0.1", False),
    ],
)
def test_where_nobody_can_be_for_others(host: str, teller: str, fit: bool) -> None:
    assert is_fit(host, teller) is fit


@pytest.fixture
async def victim() -> AsyncIterator[tuple[int, list[float]]]:
    """A port, and the times of the connections to it."""
    came: list[float] = []

    async def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(asyncio.get_running_loop().time())
        writer.close()

    server = await asyncio.start_server(count, sock=socket.create_server(("127.0.0.1", 0)))
    async with server:
        yield server.sockets[0].getsockname()[1], came


@pytest.mark.parametrize("host", ["127.0.0.1", "LOCALHOST", "localhost.", "169.254.169.254", "224.0.0.251"])
def test_nobody_is_where_no_other_node_can_be_even_if_it_has_answered(rumours: Rumours, host: str) -> None:
    said = [claim("a", host=host)]
    assert rumours.sift(said, 0.0, sender="a", teller="10.0.0.1", has_answered=True) == []
    assert len(rumours) == 0


NAME = "node.lan"


def test_a_name_that_a_named_seed_confirms_is_tried_at_once(rumours: Rumours) -> None:
    told = [claim(host=NAME)]
    assert rumours.sift(told, 0.0, sender="a", teller="10.0.0.1", may_wait=True) == []
    assert rumours.due(0.0) == []
    assert rumours.sift(told, 0.0, sender="s", teller="10.0.0.7", is_believed=True, may_wait=True) == []
    assert [found.node_id for found, _ in rumours.due(0.0)] == ["x"]


@pytest.fixture
def leads_to(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where NAME leads."""
    hosts = ["10.0.0.6"]

    async def resolve(address: Address) -> list[Address]:
        return [Address(host, address.port) for host in (hosts if address.host == NAME else [address.host])]

    monkeypatch.setattr(dns, "resolve", resolve)
    return hosts


class Place:
    """A node "me" in an open mesh; the node "x", which claims to be at NAME, is at one host."""

    def __init__(self) -> None:
        self.host = "10.0.0.6"
        self.called: list[str] = []
        self.says = claim("x", host=NAME)
        self.members = Members(claim("me", host="10.0.0.1"), is_open=True)
        self.gossip = Gossip(self.members, self._ask, Tasks(), is_open=True)

    async def _ask(self, address: Address, body: bytes, node_id: str) -> bytes:
        self.called.append(address.host)
        if address.host != self.host:
            raise ConnectionRefusedError
        return msgspec.msgpack.encode(["", self.says, b"x", []])

    async def probe(self) -> str:
        await self.gossip._probe(self.members.get("x"))
        return self.members.get("x").address.host


@pytest.mark.parametrize("is_told_by_a_seed", [False, True])
async def test_a_name_leads_no_call_to_this_machine(leads_to: list[str], is_told_by_a_seed: bool) -> None:
    place = Place()
    if is_told_by_a_seed:
        place.gossip._seeds.add(Address("10.0.0.2", 1))
        place.says, place.host = claim("seed", host="10.0.0.2"), "10.0.0.2"
        message = Message("", place.says, b"x", (claim("x", host=NAME),))
        place.gossip._take(message, "10.0.0.2", Address("10.0.0.2", 1))
        assert place.members.get("x") is None, "it has not answered yet"
        [(told, teller)] = place.gossip._rumours.due(time.monotonic())
        leads_to[:] = ["127.0.0.1", "169.254.169.254"]
        await place.gossip._look_into(told, teller)
    else:
        await place.gossip.join(Address("10.0.0.6", 8091))
        place.host, leads_to[:] = "", ["127.0.0.1", "169.254.169.254"]
        for _ in range(3):
            assert await place.probe() == "10.0.0.6"
            place.members.merge([claim("x", place.members.get("x").incarnation + 2, host=NAME)], 0.0)
    assert set(place.called) <= {"10.0.0.6"}


async def test_a_node_with_a_name_is_found_where_the_name_leads_after_a_move(leads_to: list[str]) -> None:
    place = Place()
    await place.gossip.join(Address("10.0.0.6", 8091))
    leads_to[:] = ["10.0.0.7"]
    assert await place.probe() == "10.0.0.6"
    place.host = "10.0.0.7"
    assert await place.probe() == "10.0.0.7"
    assert place.members.get("x").state == State.ALIVE


async def test_a_stranger_s_word_brings_one_call_and_no_peer(victim: tuple[int, list[float]]) -> None:
    port, came = victim
    nodes = [await Node("a").start(), await Node("b").start()]
    a, b = nodes
    try:
        await b.gossip.join(a.address)
        said = claim("victim", host="127.0.0.1", port=port, role="seed")
        liar = claim("liar", host="", port=1)
        a.gossip.handle(msgspec.msgpack.encode([a.auth.mesh_id, liar, b"x", [said]]), "127.0.0.1")
        await until(lambda: len(came) > 0)
        exchanges = b.exchanges
        await until(lambda: b.exchanges > exchanges + 10)
        assert len(came) == 1
        assert [node for node in nodes if "victim" in node.known] == []
        assert {member.role for node in nodes for member in node.members.alive()} == {"peer"}
        assert b.members.get("victim") is None
        assert all(claim.node_id != "victim" for claim in a.members.snapshot(0.0))
    finally:
        for node in nodes:
            await node.stop()


async def test_a_node_that_answers_is_a_peer_however_it_was_heard_of() -> None:
    nodes = [await Node("a").start(), await Node("b").start(), await Node("c").start()]
    a, b, c = nodes
    try:
        told = claim("c", host="", port=c.port)
        said = [a.auth.mesh_id, claim("b", host="", port=b.port), b"x", [told]]
        a.gossip.handle(msgspec.msgpack.encode(said), "127.0.0.1")
        await until(lambda: a.known == {"b", "c"} and b.known == {"a", "c"} and c.known == {"a", "b"})
    finally:
        for node in nodes:
            await node.stop()

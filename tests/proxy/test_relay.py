"""Requests that one node makes for all: their form, the age of the answers, and the fallback when the owner fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from mesh.exchange import Alone, Neighbour
from mesh.questions import Questions
from proxy.hub.client import Client
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.hub.freshness import Freshness
from proxy.origin import Question
from proxy.relay import Relay
from proxy.replies import Kept, Replies, Reply
from tests.proxy.parts import TINY, Parts, parts

COMMIT = "a" * 40
INFO, FILE = "/api/models/acme/tiny", f"/acme/tiny/resolve/{COMMIT}/w.bin"
PATHS = f"{INFO}/paths-info/{COMMIT}"
FORM = "application/x-www-form-urlencoded"
OPEN = b'{"id":"acme/tiny","private":false,"gated":false}'
FILES = {"a.txt": b"a", "b.txt": b"b", "w.safetensors": b"w" * 3000}


class Line(Alone):
    """The connection to another node, which is a seed and owns all questions."""

    is_keyed = True

    def __init__(self) -> None:
        self.other: Questions | None = None
        self.asked = 0

    def alive(self) -> tuple[Neighbour, ...]:
        return () if self.other is None else (Neighbour("owner", "http://127.0.0.1:1", is_seed=True),)

    async def ask(self, node: str, target: str, body: bytes, limit: int = 0) -> bytes:
        assert self.other is not None
        assert self.other.answerer is not None
        self.asked += 1
        return await self.other.answerer(body) or b""


@pytest.fixture
def site(tmp_path):
    """The owner of all questions, a node that asks it, and the connection between them."""

    @asynccontextmanager
    async def site(url: str, owners_url: str = "", **owners: object) -> AsyncIterator[tuple[Parts, Parts, Line]]:
        async with (
            parts(owners_url or url, tmp_path / "owner", **owners) as owner,  # type: ignore[arg-type]
            parts(url, tmp_path / "asker") as asker,
        ):
            line = Line()
            line.other = Questions("owner", Line(), is_seed=True)
            Relay(line.other, owner.origin, owner.catalog, Freshness())
            Relay(Questions("asker", line, is_seed=False), asker.origin, asker.catalog, Freshness())
            yield owner, asker, line

    return site


class Wire:
    """A Hub at the level of bytes: records what it heard, and answers each request with `says`."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.says = answer(OPEN)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next((int(f[15:]) for f in head.split(b"\r\n") if f.lower().startswith(b"content-length:")), 0)
                self.heard.append(head + await reader.readexactly(length))
                writer.write(self.says)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def wire():
    wire = Wire()
    server = await asyncio.start_server(wire.handle, "127.0.0.1", 0)
    wire.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield wire
    server.close()


def answer(body: bytes, *headers: bytes, status: int = 200) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 %d X" % status, b"Content-Length: %d" % len(body), *headers, b"", body])


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", INFO, {"Content-Length": "120", "Transfer-Encoding": "chunked", "Accept": "text/html", "Expect": "x"}),
        ("GET", f"//hf{INFO}?expand[]=sha", {"X": "1\r\nY: 2"}),
        ("HEAD", f"/hf{FILE}?x=1", {"If-None-Match": '"x"'}),
        ("POST", PATHS, {"Content-Type": FORM, "X": "y"}),
    ],
)
async def test_what_others_ask_goes_to_the_hub_in_our_own_words(site, wire, method, target, headers):
    wire.says = answer(b"" if method == "HEAD" else OPEN)
    async with site(wire.url) as (owner, _, line):
        asked = Question(method, target, "made-up", "lib/1 \x80\r\nX: y" + "z" * 9999, headers, b"paths=a")
        assert await line.other.answerer(msgspec.msgpack.encode(asked))
        assert owner.figures.requests == [("metadata" if method == "HEAD" else "api", 200)]
    head, _, body = wire.heard[0].partition(b"\r\n\r\n")
    first, *fields = head.split(b"\r\n")
    known = {INFO: INFO, f"//hf{INFO}?expand[]=sha": f"{INFO}?expand[]=sha", f"/hf{FILE}?x=1": FILE, PATHS: PATHS}
    assert first.split(b" ") == [method.encode(), known[target].encode(), b"HTTP/1.1"]
    names = {field.partition(b":")[0].lower() for field in fields}
    of_body = {b"content-length", b"content-type"} if method == "POST" else set()
    assert names == {b"host", b"accept-encoding", b"user-agent"} | of_body
    assert body == (b"paths=a" if method == "POST" else b"")
    agent = next(field for field in fields if field.lower().startswith(b"user-agent"))
    assert agent.isascii()
    assert len(agent) < 600


@pytest.mark.parametrize(
    "question",
    [
        Question("GET", "7/api/models/o/n", "api"),  # appended to the Hub's address: another port
        Question("GET", ".elsewhere.example/api/models/o/n", "api"),
        Question("GET", f"{INFO}?x HTTP/1.1\r\nHost: x\r\n\r\nGET /", "api"),
        Question("GET", f"{INFO}?x y", "api"),
        Question("GET", f"{INFO}?{'x' * 9000}", "api"),
        Question("GET", FILE, "metadata"),
        Question("HEAD", INFO, "api"),
        Question("GET", PATHS, "api"),
        Question("POST", PATHS, "api", "", {"Content-Type": "x\r\nY: z"}, b"paths=a"),
        Question("POST", INFO, "api"),
        Question("GET", "/api/whoami-v2", "api"),
    ],
)
async def test_what_no_node_asks_as_nobody_is_not_asked_for_others(site, wire, question):
    async with site(wire.url) as (_, _, line):
        assert await line.other.answerer(msgspec.msgpack.encode(question)) is None
    assert wire.heard == []


async def test_questions_whose_answers_differ_are_kept_apart(site, wire):
    async with site(wire.url) as (_, asker, _):
        for content_type in (FORM, "application/json", FORM):
            headers = {"Content-Type": content_type}
            await asker.origin.ask("POST", PATHS, kind="api", headers=headers, body=b"paths=a")
        await asker.origin.ask("POST", PATHS, kind="api", headers={"Content-Type": FORM}, body=b"paths=b")
    assert len(wire.heard) == 3


@pytest.mark.parametrize("how", ["gated", "private"])
async def test_an_answer_from_before_a_refusal_opens_nothing(hub, site, how):
    commit = hub.folder.commit(TINY.id, FILES)
    revision, tree = f"/api/models/acme/tiny/revision/{commit}", f"/api/models/acme/tiny/tree/{commit}"
    async with site(hub.url) as (owner, asker, line):
        await asker.file("a.txt", revision=commit)
        for target in (revision, tree):
            await asker.ask(target)
        answered = line.asked
        repo = hub.folder.load("models", TINY.id)
        setattr(repo, how, True)
        repo.save(hub.folder.folder("models", TINY.id))
        before = time.time()
        with pytest.raises(HubError):
            await asker.file("other.txt", revision=commit)
        # The owner keeps its answers for the others, but this node knows better.
        with pytest.raises(HubError):
            await asker.file("a.txt", revision=commit)
        if how == "private":
            for target in (revision, tree):
                with pytest.raises(HubError):
                    await asker.ask(target)
        assert line.asked > answered
        assert asker.catalog.publicness(str(TINY)).opened_at < before
        # The owner does not use them either, once it has heard the same.
        with pytest.raises(HubError):
            await owner.file("other.txt", revision=commit)
        encoded = msgspec.msgpack.encode(Question("HEAD", f"/acme/tiny/resolve/{commit}/a.txt", "metadata"))
        assert msgspec.msgpack.decode(await line.other.answerer(encoded), type=Reply).status == 401


async def test_what_an_owner_kept_is_as_old_as_it_is(hub, site):
    commit = hub.folder.commit(TINY.id, FILES)
    async with site(hub.url) as (_, asker, line):
        first = await asker.origin.ask("HEAD", "/acme/tiny/resolve/main/w.safetensors", kind="metadata")
        await asker.origin.ask("GET", f"{INFO}/revision/{commit}", kind="api")  # as when the branch is already known
        heard_at = time.time()
        hub.reset()
        file = await asker.file("w.safetensors")
        await asker.ask(INFO)
        assert line.asked == 4
        assert hub.stats()["requests"] == {}
        # Reckoned back from an age, by two clocks: a little earlier is no error.
        assert first.said_at - 0.1 <= asker.catalog.ref(str(TINY), "main").said_at <= heard_at
        assert asker.catalog.file(str(TINY), file.commit, "w.safetensors").open_at <= heard_at
        assert asker.catalog.publicness(str(TINY)).opened_at <= heard_at
        assert asker.catalog.answer(str(TINY), "*", f"{file.commit}\n").said_at <= heard_at


async def test_an_older_refusal_does_not_undo_a_newer_one(hub, site):
    commit = hub.folder.commit(TINY.id, FILES)
    folder, repo = hub.folder.folder("models", TINY.id), hub.folder.load("models", TINY.id)
    revision = f"/api/models/acme/tiny/revision/{commit}"

    async def refused(question) -> None:
        with pytest.raises(HubError):
            await question

    async with site(hub.url) as (_, asker, _):
        repo.private = True
        repo.save(folder)
        await refused(asker.file("b.txt", revision=commit))  # which the owner keeps for a while
        await refused(asker.ask(revision))
        repo.private = False
        repo.save(folder)
        await asker.file("a.txt", revision=commit)
        repo.private = True
        repo.save(folder)
        await refused(asker.file("other.txt", revision=commit))
        newer = asker.catalog.publicness(str(TINY))
        await refused(asker.file("b.txt", revision=commit))
        await refused(asker.ask(revision))
        after = asker.catalog.publicness(str(TINY))
        assert (after.closed_at, after.hidden_at) == (newer.closed_at, newer.hidden_at)


async def test_an_address_that_was_refused_is_not_the_answer_again(hub, site):
    commit = hub.folder.commit(TINY.id, FILES)
    async with site(hub.url) as (_, asker, _):
        file = await asker.file("w.safetensors", revision=commit)
        first = await asker.resolver.locate(file, Client())
        assert (await asker.resolver.locate(file, Client(), refused=first)).url != first.url


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 300),
        ({"Cache-Control": "no-store"}, 0),
        ({"Cache-Control": "private, max-age=60"}, 0),
        ({"Cache-Control": "no-cache"}, 0),
        ({"Cache-Control": "max-age=60", "Age": "50"}, 10),
        ({"Cache-Control": "public, max-age=31536000"}, 300),
        ({"Location": f"https://cdn.example/x?Expires={NOW + 40:.0f}&Signature=y"}, 20),
        ({"Location": f"https://cdn.example/x?Expires={NOW + 3600:.0f}&Signature=y"}, 300),
        ({"Location": f"https://cdn.example/x?Expires={NOW - 1:.0f}&Signature=y"}, 300),  # clocks differ
        ({"Location": "/api/resolve-cache/models/acme/tiny/x"}, 300),
    ],
)
def test_a_reply_is_kept_no_longer_than_it_and_its_address_are_good(headers, seconds):
    assert Reply.of(200, headers, b"").life(300.0, NOW) == seconds


def test_what_is_kept_is_bounded_and_goes_when_it_is_over():
    replies, mib = Replies(max_bytes=3 << 20), Reply(200, (), bytes(1 << 20))
    for number in range(4):
        replies.keep(str(number), Kept(0.0, mib), 20.0, 0.0)
    assert [replies.get(str(number), 1.0) is not None for number in range(4)] == [False, False, True, True]
    assert replies.size <= 3 << 20
    replies.keep("3", Kept(1.0, mib), 0.0, 1.0)  # an answer that must not be kept replaces the older one
    assert replies.get("3", 1.0) is None
    assert replies.get("2", 20.0) is None
    replies.keep("late", Kept(30.0, Reply(200)), 20.0, 30.0)
    assert len(replies) == 1
    replies.drop("late")
    assert replies.size == 0
    for number in range(5000):
        replies.keep(str(number), Kept(0.0, Reply(200)), 20.0, 30.0)
    assert len(replies) == 2000


async def test_an_answer_by_way_of_the_owner_shows_that_the_hub_is_back(wire, site):
    async with site(wire.url) as (_, asker, line):
        await asker.origin.ask("GET", INFO, kind="api")
        wire.says = answer(b"", status=503)
        with pytest.raises(OriginUnavailable):
            await asker.origin.ask("HEAD", FILE, kind="metadata", token="hf_x")
        wire.says = answer(OPEN)
        await asker.origin.ask("GET", INFO, kind="api")
        assert asker.origin.is_failing, "the owner had this answer before"
        await asker.origin.ask("GET", f"{INFO}?x=1", kind="api")
        assert not asker.origin.is_failing
        assert line.asked == 3


async def test_an_owner_that_does_not_reach_the_hub_costs_nobody_an_answer(wire, site, unused_tcp_port):
    away = f"http://127.0.0.1:{unused_tcp_port}"
    async with site(wire.url, away) as (owner, asker, line):
        for number in range(4):
            assert (await asker.origin.ask("GET", f"{INFO}?x={number}", kind="api")).body == OPEN
        assert line.asked == 1, "the owner is passed over for a while"
        assert not owner.origin.is_failing
        assert not asker.origin.is_failing
    async with site(wire.url, offline=True) as (_, asker, line):
        assert (await asker.origin.ask("GET", INFO, kind="api")).body == OPEN
        assert await line.other.answerer(msgspec.msgpack.encode(Question("GET", INFO, "api"))) is None


async def test_who_waited_long_for_an_owner_has_no_time_to_ask_the_hub_as_well(wire, site, monkeypatch):
    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silence = await asyncio.start_server(listen, "127.0.0.1", 0)
    away = f"http://127.0.0.1:{silence.sockets[0].getsockname()[1]}"
    async with site(wire.url, away, silence=0.2) as (_, asker, line):
        monkeypatch.setattr("proxy.relay._PATIENCE", 0.0)
        with pytest.raises(OriginUnavailable) as caught:
            await asker.origin.ask("GET", INFO, kind="api")
        assert caught.value.is_timeout
        assert (await asker.origin.ask("GET", f"{INFO}?x=1", kind="api")).body == OPEN
        asker.origin.relay._questions._down_until.clear()
        assert (await asker.origin.ask("GET", INFO, kind="api")).body == OPEN
        assert line.asked == 1, "the owner is passed over for a while, and for longer for what it did not answer"
    monkeypatch.undo()
    async with site(wire.url, away, silence=0.2) as (_, asker, line):
        assert (await asker.origin.ask("GET", INFO, kind="api")).body == OPEN
        assert line.asked == 1
    silence.close()


async def test_an_owner_is_not_blamed_for_the_hub(site, unused_tcp_port, wire):
    async with site(f"http://127.0.0.1:{unused_tcp_port}") as (_, asker, line):
        for number in range(3):
            with pytest.raises(OriginUnavailable):
                await asker.origin.ask("GET", f"{INFO}?x={number}", kind="api")
        assert line.asked == 3
        assert asker.origin.is_failing
    wire.says = answer(b"", b"Retry-After: 7", status=429)
    async with site(wire.url) as (_, asker, _):
        with pytest.raises(OriginUnavailable) as caught:
            await asker.origin.ask("GET", INFO, kind="api")
        assert caught.value.retry_after == 7
        assert len(wire.heard) == 1, "a pause is everyone's"


async def test_a_header_that_is_no_text_arrives_as_it_was(wire, site):
    wire.says = answer(OPEN, b"X-Name: M\xfcller", "X-Other: Müller".encode())
    async with site(wire.url) as (_, asker, line):
        told = await asker.origin.ask("GET", INFO, kind="api", user_agent="M\udcfcller/1.0")
        asked = await asker.origin.ask_directly(Question("GET", INFO, "api"))
        assert line.asked == 1
        assert told.headers == asked.headers
        assert told.headers["X-Other"] == "Müller"
        assert told.headers["X-Name"].encode(errors="surrogateescape") == b"M\xfcller"

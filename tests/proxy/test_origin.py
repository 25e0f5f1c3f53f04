"""Requests to the Hub: what they carry, what counts as an answer, and which requests a pause applies to."""

from __future__ import annotations

import asyncio
import gzip

import pytest
from aiohttp import web

from proxy.hub.errors import OriginUnavailable
from proxy.origin import Origin, Question
from tests.proxy.parts import Figures

FILE, QUESTION = "/acme/tiny/resolve/main/a", "/api/models/acme/tiny"


class Awkward:
    """Answers as it is told to, and records the requests."""

    def __init__(self) -> None:
        self.asked: list[web.BaseRequest] = []
        self.answers: list[web.Response] = []
        self.hang = False
        self.came = asyncio.Event()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request)
        self.came.set()
        if self.hang:
            await asyncio.sleep(60)
        return self.answers.pop(0) if self.answers else web.Response(text="ok")


@pytest.fixture
async def awkward(aiohttp_raw_server):
    awkward = Awkward()
    server = await aiohttp_raw_server(awkward.handle)
    awkward.url = f"http://127.0.0.1:{server.port}"
    return awkward


@pytest.fixture
async def origin(awkward):
    origin = Origin(awkward.url, metrics=Figures(), answer_timeout=2.0)
    yield origin
    await origin.close()


async def ask(origin: Origin, target: str = FILE, token: str | None = None) -> int:
    return (await origin.ask("GET", target, kind="metadata", token=token)).status


async def unavailable(origin: Origin, target: str = FILE, token: str | None = None) -> OriginUnavailable:
    with pytest.raises(OriginUnavailable) as caught:
        await ask(origin, target, token)
    return caught.value


async def test_a_question_carries_the_clients_name_and_token_and_nothing_of_ours(
    origin, awkward, monkeypatch, tmp_path
):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login x password hf_operator\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    await origin.ask("GET", "/a%2Fb?x=%20y", kind="api", token="hf_x", user_agent="lib/1; hf_hub/1.0")
    await ask(origin)
    first, second = awkward.asked
    assert first.raw_path == "/a%2Fb?x=%20y"
    assert first.headers["Authorization"] == "Bearer hf_x"
    assert first.headers["User-Agent"] == "lib/1; hf_hub/1.0"
    assert first.headers["Accept-Encoding"] == "identity"
    assert "Authorization" not in second.headers
    assert "User-Agent" not in second.headers


async def test_an_answer_is_what_came_whole(origin, awkward):
    awkward.answers = [
        web.Response(body=gzip.compress(b"[1]"), headers={"Content-Encoding": "gzip"}),  # although asked not to
        web.Response(status=302, headers={"Location": "/elsewhere"}),
        web.Response(status=404, text="no"),
    ]
    assert (await origin.ask("GET", QUESTION, kind="api")).body == b"[1]"
    assert await ask(origin) == 302
    assert await ask(origin) == 404
    assert len(awkward.asked) == 3


async def test_what_is_no_answer_is_the_origins_fault(origin, awkward):
    awkward.answers = [web.Response(status=500), web.Response(status=503), web.Response(status=408)]
    for _ in range(3):
        assert (await unavailable(origin)).retry_after is None
    assert origin.is_failing
    assert await ask(origin) == 200
    assert not origin.is_failing
    origin._answer_timeout, awkward.hang = 0.1, True
    assert (await unavailable(origin)).is_timeout
    assert origin.is_failing


async def test_a_fault_of_one_question_or_of_somebody_elses_is_not_that_of_the_whole_hub(origin, awkward, monkeypatch):
    monkeypatch.setattr("proxy.origin._MAX_ANSWER", 10)
    awkward.answers = [web.Response(status=500), web.Response(status=408), web.Response(text="x" * 11)]
    for _ in range(3):
        await unavailable(origin)
        assert not origin.is_failing
    question = Question("GET", FILE, "metadata")
    awkward.answers = [web.Response(status=503), web.Response(status=503)]
    with pytest.raises(OriginUnavailable):
        await origin.ask_directly(question, is_ours=False)
    assert not origin.is_failing
    await unavailable(origin)
    assert origin.is_failing
    await origin.ask_directly(question, is_ours=False)  # an answer counts, whichever client asked
    assert not origin.is_failing


async def test_a_slow_answer_about_one_repository_makes_no_other_stale(origin, awkward):
    async def ask_slowly(target: str) -> None:
        with pytest.raises(OriginUnavailable):
            await origin.ask("GET", target, kind="api")

    origin._silence, awkward.hang = 0.2, True
    for _ in range(2):
        await ask_slowly(QUESTION)
    awkward.hang = False
    awkward.answers = [web.Response(status=504)]
    await ask_slowly(QUESTION)
    assert not origin.is_failing
    assert await ask(origin) == 200
    awkward.answers = [web.Response(status=504), web.Response(status=502)]
    await ask_slowly(f"{QUESTION}/refs")
    assert not origin.is_failing, "other questions have been answered since the first was not"
    await ask_slowly(QUESTION)
    assert origin.is_failing, "none is answered"


@pytest.mark.parametrize("parts", [(0.6,), (0.0, 0.6, 0.6, 0.6, 0.6), (0.0, 60.0)])
async def test_an_answer_about_a_repository_may_take_long_as_long_as_it_comes(aiohttp_raw_server, parts):
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        for pause in parts:
            await asyncio.sleep(pause)
            if not response.prepared:
                await response.prepare(request)
            await response.write(b"x")
        return response

    server = await aiohttp_raw_server(handle)
    origin = Origin(f"http://127.0.0.1:{server.port}", metrics=Figures(), answer_timeout=0.1, silence=2.0)
    asking = origin.ask("GET", QUESTION, kind="api")
    if max(parts) > 2.0:
        with pytest.raises(OriginUnavailable) as caught:
            await asking
        assert caught.value.is_timeout
    else:
        assert (await asking).body == b"x" * len(parts)
    assert not origin.is_failing
    await origin.close()


async def test_slow_questions_take_no_connections_from_those_about_files(awkward, monkeypatch):
    monkeypatch.setattr("proxy.origin._MAX_QUESTIONS", 1)
    origin = Origin(awkward.url, metrics=Figures(), answer_timeout=5.0)
    awkward.hang = True
    origin.flights.start("slow", lambda: origin.ask("GET", QUESTION, kind="api"))
    await awkward.came.wait()
    awkward.hang = False
    assert await ask(origin) == 200
    await origin.close()


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_kept_connection_that_ends_as_a_question_goes_out_costs_no_answer(method):
    heard = []

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A Hub that tires of each connection after one answer, which shows only when the next request is sent."""
        for is_first in (True, False):
            head = await reader.readuntil(b"\r\n\r\n")
            heard.append(await reader.readexactly(4 if method == "POST" else 0))
            if is_first:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")
            assert head.startswith(method.encode())
        writer.close()

    server = await asyncio.start_server(once, "127.0.0.1", 0)
    origin = Origin(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", metrics=Figures())
    body = b"a=bc" if method == "POST" else None
    try:
        for _ in range(2):
            assert (await origin.ask(method, QUESTION, kind="api", body=body)).body == b"[]"
        assert heard == [body or b""] * 3
        if method == "POST":  # a client's request that passes through must not be sent twice
            async with origin.open("POST", "/", kind="other", headers={}, body=body) as first:
                await first.read()
            with pytest.raises(OriginUnavailable):
                async with origin.open("POST", "/", kind="other", headers={}, body=body):
                    pass
            assert len(heard) == 5
    finally:
        await origin.close()
        server.close()


async def test_no_connection_is_the_origins_fault(unused_tcp_port):
    figures = Figures()
    origin = Origin(f"http://127.0.0.1:{unused_tcp_port}", metrics=figures)
    assert "cannot reach" in (await unavailable(origin)).reason
    assert figures.requests == [("metadata", 0)]
    await origin.close()


async def test_a_pause_binds_those_whose_quota_it_is(origin, awkward):
    awkward.answers = [web.Response(status=429, headers={"RateLimit": '"resolvers";r=0;t=20'})]
    assert (await unavailable(origin)).retry_after == 21
    assert len(awkward.asked) == 1
    assert 0 < (await unavailable(origin, "/acme/other/resolve/main/b")).retry_after <= 21
    assert len(awkward.asked) == 1  # without asking again
    assert await ask(origin, QUESTION) == 200  # another of the Hub's windows
    assert await ask(origin, FILE, "hf_x") == 200  # another quota
    assert not origin.is_failing


async def test_the_last_of_a_quota_is_a_pause_too(origin, awkward):
    awkward.answers = [web.Response(headers={"RateLimit": '"resolvers";r=0;t=20'})]
    assert await ask(origin) == 200
    assert (await unavailable(origin)).retry_after is not None


NONSENSE = [({"Retry-After": said}, 5) for said in ("²", "-1", "nan", "9" * 5000)]
NONSENSE += [({"RateLimit": f'"api";r=0;t={said}'}, 5) for said in ("²", "9" * 5000)]


@pytest.mark.parametrize(
    ("headers", "seconds"), [({"Retry-After": "7"}, 7), ({"Retry-After": "9999"}, 300), ({}, 5), *NONSENSE]
)
async def test_a_pause_is_as_long_as_asked_for_within_reason(origin, awkward, headers, seconds):
    awkward.answers = [web.Response(status=429, headers=headers)]
    assert (await unavailable(origin)).retry_after == seconds


def test_redirects_are_followed_within_the_hub_only():
    origin = Origin("http://mirror.local/hf", metrics=Figures())
    assert origin.follow("/a/resolve/main/x", "/hf/b/resolve/main/x?y=%20") == "/b/resolve/main/x?y=%20"
    assert origin.follow("/a", "http://mirror.local/hf/b") == "/b"
    for away in ("", "https://elsewhere.example/b", "//elsewhere.example/b", "https://mirror.local/hf/b"):
        with pytest.raises(OriginUnavailable):
            origin.follow("/a", away)


async def test_offline_nothing_leaves():
    figures = Figures()
    origin = Origin("http://127.0.0.1:1", metrics=figures, offline=True)
    assert "offline" in (await unavailable(origin)).reason
    with pytest.raises(OriginUnavailable):
        async with origin.open("GET", "/", kind="other", headers={}):
            pass
    assert figures.requests == []
    await origin.close()

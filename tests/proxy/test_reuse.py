"""Responses that pass through are cached where HTTP allows it, and only for those that they were meant for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from aiohttp import ClientSession, web

from proxy import caching
from proxy.caching import Stored
from proxy.hub import errors
from proxy.hub.errors import OriginUnavailable
from proxy.hub.urls import parse
from proxy.ranges import select
from proxy.resolve import Client
from proxy.shelf import Shelf
from tests.proxy.parts import parts

pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")

NOW = 1_800_000_000.0
TARGET = "/api/models?author=acme"


class Hub:
    """Answers with `status` and `headers`, and with a different body each time."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked: list[web.BaseRequest] = []
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request)
        if self.is_away:
            assert request.transport is not None
            request.transport.close()
        number = len(self.asked)
        if request.method == "GET":
            await self.gate.wait()
        if "ETag" in self.headers and request.headers.get("If-None-Match") == self.headers["ETag"]:
            return web.Response(status=304, headers=self.headers)
        return web.Response(status=self.status, text=f"answer {number} of them all", headers=self.headers)


@pytest.fixture
async def hub(aiohttp_raw_server):
    hub = Hub()
    server = await aiohttp_raw_server(hub.handle)
    hub.url = f"http://127.0.0.1:{server.port}"
    return hub


@pytest.fixture
async def ask(hub, tmp_path, aiohttp_raw_server):
    """A function: `await ask(method, target, headers)` returns (status, body, headers)."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        ask.last = request
        try:
            return await known.passthrough.handle(request, parse(request.raw_path))
        except OriginUnavailable as error:
            return errors.respond(error, Client.of(request.headers))

    async def ask(method="GET", target=TARGET, **headers):
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with client.request(method, f"http://127.0.0.1:{server.port}{target}", headers=sent) as answer:
            return answer.status, await answer.text(), answer.headers

    async with parts(hub.url, tmp_path) as known, ClientSession() as client:
        server = await aiohttp_raw_server(handle)
        yield ask


async def test_what_says_that_it_is_fresh_is_asked_once(hub, ask):
    hub.headers = {"Cache-Control": "max-age=60", "ETag": '"1"', "RateLimit": '"api";r=0;t=9', "Age": "7"}
    first = await ask()
    assert first[2]["Cache-Status"] == "hubmesh; fwd=uri-miss; stored"
    status, body, headers = await ask()
    assert (status, body, headers["Cache-Status"]) == (200, first[1], "hubmesh; hit")
    assert 7 <= int(headers["Age"]) < 60
    assert headers["Date"] == first[2]["Date"]
    assert "RateLimit" not in headers
    assert (await ask(If_None_Match='W/"1"'))[:2] == (304, "")
    status, body, headers = await ask(Range="bytes=2-4")
    assert (status, body, headers["Content-Range"]) == (206, first[1][2:5], f"bytes 2-4/{len(first[1])}")
    assert (await ask("HEAD"))[2]["Content-Length"] == str(len(first[1]))
    assert len(hub.asked) == 1
    assert (await ask(Cache_Control="no-cache"))[2]["Cache-Status"] == "hubmesh; fwd=stale; fwd-status=304"
    assert ask.last["outcome"] == "hit"
    assert (await ask(target="/api/models?author=other", Cache_Control="only-if-cached"))[0] == 504
    assert len(hub.asked) == 2


@pytest.mark.parametrize(
    ("status", "headers", "sent"),
    [
        (200, {}, {}),
        (200, {"ETag": '"1"'}, {}),
        (200, {"Cache-Control": "max-age=60, private"}, {}),
        (200, {"Cache-Control": "no-store, max-age=60"}, {}),
        (200, {"Cache-Control": 'max-age=60, private="x"'}, {}),
        (200, {"Cache-Control": "public, max-age=60", "Set-Cookie": "a=b"}, {}),
        (200, {"Cache-Control": "public, max-age=60", "Vary": "*"}, {}),
        (200, {"Cache-Control": "public, max-age=60"}, {"Authorization": "Bearer hf_alice"}),
        (200, {"Cache-Control": "public, max-age=60"}, {"Cookie": "token=hf_alice"}),
        (200, {"Cache-Control": "public, max-age=60"}, {"Cache_Control": "no-store"}),
        (404, {"Cache-Control": "public, max-age=60"}, {}),
        (401, {"Cache-Control": "public, max-age=60"}, {}),
        (503, {"Cache-Control": "public, max-age=60"}, {}),
    ],
)
async def test_what_is_not_for_everybody_or_says_nothing_is_never_kept(hub, ask, status, headers, sent):
    hub.status, hub.headers = status, headers
    first, second, plain = await ask(**sent), await ask(**sent), await ask()
    assert len({first[1], second[1], plain[1]}) == 3
    assert "stored" not in first[2]["Cache-Status"]


async def test_a_token_is_never_answered_from_what_is_kept(hub, ask):
    hub.headers = {"Cache-Control": "public, max-age=60"}
    kept = await ask()
    own = await ask(Authorization="Bearer hf_alice")
    assert own[1] != kept[1]
    assert own[2]["Cache-Status"] == "hubmesh; fwd=bypass"
    assert (await ask())[1] == kept[1]


async def test_what_vary_names_makes_another_answer(hub, ask):
    hub.headers = {"Cache-Control": "max-age=60", "Vary": "Origin, Accept"}
    html, data = await ask(Accept="text/html"), await ask(Accept="application/json")
    assert data[2]["Cache-Status"] == "hubmesh; fwd=vary-miss; stored"
    assert (await ask(Accept="text/html"))[1] == html[1]
    assert (await ask(Accept="application/json"))[1] == data[1]
    assert len(hub.asked) == 2


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_a_write_voids_what_was_kept(hub, ask, method):
    hub.headers = {"Cache-Control": "max-age=60"}
    about = "/api/models/acme/tiny/discussions"
    before = [await ask(target=about), await ask()]
    hub.headers = {"Location": TARGET}
    await ask(method, "/api/models/acme/tiny/discussions/1/comment")
    hub.headers = {"Cache-Control": "max-age=60"}
    assert (await ask(target=about))[1] != before[0][1], "it is about the same repository"
    assert (await ask())[1] != before[1][1], "Location names it"


async def test_what_was_asked_before_a_write_is_not_kept_after_it(hub, ask):
    hub.headers = {"Cache-Control": "max-age=60"}
    hub.gate.clear()
    async with asyncio.TaskGroup() as group:
        before = group.create_task(ask())
        while not hub.asked:
            await asyncio.sleep(0.001)
        assert (await ask("POST"))[0] == 200
        hub.gate.set()
    assert (await ask())[1] != before.result()[1]


@pytest.mark.parametrize(
    ("control", "is_told"),
    [
        ("max-age=0", True),
        ("max-age=0, stale-if-error=60", True),
        ("max-age=0, must-revalidate", False),
        ("max-age=0, proxy-revalidate", False),
        ("s-maxage=0", False),
        ("no-cache", False),
    ],
)
@pytest.mark.parametrize("trouble", ["away", "503"])
async def test_what_is_stale_is_told_when_the_origin_fails_unless_forbidden(hub, ask, control, is_told, trouble):
    hub.headers = {"Cache-Control": control, "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
    first = await ask()
    hub.is_away, hub.status = trouble == "away", 200 if trouble == "away" else 503
    status, body, headers = await ask()
    if is_told:
        assert (status, body) == (200, first[1])
        assert headers["Cache-Status"] == "hubmesh; fwd=stale; detail=origin-unavailable"
        assert ask.last["outcome"] == "stale"
    else:
        assert status == (502 if trouble == "away" else 503)
        assert body != first[1]


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_what_the_origin_refuses_now_is_not_told_when_it_is_away(hub, ask, status):
    hub.headers = {"Cache-Control": "max-age=0", "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
    await ask()
    hub.status = status
    assert (await ask())[0] == status
    hub.is_away = True
    assert (await ask())[0] == 502


async def test_a_refusal_is_of_as_much_as_it_says(hub, ask):
    """A bad token's 401 is about that token; a repository's refusal is about all of its pages."""
    pages = [f"/acme/tiny/raw/main/{name}" for name in "ab"]
    hub.headers = {"Cache-Control": "max-age=0"} | (validator := {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"})
    told = [(await ask(target=page))[1] for page in pages]
    hub.status = 401
    await ask(target=pages[0], Authorization="Bearer hf_garbage")
    hub.status, hub.headers = 404, {"X-Error-Code": "EntryNotFound"}
    await ask(target="/acme/tiny/raw/main/c")
    hub.is_away = True
    assert [(await ask(target=page))[1] for page in pages] == told
    hub.is_away, hub.status, hub.headers = False, 404, {"X-Error-Code": "RepoNotFound"}
    await ask(target="/acme/tiny/raw/main/c")
    hub.is_away = True
    assert [(await ask(target=page))[0] for page in pages] == [502, 502]
    hub.is_away, hub.status, hub.headers = False, 200, {"Cache-Control": "max-age=0"} | validator
    await ask(target=pages[0])
    hub.headers = {"Cache-Control": "no-store"}
    await ask(target=pages[0])
    hub.is_away = True
    assert (await ask(target=pages[0]))[0] == 502, "what has come in its place was not to be kept"


def stored(**headers: str) -> Stored:
    fields = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Stored(200, "OK", fields, b"", NOW, NOW)


def http_date(at: float) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(at))


def test_an_answer_from_before_the_clock_was_set_back_is_not_fresh():
    answer = stored(Cache_Control="max-age=60")
    assert caching.is_usable(answer, (), NOW - 1)
    assert not caching.is_usable(answer, (), NOW - 3600)
    assert not caching.may_be_stale(answer, (), NOW - 3600)


@pytest.mark.parametrize(
    ("answer", "life"),
    [
        (stored(Cache_Control="max-age=5, s-maxage=7", Expires=http_date(NOW + 99)), 7),
        (stored(Cache_Control="MAX-AGE=005"), 5),
        (stored(Cache_Control='a="max-age=9", max-age=5'), 5),
        (stored(Cache_Control="max-age=-5"), 0),
        (stored(Cache_Control="max-age=5.5"), 0),
        (stored(Cache_Control="max-age='5'"), 0),
        (stored(Cache_Control=f"max-age={10**30}"), 2**31),
        (stored(Expires=http_date(NOW + 60)), 60),
        (stored(Expires=http_date(NOW + 60), Date=http_date(NOW + 20)), 40),
        (stored(Expires=time.strftime("%A, %d-%b-%y %H:%M:%S GMT", time.gmtime(NOW + 60))), 60),
        (stored(Expires=time.asctime(time.gmtime(NOW + 60))), 60),
        (stored(Expires="0"), 0),
        (stored(Last_Modified=http_date(NOW - 10**6)), 0),  # no heuristic freshness
    ],
)
def test_how_long_an_answer_is_fresh(answer, life):
    assert caching.lifetime(answer) == life


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('a = 1 , b=2;c, d="x,y\\",z", e', {"b": "2;c", "d": 'x,y\\",z', "e": ""}),
        (',, a=1 ,\tA=2,"quoted, b", c', {"a": "1", "c": ""}),
        ('a="never, no-store, b=1', {"no-store": "", "b": "1"}),
        ('a\\"b\\"c, no-store', {"no-store": ""}),
    ],
)
def test_directives_however_odd_they_are(text, said):
    assert caching.directives([("Cache-Control", text)]) == said


def slower(work: Callable[[int], object]) -> float:
    """Return how much longer eight times the size takes: about 8, or 64 if the time is quadratic."""

    def once(size: int) -> float:
        began = time.process_time()
        work(size)
        return time.process_time() - began

    return min(once(16_000) for _ in range(5)) / min(once(2_000) for _ in range(5))


@pytest.mark.parametrize("odd", ['{}"', '"{}', "x{}x", "{},", "{}=", '{}" x'])
@pytest.mark.parametrize("filling", ["a", " ", '\\"', "=", '" '])
def test_no_header_takes_time_with_the_square_of_its_length(odd, filling):
    def work(size: int) -> None:
        text = odd.format(filling * (size // len(filling)))
        fields = [("Cache-Control", text), ("Vary", "Accept"), ("Accept", text)]
        caching.directives(fields)
        caching.matches(Stored(200, "", (), b"", 0, 0, (("accept", "x"),)), tuple(fields))
        select(9, '"x"', if_none_match=text)
        select(9, '"x"', range_=f"bytes=1-{text}")

    assert slower(work) < 30


def test_how_old_an_answer_is():
    assert caching.age(stored(), NOW + 3) == 3
    assert caching.age(stored(Age="10"), NOW + 3) == 13
    assert caching.age(stored(Age="10", Date=http_date(NOW - 20)), NOW + 3) == 23
    for nonsense in ("-1", "x", "1.5", "0, 0"):
        assert caching.age(stored(Age=nonsense), NOW) == float("inf")


def test_a_304_changes_what_it_speaks_of_and_not_the_bytes():
    before = stored(ETag='"1"', Content_Length="5", X_Test="old", X_Kept="1", Cache_Control="max-age=1", Age="9")
    news = (("X-Test", "new"), ("Content-Length", "0"), ("ETag", '"2"'), ("Cache-Control", "max-age=9"))
    after = caching.freshened(before, news, NOW + 5, NOW + 6)
    assert dict(after.headers) == {
        "ETag": '"1"',
        "Content-Length": "5",
        "X-Kept": "1",
        "X-Test": "new",
        "Cache-Control": "max-age=9",
    }
    assert caching.age(after, NOW + 6) == 1


def test_the_shelf_is_bounded():
    shelf = Shelf(limit=100_000)
    for number in range(50):
        shelf.add(f"/{number}", "", Stored(200, "OK", (), bytes(10_000), NOW, NOW))
    assert shelf.has("/49")
    assert not shelf.has("/0")
    for number in range(50):
        shelf.add("/same", "", Stored(200, "OK", (), bytes(1000), NOW, NOW, (("accept", str(number)),)))
    assert shelf.find("/same", (("Accept", "49"),)) is not None
    assert shelf.find("/same", (("Accept", "0"),)) is None

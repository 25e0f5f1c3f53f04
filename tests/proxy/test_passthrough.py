"""Requests that are not answered from the cache pass through unchanged in both directions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession, ThreadedResolver, web
from yarl import URL

from proxy.catalog import Ref
from proxy.hub import errors
from proxy.hub.errors import OriginUnavailable
from proxy.hub.urls import parse
from proxy.resolve import Client
from tests.proxy.parts import TINY, parts


class Echo:
    """A Hub that reports what it was asked, and takes and gives bytes as they come."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.heard = asyncio.Event()
        self.is_silent = False
        self.answer: Callable[[], web.Response] = web.Response
        self.last: web.BaseRequest | None = None
        self.received = b""

    def hang_up(self) -> web.Response:
        assert self.last is not None
        assert self.last.transport is not None
        self.last.transport.close()
        return web.Response()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.last = request
        path = request.path
        if path.endswith("/upload"):
            async for part in request.content.iter_any():
                self.received += part
                self.heard.set()
            return web.Response(text=str(len(self.received)))
        if path.startswith("/silent") or self.is_silent:
            self.heard.set()
            if path != "/silent/nothing":
                await request.read()
            await self.gate.wait()
        if path.endswith(("/events", "/broken")):
            self.heard.set()
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b"data: 1\n\n")
            await self.gate.wait()
            if path.endswith("/broken"):
                assert request.transport is not None
                request.transport.close()
            else:
                await response.write(b"data: 2\n\n")
            return response
        self.received = await request.read()
        return self.answer()


@pytest.fixture
async def echo(aiohttp_raw_server):
    echo = Echo()
    server = await aiohttp_raw_server(echo.handle)
    echo.url = f"http://127.0.0.1:{server.port}"
    return echo


@pytest.fixture
async def node(echo, tmp_path, aiohttp_raw_server):
    """The pass-through alone, on a port of its own, at `node.url`."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await known.passthrough.handle(request, parse(request.raw_path))
        except OriginUnavailable as error:
            return errors.respond(error, Client.of(request.headers))

    async with parts(echo.url, tmp_path) as known:
        server = await aiohttp_raw_server(handle)
        server.runner.server.handler_cancellation = False  # as at a node
        known.url = f"http://127.0.0.1:{server.port}"
        yield known


@pytest.fixture
async def client():
    async with ClientSession(auto_decompress=False) as session:
        yield session


async def test_a_request_arrives_as_it_was_but_for_its_connection(node, echo, client):
    async with client.put(
        URL(f"{node.url}/hf/api/models/acme/tiny/settings?a=%2F&b=True", encoded=True),
        data=b"{}",
        headers={
            "Authorization": "Bearer hf_x",
            "Content-Type": "application/x-ndjson",
            "Connection": "keep-alive, X-Private",
            "X-Private": "1",
            "X-Kept": "1",
        },
    ) as answer:
        assert await answer.text() == ""
    heard = echo.last
    assert (heard.method, heard.raw_path) == ("PUT", "/api/models/acme/tiny/settings?a=%2F&b=True")
    assert heard.headers["Host"] == echo.url.removeprefix("http://")
    assert heard.headers["Authorization"] == "Bearer hf_x"
    assert heard.headers["Content-Type"] == "application/x-ndjson"
    assert heard.headers["Content-Length"] == "2"
    assert "X-Private" not in heard.headers
    assert heard.headers["X-Kept"] == "1"


async def test_an_answer_arrives_as_it_was_but_for_what_leads_past_us(node, echo, client):
    echo.answer = partial(
        web.Response,
        status=307,
        reason="Elsewhere",
        body=b"\x1f\x8bnot touched",
        headers={
            "Content-Encoding": "gzip",
            "Location": f"{echo.url}/acme/new?x=1",
            "Link": f'<{echo.url}/api/models?p=2>; rel="next", <{echo.url}/x>; rel="xet-auth"',
            "X-Xet-Hash": "0" * 64,
            "X-Custom": "1",
            "Connection": "close",
        },
    )
    async with client.get(f"{node.url}/hf/api/models?p=1", allow_redirects=False) as answer:
        assert (answer.status, answer.reason) == (307, "Elsewhere")
        assert await answer.read() == b"\x1f\x8bnot touched"
        assert answer.headers["Location"] == "/hf/acme/new?x=1"
        assert answer.headers["Link"] == f'<{node.url}/hf/api/models?p=2>; rel="next"'
        assert answer.headers["X-Custom"] == "1"
        assert "X-Xet-Hash" not in answer.headers
    async with client.get(f"{node.url}/buckets/a/b/resolve/x", allow_redirects=False) as answer:
        assert answer.headers["X-Xet-Hash"] == "0" * 64
        assert "xet-auth" in answer.headers["Link"]


async def test_heads_and_empty_answers(node, echo, client):
    echo.answer = partial(web.Response, headers={"Content-Length": "12345"})
    async with client.head(f"{node.url}/api/telemetry/x") as answer:
        assert answer.headers["Content-Length"] == "12345"
        assert await answer.read() == b""
    echo.answer = partial(web.Response, status=204)
    for _ in range(2):  # the connection is still usable
        async with client.delete(f"{node.url}/api/models/acme/tiny/branch/x") as answer:
            assert answer.status == 204
            assert await answer.read() == b""


async def test_an_upload_flows_as_it_comes(node, echo, client):
    go_on = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await go_on.wait()
        yield b"second" * 100_000

    request = asyncio.get_running_loop().create_task(client.put(f"{node.url}/acme/tiny/upload", data=body()))
    await asyncio.wait_for(echo.heard.wait(), 10)  # before the upload has ended
    assert echo.received == b"first"
    go_on.set()
    async with await request as answer:
        assert await answer.text() == "600005"


async def test_events_flow_as_they_come(node, echo, client):
    async with client.get(f"{node.url}/api/spaces/acme/app/events") as answer:
        assert await asyncio.wait_for(answer.content.readany(), 10) == b"data: 1\n\n"
        echo.gate.set()
        assert await answer.content.read() == b"data: 2\n\n"
        assert answer.headers["Content-Type"] == "text/event-stream"


async def test_a_broken_answer_does_not_look_whole(node, echo, client):
    async with client.get(f"{node.url}/broken") as answer:
        await answer.content.readany()
        echo.gate.set()
        with pytest.raises(ClientError):
            await answer.content.read()


async def test_a_client_that_leaves_harms_nothing(node, echo, client, caplog):
    async with client.get(f"{node.url}/api/spaces/acme/app/events") as answer:
        await answer.content.readany()
        answer.close()
    echo.gate.set()
    async with client.get(f"{node.url}/docs") as answer:
        assert await answer.text() == ""
    assert caplog.text == ""


@pytest.mark.parametrize("takes", ["all", "nothing"])
async def test_a_hub_that_never_begins_to_answer_is_a_504(node, echo, client, takes):
    async def body() -> AsyncIterator[bytes]:
        for _ in range(1000 if takes == "nothing" else 1):  # more than fits into the buffers on the way
            yield b"x" * (64 << 10)

    node.origin._patience = 0.5
    node.catalog.set_ref(str(TINY), "main", Ref("c" * 40, time.time()))
    headers = {"Authorization": "Bearer hf_bob"}
    target = f"/silent/{takes}" if takes == "nothing" else COMMIT
    echo.is_silent = True
    async with asyncio.timeout(20), client.put(node.url + target, data=body(), headers=headers) as answer:
        assert answer.status == 504
        assert "no answer" in answer.headers["X-Error-Message"]
    if takes == "all":
        assert node.catalog.ref(str(TINY), "main") == Ref("c" * 40, 0.0), "who knows what it does yet"
    echo.gate.set()


async def test_who_sends_slowly_and_who_is_silent_after_the_answer_began_have_all_the_time(node, echo, client):
    async def body() -> AsyncIterator[bytes]:
        for _ in range(2):
            await asyncio.sleep(1.5)  # a fixed wait: nothing must arrive during it
            yield b"part"

    node.origin._patience = 1.0
    async with client.put(f"{node.url}/acme/tiny/upload", data=body()) as answer:
        assert await answer.text() == "8"
    async with client.get(f"{node.url}/api/spaces/acme/app/events") as answer:
        assert await answer.content.readany() == b"data: 1\n\n"
        await asyncio.sleep(1.5)
        echo.gate.set()
        assert await answer.content.read() == b"data: 2\n\n"


@pytest.mark.parametrize("path", ["/silent", "/api/spaces/acme/app/events"])
async def test_the_hub_is_asked_for_no_longer_than_its_client_is_there(node, echo, client, path):
    asking = asyncio.get_running_loop().create_task(client.get(node.url + path))
    await asyncio.wait_for(echo.heard.wait(), 10)
    if path == "/silent":
        asking.cancel()
    else:
        answer = await asking
        await answer.content.readany()
        answer.close()
    async with asyncio.timeout(20):
        while echo.last.transport is not None:
            await asyncio.sleep(0.05)
    echo.gate.set()


async def test_a_hub_that_cannot_be_reached_is_a_502(tmp_path, aiohttp_raw_server, client, unused_tcp_port):
    async with parts(f"http://127.0.0.1:{unused_tcp_port}", tmp_path) as known:

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            with pytest.raises(OriginUnavailable) as caught:
                await known.passthrough.handle(request, parse(request.raw_path))
            return errors.respond(caught.value, Client())

        server = await aiohttp_raw_server(handle)
        async with client.get(f"http://127.0.0.1:{server.port}/api/whoami-v2") as answer:
            assert answer.status == 502


async def test_a_bare_401_about_a_repository_says_so(node, echo, client):
    echo.answer = partial(web.Response, status=401, headers={"X-Error-Message": "Invalid username or password."})
    async with client.get(f"{node.url}/api/models/acme/tiny/auth-check") as answer:
        assert answer.headers["X-Error-Code"] == "RepoNotFound"
    async with client.get(f"{node.url}/api/whoami-v2") as answer:
        assert "X-Error-Code" not in answer.headers


@pytest.mark.parametrize(
    ("method", "target", "body", "forgets"),
    [
        ("POST", "/api/models/acme/tiny/commit/main", b"{}", True),
        ("DELETE", "/api/models/acme/tiny/branch/x", b"", True),
        ("PUT", "/api/models/acme/tiny/settings", b"{}", True),
        ("POST", "/acme/tiny.git/git-receive-pack", b"x", True),
        ("DELETE", "/api/repos/delete", b'{"name": "tiny", "organization": "acme"}', True),
        ("POST", "/api/repos/move", b'{"fromRepo": "acme/tiny", "toRepo": "acme/new", "type": "model"}', True),
        ("POST", "/api/repos/create", b'{"name": "acme/tiny"}', True),
        ("POST", "/api/repos/create", b'{"name": "tiny", "organization": "acme", "type": "dataset"}', False),
        ("POST", "/api/repos/create", b"not json", False),
        ("GET", "/api/models/acme/tiny/commits/main", b"", False),
        ("POST", "/acme/tiny.git/git-upload-pack", b"x", False),
        ("POST", "/acme/tiny.git/info/lfs/objects/batch", b"{}", False),
        ("POST", "/api/models/acme/tiny/preupload/main", b"{}", False),
        ("POST", "/api/models/acme/other/commit/main", b"{}", False),
    ],
)
async def test_a_write_voids_what_was_known(node, echo, client, method, target, body, forgets):
    async with client.request(method, node.url + target, data=body or None) as answer:
        assert await answer.text() == ""
    assert echo.received == body
    assert (node.catalog.publicness(str(TINY)).changed_at > 0) is forgets


async def test_an_order_about_a_repository_is_bounded(node, echo, client, monkeypatch):
    for most, sent in ((30, b'{"name": "acme/tiny"}'), (20, b"")):
        monkeypatch.setattr("proxy.passthrough._MAX_ORDER", most)
        echo.received = b""
        async with client.post(f"{node.url}/api/repos/create", data=b'{"name": "acme/tiny"}') as answer:
            assert (answer.status == 200) == bool(sent)
        assert echo.received == sent


@pytest.mark.parametrize("is_kept", [False, True], ids=["just told", "kept on disk"])
async def test_a_write_to_a_name_without_an_owner_leaves_all_of_that_name_in_doubt(node, echo, client, is_kept):
    names = ("models/acme/tiny", "models/alice/tiny", "models/alice/tiny2", "models/alice/not-tiny", "spaces/acme/tiny")
    for name in names:
        node.catalog.told(name, 500.0, is_open=True)
        node.catalog.set_ref(name, "main", Ref("c" * 40, 5.0))
    while is_kept and node.catalog._records._writing is not None:
        await asyncio.wait([node.catalog._records._writing])
    body = b'{"name": "tiny", "organization": null}'  # as huggingface_hub deletes the user's own
    async with client.delete(f"{node.url}/api/repos/delete", data=body) as answer:
        assert answer.status == 200
    assert [name for name in names if node.catalog.doubted_at(name)] == ["models/acme/tiny", "models/alice/tiny"]
    assert node.catalog.ref("models/alice/tiny", "main") == Ref("c" * 40, 0.0)


SETTINGS, COMMIT = "/api/models/acme/tiny/settings", "/api/models/acme/tiny/commit/main"


@pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")
@pytest.mark.parametrize(
    ("trouble", "token", "target", "forgotten"),
    [
        (401, "hf_bob", SETTINGS, "nothing"),
        (403, "hf_bob", COMMIT, "nothing"),
        (404, "hf_bob", COMMIT, "nothing"),
        (405, "hf_bob", COMMIT, "nothing"),
        (409, "hf_bob", COMMIT, "freshness"),
        (500, "hf_bob", COMMIT, "freshness"),
        ("broken", "hf_bob", COMMIT, "freshness"),
        ("broken", "hf_bob", SETTINGS, "all"),
        ("broken", "", SETTINGS, "nothing"),
        ("refused", "hf_bob", SETTINGS, "nothing"),
        ("offline", "hf_bob", SETTINGS, "nothing"),
    ],
)
async def test_a_write_that_came_to_nothing_voids_no_more_than_it_may_have_changed(
    node, echo, client, unused_tcp_port, trouble, token, target, forgotten
):
    page = f"{node.url}/api/models/acme/tiny/discussions"
    echo.answer = partial(web.Response, text="kept", headers={"Cache-Control": "max-age=60"})
    async with client.get(page) as answer:
        assert await answer.text() == "kept"
    node.catalog.set_ref(str(TINY), "main", Ref("c" * 40, said_at := time.time()))
    if isinstance(trouble, int):
        echo.answer = partial(web.Response, status=trouble)
    elif trouble == "broken":
        echo.answer = echo.hang_up
    elif trouble == "refused":
        node.origin.url = f"http://127.0.0.1:{unused_tcp_port}"
    else:
        node.origin.is_offline = True
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with client.put(node.url + target, data=b"{}", headers=headers) as answer:
        assert answer.status == (trouble if isinstance(trouble, int) else 502)
    is_changed = node.catalog.publicness(str(TINY)).changed_at > 0
    ref = node.catalog.ref(str(TINY), "main")
    echo.answer = partial(web.Response, text="new")
    async with client.get(page) as answer:
        told = await answer.text(), answer.headers["Cache-Status"]
    if forgotten == "nothing":
        assert (is_changed, ref) == (False, Ref("c" * 40, said_at))
        assert told == ("kept", "hubmesh; hit")
    elif forgotten == "freshness":
        assert (is_changed, ref) == (False, Ref("c" * 40, 0.0))
        assert told == ("new", "hubmesh; fwd=stale")
    else:
        assert (is_changed, ref) == (True, None)
        assert told == ("new", "hubmesh; fwd=uri-miss")


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/api/models/acme/tiny/auth-check"), ("POST", "/acme/tiny.git/info/lfs/objects/batch")],
)
async def test_who_is_told_of_a_gate_closes_it_for_nobody_in_particular(node, echo, client, method, target):
    echo.answer = partial(web.Response, status=403, headers={"X-Error-Code": "GatedRepo"})
    node.catalog.told(str(TINY), opened_at := 1000.0, is_open=True)
    async with client.request(method, node.url + target, headers={"Authorization": "Bearer hf_bob"}) as answer:
        assert answer.status == 403
    assert node.catalog.publicness(str(TINY)).closed_at > opened_at
    assert not node.catalog.publicness(str(TINY)).is_open(opened_at, opened_at, may_ask=False)


async def test_addresses_in_parquet_listings_lead_here(node, echo, client):
    echo.answer = partial(
        web.json_response, {"default": {"train": [f"{echo.url}/api/datasets/a/b/parquet/default/train/0.parquet"]}}
    )
    async with client.get(f"{node.url}/hf/api/datasets/a/b/parquet", headers={"Accept-Encoding": "gzip"}) as answer:
        assert await answer.json() == {
            "default": {"train": [f"{node.url}/hf/api/datasets/a/b/parquet/default/train/0.parquet"]}
        }


async def test_the_datasets_viewer_is_asked_under_its_own_name(node, echo, client, monkeypatch):
    port = echo.url.rpartition(":")[2]
    node.origin.url = f"http://localhost:{port}"
    real = ThreadedResolver.resolve

    async def resolve(self: ThreadedResolver, host: str, *rest: Any, **named: Any) -> object:
        return await real(self, "127.0.0.1" if host == "datasets-server.localhost" else host, *rest, **named)

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)
    echo.answer = partial(web.Response, headers={"X-Revision": "c" * 40})
    host = {"Host": "datasets-server.localhost:8090"}
    async with client.get(f"{node.url}/info?dataset=a/b", headers=host) as answer:
        assert answer.headers["X-Revision"] == "c" * 40
    assert echo.last.headers["Host"] == f"datasets-server.localhost:{port}"
    assert echo.last.raw_path == "/info?dataset=a/b"

"""The pages under /-/: what they show, and which clients may act through them."""

from types import SimpleNamespace

import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from mesh.content import Digest
from mesh.errors import StoreUnusable
from mesh.store import Store
from proxy.admin.metrics import Metrics
from proxy.admin.routes import add_routes
from proxy.admin.status import decode
from proxy.admin.view import Preheat
from proxy.hosts import cannot_be_rebound, host_of, is_this_machine
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.inventory import Inventory
from proxy.pins import Pins
from tests.proxy.nodes import PaperNode


@pytest.fixture
def node():
    return PaperNode()


@pytest.fixture
async def client(node, aiohttp_client):
    app = web.Application()
    add_routes(app, node, Metrics(node.stats))

    async def hub(_: web.Request) -> web.Response:
        return web.Response(text="the Hub's name space")

    app.router.add_route("*", "/{path:.*}", hub)
    return await aiohttp_client(app)


async def test_alive_is_not_ready(client, node):
    node.not_ready = "looking for peers"
    assert (await client.get("/-/health")).status == 200
    answer = await client.get("/-/ready")
    assert (answer.status, await answer.text()) == (503, "looking for peers\n")
    node.not_ready = ""
    assert (await client.get("/-/ready")).status == 200


async def test_reserved_paths_never_reach_the_hub(client):
    for path in ("/-/nothing", "/-/health/more", "/-/statu"):
        assert (await client.get(path)).status == 404
    assert await (await client.get("/-health")).text() == "the Hub's name space"


async def test_metrics_and_status_show_the_same_figures(client, node):
    node.stats.add("origin_received", 77)
    node.stats.pieces_rejected["node-c"] = 3
    page = await client.get("/-/metrics")
    assert page.content_type == "text/plain"
    shown = {s.name: s.value for f in text_string_to_metric_families(await page.text()) for s in f.samples}
    status = decode(await (await client.get("/-/status")).read())
    assert status.metrics["hubmesh_origin_received_bytes_total"] == shown["hubmesh_origin_received_bytes_total"] == 77
    assert status.metrics['hubmesh_pieces_rejected_total{source="node-c"}'] == 3
    assert shown["hubmesh_peers"] == 1  # the one that is alive
    assert shown["hubmesh_blob_bytes"] == status.usage.blob_bytes == 2020
    assert shown["hubmesh_evicted_bytes_total"] == 30
    assert (status.node_id, status.role, status.ready) == ("node-a", "peer", True)
    assert status.blobs[0].sources == {"origin": 1000}
    assert status.downloads[0].pieces == "o-.."


async def test_actions_reach_the_node(client, node):
    assert await (await client.post("/-/pin", json={"repo": "acme/tiny"})).json() == {"files": 1}
    assert await (await client.post("/-/unpin", json={"repo": "models/acme/tiny"})).json() == {"files": 2}
    removed = await client.post("/-/rm", json={"repo": "datasets/acme/rows"})
    assert await removed.json() == {"bytes": 3, "in_use": 0, "pinned": 0}
    order = {"repo": "acme/tiny", "include": ["*.json"], "nodes": None}
    await client.post("/-/preheat", json=order, headers={"Authorization": "Bearer hf_secret"})
    assert node.told == [
        ("pin", "models/acme/tiny", None),
        ("unpin", "models/acme/tiny"),
        ("rm", "datasets/acme/rows"),
        ("preheat", Preheat("models/acme/tiny", "main", ("*.json",), (), None, "hf_secret")),
    ]
    assert "hf_secret" not in repr(node.told)


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
        {"Host": "10.0.0.1:8090"},
        {"X-Forwarded-For": "10.0.0.9"},
        {"Content-Type": "text/plain"},
    ],
    ids=lambda headers: "=".join(*headers.items()),
)
async def test_only_this_machine_may_act_and_no_other_site(client, node, headers):
    headers = {"Content-Type": "application/json", **headers}
    answer = await client.post("/-/rm", data=b'{"repo": "acme/tiny"}', headers=headers)
    assert answer.status == 403
    assert node.told == []


async def test_the_dashboard_itself_may_act(client, node):
    origin = f"http://{client.host}:{client.port}"
    headers = {"Origin": origin, "Sec-Fetch-Site": "same-origin"}
    assert (await client.post("/-/rm", json={"repo": "acme/tiny"}, headers=headers)).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"repo": ""}',
        b'{"repo": "a/b/c/d"}',
        b'{"repo": "a/b", "colour": 1}',
        b'{"repo": "a//b"}',
        b'{"repo": "foo bar/baz"}',
        b'{"repo": "datasets/../baz"}',
        b" " * 300_000,
    ],
)
async def test_a_bad_order_is_refused(client, node, body):
    answer = await client.post("/-/pin", data=body, headers={"Content-Type": "application/json"})
    assert answer.status == 400
    assert (await answer.json())["error"]
    assert node.told == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (LookupError("not here"), 404),
        (HubError(403, message="gated"), 403),
        (OriginUnavailable("dark"), 502),
        (StoreUnusable("read-only"), 500),
    ],
)
async def test_what_went_wrong_is_said(client, node, error, status):
    node.error = error
    answer = await client.post("/-/preheat", json={"repo": "acme/tiny"})
    assert answer.status == status
    assert (await answer.json())["error"] in ("not here", "gated", "dark", "read-only")


async def test_a_file_that_cannot_be_removed_keeps_none_of_the_others(tmp_path):
    store, digests = Store(tmp_path, 100), [Digest("sha256", letter * 64) for letter in "abc"]
    for digest in digests:
        (tmp_path / "staged").write_bytes(b"four")
        await store.adopt(digest, 4, tmp_path / "staged", [bytes(32)])
    stuck = tmp_path / "blobs" / "sha256" / "bb" / ("b" * 64)
    stuck.unlink()
    stuck.mkdir()
    files = [("commit", digest.hex, SimpleNamespace(digest=digest)) for digest in digests]
    catalog, pins = (
        SimpleNamespace(files_of=lambda _: files, blob_name=lambda _: None),
        Pins(tmp_path / "pins.json", {}),
    )
    about = dict.fromkeys(("node_id", "role", "settings", "stats", "blobs", "mesh", "preheater"))
    inventory = Inventory(**about, catalog=catalog, pins=pins, store=store)
    with pytest.raises(StoreUnusable, match="8 bytes were freed"):
        await inventory.remove("models/acme/tiny")
    assert store.size == 4
    store.close()


@pytest.mark.parametrize(
    ("field", "is_here", "is_safe"),
    [
        *((field, True, True) for field in ("localhost", "LOCALHOST:8090", "localhost.:8090", "a.localhost")),
        *(
            (field, True, True)
            for field in ("127.0.0.9", "127.0.0.9:8090", "[::1]", "[::1]:8090", "[::ffff:127.0.0.1]")
        ),
        *((field, False, True) for field in ("10.0.0.1:8090", "8.8.8.8", "[::]:8090", "[fd00::1]")),
        *((field, False, False) for field in ("", ":8090", "example.org:80", "localhost.evil.example", "127.1")),
    ],
)
def test_hosts_that_are_this_machine_and_hosts_that_no_other_site_can_rebind(field, is_here, is_safe):
    assert (is_this_machine(host_of(field)), cannot_be_rebound(host_of(field))) == (is_here, is_safe)


@pytest.mark.parametrize("host", ["LOCALHOST:8090", "localhost.:8090"])
async def test_however_localhost_is_written_it_may_act(client, node, host):
    assert (await client.post("/-/rm", json={"repo": "acme/tiny"}, headers={"Host": host})).status == 200

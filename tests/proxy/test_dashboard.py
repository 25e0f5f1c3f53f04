"""What the dashboard is sent, how often, and what happens when no client listens any more."""

import asyncio
import json

import pytest
from aiohttp import web

from proxy.admin import overview
from proxy.admin.dashboard import Dashboard
from proxy.admin.metrics import Metrics
from proxy.admin.view import BlobView, DownloadView, PeerView
from tests.proxy.nodes import PaperNode

# Handlers store values for the log and the metrics under plain string names, which aiohttp warns about.
pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")


class CountingNode(PaperNode):
    looks = 0

    def downloads(self):
        self.looks += 1
        return super().downloads()


@pytest.fixture
def node():
    return CountingNode()


@pytest.fixture
async def client(node, aiohttp_client):
    app = web.Application()
    Dashboard(node, Metrics(node.stats), seconds=0.05).add_routes(app)
    return await aiohttp_client(app)


async def sections(response, until):
    """Return the sections that have arrived, once these include all of `until`."""
    seen = {}
    async with asyncio.timeout(5):
        name = ""
        async for line in response.content:
            kind, _, value = line.decode().rstrip().partition(": ")
            if kind == "event":
                name = value
            elif kind == "data":
                seen.setdefault(name, []).append(json.loads(value))
                if until(seen):
                    return seen
    raise AssertionError("the stream ended")


async def test_the_page_needs_nothing_from_elsewhere_and_nothing_inline(client):
    for path in ("", "dashboard.js", "dashboard.css", "icon.svg"):
        answer = await client.get(f"/-/{path}")
        assert answer.status == 200
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        body = (await answer.text()).replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in body
        assert "https://" not in body
        assert "innerHTML" not in body
        if not path:
            assert "<script>" not in body
            assert "style=" not in body
            assert " on" not in body.partition("<main>")[0]


async def test_everything_once_and_then_what_changed(client, node):
    async with client.get("/-/events") as response:
        assert response.content_type == "text/event-stream"
        first = await sections(response, lambda seen: len(seen) == 6)
        assert first["node"][0]["id"] == "node-a"
        assert first["peers"][0] == [
            ["node-b", "10.0.0.2:8091", "seed", True],
            ["node-c", "10.0.0.3:8091", "peer", False],
        ]
        assert first["downloads"][0]["shown"][0]["pieces"] == "1o1-2."
        assert [repo["name"] for repo in first["repositories"][0]] == ["datasets/acme/rows", "models/acme/tiny"]
        node.stats.add("origin_received", 7)
        node.not_ready = "tired"
        later = await sections(
            response, lambda seen: {"node", "traffic"} <= seen.keys() and seen["traffic"][-1]["origin"] == 7
        )
        assert later["node"][-1]["reason"] == "tired"
        assert "peers" not in later
        assert "repositories" not in later


async def test_one_look_serves_all_and_nobody_looks_when_nobody_listens(client, node):
    async with asyncio.timeout(10):
        responses = [await client.get("/-/events") for _ in range(5)]
        for response in responses:
            await sections(response, lambda seen: len(seen.get("traffic", ())) == 4)
        assert node.looks < 15
        for response in responses:
            response.close()
        still = -1
        while still != node.looks:  # the server notices with its next write
            still = node.looks
            await asyncio.sleep(0.3)
        assert node.looks > 0
        again = await client.get("/-/events")
        await sections(again, lambda seen: len(seen) == 6)
        again.close()


async def test_there_is_an_end_to_listeners(client):
    responses = [await client.get("/-/events") for _ in range(32)]
    assert (await client.get("/-/events")).status == 503
    for response in responses:
        response.close()


def test_thousands_of_pieces_are_few_bytes():
    assert overview.runs("") == ""
    assert overview.runs("oop..#") == "2o1p2.1#"
    letters = "o" * 3000 + "p" * 4000 + "." * 1000
    shown = overview.downloads([DownloadView("d", 8000, 7000, None, None, 1.0, 1, letters)] * 500)
    assert shown["count"] == 500
    assert len(json.dumps(shown)) < 10_000


def test_findings_say_what_to_do():
    node = PaperNode()
    assert [finding.level for finding in overview.findings(node, 0)] == ["note"]  # one of two is gone
    node.not_ready = "looking for other nodes"
    node.stats.pieces_rejected["node-c"] = 2
    said = list(overview.findings(node, 3))
    assert [finding.level for finding in said] == ["bad", "bad", "bad", "note"]
    assert all(finding.cure for finding in said[:3])
    node.peers = lambda: [PeerView("x", "a:1", "peer", is_alive=False, seen_seconds_ago=1)]
    assert "no other node answers any more" in [finding.what for finding in overview.findings(node, 0)]


def test_failures_are_forgotten_after_a_minute():
    failures = overview.Failures()
    figures = {'hubmesh_origin_requests_total{kind="api",status="200"}': 5.0}
    assert failures.recent(figures, 0.0) == 0
    figures['hubmesh_origin_requests_total{kind="api",status="503"}'] = 2.0
    assert failures.recent(figures, 1.0) == 2
    assert failures.recent(figures, 50.0) == 2
    assert failures.recent(figures, 120.0) == 0


def test_repositories_are_sums_of_their_blobs():
    blobs = [
        BlobView("a", 10, 10, "models/x/y", "a"),
        BlobView("b", 20, 5, "models/x/y", "b", is_pinned=True),
        BlobView("c", 1, 1, None, None),
    ]
    assert overview.repositories(blobs) == [
        overview.Repository("", 1, 1, 1, False),
        overview.Repository("models/x/y", 30, 15, 2, True),
    ]

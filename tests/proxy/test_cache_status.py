"""Files: what a client asks of the cache (`Cache-Control`), and what it is told of it (`Cache-Status`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http import ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess, until

REPO = "acme/tiny"
FILE = f"/{REPO}/resolve/main/w.txt"
HIT, MISS, STALE = "hubmesh; hit", "hubmesh; fwd=uri-miss; stored", "hubmesh; fwd=stale; detail=origin-unavailable"
RELOADS = [{"Cache_Control": "no-cache"}, {"Cache_Control": "max-age=0"}, {"Pragma": "no-cache"}]


@pytest.fixture
def node(hub: HubProcess, tmp_path: Path) -> Iterator[NodeProcess]:
    hub.folder.commit(REPO, {"w.txt": b"one"})
    with NodeProcess(tmp_path / "node", hub.url) as process:
        yield process


@pytest.mark.parametrize("asked", RELOADS)
def test_a_reload_asks_what_a_branch_means_now(hub: HubProcess, node: NodeProcess, asked: dict[str, str]) -> None:
    assert ask(node.url + FILE).body == b"one"
    before = hub.folder.load("models", REPO).refs["heads/main"]
    after = hub.folder.commit(REPO, {"w.txt": b"two"})
    assert ask(node.url + FILE).body == b"one", "it is fresh"
    answer = ask(node.url + FILE, **asked)
    assert (answer.body, answer["X-Repo-Commit"]) == (b"two", after)
    assert ask(node.url + FILE)["X-Repo-Commit"] == after
    hub.reset()
    old = ask(f"{node.url}/{REPO}/resolve/{before}/w.txt", **asked)
    assert (old.body, old["Cache-Status"]) == (b"one", HIT)
    assert hub.stats()["requests"] == {}, "a file at a commit never changes"
    hub.turn(dark="close")
    for method in ("HEAD", "GET"):
        answer = ask(node.url + FILE, method, **asked)
        assert (answer.status, answer["X-Repo-Commit"], answer["Cache-Status"]) == (200, after, STALE)


def test_a_client_that_wants_only_what_is_kept_costs_no_request(hub: HubProcess, node: NodeProcess) -> None:
    for method in ("HEAD", "GET"):
        assert ask(node.url + FILE, method, Cache_Control="only-if-cached").status == 504
    assert hub.stats()["requests"] == {}
    commit = ask(node.url + FILE, "HEAD")["X-Repo-Commit"]
    hub.reset()
    for revision in ("main", commit):  # it is known, but its bytes are not here
        url = f"{node.url}/{REPO}/resolve/{revision}/w.txt"
        assert ask(url, "HEAD", Cache_Control="only-if-cached").status == 200
        assert ask(url, Cache_Control="only-if-cached").status == 504
    assert (hub.stats()["requests"], node.status()["blobs"], node.status()["downloads"]) == ({}, [], [])
    assert ask(node.url + FILE).body == b"one"
    hub.reset()
    answer = ask(node.url + FILE, Cache_Control="only-if-cached")
    assert (answer.body, answer["Cache-Status"]) == (b"one", HIT)
    assert hub.stats()["requests"] == {}


def test_a_file_that_has_to_be_fetched_is_a_miss_however_small(hub: HubProcess, node: NodeProcess) -> None:
    for expected, outcome in ((MISS, "miss"), (HIT, "hit")):
        assert ask(node.url + FILE)["Cache-Status"] == expected
        line = f"GET {FILE} 200 {outcome} "
        until(lambda line=line: line in node.log(), "the log says something else")
    requests = {key: value for key, value in node.status()["metrics"].items() if "requests" in key and "resolve" in key}
    counted = 'hubmesh_client_requests_total{{route="resolve",status="200",outcome="{}"}}'
    assert requests == {counted.format("miss"): 1, counted.format("hit"): 1}

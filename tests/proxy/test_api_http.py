"""HTTP caching of answers about repositories: their age, revalidation, and what forbids it."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.http import ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess, meet

REPO = "acme/tiny"
FORM = "application/x-www-form-urlencoded"
TAILS = ("", "/revision/main", "/tree/main", "/refs")

Start = Callable[..., NodeProcess]


@pytest.fixture
def start(hub: HubProcess, tmp_path: Path) -> Iterator[Start]:
    hub.folder.commit(REPO, {"config.json": b"{}", "w.safetensors": b"weights"})
    hub.folder.add_token("hf_alice", "alice")
    with ExitStack() as stack:
        yield lambda *flags, name="node": stack.enter_context(NodeProcess(tmp_path / name, hub.url, *flags))


def about(node: NodeProcess, tail: str = "") -> str:
    return f"{node.url}/api/models/{REPO}{tail}"


@pytest.mark.parametrize("tail", TAILS)
def test_what_is_kept_says_how_old_it_is_and_spares_who_has_it(hub: HubProcess, start: Start, tail: str) -> None:
    node = start()
    first = ask(about(node, tail))
    assert (first["Age"], first["Cache-Status"]) == (None, "hubmesh; fwd=uri-miss; stored")
    hub.reset()
    second = ask(about(node, tail))
    assert (second.body, second["Cache-Status"], second["Age"]) == (first.body, "hubmesh; hit", "0")
    assert second["ETag"] == first["ETag"]
    assert (second["ETag"] or "").startswith('W/"')
    same = ask(about(node, tail), If_None_Match=second["ETag"] or "")
    assert (same.status, same.body) == (304, b"")
    assert ask(about(node, tail), If_None_Match='"other"').status == 200
    assert hub.stats()["requests"] == {}


@pytest.mark.parametrize("tail", TAILS)
def test_what_has_not_changed_is_not_sent_again(hub: HubProcess, start: Start, tail: str) -> None:
    node = start("--freshness", "0")
    first = ask(about(node, tail))
    hub.reset()
    again = ask(about(node, tail))
    assert (again.status, again.body) == (200, first.body)
    assert hub.stats()["not_modified"] >= 1
    changed = hub.folder.commit(REPO, {"new.txt": b"new"})
    now = ask(about(node, tail))
    assert now.status == 200
    assert now.body != first.body
    if tail in ("", "/revision/main"):
        assert json.loads(now.body)["sha"] == changed


def test_what_one_node_has_already_is_whole_for_the_others(hub: HubProcess, start: Start, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k" * 64)
    flags = ("--mesh-key-file", str(tmp_path / "key"), "--freshness", "1s")
    first = start(*flags)
    second = start(*flags, "--seed", first.mesh, name="second")
    meet([first, second])
    for tail in ("", "/refs", "?blobs=true", "?securityStatus=true"):  # each has an owner of its own
        body = ask(about(first, tail)).body
        until = time.monotonic() + 10
        while ask(about(first, tail))["Cache-Status"] == "hubmesh; hit":
            assert time.monotonic() < until
            time.sleep(0.02)
        answer = ask(about(second, tail))
        assert (answer.status, answer.body) == (200, body), tail
        assert "stale" not in (answer["Cache-Status"] or ""), "it was told only what had changed for the first"
    changed = hub.folder.commit(REPO, {"new.txt": b"new"})
    for node in (first, second):
        assert json.loads(ask(about(node), Cache_Control="no-cache").body)["sha"] == changed


def test_a_client_may_want_the_newest_or_only_what_is_here(hub: HubProcess, start: Start) -> None:
    node = start()
    for what in ("", "/tree/main"):
        assert ask(about(node, what), Cache_Control="only-if-cached").status == 504
    assert hub.stats()["requests"] == {}
    ask(about(node))
    ask(about(node, "/tree/main"))
    for what in ("", "/tree/main"):
        assert ask(about(node, what), Cache_Control="only-if-cached").status == 200
    changed = hub.folder.commit(REPO, {"new.txt": b"new"})
    assert json.loads(ask(about(node)).body)["sha"] != changed
    paths = {entry["path"] for entry in json.loads(ask(about(node, "/tree/main"), Cache_Control="no-cache").body)}
    assert "new.txt" in paths
    assert json.loads(ask(about(node), Cache_Control="max-age=0").body)["sha"] == changed
    assert ask(f"{node.url}/{REPO}/resolve/main/new.txt").body == b"new"


@pytest.mark.parametrize(
    ("control", "is_kept"),
    [
        ("no-store", False),
        ("private", False),
        ("no-cache", False),
        ("max-age=0, must-revalidate", False),
        ("max-age=0", False),
        ("max-age=60", True),
    ],
)
def test_the_origin_may_forbid_it(hub: HubProcess, start: Start, control: str, is_kept: bool) -> None:
    node = start()
    hub.turn(cache_control=control)
    for _ in range(2):
        answer = ask(about(node, "/refs"))
        assert answer.status == 200
        assert control not in ("no-store", "private") or "stored" not in (answer["Cache-Status"] or "")
    assert sum(hub.stats()["requests"].values()) == (1 if is_kept else 2)
    hub.turn(dark="close")
    assert ask(about(node, "/refs")).status == (200 if control.startswith("max-age") and "must" not in control else 502)


def test_a_private_answer_is_kept_for_its_token(hub: HubProcess, start: Start) -> None:
    hub.folder.create("acme/secret", private=True, readers=["alice"])
    hub.folder.commit("acme/secret", {"a": b"a"})
    node = start()
    hub.turn(cache_control="private")
    url = f"{node.url}/api/models/acme/secret"
    assert ask(url, token="hf_alice").status == 200
    hub.reset()
    assert ask(url, token="hf_alice")["Cache-Status"] == "hubmesh; hit"
    assert hub.stats()["requests"] == {}
    assert ask(url).status == 401


@pytest.mark.parametrize("filling", ["paths=x&" * 10_000, f"paths={'y' * 1000}&" * 4500])
def test_what_is_too_much_to_be_looked_at_passes_through(hub: HubProcess, start: Start, filling: str) -> None:
    node = start()
    body = f"{filling}paths=w.safetensors".encode()
    told = [
        ask(f"{url}/api/models/{REPO}/paths-info/main", "POST", body=body, Content_Type=FORM)
        for url in (hub.url, node.url)
    ]
    [hubs], [ours] = (json.loads(answer.body) for answer in told)
    assert hubs.pop("xetHash")
    assert hubs == ours
    assert told[1]["Cache-Status"] is None
    few = ask(about(node, "/paths-info/main"), "POST", body=b"paths=w.safetensors", Content_Type=FORM)
    assert (json.loads(few.body), few["Cache-Status"]) == ([ours], "hubmesh; fwd=uri-miss; stored")


def test_a_target_may_be_a_whole_address_of_ours(start: Start) -> None:
    """RFC 9112, section 3.2.2; the host name in the target overrides `Host`."""
    node = start()

    def asked(target: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=30)
        connection.putrequest("GET", target, skip_host=True)
        connection.putheader("Host", "localhost")
        connection.endheaders()
        with contextlib.closing(connection):
            answer = connection.getresponse()
            return answer.status, answer.read()

    for base in (node.url, "HTTP://localhost", "http://somebody@localhost:1"):
        assert asked(f"{base}/{REPO}/resolve/refs%2Fheads%2Fmain/config.json") == (200, b"{}")
        assert b'"blobId"' in asked(f"{base}/api/models/{REPO}?blobs=true")[1]
        assert asked(f"{base}/-/health")[0] == 200
    for target in (f"/{REPO}/resolve/main/config.json", "/-/health", "?x"):
        assert asked(f"http://evil.example{target}")[0] == 421
        assert asked(f"http://localhost@evil.example{target}")[0] == 421

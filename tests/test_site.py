"""Several real nodes in front of one stand-in Hub, as a site would run them."""

from __future__ import annotations

import hashlib
import random
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.http import ask
from tests.hub.process import HubProcess
from tests.mesh.certificates import Authority
from tests.node import NodeProcess, meet

MIB = 1 << 20
REPO = "acme/tiny"
BIG = random.Random(3).randbytes(10 * MIB + 77)
CONFIG = b'{"hidden_size": 4}'

Start = Callable[..., list[NodeProcess]]


@pytest.fixture
def site(hub: HubProcess, tmp_path: Path) -> Iterator[Start]:
    """A function that starts a mesh: `site(nodes, seeds=, keyed=)`. Seeds come first in the list."""
    hub.folder.commit(REPO, {"config.json": CONFIG, "model.safetensors": BIG})
    hub.folder.add_token("hf_alice", "alice")
    hub.folder.add_token("hf_bob", "bob")
    with ExitStack() as stack:

        def start(count: int, *, seeds: int = 0, keyed: bool = False, flags: tuple[str, ...] = ()) -> list[NodeProcess]:
            if keyed:
                (tmp_path / "key").write_text(secrets.token_hex(32))
                flags = (*flags, "--mesh-key-file", str(tmp_path / "key"))
            first = max(1, seeds)
            role = ("--role", "seed") if seeds else ()
            nodes = [
                stack.enter_context(NodeProcess(tmp_path / f"node-{number}", hub.url, *flags, *role))
                for number in range(first)
            ]
            contacts = [flag for node in nodes for flag in ("--seed", node.mesh)]
            nodes += [
                stack.enter_context(NodeProcess(tmp_path / f"node-{number}", hub.url, *flags, *contacts))
                for number in range(first, count)
            ]
            meet(nodes)
            hub.reset()
            return nodes

        yield start


def url(node: NodeProcess, path: str = "model.safetensors", repo: str = REPO) -> str:
    return f"{node.url}/{repo}/resolve/main/{path}"


@pytest.mark.parametrize(("seeds", "keyed"), [(0, False), (0, True), (1, False), (1, True)])
def test_nodes_that_start_cold_together_cost_the_hub_one_copy(
    hub: HubProcess, site: Start, seeds: int, keyed: bool
) -> None:
    nodes = site(4, seeds=seeds, keyed=keyed)
    for path, content in (("model.safetensors", BIG), ("config.json", CONFIG)):
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda node, path=path: ask(url(node, path)), nodes))
        assert [answer.status for answer in answers] == [200] * 4
        assert all(answer.body == content for answer in answers)
    stats = hub.stats()
    assert stats["total_bytes"] == len(BIG) + len(CONFIG)
    if keyed:  # for any number of nodes: two requests for the small file, and a seed asks once more by commit
        heads = sum(count for request, count in stats["requests"].items() if request.startswith("HEAD"))
        assert heads <= (6 if seeds else 3), stats["requests"]


def test_with_certificates_everything_is_shared_and_nobody_else_is_let_in(
    hub: HubProcess, site: Start, tmp_path: Path
) -> None:
    hub.folder.create("acme/gated", gated=True, readers=["alice"])
    hub.folder.commit("acme/gated", {"w.bin": BIG})
    authority = Authority(tmp_path / "authority")
    nodes = site(3, flags=authority.sign("node").flags)
    for node in nodes:
        assert ask(url(node, "w.bin", "acme/gated"), token="hf_alice").body == BIG
        assert ask(url(node, "config.json")).body == CONFIG
    assert hub.stats()["total_bytes"] == len(BIG) + len(CONFIG)
    expired = authority.sign("old", begins="20200101000000Z", ends="20210101000000Z")
    other = Authority(tmp_path / "other", "other").sign("node")
    for name, flags, ours, theirs in (
        ("none", (), "does not speak TLS", "does not answer"),
        ("other", other.flags, "", "another authority signed it"),
        ("expired", expired.flags, "certificate has expired", f"the certificate in {expired.cert} has expired"),
    ):
        with NodeProcess(tmp_path / name, hub.url, "--seed", nodes[0].mesh, *flags) as stranger:
            assert ask(url(stranger)).body == BIG
            assert stranger.metric("hubmesh_peers") == stranger.metric("hubmesh_peer_received_bytes_total") == 0
            assert theirs in stranger.log()
        assert nodes[0].log().count(ours) == 1 or not ours
    assert all(node.metric("hubmesh_peers") == 2 for node in nodes)


def test_api_answers_are_asked_for_once_in_a_keyed_mesh(hub: HubProcess, site: Start) -> None:
    nodes = site(3, keyed=True)
    for tail in ("", "/revision/main", "/tree/main?recursive=true", "/refs"):
        bodies = {ask(f"{node.url}/api/models/{REPO}{tail}").body for node in nodes}
        assert len(bodies) == 1
    assert hub.stats()["by_kind"]["api"] <= 4


def test_a_gated_file_in_the_mesh_is_refused_to_whom_the_hub_refuses(hub: HubProcess, site: Start) -> None:
    hub.folder.create("acme/gated", gated=True, readers=["alice"])
    hub.folder.commit("acme/gated", {"w.bin": BIG})
    nodes = site(3, keyed=True)
    for node in nodes:
        assert ask(url(node, "w.bin", "acme/gated"), token="hf_alice").body == BIG
    assert hub.stats()["total_bytes"] == len(BIG), "the bytes came in once, although each token was checked"
    for dark in ("", "close"):
        hub.turn(dark=dark)
        for node in nodes:
            for token in ("", "hf_bob", "hf_garbage"):
                answer = ask(url(node, "w.bin", "acme/gated"), token=token)
                assert answer.status >= 400
                assert len(answer.body) < 2000
            assert ask(url(node, "w.bin", "acme/gated"), token="hf_alice").body == BIG


def test_private_blobs_do_not_leave_a_node_of_an_open_mesh(hub: HubProcess, site: Start) -> None:
    hub.folder.create("acme/secret", private=True, readers=["alice"])
    hub.folder.commit("acme/secret", {"w.bin": BIG})
    nodes = site(2)
    for node in nodes:
        assert ask(url(node, "w.bin", "acme/secret"), token="hf_alice").body == BIG
    assert hub.stats()["total_bytes"] == 2 * len(BIG)
    digest = hashlib.sha256(BIG).hexdigest()
    for node in nodes:
        piece = ask(f"http://{node.mesh}/mesh/blobs/sha256:{digest}", Range="bytes=0-99")
        assert piece.status == 404


def test_without_the_key_nothing_is_told_or_believed(hub: HubProcess, site: Start, tmp_path: Path) -> None:
    nodes = site(2, keyed=True)
    assert ask(url(nodes[0])).body == BIG
    digest = hashlib.sha256(BIG).hexdigest()
    assert ask(f"http://{nodes[0].mesh}/mesh/blobs/sha256:{digest}", Range="bytes=0-99").status == 401
    for target in ("gossip", "holdings", "questions", "hearsay", "preheat", f"swarms/sha256:{digest}", "anything"):
        answer = ask(f"http://{nodes[0].mesh}/mesh/{target}", "POST", body=b"tell me")
        assert (answer.status, answer["WWW-Authenticate"]) == (401, 'Hubmesh reason="unsigned"')
        assert len(answer.body) < 200
    with NodeProcess(tmp_path / "stranger", hub.url, "--seed", nodes[0].mesh) as stranger:
        assert ask(url(stranger)).body == BIG
        assert stranger.metric("hubmesh_peers") == 0
        assert stranger.metric("hubmesh_peer_received_bytes_total") == 0
        assert all(node.metric("hubmesh_peers") == 1 for node in nodes)
        assert stranger.log().count(f"cannot talk to {nodes[0].mesh}: it has a mesh key, but this node has none") == 1
    assert nodes[0].log().count("it has no mesh key, but this mesh has one (--mesh-key-file)") == 1
    # A node with a different key is not let in either.
    (tmp_path / "other").write_text(secrets.token_hex(32))
    flags = ("--seed", nodes[0].mesh, "--mesh-key-file", str(tmp_path / "other"))
    with NodeProcess(tmp_path / "other-stranger", hub.url, *flags) as stranger:
        assert ask(url(stranger)).body == BIG
        assert stranger.metric("hubmesh_peers") == stranger.metric("hubmesh_peer_received_bytes_total") == 0
        assert stranger.log().count(f"cannot talk to {nodes[0].mesh}: it has another mesh key (--mesh-key-file)") == 1
    assert nodes[0].log().count("it has another mesh key (--mesh-key-file)") == 1


@pytest.mark.parametrize("victim", [0, 1, 3])
def test_any_node_may_die_on_the_way(hub: HubProcess, site: Start, victim: int) -> None:
    """Node 0 is the seed and the tracker; the others hold pieces."""
    nodes = site(4, seeds=1)
    hub.turn(bandwidth=5 * MIB)
    with ThreadPoolExecutor(4) as pool:
        reading = {node: pool.submit(ask, url(node)) for node in nodes[1:]}
        until = time.monotonic() + 10
        while hub.stats()["total_bytes"] < 4 * MIB and time.monotonic() < until:
            time.sleep(0.02)
        nodes[victim].kill()
        for node, answer in reading.items():
            if node is not nodes[victim]:
                assert answer.result().body == BIG


def test_a_commit_through_one_node_is_seen_there_at_once(hub: HubProcess, site: Start) -> None:
    hub.folder.create("alice/mine", readers=["alice"])
    hub.folder.commit("alice/mine", {"a.txt": b"old"})
    nodes = site(3, keyed=True)
    for node in nodes:
        assert ask(url(node, "a.txt", "alice/mine")).body == b"old"
    lines = b'{"key":"header","value":{"summary":"x"}}\n' + (
        b'{"key":"file","value":{"content":"bmV3","path":"a.txt","encoding":"base64"}}'
    )
    for node in nodes:
        target = f"{node.url}/api/models/alice/mine/commit/main"
        assert ask(target, "POST", token="hf_alice", body=lines, Content_Type="application/x-ndjson").status == 200
        assert ask(url(node, "a.txt", "alice/mine")).body == b"new"

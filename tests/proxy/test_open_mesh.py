"""What strangers get from a node in a mesh without a key: what the Hub gives to anybody, and no word of the rest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from tests.http import ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess

WEIGHTS, SHARED = b"weights" * 300, b"in both" * 300


def is_shared(node: NodeProcess, content: bytes) -> bool:
    digest = hashlib.sha256(content).hexdigest()
    return ask(f"http://{node.mesh}/mesh/blobs/sha256:{digest}", Range=f"bytes=0-{len(content) - 1}").status == 206


def test_what_is_closed_is_not_shared_any_more(hub: HubProcess, tmp_path: Path) -> None:
    hub.folder.add_token("hf_alice", "alice")
    commit = hub.folder.commit("acme/tiny", {"a.txt": b"a", "w.bin": WEIGHTS, "both.bin": SHARED})
    hub.folder.commit("acme/other", {"both.bin": SHARED})
    base = f"/acme/tiny/resolve/{commit}"
    with NodeProcess(tmp_path / "node", hub.url) as node:
        for name in ("w.bin", "both.bin"):
            assert ask(f"{node.url}{base}/{name}").status == 200
        assert is_shared(node, WEIGHTS)
        assert is_shared(node, SHARED)
        repo = hub.folder.load("models", "acme/tiny")
        repo.private, repo.readers = True, ["alice"]
        repo.save(hub.folder.folder("models", "acme/tiny"))
        assert ask(f"{node.url}{base}/a.txt").status == 401  # by this the node hears of it
        assert not is_shared(node, WEIGHTS)
        assert ask(f"{node.url}{base}/w.bin", token="hf_alice").body == WEIGHTS
    with NodeProcess(tmp_path / "node", hub.url) as node:
        assert not is_shared(node, WEIGHTS)
        assert not is_shared(node, SHARED)
        assert ask(f"{node.url}/acme/other/resolve/main/both.bin").body == SHARED
        assert is_shared(node, SHARED), "another repository has it for everybody"


def test_nobody_is_told_what_was_asked_for_that_was_never_public(hub: HubProcess, tmp_path: Path) -> None:
    hub.folder.add_token("hf_alice", "alice")
    hub.folder.create("acme/secret", private=True, readers=["alice"])
    hub.folder.commit("acme/secret", {"x.txt": b"x"})
    hub.folder.create("acme/gated", gated=True, readers=["alice"])
    hub.folder.commit("acme/gated", {"x.txt": b"x"})
    with NodeProcess(tmp_path / "node", hub.url) as node:

        def told(repo: str) -> object:
            lookup = {"type": "lookup", "repo": f"models/{repo}", "revision": "main", "path": "x.txt"}
            url = f"http://{node.mesh}/mesh/hearsay"
            return msgspec.msgpack.decode(ask(url, "POST", body=msgspec.msgpack.encode(lookup)).body)

        for name in ("secret", "gated"):
            assert ask(f"{node.url}/acme/{name}/resolve/main/x.txt", token="hf_alice").status == 200
            assert told(f"acme/{name}") == told("acme/never-asked-for")

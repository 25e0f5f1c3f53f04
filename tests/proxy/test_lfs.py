"""Git LFS objects at a node: which other clients may have them, and what a refusal means for the repository."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http import Answer, ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess

REPO, ALICE = "acme/tiny", "hf_alice"
OPEN, WEIGHTS = b"open" * 700, b"weights" * 400


@pytest.fixture
def node(hub: HubProcess, tmp_path: Path) -> Iterator[NodeProcess]:
    hub.folder.add_token(ALICE, "alice")
    with NodeProcess(tmp_path / "node", hub.url) as process:
        yield process


def commit(hub: HubProcess, name: str, body: bytes) -> tuple[str, str]:
    """Commit a large file; return (commit, sha256)."""
    sha = hub.folder.commit(REPO, {name: body})
    return sha, hub.folder.load("models", REPO).commits[sha].files[name].sha256


def gate(hub: HubProcess) -> None:
    repo = hub.folder.load("models", REPO)
    repo.gated, repo.readers = True, ["alice"]
    repo.save(hub.folder.folder("models", REPO))


def batch(node: NodeProcess, oid: str, size: int, token: str = "") -> Answer:
    asked = {"operation": "download", "transfers": ["basic"], "objects": [{"oid": oid, "size": size}]}
    return ask(
        f"{node.url}/{REPO}.git/info/lfs/objects/batch",
        "POST",
        token=token,
        body=json.dumps(asked).encode(),
        Content_Type="application/vnd.git-lfs+json",
    )


def pull(node: NodeProcess, oid: str, size: int, token: str = "") -> Answer:
    action = json.loads(batch(node, oid, size, token).body)["objects"][0]["actions"]["download"]
    return ask(action["href"], token=token)


def from_peer(node: NodeProcess, oid: str, size: int) -> Answer:
    """Request a blob as any stranger can who reaches the port of a mesh without a key."""
    return ask(f"http://{node.mesh}/mesh/blobs/sha256:{oid}", Range=f"bytes=0-{size - 1}")


def test_what_one_pulls_with_a_token_is_not_for_strangers(hub: HubProcess, node: NodeProcess) -> None:
    """Even though another file of the repository was just public: this one came after the gate."""
    sha, oid = commit(hub, "open.bin", OPEN)
    assert ask(f"{node.url}/{REPO}/resolve/{sha}/open.bin").body == OPEN
    assert from_peer(node, oid, len(OPEN)).status == 206
    gate(hub)
    _, oid = commit(hub, "w.safetensors", WEIGHTS)
    assert pull(node, oid, len(WEIGHTS), ALICE).body == WEIGHTS
    assert from_peer(node, oid, len(WEIGHTS)).status == 404


def test_what_nobody_in_particular_was_given_is_for_all(hub: HubProcess, node: NodeProcess) -> None:
    _, oid = commit(hub, "open.bin", OPEN)
    assert batch(node, oid, len(OPEN)).status == 200
    assert pull(node, oid, len(OPEN), ALICE).body == OPEN
    assert from_peer(node, oid, len(OPEN)).status == 206


def test_a_refusal_over_lfs_closes_the_repository_for_nobody(hub: HubProcess, node: NodeProcess) -> None:
    sha, oid = commit(hub, "w.safetensors", WEIGHTS)
    file = f"{node.url}/{REPO}/resolve/{sha}/w.safetensors"
    assert ask(file, "HEAD").status == 200
    gate(hub)
    assert batch(node, oid, len(WEIGHTS)).status == 401
    assert ask(file, "HEAD").status == 401, "what it gave before the gate it does not give any more"


def test_what_is_shared_since_git_had_it_is_not_after_the_gate(hub: HubProcess, node: NodeProcess) -> None:
    """Even though it has another name, from a repository that was never public."""
    hub.folder.create("acme/secret", private=True, readers=["alice"])
    hub.folder.commit("acme/secret", {"w.safetensors": WEIGHTS})
    _, oid = commit(hub, "w.safetensors", WEIGHTS)
    hub.folder.commit(REPO, {"a.txt": b"a"})
    assert ask(f"{node.url}/acme/secret/resolve/main/w.safetensors", token=ALICE).body == WEIGHTS
    assert from_peer(node, oid, len(WEIGHTS)).status == 404
    assert pull(node, oid, len(WEIGHTS)).body == WEIGHTS
    assert from_peer(node, oid, len(WEIGHTS)).status == 206
    gate(hub)
    assert ask(f"{node.url}/{REPO}/resolve/main/a.txt").status == 401
    assert from_peer(node, oid, len(WEIGHTS)).status == 404

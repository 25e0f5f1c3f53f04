"""What strangers get from a node in a mesh without a key: what the Hub gives to anybody, and nothing about the rest."""

from __future__ import annotations

import hashlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from mesh.content import Pieces, PieceSet
from mesh.exchange import Envelope
from mesh.messages import Report
from tests.http import ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess
from tests.stranger import COMMIT, Stranger, file, git_sha1, said

WEIGHTS, SHARED = b"weights" * 300, b"in both" * 300


def is_shared(node: NodeProcess, content: bytes, digest: str = "") -> bool:
    digest = digest or f"sha256:{hashlib.sha256(content).hexdigest()}"
    return ask(f"http://{node.mesh}/mesh/blobs/{digest}", Range=f"bytes=0-{len(content) - 1}").status == 206


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
        assert ask(f"{node.url}{base}/a.txt").status == 401  # from this the node learns of it
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


def test_nobody_learns_from_the_tracker_what_was_never_public(hub: HubProcess, tmp_path: Path) -> None:
    secret, never = random.Random(1).randbytes(8 << 20), hashlib.sha256(b"never asked for").hexdigest()
    digest, count = hashlib.sha256(secret).hexdigest(), Pieces.of(len(secret)).count
    hub.folder.add_token("hf_alice", "alice")
    hub.folder.create("acme/secret", private=True, readers=["alice"])
    hub.folder.commit("acme/secret", {"w.bin": secret})
    hub.turn(bandwidth=2 << 20)
    nothing = PieceSet(count).to_bytes()
    with NodeProcess(tmp_path / "node", hub.url) as node, ThreadPoolExecutor(1) as pool:

        def told(digest: str, size: int, report: Report) -> tuple[int, bytes]:
            body = msgspec.msgpack.encode(Envelope(size, report))
            answer = ask(f"http://{node.mesh}/mesh/swarms/sha256:{digest}", "POST", body=body)
            return answer.status, answer.body.replace(digest.encode(), b"")

        reading = pool.submit(ask, f"{node.url}/acme/secret/resolve/main/w.bin", token="hf_alice")
        while not node.metric("hubmesh_origin_received_bytes_total"):
            assert not reading.done()
        asking = Report("stranger", have=nothing, wanted=((0, count),), slots=20, can_fetch=True)
        new = Report("third", have=nothing)
        for size, report in ((len(secret), asking), (777, Report("other")), (len(secret), new)):
            assert told(digest, size, report) == told(never, size, report)
        assert reading.result().body == secret
        assert told(digest, len(secret), asking) == told(never, len(secret), asking)


def test_an_answer_from_before_a_repository_was_closed_opens_nothing(tmp_path: Path) -> None:
    is_asked, is_closed = threading.Event(), threading.Event()

    def script(method: str, target: str, headers: object) -> object:
        if target.endswith("late.bin") and method == "HEAD":
            answer = file(WEIGHTS)
            is_asked.set()
            assert is_closed.wait(20)
            return answer
        if target.endswith("y.bin") and is_asked.is_set():
            return said(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        return file(WEIGHTS)

    with (
        Stranger(script) as origin,
        NodeProcess(tmp_path / "node", origin.url) as node,
        ThreadPoolExecutor(1) as pool,
    ):
        base, digest = f"{node.url}/acme/x/resolve/{COMMIT}", f"git-sha1:{git_sha1(WEIGHTS)}"
        assert ask(f"{base}/early.bin").status == 200
        assert is_shared(node, WEIGHTS, digest)
        late = pool.submit(ask, f"{base}/late.bin")
        assert is_asked.wait(20)
        assert ask(f"{base}/y.bin").status == 401
        assert not is_shared(node, WEIGHTS, digest)
        is_closed.set()
        assert late.result().body == WEIGHTS
        assert not is_shared(node, WEIGHTS, digest)

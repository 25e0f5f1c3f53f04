"""The node as a Xet server, with the real Xet client, and what keeps clients from files that they may not read."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hf_xet import XetFileInfo, XetSession

from tests.http import Answer, ask
from tests.hub.process import HubProcess
from tests.hub.repos import Entry
from tests.node import NodeProcess, until

MIB = 1 << 20
REPO = "acme/tiny"
MODEL = random.Random(7).randbytes(100 * MIB + 77)
HUGE = 50 * 10**9 + 5 * MIB
MARKED_AT = 30 * 10**9 + 123  # in pieces of its own, and in the middle of a chunk
MARKED = random.Random(8).randbytes(3 * MIB)
NEW = "unknown/None; hf_hub/2.4.0; python/3.11"


@pytest.fixture(autouse=True)
def _straight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def filled(hub: HubProcess, tmp_path: Path) -> HubProcess:
    """A Hub with a file above 50 GB, nearly all of it a hole, and one of 100 MiB."""
    hub.folder.add_token("hf_alice", "alice")
    hub.folder.add_token("hf_bob", "bob")
    hub.folder.commit(REPO, {"model.safetensors": MODEL, "config.json": b"{}"})
    huge = tmp_path / "huge.bin"
    with huge.open("wb") as file:
        file.seek(MARKED_AT)
        file.write(MARKED)
        file.truncate(HUGE)
    repo = hub.folder.load("models", REPO)
    commit = repo.commits[repo.refs["heads/main"]]
    commit.files["huge.bin"] = Entry("0" * 40, HUGE, "1" * 64, "2" * 64, str(huge))
    repo.save(hub.folder.folder("models", REPO))
    return hub


@pytest.fixture
def node(filled: HubProcess, tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path / "node", filled.url) as process:
        yield process


def commit_of(hub: HubProcess, repo: str = REPO) -> str:
    return hub.folder.load("models", repo).refs["heads/main"]


def token_of(node: NodeProcess, revision: str, repo: str = REPO, token: str = "", **headers: str) -> Answer:
    return ask(f"{node.url}/api/models/{repo}/xet-read-token/{revision}", token=token, **headers)


def read(said: Answer, xet_hash: str, size: int, start: int | None = None, stop: int | None = None) -> bytes:
    """Read some bytes of a file by hf_xet, with the token that a node gave."""
    assert said.status == 200, said.body
    session = XetSession()
    group = session.new_download_stream_group(
        endpoint=said["X-Xet-Cas-Url"],
        token=said["X-Xet-Access-Token"],
        token_expiry_unix_secs=int(said["X-Xet-Token-Expiration"] or 0),
    )
    return b"".join(group.download_stream(XetFileInfo(xet_hash, size), start, stop))


def reconstruction(said: Answer, xet_hash: str, **headers: str) -> Answer:
    return ask(
        f"{said['X-Xet-Cas-Url']}/v1/reconstructions/{xet_hash}", token=said["X-Xet-Access-Token"] or "", **headers
    )


def first_xorb(answer: Answer) -> tuple[str, str]:
    """Return the URL of the first xorb, and the Range to request."""
    said = json.loads(answer.body)
    [where] = said["fetch_info"][said["terms"][0]["hash"]]
    return where["url"], f"bytes={where['url_range']['start']}-{where['url_range']['end']}"


def download(code: str, node: NodeProcess, home: Path, token: str = "") -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUBMESH_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept
        | {"HOME": str(home), "HF_HOME": str(home), "HF_ENDPOINT": node.url}
        | ({"HF_TOKEN": token} if token else {}),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip().splitlines()[-1]


def test_a_file_above_50_gb_is_read_over_xet_piece_by_piece(filled: HubProcess, node: NodeProcess) -> None:
    commit = commit_of(filled)
    head = ask(f"{node.url}/{REPO}/resolve/main/huge.bin", "HEAD", User_Agent=NEW)
    assert (head["X-Xet-Hash"], head["X-Linked-Size"]) == ("2" * 64, str(HUGE))
    route = f"{node.url}/api/models/{REPO}/xet-read-token/{commit}"
    assert f'<{route}>; rel="xet-auth"' in (head["Link"] or "")
    listed = json.loads(ask(f"{node.url}/api/models/{REPO}/tree/main").body)
    assert {e["path"]: e.get("xetHash") for e in listed} == {
        "config.json": None,
        "huge.bin": "2" * 64,
        "model.safetensors": None,
    }
    said = ask(route)
    assert said["X-Xet-Cas-Url"] == json.loads(said.body)["casUrl"] == f"{node.url}/-/xet"
    assert json.loads(said.body)["accessToken"] == said["X-Xet-Access-Token"]
    filled.reset()
    part = read(said, "2" * 64, HUGE, MARKED_AT - 10, MARKED_AT + len(MARKED) + 10)
    assert part == bytes(10) + MARKED + bytes(10)
    assert read(said, "2" * 64, HUGE, HUGE - 1000, HUGE) == bytes(1000)
    touched = 16 * MIB + HUGE % (16 * MIB)  # two pieces: background pieces come after those that a reader waits for
    end = time.monotonic() + 20
    while filled.stats()["total_bytes"] != touched:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert read(said, "2" * 64, HUGE, MARKED_AT, MARKED_AT + 5) == MARKED[:5]
    stats = filled.stats()
    assert stats["total_bytes"] == touched
    assert not any("xet" in request or "telemetry" in request for request in stats["requests"])


def test_a_whole_file_arrives_over_xet_and_costs_the_hub_one_copy(filled: HubProcess, tmp_path: Path) -> None:
    code = f"""
import hashlib, json, sys, huggingface_hub as hub
path = hub.hf_hub_download({REPO!r}, "model.safetensors")
print(hashlib.sha256(open(path, "rb").read()).hexdigest())
"""
    with NodeProcess(tmp_path / "node", filled.url, "--xet", "always") as node:
        for home in ("cold", "warm", "with the Hub away"):
            filled.turn(dark="close" if "away" in home else "")
            assert download(code, node, tmp_path / home) == hashlib.sha256(MODEL).hexdigest()
            assert filled.stats()["total_bytes"] == len(MODEL)
        assert "GET /-/xet/xorbs/" in node.log()
        assert node.metric("hubmesh_client_sent_bytes_total") >= 3 * len(MODEL)
        assert node.stop() == 0
        assert "signature" not in node.log()
        assert "hubmesh_xet_" not in node.log()
        node.start()


def test_a_tree_that_the_hub_itself_gave_leads_here(filled: HubProcess, node: NodeProcess, tmp_path: Path) -> None:
    """Row 5: with a Xet hash from an older listing, a client asks for a token at once, without any request before."""
    commit = commit_of(filled)
    fill = f"""
import huggingface_hub as hub
hub.snapshot_download({REPO!r}, allow_patterns=["config.json"])
print("done")
"""
    download(fill, _Direct(filled.url), tmp_path / "home")  # type: ignore[arg-type]
    [tree] = (tmp_path / "home").rglob(f"trees/{commit}.json")
    assert "xet_hash" in tree.read_text()
    filled.reset()
    code = f"""
import hashlib, huggingface_hub as hub
path = hub.hf_hub_download({REPO!r}, "model.safetensors", revision={commit!r})
print(hashlib.sha256(open(path, "rb").read()).hexdigest())
"""
    assert download(code, node, tmp_path / "home") == hashlib.sha256(MODEL).hexdigest()
    assert filled.stats()["total_bytes"] == len(MODEL)
    assert "GET /-/xet/xorbs/" in node.log()


class _Direct:
    """The Hub in the place of a node."""

    def __init__(self, url: str) -> None:
        self.url = url


def test_what_is_no_pass_opens_nothing(filled: HubProcess, node: NodeProcess) -> None:
    said = token_of(node, "main")
    pass_, cas = said["X-Xet-Access-Token"] or "", said["X-Xet-Cas-Url"]
    model = filled.folder.load("models", REPO).commits[commit_of(filled)].files["model.safetensors"].xet
    good = reconstruction(said, "2" * 64, Range="bytes=0-99")
    assert good.status == 200
    url, wanted = first_xorb(good)
    xorb = ask(url, Range=wanted)
    assert xorb.status == 206
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    with contextlib.closing(connection):  # an unrequested body would be taken for the next answer
        for method, status, body in (("HEAD", 200, b""), ("GET", 206, xorb.body)):
            connection.request(method, url.removeprefix(node.url), headers={"Range": wanted})
            with connection.getresponse() as answer:
                assert (answer.status, answer.read() == body) == (status, True)
    tail = reconstruction(said, "2" * 64, Range=f"bytes={HUGE}-")
    assert tail.status == 416
    for bad in ("", "hf_alice", pass_[:-4] + "AAAA", "hubmesh_xet_AAAA"):
        assert ask(f"{cas}/v1/reconstructions/{'2' * 64}", token=bad).status == 401
    in_url = url.partition("signature=")[2]
    assert ask(f"{cas}/v1/reconstructions/{'2' * 64}", token=in_url).status == 401, "an address is no token"
    for bad_url in (
        url.partition("?")[0],
        url[:-4] + "AAAA",
        url.replace("2" * 64, model),
        f"{url.partition('=')[0]}={pass_}",
    ):
        assert ask(bad_url, Range=wanted).status == 403
    assert ask(url.replace("/0?", "/99999?"), Range=wanted).status == 404
    assert reconstruction(said, "9" * 64).status == 404
    assert ask(f"{cas}/v2/reconstructions/{'2' * 64}", token=pass_).status == 404


def test_a_private_file_goes_to_its_readers_alone(filled: HubProcess, node: NodeProcess) -> None:
    repo = "acme/secret"
    filled.folder.create(repo, private=True, readers=["alice", "bob"])
    content = random.Random(9).randbytes(2 * MIB)
    commit = filled.folder.commit(repo, {"a.bin": content})
    xet_hash = filled.folder.load("models", repo).commits[commit].files["a.bin"].xet
    assert token_of(node, commit, repo).status == 401
    said = token_of(node, commit, repo, "hf_alice")
    assert read(said, xet_hash, len(content)) == content
    assert token_of(node, commit, repo).status == 401
    public = token_of(node, "main", REPO, "hf_bob")
    assert reconstruction(public, xet_hash).status == 404, "a pass is for one repository"
    assert token_of(node, commit, repo, "hf_bob").status == 200
    url, wanted = first_xorb(reconstruction(said, xet_hash))
    assert ask(url, Range=wanted).status == 206
    assert urlsplit(url).query.count("=") == 1
    assert "hf_alice" not in url


def test_a_reader_who_is_shut_out_is_shut_out_here(filled: HubProcess, tmp_path: Path) -> None:
    repo = "acme/secret"
    filled.folder.create(repo, private=True, readers=["alice"])
    commit = filled.folder.commit(repo, {"a.bin": b"a" * MIB})
    xet_hash = filled.folder.load("models", repo).commits[commit].files["a.bin"].xet
    with NodeProcess(tmp_path / "node", filled.url, "--grant-life", "0") as node:
        said = token_of(node, commit, repo, "hf_alice")
        url, wanted = first_xorb(reconstruction(said, xet_hash))
        assert ask(url, Range=wanted).status == 206
        kept = filled.folder.load("models", repo)
        kept.readers = []
        kept.save(filled.folder.folder("models", repo))
        assert reconstruction(said, xet_hash).status in (401, 403, 404)
        assert ask(url, Range=wanted).status in (401, 403, 404)


def test_nobody_completes_a_file_of_which_a_byte_was_wrong(filled: HubProcess, node: NodeProcess) -> None:
    """A client that has the wrong part already would only fetch again the part that the proof cut off."""
    filled.turn(corrupt={"model.safetensors": 10}, corrupt_times=1)
    xet_hash = filled.folder.load("models", REPO).commits[commit_of(filled)].files["model.safetensors"].xet
    said = token_of(node, "main")
    url, wanted = first_xorb(reconstruction(said, xet_hash, Range="bytes=0-99"))
    assert ask(url, Range=wanted).body[8:28] != MODEL[:20], "the origin's word, as for any range"
    first = ask(url, Range=f"bytes={MIB + 8 * 8}-").body
    assert first[8:28] == MODEL[MIB : MIB + 20]
    with contextlib.suppress(http.client.IncompleteRead):  # broken off, or refused if the proof failed before
        assert ask(url.replace("/0?", "/1?")).status >= 400
    assert ask(url, Range=wanted).status == 403
    assert reconstruction(said, xet_hash).status == 401
    until = time.monotonic() + 10
    while reconstruction(said := token_of(node, "main"), xet_hash).status != 200:  # `since` has whole seconds
        assert time.monotonic() < until
    assert read(said, xet_hash, len(MODEL)) == MODEL


def test_a_transfer_that_breaks_off_is_not_counted_as_a_hit(filled: HubProcess, node: NodeProcess) -> None:
    xet_hash = filled.folder.load("models", REPO).commits[commit_of(filled)].files["model.safetensors"].xet
    assert (
        hashlib.sha256(node.get(f"/{REPO}/resolve/main/model.safetensors")).digest() == hashlib.sha256(MODEL).digest()
    )
    url, _ = first_xorb(reconstruction(token_of(node, "main"), xet_hash))
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as client:
        client.sendall(f"GET {url.removeprefix(node.url)} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    counted = 'hubmesh_client_requests_total{route="xet",status="200",outcome="broken"}'
    until(lambda: node.status()["metrics"].get(counted) == 1, "it is not counted as broken")


def test_nodes_with_a_key_cost_the_hub_one_copy_together(filled: HubProcess, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("k" * 32)
    xet_hash = filled.folder.load("models", REPO).commits[commit_of(filled)].files["model.safetensors"].xet
    flags = ("--mesh-key-file", str(key), "--xet", "always")
    with (
        NodeProcess(tmp_path / "a", filled.url, *flags) as one,
        NodeProcess(tmp_path / "b", filled.url, *flags, "--seed", one.mesh) as other,
        ThreadPoolExecutor(2) as pool,
    ):
        until = time.monotonic() + 20
        while min(len(node.status()["peers"]) for node in (one, other)) < 1:
            assert time.monotonic() < until
        for got in pool.map(lambda node: read(token_of(node, "main"), xet_hash, len(MODEL)), (one, other)):
            assert got == MODEL
    assert filled.stats()["total_bytes"] == len(MODEL)


def test_passes_outlive_the_process_but_no_token_does(filled: HubProcess, node: NodeProcess) -> None:
    said = token_of(node, "main")
    signed = token_of(node, "main", token="hf_alice")
    url, wanted = first_xorb(reconstruction(said, "2" * 64, Range="bytes=0-99"))
    port = urlsplit(node.url).netloc
    node.stop()
    assert b"hf_alice" not in b"".join(
        f.read_bytes() for f in node.data_dir.rglob("*") if f.is_file() and f.stat().st_size < MIB
    )
    assert (node.data_dir / "xet-key").stat().st_mode & 0o77 == 0
    node.start()
    cas = f"{node.url}/-/xet/v1/reconstructions/{'2' * 64}"
    assert ask(url.replace(port, urlsplit(node.url).netloc), Range=wanted).status == 206
    assert ask(cas, token=said["X-Xet-Access-Token"] or "", Range="bytes=0-99").status == 200
    assert ask(cas, token=signed["X-Xet-Access-Token"] or "", Range="bytes=0-99").status == 401


def test_never_means_never_and_always_all(filled: HubProcess, tmp_path: Path) -> None:
    sizes = {"huge.bin": HUGE, "model.safetensors": len(MODEL)}
    for use in ("never", "always"):
        with NodeProcess(tmp_path / use, filled.url, "--xet", use) as node:
            tree = ask(f"{node.url}/api/models/{REPO}/tree/main").body
            assert tree.count(b"xetHash") == (2 if use == "always" else 0)
            for path in sizes:
                head = ask(f"{node.url}/{REPO}/resolve/main/{path}", "HEAD")
                assert (head["X-Xet-Hash"] is not None) == (use == "always")
            said = token_of(node, "main")
            assert (said["X-Xet-Cas-Url"] == "http://127.0.0.1:9") == (use == "never")


def test_where_xet_is_unknown_the_hub_gives_the_token(filled: HubProcess, node: NodeProcess) -> None:
    filled.folder.create("acme/plain", xet=False)
    filled.folder.commit("acme/plain", {"a.bin": b"a" * 100})
    said = token_of(node, "main", "acme/plain", "hf_alice")
    assert (said["X-Xet-Cas-Url"], said["X-Xet-Access-Token"]) == ("http://127.0.0.1:9", "xet_made_up")
    assert filled.stats()["seen"]["api"][-1]["authorization"] == "Bearer hf_alice"


def test_the_address_is_the_one_that_the_client_used(filled: HubProcess, node: NodeProcess) -> None:
    said = token_of(node, "main", X_Forwarded_Proto="https", X_Forwarded_Host="hub.lan")
    assert said["X-Xet-Cas-Url"] == "https://hub.lan/-/xet"
    below = ask(f"{node.url}/hf/api/models/{REPO}/xet-read-token/main")
    assert below["X-Xet-Cas-Url"] == f"{node.url}/hf/-/xet"
    assert read(below, "2" * 64, HUGE, MARKED_AT, MARKED_AT + 5) == MARKED[:5]
    assert int(below["X-Xet-Token-Expiration"] or 0) <= time.time() + 900


def test_a_branch_whose_history_was_rewritten_has_a_token(hub: HubProcess, tmp_path: Path) -> None:
    hub.folder.commit(REPO, {"w.safetensors": b"weights"})
    with NodeProcess(tmp_path / "node", hub.url) as node:
        assert ask(f"{node.url}/api/models/{REPO}").status == 200
        repo = hub.folder.load("models", REPO)
        repo.commits = {"ab" * 20: repo.commits[commit_of(hub)]}
        repo.refs = {"heads/main": "ab" * 20}
        repo.save(hub.folder.folder("models", REPO))
        said = token_of(node, "main")
        assert (said.status, said["X-Xet-Cas-Url"]) == (200, f"{node.url}/-/xet")

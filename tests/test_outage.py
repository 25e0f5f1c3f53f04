"""The Hub away in any way: earlier answers are served again by any node that knows them, and marked stale."""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.http import Answer, ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess, meet, until

REPO = "acme/tiny"
FILES = {"config.json": b'{"a": 1}', "w.safetensors": random.Random(4).randbytes(3_000_000), "sub/x.txt": b"x"}
NEW = "unknown/None; hf_hub/2.4.0; python/3.11"
FORM = "application/x-www-form-urlencoded"
API = ("", "?blobs=true", "/revision/main", "/tree/main?recursive=true&expand=false", "/tree/main/sub", "/refs")
HF = str(Path(sys.executable).parent / "hf")

Start = Callable[..., NodeProcess]


@pytest.fixture
def start(hub: HubProcess, tmp_path: Path) -> Iterator[Start]:
    """A function that starts nodes, each told of those before it: `start(*flags, keyed=)`."""
    hub.folder.commit(REPO, FILES)
    hub.folder.add_token("hf_alice", "alice")
    hub.folder.add_token("hf_bob", "bob")
    (tmp_path / "key").write_text(secrets.token_hex(32))
    nodes: list[NodeProcess] = []
    with ExitStack() as stack:

        def start(*flags: str, keyed: bool = False) -> NodeProcess:
            known = [flag for node in nodes for flag in ("--seed", node.mesh)]
            key = ["--mesh-key-file", str(tmp_path / "key")] if keyed else []
            folder = tmp_path / f"node-{len(nodes)}"
            nodes.append(stack.enter_context(NodeProcess(folder, hub.url, *known, *key, *flags)))
            meet(nodes)
            return nodes[-1]

        yield start


def fail(hub: HubProcess, how: str) -> None:
    if how.isdigit():
        hub.turn(fail={"resolve": [int(how)] * 500, "api": [int(how)] * 500})
    else:
        hub.turn(dark=how)


def questions(node: NodeProcess, repo: str = REPO) -> dict[str, Callable[[], Answer]]:
    """Return the requests that clients make when they load a model, and more."""
    asked: dict[str, Callable[[], Answer]] = {}
    for tail in API:
        asked[f"info{tail}"] = lambda tail=tail: ask(f"{node.url}/api/models/{repo}{tail}", User_Agent=NEW)
    asked["paths-info"] = lambda: ask(
        f"{node.url}/api/models/{repo}/paths-info/main",
        "POST",
        body=b"paths=config.json&expand=False",
        Content_Type=FORM,
    )
    for path in (*FILES, "nope.json"):
        url = f"{node.url}/{repo}/resolve/main/{path}"
        asked[f"HEAD {path}"] = lambda url=url: ask(url, "HEAD", User_Agent=NEW)
        asked[path] = lambda url=url: ask(url, User_Agent=NEW)
    return asked


def download(node: NodeProcess, home: Path) -> dict[str, bytes]:
    """Download with the newest client, an empty cache and default settings; return the files."""
    done = subprocess.run(
        [HF, "download", REPO, "--local-dir", str(home / "got")],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "HF_ENDPOINT": node.url, "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {path: (home / "got" / path).read_bytes() for path in FILES}


@pytest.mark.parametrize("how", ["close", "hang", "500", "503", "429"])
def test_what_is_known_is_said_again_and_called_stale(hub: HubProcess, start: Start, how: str) -> None:
    node = start("--freshness", "0")
    before = {name: question() for name, question in questions(node).items()}
    fail(hub, how)
    with ThreadPoolExecutor(16) as pool:
        running = {name: pool.submit(question) for name, question in questions(node).items()}
    for name, asked in running.items():
        answer = asked.result()
        assert (answer.status, answer.body) == (before[name].status, before[name].body), name
        assert answer["X-Error-Code"] == ("EntryNotFound" if "nope" in name else None)
        assert "nope" in name or "fwd=stale" in (answer["Cache-Status"] or ""), name


@pytest.mark.parametrize("how", ["close", "hang", "500", "503", "429"])
def test_what_is_not_known_is_never_told_as_refused_or_missing(hub: HubProcess, start: Start, how: str) -> None:
    node = start("--origin-silence-timeout", "8s")
    fail(hub, how)
    status = {"hang": 504, "429": 429}.get(how, 502)
    with ThreadPoolExecutor(16) as pool:
        running = {name: pool.submit(question) for name, question in questions(node).items()}
    for name, asked in running.items():
        assert asked.result().status == status, name
        assert asked.result()["X-Error-Code"] is None
        if how == "429":
            assert int(asked.result()["Retry-After"] or 0) >= 1
            assert "r=0;t=" in (asked.result()["RateLimit"] or "")


@pytest.mark.parametrize("how", ["close", "503", "429"])
def test_a_fault_that_another_node_met_is_no_refusal_either(hub: HubProcess, start: Start, how: str) -> None:
    nodes = [start(keyed=True) for _ in range(2)]  # each owns about half of the questions
    fail(hub, how)
    for node in nodes:
        for name, question in questions(node).items():
            answer = question()
            assert answer.status == (429 if how == "429" else 502), name
            assert answer["X-Error-Code"] is None


def test_a_silent_hub_is_not_asked_to_the_end_for_clients_that_have_gone(hub: HubProcess, start: Start) -> None:
    node = start("--drain-timeout", "60")
    hub.turn(dark="hang")
    host, port = node.url.removeprefix("http://").split(":")
    asked = [f"{method} /api/models{tail}" for method, tail in (("GET", "?search=a"), ("POST", f"/{REPO}/commit/main"))]
    with ExitStack() as stack:
        for question in asked:
            client = stack.enter_context(socket.create_connection((host, int(port))))
            client.sendall(f"{question} HTTP/1.1\r\nHost: {node.url[7:]}\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        until(lambda: hub.stats()["by_kind"].get("api") == len(asked), "the questions do not reach the Hub")

    def broken() -> float:
        metrics = node.status()["metrics"]
        name = 'hubmesh_client_requests_total{route="other",status="400",outcome="broken"}'
        return float(metrics.get(name, 0))

    until(lambda: broken() == len(asked), "they are not broken off")
    assert node.stop() == 0, "it had nobody to wait for"


NO_HUB = {
    "noise": b"\x16\x03\x01 this is not HTTP\r\n\r\n",
    "a captive portal": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\n\r\n<h1>Log in</h1>",
    "a way to one": b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\nContent-Length: 0\r\n\r\n",
    "a broken proxy": b"HTTP/1.1 502 Bad Gateway\r\nX-Error-Code: RepoNotFound\r\nContent-Length: 0\r\n\r\n",
    "half an answer": b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{"id": "acme',
    "nothing": b"",
}


@pytest.mark.parametrize("said", NO_HUB)
def test_whatever_stands_where_the_hub_should_is_never_told_as_its_answer(tmp_path: Path, said: str) -> None:
    class Stranger(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(NO_HUB[said])

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Stranger) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        try:
            with NodeProcess(tmp_path / "node", f"http://127.0.0.1:{stranger.server_address[1]}") as node:
                for name, question in questions(node).items():
                    answer = question()
                    assert answer.status in (502, 504), name
                    assert answer["X-Error-Code"] is None, name
        finally:
            stranger.shutdown()


@pytest.mark.parametrize("how", ["close", pytest.param("hang", marks=pytest.mark.slow), "429", "offline"])
def test_a_node_that_never_saw_a_repository_serves_what_a_trusted_peer_knows(
    hub: HubProcess, start: Start, how: str, tmp_path: Path
) -> None:
    knows = start(keyed=True)
    before = {name: question() for name, question in questions(knows).items()}
    fail(hub, how if how != "offline" else "")
    other = start(*(["--offline"] if how == "offline" else []), "--freshness", "0", keyed=True)
    hub.reset()
    for name, question in questions(other).items():
        answer = question()
        assert (answer.status, answer.body) == (before[name].status, before[name].body), name
        assert "nope" in name or "fwd=stale" in (answer["Cache-Status"] or ""), name
    assert hub.stats()["total_bytes"] == 0
    assert download(other, tmp_path / "home") == FILES
    unknown = ask(f"{other.url}/acme/never/resolve/main/config.json", User_Agent=NEW)
    assert unknown.status in (429, 502, 504)


def test_in_an_open_mesh_only_a_named_seed_is_believed(hub: HubProcess, start: Start) -> None:
    first = start()
    second = start()  # the first was named to it as a seed, but not the other way round
    for question in questions(first).values():
        question()
    hub.turn(dark="close")
    assert ask(f"{second.url}/{REPO}/resolve/main/config.json").body == FILES["config.json"]
    hub.turn(dark="")
    hub.folder.commit("acme/later", FILES)
    assert ask(f"{second.url}/acme/later/resolve/main/config.json").status == 200
    hub.turn(dark="close")
    assert ask(f"{first.url}/acme/later/resolve/main/config.json", "HEAD").status == 502


@pytest.mark.parametrize("setting", [{"private": True}, {"gated": True}])
def test_what_is_not_public_is_not_told_to_other_nodes(hub: HubProcess, start: Start, setting: dict[str, bool]) -> None:
    hub.folder.create("acme/secret", readers=["alice"], **setting)
    sha = hub.folder.commit("acme/secret", FILES)
    hub.folder.commit("acme/was-open", FILES)
    knows, other = start("--freshness", "0", keyed=True), start("--freshness", "0", keyed=True)
    for path in FILES:
        assert ask(f"{knows.url}/acme/secret/resolve/main/{path}", token="hf_alice").status == 200
        assert ask(f"{knows.url}/acme/was-open/resolve/main/{path}").status == 200
    assert ask(f"{knows.url}/api/models/acme/secret", token="hf_alice").status == 200
    repo = hub.folder.load("models", "acme/was-open")
    repo.private, repo.gated = setting.get("private", False), setting.get("gated", False)
    repo.save(hub.folder.folder("models", "acme/was-open"))
    assert ask(f"{knows.url}/acme/was-open/resolve/main/config.json", "HEAD").status == 401
    hub.turn(dark="close")
    for token in ("", "hf_bob", "hf_alice"):
        for repo_id in ("acme/secret", "acme/was-open"):
            for path in (*FILES, "nope"):
                for method in ("HEAD", "GET"):
                    answer = ask(f"{other.url}/{repo_id}/resolve/main/{path}", method, token=token)
                    assert answer.status == 502
                    assert sha not in str(answer)
        if "private" in setting:
            assert ask(f"{other.url}/api/models/acme/secret", token=token).status == 502


def test_one_nodes_pause_is_everyones(hub: HubProcess, start: Start) -> None:
    nodes = [start(keyed=True) for _ in range(3)]
    hub.turn(fail={"resolve": [429]}, retry_after=30)
    assert ask(f"{nodes[0].url}/{REPO}/resolve/main/config.json", "HEAD", User_Agent=NEW).status == 429
    hub.reset()

    def all_wait() -> bool:
        answers = [ask(f"{node.url}/{REPO}/resolve/main/sub/x.txt", "HEAD", User_Agent=NEW) for node in nodes]
        return all(answer.status == 429 and int(answer["Retry-After"] or 0) > 20 for answer in answers)

    assert all_wait(), "every node knows of the pause"
    assert hub.stats()["requests"] == {}
    # Another rate-limit window of the Hub, and another token's quota, are not affected.
    assert ask(f"{nodes[1].url}/api/models/{REPO}").status == 200
    assert ask(f"{nodes[1].url}/{REPO}/resolve/main/sub/x.txt", "HEAD", token="hf_bob").status == 200


def test_a_client_waits_as_long_as_the_hub_asked_and_then_has_it(hub: HubProcess, start: Start, tmp_path: Path) -> None:
    nodes = [start(keyed=True) for _ in range(2)]
    hub.turn(fail={"resolve": [429] * 500}, retry_after=4)  # clients do not retry info, here as at the Hub
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(download, node, tmp_path / node.data_dir.name) for node in nodes]
        until(lambda: "resolve" in hub.stats()["by_kind"], "nobody asks the Hub")
        hub.turn(fail={})
        for client, node in zip(running, nodes, strict=True):
            assert client.result() == FILES, node.log()
    assert time.monotonic() - began >= 4
    assert hub.stats()["total_bytes"] == sum(map(len, FILES.values()))


def test_a_node_that_is_offline_asks_nobody_and_tells_what_it_has(
    hub: HubProcess, start: Start, tmp_path: Path
) -> None:
    node = start()
    before = {name: question() for name, question in questions(node).items()}
    assert node.stop() == 0
    hub.reset()
    with NodeProcess(node.data_dir, hub.url, "--offline", "--freshness", "0") as again:
        for name, question in questions(again).items():
            answer = question()
            assert (answer.status, answer.body) == (before[name].status, before[name].body), name
        for tail in (
            "/api/models/acme/other",
            "/acme/other/resolve/main/x",
            "/api/whoami-v2",
            f"/api/models/{REPO}/likers",
        ):
            answer = ask(again.url + tail)
            assert answer.status == 502
            assert "offline" in json.loads(answer.body)["error"]
        assert hub.stats()["requests"] == {}
    node.start()

"""`preheat` on one node, some, or all: which files arrive where, and which never do."""

from __future__ import annotations

import json
import os
import random
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from tests.http import ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess, meet, until

FILES = {"a.safetensors": random.Random(1).randbytes(3_000_000), "b.bin": b"b" * 70_000, "config.json": b"{}"}
SIZE = sum(map(len, FILES.values()))

Start = Callable[..., list[NodeProcess]]


@pytest.fixture
def mesh(hub: HubProcess, tmp_path: Path) -> Iterator[Start]:
    hub.folder.commit("acme/tiny", FILES)
    hub.folder.create("acme/gated", gated=True, readers=["alice"])
    hub.folder.commit("acme/gated", FILES)
    hub.folder.add_token("hf_alice", "alice")
    with ExitStack() as stack:

        def start(*, keyed: bool) -> list[NodeProcess]:
            flags: tuple[str, ...] = ()
            if keyed:
                (tmp_path / "key").write_text(secrets.token_hex(32))
                flags = ("--mesh-key-file", str(tmp_path / "key"))
            first = stack.enter_context(NodeProcess(tmp_path / "node-0", hub.url, *flags))
            nodes = [first] + [
                stack.enter_context(NodeProcess(tmp_path / f"node-{n}", hub.url, *flags, "--seed", first.mesh))
                for n in (1, 2, 3)
            ]
            meet(nodes)
            return nodes

        yield start


def preheat(node: NodeProcess, token: str = "", **order: object) -> dict[str, int]:
    answer = ask(
        f"{node.url}/-/preheat", "POST", token=token, body=json.dumps(order).encode(), Content_Type="application/json"
    )
    assert answer.status == 200, answer.body
    said: dict[str, int] = json.loads(answer.body)
    return said


def held(node: NodeProcess) -> int:
    return sum(blob["size"] for blob in node.status()["blobs"] if blob["have"] == blob["size"])


@pytest.mark.parametrize("keyed", [False, True])
def test_all_of_them_for_one_copy_from_the_origin(hub: HubProcess, mesh: Start, keyed: bool) -> None:
    nodes = mesh(keyed=keyed)
    assert preheat(nodes[2], repo="acme/tiny", nodes=None) == {"files": 3}
    until(lambda: all(held(node) == SIZE for node in nodes), "it does not arrive everywhere")
    assert hub.stats()["bytes"]
    large = {path: count for path, count in hub.stats()["bytes"].items() if count > 1000}
    assert sum(large.values()) == len(FILES["a.safetensors"]) + len(FILES["b.bin"]), large


def test_some_of_them_and_some_files(hub: HubProcess, mesh: Start) -> None:
    nodes = mesh(keyed=False)
    assert preheat(nodes[1], repo="acme/tiny", nodes=2, include=["*.bin", "*.json"], exclude=["*.json"]) == {"files": 1}
    until(lambda: sum(map(held, nodes)) == 2 * len(FILES["b.bin"]), "it does not arrive on two")
    assert held(nodes[1]) == len(FILES["b.bin"])


def test_some_of_them_are_the_same_ones_each_time(hub: HubProcess, mesh: Start) -> None:
    """Otherwise a repository that is preheated file by file would be on all nodes, and complete on none."""
    files = {f"{number}.bin": bytes([number]) * 70_000 for number in range(6)}
    hub.folder.commit("acme/many", files)
    nodes = mesh(keyed=False)

    def holders() -> dict[str, set[int]]:
        found: dict[str, set[int]] = {path: set() for path in files}
        for number, node in enumerate(nodes):
            for blob in node.status()["blobs"]:
                if blob["have"] == blob["size"] and blob["path"] in files:
                    found[blob["path"]].add(number)
        return found

    code, _, err = say(nodes[1], "acme/many", "--nodes", "3", "--include", "0.bin")
    assert code == 0, err
    for path in list(files)[1:]:
        preheat(nodes[1], repo="acme/many", nodes=3, include=[path])
    until(lambda: all(len(some) >= 3 for some in holders().values()), "it does not arrive on three")
    first, *others = holders().values()
    assert 1 in first
    assert all(some == first for some in others), holders()
    assert len(first) == 3


def test_what_is_gated_spreads_where_there_is_a_key_and_no_token_does(hub: HubProcess, mesh: Start) -> None:
    nodes = mesh(keyed=True)
    preheat(nodes[0], token="hf_alice", repo="acme/gated", nodes=None)
    until(lambda: all(held(node) == SIZE for node in nodes), "it does not arrive everywhere")
    assert hub.stats()["bytes"]
    for node in nodes:
        assert "hf_alice" not in node.log()
        target = f"{node.url}/acme/gated/resolve/main/a.safetensors"
        assert ask(target).status == 401
        assert ask(target, token="hf_alice").body == FILES["a.safetensors"]
    large = sum(count for count in hub.stats()["bytes"].values() if count > 1000)
    assert large == len(FILES["a.safetensors"]) + len(FILES["b.bin"])


def test_in_an_open_mesh_what_is_gated_stays_where_its_token_is(hub: HubProcess, mesh: Start) -> None:
    nodes = mesh(keyed=False)
    preheat(nodes[0], token="hf_alice", repo="acme/gated", nodes=None)
    until(lambda: held(nodes[0]) == SIZE, "it does not arrive")
    assert [held(node) for node in nodes[1:]] == [0, 0, 0]
    assert "no key" in nodes[0].log()


def say(node: NodeProcess, *arguments: str, token: str = "") -> tuple[int, str, str]:
    """Run `hubmesh preheat`; return (exit code, stdout, stderr)."""
    command = [sys.executable, "-m", "proxy.cli", "preheat", *arguments, "--data-dir", str(node.data_dir)]
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | {
        "HF_HOME": "/nonexistent"
    }
    if token:
        environment["HF_TOKEN"] = token
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def test_what_cannot_come_is_said_by_the_command(hub: HubProcess, mesh: Start) -> None:
    node = mesh(keyed=False)[0]
    hub.folder.commit("acme/gated", {"README.md": b"anybody may read this"})
    hub.folder.add_token("hf_bob", "bob")
    for token, who in (("", "without a token"), ("hf_bob", "this token")):
        code, out, err = say(node, "acme/gated", token=token)
        assert (code, out) == (1, "")
        assert err.startswith("hubmesh: acme/gated: the Hub does not let ")
        assert who in err
        assert "--token" in err
    code, _, err = say(node, "acme/nothing")
    assert (code, err.startswith("hubmesh: acme/nothing: there is no models/acme/nothing, or it is private")) == (
        1,
        True,
    )
    code, out, _ = say(node, "acme/gated", "acme/tiny", "--nodes", "all", "--include", "*.json", token="hf_alice")
    assert (code, out.count("downloads started; files: 1.")) == (0, 2)


def test_what_there_is_no_room_for_is_said_by_the_command(hub: HubProcess, tmp_path: Path) -> None:
    hub.folder.commit("acme/tiny", FILES)
    hub.folder.commit("acme/small", {f"{n}.bin": bytes([n]) * 600_000 for n in range(4)})
    with NodeProcess(tmp_path / "node", hub.url, "--max-size", "2MiB") as node:
        code, out, err = say(node, "acme/tiny")
        assert (code, out) == (1, "")
        assert "a.safetensors, 3 MB" in err
        assert "--max-size" in err
        assert say(node, "acme/tiny", "--exclude", "*.safetensors")[0] == 0
        until(lambda: held(node) == len(FILES["b.bin"]) + len(FILES["config.json"]), "it does not arrive")
        code, _, err = say(node, "acme/small")  # each of them fits
        assert (code, "2400000 bytes in all" in err) == (1, True)
        assert say(node, "acme/small", "--exclude", "3.bin")[0] == 0
        until(lambda: held(node) >= 1_800_000, "it does not arrive")
        assert say(node, "acme/small", "--exclude", "3.bin")[0] == 0  # nothing is missing


@pytest.mark.parametrize(("repo", "revision"), [("acme/tiny", ".."), ("api/tiny", "main")])
def test_what_nothing_at_the_hub_can_be_called_is_said(
    hub: HubProcess, tmp_path: Path, repo: str, revision: str
) -> None:
    with NodeProcess(tmp_path / "node", hub.url) as node:
        body = json.dumps({"repo": repo, "revision": revision}).encode()
        answer = ask(f"{node.url}/-/preheat", "POST", body=body, Content_Type="application/json")
        assert (answer.status, json.loads(answer.body)) == (
            400,
            {"error": f"models/{repo} at {revision!r} is not a possible name at the Hub"},
        )
        assert "Traceback" not in node.log()


def test_what_comes_over_the_wire_is_no_order(hub: HubProcess, mesh: Start) -> None:
    node = mesh(keyed=False)[0]
    target = f"http://{node.mesh}/mesh/preheat"
    bad = {
        b"": 400,
        b"\xc1": 400,
        b"\x82\xa4type\xaarepository\xa4repo\xa9../../etc": 400,
        b"\x83\xa4type\xaarepository\xa4repo\xa4../x\xa8revision\xa4main": 400,
        b"\x83\xa4type\xa4held\xa6digest\xa1x\xa4size\x01": 403,
    }
    for body, status in bad.items():
        assert ask(target, "POST", body=body).status == status, body
    assert ask(target, "POST", body=b"x" * 300_000).status == 413
    assert node.get("/-/health") == b"alive\n"


def wire(repo: str, *include: str) -> bytes:
    order = {"type": "repository", "repo": repo, "revision": "main", "include": include}
    return msgspec.msgpack.encode(order)


def test_a_stranger_s_orders_are_few_and_their_globs_as_many_as_people_write(hub: HubProcess, mesh: Start) -> None:
    node = mesh(keyed=False)[0]
    target = f"http://{node.mesh}/mesh/preheat"
    assert ask(target, "POST", body=wire("acme/tiny", *["*a*b?[cd]" * 20] * 100)).status == 400
    assert ask(target, "POST", body=wire("acme/tiny", "*a" * 500)).status == 400
    assert ask(target, "POST", body=wire("acme/tiny", "a.*", *["*.none"] * 31)).status == 200
    until(lambda: held(node) == len(FILES["a.safetensors"]), "it does not arrive")
    answers = [ask(target, "POST", body=wire(f"acme/none{n}", f"*.{n}")) for n in range(80)]
    assert [answer["Retry-After"] for answer in answers if answer.status == 429][-1:] == ["4"]


def test_an_order_that_other_nodes_would_not_take_is_refused_at_once(hub: HubProcess, mesh: Start) -> None:
    node = mesh(keyed=False)[0]
    few, many = ["*.json"] * 32, ["*.json"] * 33
    assert preheat(node, repo="acme/tiny", nodes=1, include=many) == {"files": 1}
    assert preheat(node, repo="acme/tiny", nodes=None, include=few) == {"files": 1}
    order = json.dumps({"repo": "acme/tiny", "nodes": None, "include": many}).encode()
    answer = ask(f"{node.url}/-/preheat", "POST", body=order, Content_Type="application/json")
    assert answer.status == 400
    assert "fewer" in json.loads(answer.body)["error"]

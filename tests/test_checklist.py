"""What a mirror of the Hub must and must not do: each row of the protocol's checklist, against one real node.

Rows that need several nodes, other hosts or a client's cache are tested with those.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mesh.fill import RESERVE
from mesh.partial import Partial
from tests.http import ask
from tests.hub.process import HubProcess
from tests.hub.repos import Entry
from tests.lateness import Lateness
from tests.node import NodeProcess, until

MIB = 1 << 20
REPO = "acme/tiny"
BIG = random.Random(1).randbytes(5 * MIB + 123)
BIG_SHA = hashlib.sha256(BIG).hexdigest()
CONFIG = b'{"hidden_size": 4}'
CONFIG_OID = hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()
OLD = "hf_hub/0.36.0; python/3.11"
NEW = "unknown/None; hf_hub/2.4.0; python/3.11"


@pytest.fixture
def node(hub: HubProcess, tmp_path: Path) -> Iterator[NodeProcess]:
    hub.folder.commit(REPO, {"config.json": CONFIG, "model.safetensors": BIG, "data/en/a.txt": b"a"})
    hub.folder.add_token("hf_alice", "alice")
    hub.folder.add_token("hf_bob", "bob")
    with NodeProcess(tmp_path / "node", hub.url) as process:
        yield process


def commit_of(hub: HubProcess, repo: str = REPO, ref: str = "heads/main") -> str:
    return hub.folder.load("models", repo).refs[ref]


def resolve(node: NodeProcess, path: str, revision: str = "main", repo: str = REPO) -> str:
    return f"{node.url}/{repo}/resolve/{revision}/{path}"


@pytest.mark.parametrize(
    ("path", "etag", "content"), [("model.safetensors", BIG_SHA, BIG), ("config.json", CONFIG_OID, CONFIG)]
)
def test_row_01_head_is_200_with_final_metadata(
    hub: HubProcess, node: NodeProcess, path: str, etag: str, content: bytes
) -> None:
    head = ask(resolve(node, path), "HEAD")
    assert head.status == 200
    assert head["X-Repo-Commit"] == commit_of(hub)
    assert head["ETag"] == f'"{etag}"'
    assert head["Content-Length"] == str(len(content))
    assert head["Location"] is None
    if path == "model.safetensors":
        assert (head["X-Linked-Etag"], head["X-Linked-Size"]) == (f'"{BIG_SHA}"', str(len(BIG)))
    body = ask(resolve(node, path))
    assert (body.status, body.body, body["ETag"]) == (200, content, f'"{etag}"')


def test_row_02_no_xet_headers_on_files(node: NodeProcess) -> None:
    for method in ("HEAD", "GET"):
        answer = ask(resolve(node, "model.safetensors"), method)
        assert answer.status == 200
        assert answer["X-Xet-Hash"] is None
        assert answer["Link"] is None


def test_row_03_no_xet_hash_in_listings(hub: HubProcess, node: NodeProcess) -> None:
    direct = json.loads(ask(f"{hub.url}/api/models/{REPO}/tree/main?recursive=true").body)
    assert any("xetHash" in entry for entry in direct), "the stand-in has to say it"
    tree = json.loads(ask(f"{node.url}/api/models/{REPO}/tree/main?recursive=true").body)
    assert [{k: v for k, v in entry.items() if k != "xetHash"} for entry in direct] == tree
    info = ask(
        f"{node.url}/api/models/{REPO}/paths-info/main",
        "POST",
        body=b"paths=model.safetensors&expand=False",
        Content_Type="application/x-www-form-urlencoded",
    )
    assert json.loads(info.body)[0]["lfs"]["oid"] == BIG_SHA
    assert b"xetHash" not in info.body


def test_row_04_buckets_keep_their_xet_metadata(node: NodeProcess) -> None:
    head = ask(f"{node.url}/buckets/acme/b/resolve/x", "HEAD")
    assert head["X-Xet-Hash"] == "b" * 64
    assert "xet-auth" in (head["Link"] or "")


def test_row_05_a_token_for_xet_leads_here_and_is_refused_as_the_hub_would(hub: HubProcess, node: NodeProcess) -> None:
    route = f"{node.url}/api/models/{REPO}/xet-read-token/{commit_of(hub)}"
    answer = ask(route, token="hf_alice")
    assert answer.status == 200
    said = json.loads(answer.body)
    assert answer["X-Xet-Cas-Url"] == said["casUrl"] == f"{node.url}/-/xet"
    assert (answer["X-Xet-Access-Token"], answer["X-Xet-Token-Expiration"]) == (said["accessToken"], str(said["exp"]))
    writing = ask(route.replace("xet-read", "xet-write"), token="hf_alice")
    assert writing["X-Xet-Cas-Url"] == json.loads(writing.body)["casUrl"] != said["casUrl"]
    assert hub.stats()["seen"]["api"][-1]["authorization"] == "Bearer hf_alice"
    hub.folder.create("acme/secret", private=True, readers=["alice"])
    hub.folder.commit("acme/secret", {"a.bin": b"a"})
    assert ask(f"{node.url}/api/models/acme/secret/xet-read-token/main", token="hf_alice").status == 200
    refused = ask(f"{node.url}/api/models/acme/secret/xet-read-token/main", token="hf_bob")
    assert (refused.status, refused["X-Error-Code"]) == (404, "RepoNotFound")


def test_row_06_huge_files_go_over_xet_or_hide_their_size_from_clients_that_would_refuse(
    hub: HubProcess, node: NodeProcess
) -> None:
    repo = hub.folder.load("models", REPO)
    commit = repo.commits[repo.refs["heads/main"]]
    commit.files["huge.bin"] = Entry("0" * 40, 60 * 10**9, "1" * 64, "2" * 64, "none")
    commit.files["plain.bin"] = Entry("0" * 40, 60 * 10**9, "3" * 64, "", "none")
    repo.save(hub.folder.folder("models", REPO))
    for agent in (NEW, OLD):
        head = ask(resolve(node, "huge.bin"), "HEAD", User_Agent=agent)
        assert (head.status, head["X-Xet-Hash"]) == (200, "2" * 64)
        assert head["X-Linked-Size"] == head["Content-Length"] == str(60 * 10**9)
    new = ask(resolve(node, "plain.bin"), "HEAD", User_Agent=NEW)
    assert (new.status, new["X-Xet-Hash"], new["X-Linked-Size"], new["Content-Length"]) == (200, None, None, None)
    old = ask(resolve(node, "plain.bin"), "HEAD", User_Agent=OLD)
    assert old["X-Linked-Size"] == old["Content-Length"] == str(60 * 10**9)


def test_row_07_every_page_of_a_tree_comes_through_the_node(hub: HubProcess, node: NodeProcess) -> None:
    hub.turn(page_size=2)
    found, url = [], f"{node.url}/api/models/{REPO}/tree/main?recursive=true"
    while url:
        assert url.startswith(node.url)
        page = ask(url)
        found += [entry["path"] for entry in json.loads(page.body)]
        url = (page["Link"] or "<>").partition(">")[0][1:]
    assert found == ["config.json", "data", "data/en", "data/en/a.txt", "model.safetensors"]
    forwarded = ask(
        f"{node.url}/api/models/{REPO}/tree/main?recursive=true", X_Forwarded_Proto="https", X_Forwarded_Host="hub.lan"
    )
    assert (forwarded["Link"] or "").startswith("<https://hub.lan/api/")


@pytest.mark.parametrize("absolute", [False, True])
def test_row_08_a_renamed_repository_never_leads_past_the_node(
    hub: HubProcess, node: NodeProcess, absolute: bool
) -> None:
    hub.folder.create("acme/old", moved_to=REPO)
    hub.turn(absolute=absolute)
    head = ask(resolve(node, "model.safetensors", repo="acme/old"), "HEAD")
    assert (head.status, head["ETag"]) == (200, f'"{BIG_SHA}"')
    assert ask(resolve(node, "model.safetensors", repo="acme/old")).body == BIG
    info = ask(f"{node.url}/api/models/acme/old")
    assert info.status == 200
    assert json.loads(info.body)["id"] == REPO
    other = ask(f"{node.url}/api/models/acme/old/commits/main")
    assert (other["Location"] or "").startswith("/api/models/acme/tiny")


def test_row_09_slashes_in_revisions_and_folders_stay_encoded(hub: HubProcess, node: NodeProcess) -> None:
    sha = hub.folder.commit(REPO, {"config.json": b"{}"}, ref="pr/1")
    head = ask(resolve(node, "config.json", "refs%2Fpr%2F1"), "HEAD")
    assert (head.status, head["X-Repo-Commit"]) == (200, sha)
    tree = json.loads(ask(f"{node.url}/api/models/{REPO}/tree/refs%2Fpr%2F1/data%2Fen").body)
    assert [entry["path"] for entry in tree] == ["data/en/a.txt"]
    branch = hub.folder.commit(REPO, {"config.json": b"[]"}, ref="heads/feature/x")
    head = ask(resolve(node, "config.json", "feature%2Fx"), "HEAD")
    assert (head.status, head["X-Repo-Commit"]) == (200, branch)


def test_row_10_a_commit_is_echoed_exactly(hub: HubProcess, node: NodeProcess) -> None:
    before = commit_of(hub)
    hub.folder.commit(REPO, {"config.json": b"{}"})
    head = ask(resolve(node, "config.json", before), "HEAD")
    assert (head["X-Repo-Commit"], head["ETag"]) == (before, f'"{CONFIG_OID}"')


def test_row_11_a_branch_means_one_commit_everywhere_at_a_time(hub: HubProcess, node: NodeProcess) -> None:
    before = commit_of(hub)
    assert json.loads(ask(f"{node.url}/api/models/{REPO}/revision/main").body)["sha"] == before
    after = hub.folder.commit(REPO, {"config.json": b"{}", "new.txt": b"new"})
    assert ask(resolve(node, "config.json"), "HEAD")["X-Repo-Commit"] == before
    # Requests never made before, too: a client that loads one file before and one after them gets both of one commit.
    for tail in ("", "/revision/main", "?blobs=true", "?securityStatus=true"):
        assert json.loads(ask(f"{node.url}/api/models/{REPO}{tail}").body)["sha"] == before
    paths = {entry["path"] for entry in json.loads(ask(f"{node.url}/api/models/{REPO}/tree/main").body)}
    assert "new.txt" not in paths
    assert ask(resolve(node, "config.json"), "HEAD")["X-Repo-Commit"] == before
    # A client that asks for the current state gets the new commit, and all cached answers must follow.
    newest = ask(f"{node.url}/api/models/{REPO}?blobs=true", Cache_Control="no-cache")
    assert json.loads(newest.body)["sha"] == after
    for tail in ("", "/revision/main"):
        assert json.loads(ask(f"{node.url}/api/models/{REPO}{tail}").body)["sha"] == after
    paths = {entry["path"] for entry in json.loads(ask(f"{node.url}/api/models/{REPO}/tree/main").body)}
    assert "new.txt" in paths
    assert ask(resolve(node, "config.json"), "HEAD")["X-Repo-Commit"] == after


def test_row_12_a_missing_file_is_remembered_for_its_commit(hub: HubProcess, node: NodeProcess) -> None:
    for _ in range(3):
        head = ask(resolve(node, "nope.json"), "HEAD")
        assert (head.status, head["X-Error-Code"], head["X-Repo-Commit"]) == (404, "EntryNotFound", commit_of(hub))
    assert sum("nope.json" in request for request in hub.stats()["requests"]) == 1
    assert sum(hub.stats()["requests"].values()) == 1


@pytest.mark.parametrize("fault", ["close", "hang", "503", "429"])
def test_row_13_an_origin_fault_never_becomes_a_404(hub: HubProcess, node: NodeProcess, fault: str) -> None:
    if fault.isdigit():
        hub.turn(fail={"resolve": [int(fault)] * 20, "api": [int(fault)] * 20})
    else:
        hub.turn(dark=fault)
    head = ask(resolve(node, "chat_template.jinja"), "HEAD", User_Agent=NEW)
    assert head.status in ({"close": 502, "503": 502, "hang": 504, "429": 429}[fault],)
    assert head["X-Error-Code"] is None
    hub.turn(dark="", fail={})
    until = time.monotonic() + 5
    while (again := ask(resolve(node, "chat_template.jinja"), "HEAD")).status == 429 and time.monotonic() < until:
        time.sleep(0.1)
    assert (again.status, again["X-Error-Code"]) == (404, "EntryNotFound")


def test_row_14_a_bare_401_gets_the_code_that_clients_infer_over_https(node: NodeProcess) -> None:
    for url in (
        f"{node.url}/api/models/no/such",
        resolve(node, "x", repo="no/such"),
        f"{node.url}/api/models/no/such/auth-check",
    ):
        answer = ask(url)
        assert (answer.status, answer["X-Error-Code"]) == (401, "RepoNotFound"), url


def test_row_15_gated_answers_arrive_as_they_are(hub: HubProcess, node: NodeProcess) -> None:
    hub.folder.create("acme/gated", gated=True, readers=["alice"])
    hub.folder.commit("acme/gated", {"w.bin": BIG})
    url = resolve(node, "w.bin", repo="acme/gated")
    for token, status in (("", 401), ("hf_garbage", 401), ("hf_bob", 403), ("hf_alice", 200)):
        direct = ask(url.replace(node.url, hub.url), "HEAD", token=token)
        through = ask(url, "HEAD", token=token)
        assert through.status == status
        assert through["X-Error-Code"] == direct["X-Error-Code"]
        assert through["X-Error-Message"] == direct["X-Error-Message"]
        assert status == 200 or (through["X-Request-Id"] or "").startswith("Root=")
    assert ask(f"{node.url}/api/models/acme/gated").status == 200


@pytest.mark.parametrize("setting", [{"private": True}, {"gated": True}])
def test_row_16_nothing_private_reaches_who_may_not_have_it(
    hub: HubProcess, node: NodeProcess, setting: dict[str, bool]
) -> None:
    hub.folder.create("acme/secret", readers=["alice"], **setting)
    sha = hub.folder.commit("acme/secret", {"w.bin": BIG, "config.json": CONFIG})
    urls = [
        resolve(node, path, revision, "acme/secret") for path in ("w.bin", "config.json") for revision in ("main", sha)
    ]
    if "private" in setting:
        urls += [
            f"{node.url}/api/models/acme/secret{tail}"
            for tail in ("", "/revision/main", "/tree/main", f"/tree/{sha}", "/refs")
        ]
    for url in urls:
        assert ask(url, token="hf_alice").status == 200
    for dark in ("", "close"):
        hub.turn(dark=dark)
        for url in urls:
            assert ask(url, token="hf_alice").status == 200, (dark, url)
            for token in ("", "hf_bob", "hf_garbage"):
                for method in ("GET", "HEAD"):
                    answer = ask(url, method, token=token)
                    assert answer.status >= 400, (dark, token, url)
                    assert CONFIG not in answer.body
                    assert sha.encode() not in answer.body


def test_row_17_a_head_is_answered_in_time_from_a_slow_origin(hub: HubProcess, node: NodeProcess) -> None:
    hub.turn(latency={"resolve": 3.0})
    for asked in (1, 0):  # one answer serves several requests
        hub.reset()
        assert ask(resolve(node, "model.safetensors"), "HEAD").status == 200
        assert hub.stats()["by_kind"] == ({"resolve": 1} if asked else {})


def test_row_17_a_head_is_answered_in_time_whatever_the_origin_does(hub: HubProcess, tmp_path: Path) -> None:
    hub.folder.commit(REPO, {"config.json": CONFIG})
    hub.turn(latency={"resolve": 6.0})  # once more for the redirect of a small file
    with NodeProcess(tmp_path / "node", hub.url) as node, Lateness() as late:
        began = time.monotonic()
        assert ask(resolve(node, "config.json"), "HEAD", User_Agent=NEW).status == 504
        assert time.monotonic() - began < 9.9 + late.seconds, "clients have given up by then"


def test_row_18_bytes_flow_steadily_from_a_slow_origin(hub: HubProcess, node: NodeProcess) -> None:
    """Within a piece, too, bytes are passed on before more arrive, except for a small reserve that bridges gaps."""
    holds = (300_000, 2 * MIB + 700_000, 4 * MIB + 400_000)
    hub.turn(hold_at=holds[0])
    connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=20)
    connection.request("GET", f"/{REPO}/resolve/main/model.safetensors")
    response, got = connection.getresponse(), b""
    for hold in holds:
        with Lateness() as late:
            hub.turn(hold_at=hold)
            began = time.monotonic()
            while len(got) < hold - RESERVE:
                part = response.read1(1 << 16)
                assert part
                got += part
        assert time.monotonic() - began < 3.5 + late.seconds, "by then it is the reader who looks, every four seconds"
    assert len(got) <= holds[-1]
    hub.turn(hold_at=-1)
    assert got + response.read() == BIG
    connection.close()


def test_row_19_ranges_as_clients_resume_with_them(node: NodeProcess) -> None:
    url = resolve(node, "model.safetensors")
    for _ in range(2):  # cold, then warm
        part = ask(url, Range=f"bytes={MIB}-")
        assert (part.status, part["Content-Range"]) == (206, f"bytes {MIB}-{len(BIG) - 1}/{len(BIG)}")
        assert part.body == BIG[MIB:]
        tail = ask(url, Range="bytes=-8")
        assert (tail.status, tail.body) == (206, BIG[-8:])
        clamped = ask(resolve(node, "config.json"), Range="bytes=0-100000")
        assert (clamped.status, clamped.body) == (206, CONFIG)
        beyond = ask(url, Range=f"bytes={len(BIG)}-")
        assert (beyond.status, beyond["Content-Range"]) == (416, f"bytes */{len(BIG)}")
        assert ask(url, If_None_Match=f'"{BIG_SHA}"').status == 304
        assert ask(url, Range="bytes=0-9", If_Range='"other"').body == BIG


@pytest.mark.parametrize("knobs", [{"cut_after": 700_000, "cut_times": 4}, {"hang_after": 300_000, "hang_times": 1}])
def test_row_20_breaks_of_the_origin_are_hidden(hub: HubProcess, node: NodeProcess, knobs: dict[str, int]) -> None:
    hub.turn(**knobs)
    answer = ask(resolve(node, "model.safetensors"))
    assert (answer.status, answer.body) == (200, BIG)


def test_row_21_a_client_that_must_wait_is_told_so_that_it_does(hub: HubProcess, node: NodeProcess) -> None:
    hub.turn(latency={"cdn": 30.0})
    with ThreadPoolExecutor() as pool:
        new = pool.submit(ask, resolve(node, "model.safetensors"), User_Agent=NEW)
        old = pool.submit(ask, resolve(node, "model.safetensors"), User_Agent=OLD)
        assert new.result().status == 429
        assert "r=0;t=" in (new.result()["RateLimit"] or "")
        assert old.result().status == 503
    hub.turn(latency={})
    until = time.monotonic() + 20
    while (answer := ask(resolve(node, "model.safetensors"))).status != 200 and time.monotonic() < until:
        time.sleep(0.2)
    assert answer.body == BIG


def test_row_21_room_that_others_use_just_now_is_worth_waiting_for(hub: HubProcess, tmp_path: Path) -> None:
    held, cold = (random.Random(seed).randbytes(size * MIB) for seed, size in ((2, 20), (3, 10)))
    hub.folder.commit(REPO, {"held.bin": held, "cold.bin": cold})
    with NodeProcess(tmp_path / "node", hub.url, "--max-size", "20MiB") as node:
        assert ask(resolve(node, "held.bin")).body == held
    with node:  # restarted: the blob is read from the store, and not as a running fill
        slow = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=30)
        slow.connect()
        slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # or it would hold all that nobody reads
        slow.request("GET", f"/{REPO}/resolve/main/held.bin")
        with contextlib.closing(slow), slow.getresponse() as unread:
            assert unread.status == 200
            new = ask(resolve(node, "cold.bin"), User_Agent=NEW)
            assert (new.status, (new["RateLimit"] or "").partition(";t=")[0]) == (429, '"hubmesh";r=0')
            assert ask(resolve(node, "cold.bin"), User_Agent=OLD).status == 503
        until = time.monotonic() + 20
        while (answer := ask(resolve(node, "cold.bin"))).status == 429 and time.monotonic() < until:
            time.sleep(0.1)
        assert (answer.status, answer.body == cold) == (200, True)


def test_row_22_nothing_is_compressed(hub: HubProcess, node: NodeProcess) -> None:
    for path, content in (("config.json", CONFIG), ("model.safetensors", BIG)):
        answer = ask(resolve(node, path), Accept_Encoding="gzip, br, zstd")
        assert (answer["Content-Length"], answer["Content-Encoding"], answer.body) == (str(len(content)), None, content)
    listing = ask(f"{node.url}/api/models/{REPO}/tree/main", Accept_Encoding="gzip, br, zstd")
    assert listing["Content-Encoding"] is None
    assert len(json.loads(listing.body)) == 3
    seen = hub.stats()["seen"]
    for kind in ("resolve", "cdn", "api"):
        assert {request.get("accept-encoding") for request in seen[kind]} == {"identity"}, kind


def test_row_23_a_wrong_byte_is_never_served_to_the_end(hub: HubProcess, node: NodeProcess) -> None:
    hub.turn(corrupt={"model.safetensors": 3 * MIB}, corrupt_times=1)
    with contextlib.suppress(http.client.IncompleteRead):
        answer = ask(resolve(node, "model.safetensors"))
        assert answer.status >= 400, "a whole file with a wrong byte"
    again = ask(resolve(node, "model.safetensors"))
    assert (again.status, again.body) == (200, BIG)
    assert node.metric("hubmesh_pieces_rejected_total") > 0
    assert "do not match the digest" in node.log()
    assert "Traceback" not in node.log()


def test_row_23_nobody_goes_on_from_wrong_bytes(hub: HubProcess, tmp_path: Path) -> None:
    hub.folder.commit(REPO, {"model.safetensors": BIG})
    hub.turn(corrupt={"model.safetensors": 10}, corrupt_times=1, bandwidth=16 * MIB)
    lfs = {"Accept": "application/vnd.git-lfs+json", "Content-Type": "application/vnd.git-lfs+json"}
    with NodeProcess(tmp_path / "node", hub.url) as node:
        with pytest.raises(http.client.IncompleteRead) as broken:
            ask(resolve(node, "model.safetensors"), User_Agent=NEW)
        had = len(broken.value.partial)
        assert broken.value.partial != BIG[:had]
        for restarted in (False, True):  # before the blob is here again; partial files outlive us
            for user_agent in (NEW, OLD, "curl/8.0", "Wget/1.21"):
                others = ask(resolve(node, "model.safetensors"), User_Agent=user_agent, Range=f"bytes={had}-")
                assert others.status == 412, user_agent
                assert "delete what you have" in (others["X-Error-Message"] or "")
            for user_agent in ("curl/8.0", "aria2/1.36.0"):  # aria2 goes on with a whole file like this
                part = ask(
                    resolve(node, "model.safetensors"), User_Agent=user_agent, Range=f"bytes={had}-{len(BIG) - 1}"
                )
                assert part.status == 412, user_agent
            part = ask(resolve(node, "model.safetensors"), User_Agent=NEW, Range=f"bytes={MIB}-{2 * MIB}")
            assert (part.status, part.body) == (206, BIG[MIB : 2 * MIB + 1]), "huggingface_hub reads ranges like this"
            asked = {"operation": "download", "objects": [{"oid": BIG_SHA, "size": len(BIG)}]}
            batch = ask(f"{node.url}/{REPO}.git/info/lfs/objects/batch", "POST", body=json.dumps(asked).encode(), **lfs)
            action = json.loads(batch.body)["objects"][0]["actions"]["download"]
            git = ask(action["href"], Range=f"bytes={had}-{len(BIG) - 1}", **action.get("header", {}))
            assert (git.status, git.body) == (200, BIG), restarted
            if not restarted:
                node.stop()
                node.start()
        assert ask(resolve(node, "model.safetensors"), Range="bytes=0-").body == BIG
        assert "Traceback" not in node.log()


def test_row_23_who_was_sent_wrong_ranges_gets_no_more_for_now(hub: HubProcess, node: NodeProcess) -> None:
    url = resolve(node, "model.safetensors")
    hub.turn(corrupt={"model.safetensors": 10}, corrupt_times=1)
    assert ask(url, User_Agent=NEW, Range=f"bytes=0-{MIB - 1}").body != BIG[:MIB]
    with contextlib.suppress(http.client.IncompleteRead):
        assert ask(url, User_Agent=NEW).status >= 400, "a whole file with a wrong byte"
    assert ask(url).body == BIG
    rest = ask(url, User_Agent=NEW, Range=f"bytes={MIB}-{2 * MIB}")
    assert rest.status == 412
    assert "are refused for" in (rest["X-Error-Message"] or "")


def test_row_23_huggingface_hub_says_what_to_do(hub: HubProcess, node: NodeProcess, tmp_path: Path) -> None:
    large = random.Random(2).randbytes(24 * MIB)  # the client can resume after 10 MiB at the earliest
    hub.folder.commit(REPO, {"large.safetensors": large})
    hub.turn(corrupt={"large.safetensors": 10}, corrupt_times=1, bandwidth=16 * MIB)
    environment = os.environ | {"HF_ENDPOINT": node.url, "NO_PROXY": "*", "HF_HOME": str(tmp_path / "home")}

    def download(*more: str) -> subprocess.CompletedProcess[str]:
        arguments = ", ".join([repr(REPO), "'large.safetensors'", f"local_dir={str(tmp_path)!r}", *more])
        call = [sys.executable, "-c", f"import huggingface_hub as h; h.hf_hub_download({arguments})"]
        return subprocess.run(call, env=environment, capture_output=True, text=True, timeout=60)

    done = download()
    assert done.returncode == 1
    assert "delete what you have" in done.stderr
    if not download().returncode:  # the client may have kept none of it
        assert (tmp_path / "large.safetensors").read_bytes() == large
    done = download("force_download=True")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "large.safetensors").read_bytes() == large


def test_row_24_clients_share_one_fetch_that_outlives_them(hub: HubProcess, node: NodeProcess) -> None:
    hub.turn(bandwidth=8 * MIB)
    connection = http.client.HTTPConnection(node.url.removeprefix("http://"))
    connection.request("GET", f"/{REPO}/resolve/main/model.safetensors")
    connection.getresponse().read(10)
    connection.close()
    spans = [(start, min(start + MIB, len(BIG)) - 1) for start in range(0, len(BIG), MIB)]
    url = resolve(node, "model.safetensors")
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda span: ask(url, Range=f"bytes={span[0]}-{span[1]}").body, spans))
    assert b"".join(parts) == BIG
    assert hub.stats()["total_bytes"] == len(BIG)


def test_row_24_a_fetch_outlives_its_reader(hub: HubProcess, node: NodeProcess) -> None:
    hub.turn(bandwidth=700_000)  # takes longer than an unread fill is kept open
    connection = http.client.HTTPConnection(node.url.removeprefix("http://"))
    connection.request("GET", f"/{REPO}/resolve/main/model.safetensors")
    connection.getresponse().read(10)
    connection.close()
    until = time.monotonic() + 30
    while node.metric("hubmesh_blob_bytes") < len(BIG) or node.status()["downloads"]:
        assert time.monotonic() < until
        time.sleep(0.1)
    hub.turn(dark="close")
    assert ask(resolve(node, "model.safetensors")).body == BIG
    assert hub.stats()["total_bytes"] == len(BIG)


def test_row_25_a_range_of_what_is_not_here_costs_its_pieces_only(hub: HubProcess, node: NodeProcess) -> None:
    assert ask(resolve(node, "model.safetensors"), Range="bytes=-100").body == BIG[-100:]
    assert hub.stats()["total_bytes"] <= 2 * MIB


def test_row_26_signed_addresses_are_renewed(hub: HubProcess, node: NodeProcess) -> None:
    hub.turn(url_life=1.5, bandwidth=MIB)
    assert ask(resolve(node, "model.safetensors"), "HEAD").status == 200
    hub.turn(fail={"cdn": [403, 403]})
    answer = ask(resolve(node, "model.safetensors"))
    assert answer.body == BIG
    # Also within a body: the line breaks, and the URL, which should still be valid, has been revoked.
    sha = hub.folder.commit(REPO, {"other.bin": BIG[::-1]})
    hub.turn(url_life=3600, cut_after=2 * MIB, cut_times=1)
    with urllib.request.urlopen(resolve(node, "other.bin", sha), timeout=20) as response:
        got = response.read(MIB)
        hub.turn(key_number=1)
        assert got + response.read() == BIG[::-1]


def test_row_27_secrets_go_nowhere_else(hub: HubProcess, node: NodeProcess) -> None:
    hub.folder.create("acme/secret", private=True, readers=["alice"])
    hub.folder.commit("acme/secret", {"w.bin": BIG, "c.json": CONFIG})
    for path in ("w.bin", "c.json"):
        assert ask(resolve(node, path, repo="acme/secret"), token="hf_alice").status == 200
    seen = hub.stats()["seen"]
    assert all("authorization" not in request for request in seen["cdn"])
    assert "hf_alice" not in node.log()
    assert "Signature=" not in node.log()


def test_row_28_uploads_pass_untouched_and_are_seen_at_once(hub: HubProcess, node: NodeProcess) -> None:
    hub.folder.create("alice/mine", private=True, readers=["alice"])
    hub.folder.commit("alice/mine", {"a.txt": b"old"})
    url = resolve(node, "a.txt", repo="alice/mine")
    assert ask(url, token="hf_alice").body == b"old"
    assert ask(resolve(node, "b.txt", repo="alice/mine"), token="hf_alice").status == 404
    lines: list[dict[str, object]] = [{"key": "header", "value": {"summary": "new", "description": ""}}]
    for path in ("a.txt", "b.txt"):
        content = base64.b64encode(b"new").decode()
        lines.append({"key": "file", "value": {"content": content, "path": path, "encoding": "base64"}})
    body = "\n".join(map(json.dumps, lines)).encode()
    done = ask(
        f"{node.url}/api/models/alice/mine/commit/main",
        "POST",
        token="hf_alice",
        body=body,
        Content_Type="application/x-ndjson",
    )
    assert done.status == 200
    assert ask(url, token="hf_alice").body == b"new"
    assert ask(resolve(node, "b.txt", repo="alice/mine"), token="hf_alice").body == b"new"
    assert (
        json.loads(ask(f"{node.url}/api/models/alice/mine", token="hf_alice").body)["sha"]
        == json.loads(done.body)["commitOid"]
    )


def test_row_28_a_body_arrives_byte_for_byte(node: NodeProcess) -> None:
    for path in ("/api/models/alice/mine/preupload/main", "/alice/mine.git/info/lfs/objects/batch"):
        heard = ask(node.url + path, "POST", token="hf_alice", body=BIG[:300_000], X_Echo="1", Content_Type="x/y")
        document = json.loads(heard.body)
        assert document["sha256"] == hashlib.sha256(BIG[:300_000]).hexdigest()
        assert document["headers"]["Content-Type"] == "x/y"
        assert document["headers"]["Authorization"] == "Bearer hf_alice"


def test_row_29_who_am_i_is_asked_every_time(node: NodeProcess) -> None:
    for token, name in (("hf_alice", "alice"), ("hf_bob", "bob"), ("hf_alice", "alice")):
        assert json.loads(ask(f"{node.url}/api/whoami-v2", token=token).body)["name"] == name
    assert ask(f"{node.url}/api/whoami-v2").status == 401


@pytest.mark.parametrize("dark", ["close", "hang"])
def test_row_30_what_is_known_is_served_while_the_hub_is_away(hub: HubProcess, tmp_path: Path, dark: str) -> None:
    hub.folder.commit(REPO, {"config.json": CONFIG, "model.safetensors": BIG})
    sha = commit_of(hub)
    with NodeProcess(tmp_path / "away", hub.url, "--freshness", "0") as node:
        urls = [
            resolve(node, path, revision) for path in ("config.json", "model.safetensors") for revision in ("main", sha)
        ]
        urls += [
            f"{node.url}/api/models/{REPO}{tail}"
            for tail in ("", "/revision/main", "/tree/main?recursive=true", "/refs")
        ]
        before = [ask(url) for url in urls]
        missing = ask(resolve(node, "nope"))
        hub.turn(dark=dark)
        with ThreadPoolExecutor(16) as pool:
            after = list(pool.map(ask, urls))
        for url, one, two in zip(urls, before, after, strict=True):
            assert (two.status, two.body) == (one.status, one.body) == (200, two.body), url
        assert any("stale" in (answer["Cache-Status"] or "") for answer in after)
        assert missing.status == ask(resolve(node, "nope")).status == 404


def test_row_31_prefixes_slashes_and_spellings(hub: HubProcess, node: NodeProcess) -> None:
    assert ask(f"{node.url}/hf/{REPO}/resolve/main/config.json").body == CONFIG
    assert ask(f"{node.url}//{REPO}/resolve/main/config.json").body == CONFIG
    hub.turn(page_size=2)
    page = ask(f"{node.url}/hf/api/models/{REPO}/tree/main?recursive=True")
    assert (page["Link"] or "").startswith(f"<{node.url}/hf/api/models/{REPO}/tree/")
    hub.reset()
    assert ask(f"{node.url}/api/models/{REPO}/tree/main?recursive=true").body == page.body
    assert hub.stats()["by_kind"].get("api", 0) == 0


def test_row_34_asking_about_files_fetches_none(hub: HubProcess, node: NodeProcess) -> None:
    for path in ("config.json", "model.safetensors"):
        assert ask(resolve(node, path), "HEAD").status == 200
    assert hub.stats()["total_bytes"] == 0
    assert "cdn" not in hub.stats()["by_kind"]


def test_row_35_unknown_paths_pass_both_ways(hub: HubProcess, node: NodeProcess) -> None:
    direct, through = ask(f"{hub.url}/api/models?author=acme"), ask(f"{node.url}/api/models?author=acme")
    assert (through.status, through.body) == (direct.status, direct.body)
    events = ask(f"{node.url}/api/spaces/{REPO}/events")
    assert events.status == 401
    lost, found = ask(f"{node.url}/some/where/else"), ask(f"{hub.url}/some/where/else")
    assert (lost.status, lost.body) == (found.status, found.body)


def test_eight_clients_on_a_cold_file_cost_the_origin_its_size_once(hub: HubProcess, node: NodeProcess) -> None:
    barrier = threading.Barrier(8)

    def read(_: int) -> bytes:
        barrier.wait()
        return ask(resolve(node, "model.safetensors")).body

    with ThreadPoolExecutor(8) as pool:
        assert all(body == BIG for body in pool.map(read, range(8)))
    assert hub.stats()["total_bytes"] == len(BIG)
    assert node.metric("hubmesh_origin_received_bytes_total") == len(BIG)
    assert node.metric("hubmesh_client_sent_bytes_total") == 8 * len(BIG)


def journaled(node: NodeProcess) -> int:
    """Return about how many bytes of unfinished blobs are on disk, counting whole pieces in their journals."""
    journals = (node.data_dir / "partial").glob("*.journal")
    return sum(Partial.journaled(journal.with_suffix("")) for journal in journals)


def test_a_killed_node_goes_on_where_it_was(hub: HubProcess, node: NodeProcess) -> None:
    """Three pieces are on its disk, and half of a fourth."""
    kept = 3
    hub.turn(hold_at=kept * MIB + 500_000)
    with contextlib.suppress(OSError, http.client.HTTPException), ThreadPoolExecutor(1) as pool:
        reading = pool.submit(ask, resolve(node, "model.safetensors"))
        until(lambda: journaled(node) == kept * MIB, "the pieces are not on disk")
        node.kill()
        reading.result()
    hub.turn(hold_at=-1)
    hub.reset()
    node.start()
    assert ask(resolve(node, "model.safetensors")).body == BIG
    assert hub.stats()["total_bytes"] <= len(BIG) - kept * MIB
    assert ask(resolve(node, "model.safetensors")).body == BIG

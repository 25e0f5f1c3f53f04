"""The requests of llama.cpp for `-hf owner/name[:tag]`, in both generations of its downloader.

Replayed from its sources (`common/download.cpp`, `common/hf-cache.cpp`), because no ready-made build of it is
available: older versions ask for a manifest and for files of `main`; newer ones for refs, a tree and files of the
commit.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import http
from tests.hub.process import HubProcess
from tests.node import NodeProcess

MIB = 1 << 20
REPO = "acme/tiny-GGUF"
AGENT = "llama-cpp/b7000-0123abcd"
PARTS = [random.Random(number).randbytes(3 * MIB + number) for number in range(3)]
NAMES = [f"Q4_K_M/tiny-Q4_K_M-0000{number}-of-00002.gguf" for number in (1, 2)]
FILES = {NAMES[0]: PARTS[0], NAMES[1]: PARTS[1], "mmproj-F16.gguf": PARTS[2], "README.md": b"# tiny\n"}
LARGE = [*NAMES, "mmproj-F16.gguf"]


@pytest.fixture
def node(hub: HubProcess, tmp_path: Path) -> Iterator[NodeProcess]:
    hub.folder.commit(REPO, FILES)
    with NodeProcess(tmp_path / "node", hub.url) as process:
        yield process


def manifest(endpoint: str, tag: str) -> list[str]:
    """The older way: return the file names, with the other parts of a split model derived from the first."""
    answer = http.ask(f"{endpoint}/v2/{REPO}/manifests/{tag}", User_Agent="llama-cpp", Accept="application/json")
    assert answer.status == 200
    said = json.loads(answer.body)
    first = said["ggufFile"]["rfilename"]
    return [first, first.replace("00001-of", "00002-of"), said["mmprojFile"]["rfilename"]]


def listing(endpoint: str) -> tuple[str, dict[str, str]]:
    """The newer way: return the commit, and its file names with the names that the cache stores them under."""
    refs = http.ask(f"{endpoint}/api/models/{REPO}/refs", User_Agent=AGENT, Accept="application/json")
    commit: str = next(ref["targetCommit"] for ref in json.loads(refs.body)["branches"] if ref["name"] == "main")
    tree = http.ask(
        f"{endpoint}/api/models/{REPO}/tree/{commit}?recursive=true", User_Agent=AGENT, Accept="application/json"
    )
    files = [entry for entry in json.loads(tree.body) if entry["type"] == "file"]
    return commit, {entry["path"]: entry.get("lfs", entry)["oid"] for entry in files}


def download(url: str, token: str = "", begun: bytes = b"") -> tuple[bytes, str]:
    """Return one file and its ETag: a HEAD that must succeed, and a GET that continues after `begun`."""
    headers = {"User_Agent": AGENT, "Accept": "*/*"}
    head = http.ask(url, "HEAD", token=token, **headers)
    assert head.status == 200
    assert (head["Accept-Ranges"] or "none") != "none"
    if begun:
        headers["Range"] = f"bytes={len(begun)}-"
    got = http.ask(url, token=token, **headers)
    assert got.status == (206 if begun else 200)
    body = begun + got.body
    assert len(body) == int(head["Content-Length"] or 0)
    return body, head["ETag"] or ""


def test_the_older_downloader(hub: HubProcess, node: NodeProcess) -> None:
    for tag in ("latest", "Q4_K_M", "q4_k_m"):
        assert manifest(node.url, tag) == LARGE
    missing = f"{node.url}/v2/{REPO}/manifests/Q9_X"
    assert http.ask(missing, User_Agent="llama-cpp").status == 400
    urls = [f"{node.url}/{REPO}/resolve/main/{name}" for name in LARGE]
    with ThreadPoolExecutor() as pool:  # all parts at once, the first of them resumed
        begun = [PARTS[0][:MIB], b"", b""]
        assert [body for body, _ in pool.map(download, urls, [""] * 3, begun)] == PARTS
    assert [hub.stats()["bytes"][name] for name in LARGE] == [len(part) for part in PARTS]


def test_the_newer_downloader_also_while_the_hub_is_away(hub: HubProcess, node: NodeProcess) -> None:
    for weather in ("", "close"):
        hub.turn(dark=weather)
        commit, files = listing(node.url)
        assert commit == hub.folder.load("models", REPO).refs["heads/main"]
        assert {name: files[name] for name in LARGE} == {
            name: hashlib.sha256(part).hexdigest() for name, part in zip(LARGE, PARTS, strict=True)
        }
        urls = [f"{node.url}/{REPO}/resolve/{commit}/{name}" for name in LARGE]
        with ThreadPoolExecutor() as pool:
            got = list(pool.map(download, urls))
        assert [body for body, _ in got] == PARTS
        assert [etag for _, etag in got] == [f'"{files[name]}"' for name in LARGE]
    hub.turn(dark="")
    assert [hub.stats()["bytes"][name] for name in LARGE] == [len(part) for part in PARTS]


def test_an_endpoint_with_a_path_and_a_gated_model(hub: HubProcess, node: NodeProcess) -> None:
    assert manifest(f"{node.url}/hf", "latest") == LARGE
    hub.folder.add_token("hf_alice", "alice")
    hub.folder.create("acme/gated", gated=True, readers=["alice"])
    hub.folder.commit("acme/gated", FILES)
    url = f"{node.url}/v2/acme/gated/manifests/latest"
    assert http.ask(url, User_Agent="llama-cpp").status == 401
    assert http.ask(url, token="hf_alice", User_Agent="llama-cpp").status == 200
    file = f"{node.url}/acme/gated/resolve/main/{LARGE[0]}"
    assert download(file, "hf_alice")[0] == PARTS[0]
    assert http.ask(file, "HEAD", User_Agent=AGENT).status == 401

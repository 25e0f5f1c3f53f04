"""`--hf-cache`: one machine that has a model seeds the others, and whatever happens to the cache harms nobody."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from mesh.adopt import stage
from mesh.content import Digest, Pieces
from proxy.hf_cache import scan
from tests.http import ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess

BIG = random.Random(5).randbytes(5_000_000)
CONFIG = b'{"a": 1}'
REPO = "acme/tiny"


@pytest.fixture
def cache(hub: HubProcess, tmp_path: Path) -> Path:
    """As `hf download` leaves it, straight from the Hub."""
    hub.folder.commit(REPO, {"sub/model.safetensors": BIG, "config.json": CONFIG, "empty.txt": b""})
    hub.folder.create("acme/gated", gated=True, readers=["alice"])
    hub.folder.commit("acme/gated", {"w.bin": BIG[:100_000]})
    hub.folder.add_token("hf_alice", "alice")
    home = tmp_path / "home"
    for repo in (REPO, "acme/gated"):
        subprocess.run(
            [Path(sys.executable).parent / "hf", "download", repo],
            env={
                **os.environ,
                "HF_HOME": str(home),
                "HF_ENDPOINT": hub.url,
                "HF_TOKEN": "hf_alice",
                "HF_HUB_DISABLE_XET": "1",
            },
            check=True,
            capture_output=True,
        )
    hub.reset()
    return home / "hub"


def wait(is_so: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < until, otherwise
        time.sleep(0.05)


def blob(cache: Path, content: bytes) -> Path:
    [file] = [path for path in cache.glob("*/blobs/*") if path.name == hashlib.sha256(content).hexdigest()]
    return file


def test_who_has_it_seeds_the_others(hub: HubProcess, cache: Path, tmp_path: Path) -> None:
    flags = ("--hf-cache", str(cache))
    with (
        NodeProcess(tmp_path / "a", hub.url, *flags) as has,
        NodeProcess(tmp_path / "b", hub.url, "--seed", has.mesh) as b,
    ):
        wait(lambda: len(has.status()["blobs"]) == 3, "it is not taken over")
        wait(lambda: b.metric("hubmesh_peers") == 1, "they do not find each other")
        target = f"/{REPO}/resolve/main/sub/model.safetensors"
        wait(lambda: any(blob["repo"] == f"models/{REPO}" for blob in has.status()["blobs"]), "nobody asked the Hub")
        assert ask(b.url + target).body == BIG
        assert hub.stats()["total_bytes"] == 0, "it came from the Hub"

        # A gated file is no less gated for being here, and does not leave a mesh without a key.
        gated = "/acme/gated/resolve/main/w.bin"
        assert ask(has.url + gated).status == 401
        assert ask(has.url + gated, token="hf_alice").body == BIG[:100_000]
        assert hub.stats()["total_bytes"] == 0
        digest = hashlib.sha256(BIG[:100_000]).hexdigest()
        assert ask(f"http://{has.mesh}/mesh/blobs/sha256:{digest}", Range="bytes=0-9").status == 404

        # Whatever its owner does to the cache, what is served stays what it was.
        with blob(cache, BIG).open("r+b") as file:
            file.write(b"changed in place")
        assert ask(has.url + target).body == BIG
        blob(cache, BIG).unlink()
        assert ask(has.url + target).body == BIG


def test_only_what_is_proven_counts(hub: HubProcess, cache: Path, tmp_path: Path) -> None:
    file = blob(cache, BIG)
    with file.open("r+b") as broken:
        broken.seek(1_000_000)
        broken.write(b"wrong")
    file.with_name(file.name + ".incomplete").write_bytes(b"x" * 100)
    (file.parent / ("0" * 64)).symlink_to("/etc/passwd")
    (file.parent / "not-a-digest").write_bytes(b"x")
    with NodeProcess(tmp_path / "a", hub.url, "--hf-cache", str(cache)) as node:
        wait(lambda: "is not what its name says" in node.log(), "nobody noticed")
        wait(lambda: len(node.status()["blobs"]) == 2, "the good ones are not taken over")
        assert ask(f"{node.url}/{REPO}/resolve/main/sub/model.safetensors").body == BIG
    assert list((tmp_path / "a" / "adopting").iterdir()) == []
    assert file.stat().st_size == len(BIG), "the cache is only read"


def test_what_a_cache_says_of_its_files(cache: Path) -> None:
    found = {cached.route.path: cached for cached in scan(cache) if cached.route is not None}
    assert found.keys() == {"config.json", "sub/model.safetensors", "w.bin"}
    big = found["sub/model.safetensors"]
    assert (str(big.digest), big.size) == (f"sha256:{hashlib.sha256(BIG).hexdigest()}", len(BIG))
    assert str(found["config.json"].digest).startswith("git-sha1:")
    assert str(big.route.repo) == f"models/{REPO}"
    assert list(scan(cache / "nothing")) == []


def test_the_copy_is_what_is_proven(tmp_path: Path) -> None:
    source, staged = tmp_path / "theirs", tmp_path / "ours"
    source.write_bytes(BIG)
    digest = Digest("sha256", hashlib.sha256(BIG).hexdigest())
    pieces = stage(source, staged, digest, len(BIG))
    cut = Pieces.of(len(BIG))
    assert pieces == [blake3(BIG[slice(*cut.span(n))]).digest() for n in range(cut.count)]
    source.write_bytes(b"")
    assert staged.read_bytes() == BIG
    source.write_bytes(BIG[:-1])
    assert stage(source, staged, digest, len(BIG)) is None
    source.write_bytes(BIG[:-1] + b"?")
    assert stage(source, staged, digest, len(BIG)) is None

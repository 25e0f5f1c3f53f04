"""`--hf-cache`: a machine that has a model serves it to the others, and changes to the cache harm nobody."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest
from blake3 import blake3

from mesh.adopt import take
from mesh.content import Digest, Pieces
from mesh.errors import StoreUnusable
from mesh.outflow import Held, send_some
from mesh.store import Store
from proxy.hf_cache import Cached, HfCache, scan
from proxy.hub.errors import OriginUnavailable
from proxy.hub.urls import Repo
from tests.http import ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess, until

BIG = random.Random(5).randbytes(5_000_000)
CONFIG = b'{"a": 1}'
REPO = "acme/tiny"


@pytest.fixture
def cache(hub: HubProcess, tmp_path: Path) -> Path:
    """A cache as `hf download` leaves it, filled straight from the Hub."""
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


def blob(cache: Path, content: bytes) -> Path:
    [file] = [path for path in cache.glob("*/blobs/*") if path.name == hashlib.sha256(content).hexdigest()]
    return file


def test_who_has_it_seeds_the_others(hub: HubProcess, cache: Path, tmp_path: Path) -> None:
    flags = ("--hf-cache", str(cache))
    with (
        NodeProcess(tmp_path / "a", hub.url, "--role", "seed", *flags) as has,
        NodeProcess(tmp_path / "b", hub.url, "--seed", has.mesh) as b,
    ):
        until(lambda: len(has.status()["blobs"]) == 3, "it is not taken over")
        until(lambda: b.metric("hubmesh_peers") == 1, "they do not find each other")
        target = f"/{REPO}/resolve/main/sub/model.safetensors"
        piece = f"http://{has.mesh}/mesh/blobs/sha256:{hashlib.sha256(BIG).hexdigest()}"
        until(lambda: ask(piece, Range="bytes=0-9").status == 206, "nobody asked the Hub whether it is public")
        assert ask(b.url + target).body == BIG
        assert hub.stats()["total_bytes"] == 0, "it came from the Hub"

        # A gated file stays gated although it is here, and does not leave a mesh without a key.
        gated = "/acme/gated/resolve/main/w.bin"
        assert ask(has.url + gated).status == 401
        assert ask(has.url + gated, token="hf_alice").body == BIG[:100_000]
        assert hub.stats()["total_bytes"] == 0
        digest = hashlib.sha256(BIG[:100_000]).hexdigest()
        assert ask(f"http://{has.mesh}/mesh/blobs/sha256:{digest}", Range="bytes=0-9").status == 404

        # Whatever its owner does to the cache, the served bytes stay the same.
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
        until(lambda: "is not what its name says" in node.log(), "nobody noticed")
        until(lambda: len(node.status()["blobs"]) == 2, "the good ones are not taken over")
        assert ask(f"{node.url}/{REPO}/resolve/main/sub/model.safetensors").body == BIG
    assert list((tmp_path / "a" / "adopting").iterdir()) == []
    assert file.stat().st_size == len(BIG), "the cache is only read"


def test_what_came_over_xet_is_a_link_to_a_file_for_all_repositories(hub: HubProcess, tmp_path: Path) -> None:
    cache, twin = tmp_path / "home" / "hub", "acme/twin"
    for repo in (REPO, twin):
        hub.folder.commit(repo, {"model.safetensors": BIG})
    with NodeProcess(tmp_path / "xet", hub.url, "--xet", "always") as node:
        for repo in (REPO, twin):
            download(node.url, tmp_path / "home", repo)
    links = sorted(cache.glob("*/blobs/*"))
    [file] = {link.resolve() for link in links if link.is_symlink()}
    assert file.parts[-3] == "blobs", "this client keeps them otherwise"
    digest, outside = hashlib.sha256(BIG).hexdigest(), tmp_path / "outside"
    outside.write_bytes(BIG)
    links[0].with_name("0" * 64).symlink_to("../../blobs/nowhere")
    links[0].with_name("1" * 64).symlink_to("1" * 64)
    links[0].with_name("2" * 64).symlink_to(cache)
    links[0].with_name("3" * 64).symlink_to(outside)
    link = tmp_path / "link"
    link.symlink_to(cache)
    for root in (cache, link):
        found = list(scan(root))
        assert {(each.file, each.digest.hex, each.size) for each in found} == {(file, digest, len(BIG))}
        assert {str(each.route.repo) for each in found if each.route} == {f"models/{REPO}", f"models/{twin}"}

    # The wrong name, which is scanned first, does not put the right one in doubt.
    wrong = links[0].with_name("00" + digest[2:])
    wrong.symlink_to(file)
    os.utime(file, (1, 1))
    hub.reset()
    with NodeProcess(tmp_path / "a", hub.url, "--hf-cache", str(cache)) as node:
        until(lambda: len(node.status()["blobs"]) == 1, "it is not taken over")
        assert ask(f"{node.url}/{twin}/resolve/main/model.safetensors").body == BIG
        assert f"{wrong} is not what its name says" in node.log()
        assert hub.stats()["total_bytes"] == 0, "it came from the Hub"
    assert file.read_bytes() == BIG


def test_what_a_cache_says_of_its_files(cache: Path) -> None:
    found = {cached.route.path: cached for cached in scan(cache) if cached.route is not None}
    assert found.keys() == {"config.json", "sub/model.safetensors", "w.bin"}
    big = found["sub/model.safetensors"]
    assert (str(big.digest), big.size) == (f"sha256:{hashlib.sha256(BIG).hexdigest()}", len(BIG))
    assert str(found["config.json"].digest).startswith("git-sha1:")
    assert str(big.route.repo) == f"models/{REPO}"
    assert list(scan(cache / "nothing")) == []


def disk(folder: Path) -> int:
    """Bytes of blocks below a folder, each file once however many names it has, as `du` counts."""
    return 1024 * int(
        subprocess.run(["du", "-sk", folder], check=True, capture_output=True, text=True).stdout.split()[0]
    )


def download(endpoint: str, home: Path, repo: str = REPO) -> None:
    subprocess.run(
        [Path(sys.executable).parent / "hf", "download", repo],
        env={**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": endpoint},
        check=True,
        capture_output=True,
    )


@pytest.mark.slow
def test_two_nodes_and_a_client_hold_it_once(hub: HubProcess, tmp_path: Path) -> None:
    model = random.Random(6).randbytes(90_000_000)
    hub.folder.commit(REPO, {"model.safetensors": model})
    target = f"/{REPO}/resolve/main/model.safetensors"
    place = tmp_path / "disk"
    cache = place / "home" / "hub"
    cache.mkdir(parents=True)
    flags = ("--hf-cache", str(cache))
    with NodeProcess(place / "a", hub.url, *flags) as a, NodeProcess(place / "b", hub.url, *flags) as b:
        download(a.url, place / "home")
        assert ask(b.url + target, Range="bytes=0-9").body == model[:10]
        until(lambda: disk(place) < 1.05 * len(model), "it is on disk more than once", 60)
        assert ask(a.url + target).body == ask(b.url + target).body == model

        # Its owner writes to it: no reader gets those bytes, and the lost ones are fetched from the Hub again.
        with blob(cache, model).open("r+b") as file:
            file.seek(50_000_000)
            file.write(b"changed in place")
        assert ask(a.url + target).body == model
        assert "was changed by " in a.log()
        ranged = ask(b.url + target, Range="bytes=50000000-50000015")
        assert ranged.body == model[50_000_000:50_000_016]
        assert blob(cache, model).read_bytes()[50_000_000:50_000_016] == b"changed in place"

    # Truncated while a reader has it open, and across a restart.
    blob(cache, model).unlink()
    with NodeProcess(place / "a", hub.url, *flags) as a:
        download(a.url, place / "home")
        until(lambda: blob(cache, model).stat().st_nlink == 2, "it is not shared", 60)
    with NodeProcess(place / "a", hub.url, *flags) as a:
        assert ask(a.url + target).headers["Cache-Status"] == "hubmesh; hit"
        os.truncate(blob(cache, model), 1000)
        assert ask(a.url + target).body == model


def test_what_another_program_does_to_a_shared_file_is_found_out(hub: HubProcess, cache: Path, tmp_path: Path) -> None:
    file, target = blob(cache, BIG), f"/{REPO}/resolve/main/sub/model.safetensors"
    os.utime(file, (1, 1))
    with NodeProcess(tmp_path / "a", hub.url, "--hf-cache", str(cache)) as node:
        until(lambda: len(node.status()["blobs"]) == 3, "it is not taken over")
        if file.stat().st_nlink == 1:
            pytest.skip("this file system clones files: nothing is shared")

        # New and removed links, also by another node or `hf cache`, are no reason to drop it.
        os.link(file, tmp_path / "another")
        (tmp_path / "another").unlink()
        assert ask(node.url + target).body == BIG
    file.chmod(0o600)
    with NodeProcess(tmp_path / "a", hub.url, "--hf-cache", str(cache)) as node:
        assert ask(node.url + target, Range="bytes=9-").body == BIG[9:]
        assert hub.stats()["total_bytes"] == 0, "it was lost"

        # Written to, with the modification time restored.
        with file.open("r+b") as written:
            written.write(b"changed in place")
        os.utime(file, (1, 1))
        assert ask(node.url + target).body == BIG
        assert "was changed by another program" in node.log()


def test_a_file_written_to_while_it_is_read(tmp_path: Path) -> None:
    file, staged = tmp_path / "theirs", tmp_path / "staged"
    file.write_bytes(BIG)
    os.utime(file, (1, 1))
    taken = take(file, staged, Digest("sha256", hashlib.sha256(BIG).hexdigest()), len(BIG))
    assert taken is not None
    if taken.stamp is None:
        pytest.skip("this file system clones files: there is nothing to notice")
    mine, client = socket.socketpair()
    with staged.open("rb") as ours, mine, client:
        source = Held(ours.fileno(), len(BIG), taken.stamp)
        assert send_some(mine, source, 0, 100) == 100
        assert client.recv(200) == BIG[:100]
        with file.open("r+b") as theirs:
            theirs.write(b"x")
        os.utime(file, (1, 1))
        with pytest.raises(StoreUnusable):
            send_some(mine, source, 100, 200)


def test_a_file_system_that_clones(tmp_path: Path) -> None:
    """On Btrfs and XFS the two files share only blocks: the owner's writes never reach ours."""
    image, mount = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    mount.mkdir()
    if shutil.which("mkfs.btrfs") is None or subprocess.run(["mkfs.btrfs", "-q", image], check=False).returncode:
        pytest.skip("mkfs.btrfs is not here")
    if subprocess.run(["mount", "-o", "loop", image, mount], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        source, staged = mount / "theirs", mount / "ours"
        source.write_bytes(BIG)
        taken = take(source, staged, Digest("sha256", hashlib.sha256(BIG).hexdigest()), len(BIG))
        assert taken is not None
        assert taken.stamp is None
        assert source.stat().st_ino != staged.stat().st_ino
        source.write_bytes(b"")
        assert staged.read_bytes() == BIG
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_the_copy_is_what_is_proven(tmp_path: Path) -> None:
    source, staged = tmp_path / "theirs", tmp_path / "ours"
    digest = Digest("sha256", hashlib.sha256(BIG).hexdigest())
    cut = Pieces.of(len(BIG))
    source.write_bytes(BIG)
    os.utime(source, (1, 1))
    taken = take(source, staged, digest, len(BIG))
    assert taken is not None
    assert taken.pieces == [blake3(BIG[slice(*cut.span(n))]).digest() for n in range(cut.count)]
    for wrong in (BIG[:-1], BIG[:-1] + b"?", b""):
        source.unlink()
        source.write_bytes(wrong)
        os.utime(source, (1, 1))
        assert take(source, staged, digest, len(BIG)) is None


async def test_a_cache_that_changes_under_a_look_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([FileNotFoundError(2, "a link that was just there"), []])
    again = asyncio.Event()
    loop = asyncio.get_running_loop()

    def scan(_: Path) -> list[object]:
        look = next(looks)
        if isinstance(look, Exception):
            raise look
        loop.call_soon_threadsafe(again.set)
        return look

    monkeypatch.setattr("proxy.hf_cache.scan", scan)
    monkeypatch.setattr("proxy.hf_cache._LOOK_AGAIN", 0.01)
    blobs, store = SimpleNamespace(settle_doubts=AsyncMock()), SimpleNamespace(disk=None)
    life = loop.create_task(HfCache(tmp_path, tmp_path, store=store, blobs=blobs, resolver=None).run())  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        await again.wait()
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)


async def test_a_file_of_which_the_blob_is_arriving_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = Digest("sha256", hashlib.sha256(BIG).hexdigest())
    file = tmp_path / "cache" / "models--acme--tiny" / "blobs" / digest.hex
    file.parent.mkdir(parents=True)
    file.write_bytes(BIG)
    os.utime(file, (1, 1))
    read: list[Path] = []
    monkeypatch.setattr("proxy.hf_cache.take", lambda source, *_, **__: read.append(source))
    monkeypatch.setattr("proxy.hf_cache._LOOK_AGAIN", 0.01)
    looks: asyncio.Queue[None] = asyncio.Queue()
    blobs = SimpleNamespace(settle_doubts=AsyncMock(side_effect=lambda: looks.put_nowait(None)), swarms={digest: None})
    store = Store(tmp_path / "data", 1 << 30)
    cache = HfCache(tmp_path / "cache", tmp_path / "data", store=store, blobs=blobs, resolver=None)  # type: ignore[arg-type]
    life = asyncio.get_running_loop().create_task(cache.run())
    async with asyncio.timeout(10):
        for _ in range(3):
            await looks.get()
        assert read == []
        blobs.swarms.clear()
        while not read:
            await looks.get()
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)
    store.close()


async def test_only_files_that_are_in_the_cache_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file, store, looks = tmp_path / "file", Store(tmp_path / "data", 1000), asyncio.Queue[None]()
    file.write_bytes(b"?")
    os.utime(file, (1, 1))
    wrong, large = ((Digest("sha256", letter * 64), size) for letter, size in (("a", 1), ("b", 2000)))
    times = itertools.count()

    def scan(_: Path) -> list[Cached]:
        changed = next(times)
        return [Cached(Path(each[0].hex), file, *each, changed, None) for each in (wrong, large)]

    monkeypatch.setattr("proxy.hf_cache.scan", scan)
    monkeypatch.setattr("proxy.hf_cache.take", lambda *_, **__: None)
    monkeypatch.setattr("proxy.hf_cache._LOOK_AGAIN", 0.0)
    blobs = SimpleNamespace(settle_doubts=AsyncMock(side_effect=lambda: looks.put_nowait(None)), swarms={})
    cache = HfCache(tmp_path, tmp_path, store=store, blobs=blobs, resolver=None)  # type: ignore[arg-type]
    life = asyncio.get_running_loop().create_task(cache.run())
    async with asyncio.timeout(10):
        for _ in range(5):
            await looks.get()
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)
    assert caplog.text.count("is not what its name says") >= 4
    assert caplog.text.count("do not fit") >= 4
    assert max(len(cache._seen), len(cache._refused)) <= 1
    store.close()


async def test_what_cannot_be_taken_over_or_shared_yet_is_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    digest = Digest("sha256", hashlib.sha256(BIG).hexdigest())
    repo = tmp_path / "cache" / "kernels--acme--tiny"
    file, name = repo / "blobs" / digest.hex, repo / "snapshots" / ("c" * 40) / "build" / "kernel.so"
    for each in (file, name):
        each.parent.mkdir(parents=True)
    file.write_bytes(BIG)
    os.utime(file, (1, 1))
    name.symlink_to(file)
    monkeypatch.setattr("proxy.hf_cache._LOOK_AGAIN", 0.01)
    looks: asyncio.Queue[None] = asyncio.Queue()
    shared = asyncio.Event()
    blobs = SimpleNamespace(
        settle_doubts=AsyncMock(side_effect=lambda: looks.put_nowait(None)),
        swarms={},
        adopt=AsyncMock(return_value=True),
        mark_public=lambda _: shared.set(),
    )
    silent = OriginUnavailable("nobody is there")
    resolver = SimpleNamespace(ask_public=AsyncMock(side_effect=[silent, silent, "a file"]))
    store = Store(tmp_path / "data", len(BIG) - 1)
    cache = HfCache(tmp_path / "cache", tmp_path / "data", store=store, blobs=blobs, resolver=resolver)  # type: ignore[arg-type]
    life = asyncio.get_running_loop().create_task(cache.run())
    async with asyncio.timeout(10):
        for _ in range(3):
            await looks.get()
        blobs.adopt.assert_not_awaited()
        assert caplog.text.count("do not fit into --max-size yet") == 1
        store.max_size = len(BIG)
        await shared.wait()
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)
    assert blobs.adopt.await_count == 1
    (route, *about), _ = resolver.ask_public.await_args
    assert (route.repo, route.path, about) == (Repo("kernels", "acme/tiny"), "build/kernel.so", [digest, len(BIG)])
    store.close()

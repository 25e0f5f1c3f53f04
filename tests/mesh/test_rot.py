"""Bytes that flip on a node's disk: no other node takes them, and the node finds out."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mesh import blobs, layout, server
from mesh.content import Digest
from mesh.errors import PieceCorrupt
from mesh.partial import write_manifest
from mesh.shared import Stamp
from mesh.store import Store
from tests.mesh.members import until
from tests.mesh.nodes import Node, mesh_node
from tests.mesh.origin import Origin, node
from tests.mesh.test_disk import kept
from tests.mesh.test_mesh import KEY, MIB, content, introduce, known
from tests.mesh.test_swarm import read

SIZE = 12 * MIB


def spoil(path: Path) -> None:
    """Flip a byte of piece 3 as a bad disk does: the file's times stay as they are."""
    about = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(3 * MIB + 5)
        byte = file.read(1)
        file.seek(3 * MIB + 5)
        file.write(bytes([byte[0] ^ 1]))
    path.chmod(about.st_mode & 0o777)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


async def holder_and_others(stack: AsyncExitStack, root: Path, origin: Origin, key: bytes | None = None) -> list[Node]:
    """Return four nodes, the first of which holds the blob and does not lead its swarm."""
    nodes = [await stack.enter_async_context(mesh_node(root / str(i), key=key)) for i in range(4)]
    await introduce(nodes)
    leader = nodes[0].mesh.exchange.tracker_of(origin.digest)
    nodes.sort(key=lambda node: node.mesh.node_id == leader)
    await nodes[0].blobs.want(origin.digest, SIZE, origin)
    await known(nodes, nodes[0], origin.digest)
    return nodes


@pytest.mark.parametrize("key", [None, KEY], ids=["open", "keyed"])
async def test_a_flipped_byte_is_refused_at_once_and_its_holder_drops_the_blob(
    tmp_path: Path, key: bytes | None
) -> None:
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(Origin(content(SIZE)).running())
        bad, *others = await holder_and_others(stack, tmp_path, origin, key)
        spoil(bad.house.store._path(origin.digest))
        origin.sent = 0
        # No reader is disconnected: the wrong piece is never part of a whole.
        async with asyncio.timeout(20):
            assert await asyncio.gather(*(read(node.blobs, origin) for node in others)) == [origin.content] * 3
        assert origin.sent <= SIZE
        blamed = {name for node in others for name in node.house.stats.pieces_rejected}
        assert blamed == {bad.mesh.node_id}
        await until(lambda: origin.digest not in bad.house.store)


async def test_a_node_that_states_wrong_digests_proves_its_blob_anew_and_keeps_it(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(Origin(content(SIZE)).running())
        bad, other, *_ = await holder_and_others(stack, tmp_path, origin)
        store = bad.house.store
        known = store.manifest(origin.digest, SIZE)
        manifest = layout.manifest_of(store._path(origin.digest))
        proven_at = manifest.stat().st_mtime_ns
        write_manifest(manifest, SIZE, [known[piece] if piece != 3 else known[4] for piece in range(12)])
        layout.set_proven(manifest, proven_at)
        async with asyncio.timeout(20):
            assert await read(other.blobs, origin) == origin.content
        await until(lambda: store.manifest(origin.digest, SIZE) == known)
        await until(lambda: bad.blobs.manifests.digest_of(origin.digest, SIZE, 3) == known[3])
        assert origin.digest in store
        assert origin.digest not in store.doubts


async def test_strangers_cannot_keep_a_disk_busy_with_complaints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_CHECK_SECONDS", 3600.0)
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(Origin(content(SIZE)).running())
        holder, other, *_ = await holder_and_others(stack, tmp_path, origin)
        checked: list[tuple[int, int]] = []
        read_piece = blobs.piece_digest

        def note(fd: int, start: int, stop: int) -> bytes:
            checked.append((start, stop))
            return read_piece(fd, start, stop)

        monkeypatch.setattr(blobs, "piece_digest", note)
        complaints = [PieceCorrupt(holder.mesh.node_id, origin.digest, piece) for piece in (-1, 99, 3, 4, 5)]
        for complaint in complaints[:2]:
            await holder.blobs.check(complaint.digest, complaint.piece)
        assert not checked
        for complaint in complaints[2:]:
            await other.mesh.exchange.complain(complaint)
        await until(lambda: checked)
        assert checked == [(3 * MIB, 4 * MIB)], "others have to wait"
        assert origin.digest in holder.house.store
        assert origin.digest not in holder.house.store.doubts


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("is_spoiled", [False, True])
async def test_a_blob_that_is_not_as_it_was_is_proven_whatever_its_times_say(
    tmp_path: Path, is_shared: bool, is_spoiled: bool
) -> None:
    store, digest = kept(tmp_path, content(4 * MIB))
    path = store._path(digest)
    if is_shared:
        store.close()
        Stamp.of(path).write(layout.stamp_of(path))
        store = Store(tmp_path, 1 << 40)
    if is_spoiled:
        spoil(path)
        if is_shared:  # a disk that flips a bit moves no time at all, which cannot be imitated for the time of change
            store._entries[digest].stamp = Stamp.of(path)
    store.doubts.add(digest)
    assert store.open(digest) is None
    assert digest in store.doubts
    await store.doubts.settle(digest)
    assert (digest in store) == (not is_spoiled)
    assert digest not in store.doubts
    if (blob := store.open(digest)) is not None:
        blob.close()
        assert not is_spoiled
    store.close()


async def test_who_may_have_passed_a_wrong_piece_on_is_banned_at_the_second_blob_only(tmp_path: Path) -> None:
    """The origin's bytes show that a piece was wrong, but not whether its sender was the first to send it so."""
    told: list[tuple[str, object, int]] = []
    banned: list[str] = []

    async def complain(error: PieceCorrupt) -> None:
        told.append((error.source, error.digest, error.piece))

    one, other = (Digest("sha256", letter * 64) for letter in "ab")
    async with node(tmp_path) as (house, _):
        house.peers.complain = complain  # type: ignore[method-assign]
        house.peers.blame = lambda name, error: banned.append(name)  # type: ignore[method-assign]
        for blob in (one, other):
            house.doubted[blob] = {piece: (b"wrong", "x") for piece in range(3)} | {3: (b"right", "honest")}
        for piece in range(4):
            house.resolve_doubt(one, piece, b"right")
        await until(lambda: told)
        assert (told, banned) == ([("x", one, 0)], [])
        for piece in range(4):
            house.resolve_doubt(other, piece, b"right")
        await until(lambda: len(told) == 2)
        assert (told[1], banned) == (("x", other, 0), ["x"])
        assert house.stats.pieces_rejected == {"x": 6}
        assert not house.doubted
        for number in range(1000):
            house.doubted[one] = {0: (b"wrong", f"stranger {number}")}
            house.resolve_doubt(one, 0, b"right")
        assert len(house.suspects) < 500

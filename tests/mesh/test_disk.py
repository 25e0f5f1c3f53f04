"""A disk that fails at the worst moments: nothing is lost, and nothing counts as stored that is not on it."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from blake3 import blake3

from mesh import adopt, layout
from mesh.content import Digest, Pieces
from mesh.doubts import Doubts
from mesh.entries import Entry
from mesh.errors import StoreFull, StoreUnusable
from mesh.fill import Fill
from mesh.intake import Run
from mesh.limiter import Limiter
from mesh.partial import Partial, write_manifest
from mesh.shared import Stamp
from mesh.store import Store
from tests.mesh.origin import Origin, node

MIB = 1 << 20
LIMIT = 30.0


def content(size: int) -> bytes:
    return random.Random(1).randbytes(size)


def fail(*_: object) -> None:
    raise OSError(errno.EIO, "the disk is broken")


async def test_what_a_failed_flush_left_is_never_taken_for_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux then considers the pages clean, and a second fsync would succeed without one byte on the disk."""
    async with Origin(content(3 * MIB)).running() as origin, node(tmp_path) as (house, blobs):
        source = await blobs.read(origin.digest, 3 * MIB, 0, 3 * MIB, origin, is_whole=True)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            async with asyncio.timeout(LIMIT):
                with pytest.raises(StoreUnusable, match="the disk is broken"):
                    await blobs.want(origin.digest, 3 * MIB, origin)
        assert not list((tmp_path / "partial").iterdir())
        assert os.pread(source.fd, 3 * MIB, 0) == origin.content  # a reader that had begun reads on
        source.close()
        async with asyncio.timeout(LIMIT):
            await blobs.want(origin.digest, 3 * MIB, origin)
        assert origin.sent == 6 * MIB
        assert house.store.size == 3 * MIB


async def test_what_has_its_final_name_is_kept_whatever_fails_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "flush_directory", fail)
    async with Origin(content(3 * MIB)).running() as origin, node(tmp_path) as (house, blobs):
        async with asyncio.timeout(LIMIT):
            await blobs.want(origin.digest, 3 * MIB, origin)
        assert origin.digest in house.store


def test_a_process_that_dies_while_it_keeps_a_blob_leaves_one_that_can_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blob is also not public: only the mode under its final name makes it so."""
    path, final = tmp_path / "partial", tmp_path / "final"
    partial = Partial(path, Digest("sha256", "a" * 64), MIB)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="broken"):
        layout.make_durable(partial, final, 0o444)
    partial.close()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("at", [0, 300_000])
async def test_what_a_full_disk_refused_is_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The bytes arrive again, and a wrong digest of the piece would get honest nodes banned."""
    whole, landed = content(MIB), []
    partial = Partial(tmp_path / "partial", Digest("sha256", "a" * 64), MIB)
    run = Run(
        Fill(partial),
        "peer",
        0,
        1,
        digests={},
        limiter=Limiter(None),
        received=lambda count: None,
        answered=lambda: None,
        landed=lambda run, piece, digest: landed.append(digest),
    )

    def refuse(*_: object) -> None:
        raise StoreFull("the disk is full")

    run._sink(memoryview(whole[:at]))
    with monkeypatch.context() as patch:
        patch.setattr(Partial, "write", refuse)
        with pytest.raises(StoreFull):
            run._sink(memoryview(whole[at : at + 100_000]))
    run._sink(memoryview(whole[run.position : -1]))
    run._keep(memoryview(whole[-1:]))
    run._finish_piece()
    await asyncio.sleep(0)
    assert landed == [blake3(whole).digest()]
    assert (tmp_path / "partial").read_bytes() == whole
    partial.close()


async def test_an_error_that_nobody_foresaw_ends_the_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the fill would meet it again at once, thousands of times a second."""
    tries = 0

    def execute(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Run, "execute", execute)
    async with Origin(content(3 * MIB)).running() as origin, node(tmp_path) as (_, blobs):
        async with asyncio.timeout(LIMIT):
            with pytest.raises(Exception, match="the log says why"):
                await blobs.want(origin.digest, 3 * MIB, origin)
    assert tries < 10


def test_who_is_not_wanted_any_more_does_not_wait_for_the_limit() -> None:
    limiter, over = Limiter(1000), threading.Event()
    waiting = [threading.Thread(target=limiter.take, args=(100_000, over.is_set)) for _ in range(8)]
    for thread in waiting:
        thread.start()
    over.set()
    for thread in waiting:
        thread.join(LIMIT)
        assert not thread.is_alive()
    began = time.monotonic()
    limiter.take(10)  # the allowance they did not use is there for others
    assert time.monotonic() - began < 20


def test_what_a_process_that_died_left_half_adopted_is_never_written_to(tmp_path: Path) -> None:
    """The file may be a second link to one that belongs to another program."""
    whole = content(MIB)
    theirs, staged = tmp_path / "theirs", tmp_path / "staged"
    theirs.write_bytes(whole)
    os.utime(theirs, (1, 1))
    os.link(theirs, staged)
    taken = adopt.take(theirs, staged, Digest("sha256", hashlib.sha256(whole).hexdigest()), MIB)
    assert taken is not None
    assert len(taken.pieces) == Pieces.of(MIB).count
    assert theirs.read_bytes() == whole


def test_a_stop_does_not_wait_for_a_large_file_to_be_proven(tmp_path: Path) -> None:
    theirs, over = tmp_path / "theirs", threading.Event()
    with theirs.open("wb") as file:
        file.truncate(100 << 30)
    os.utime(theirs, (1, 1))
    threading.Timer(0.2, over.set).start()
    with pytest.raises(StoreUnusable, match="stopping"):
        adopt.take(theirs, tmp_path / "staged", Digest("sha256", "a" * 64), 100 << 30, is_over=over.is_set)


def kept(root: Path, whole: bytes) -> tuple[Store, Digest]:
    digest = Digest("sha256", hashlib.sha256(whole).hexdigest())
    path = root / "blobs" / "sha256" / digest.hex[:2] / digest.hex
    path.parent.mkdir(parents=True)
    path.write_bytes(whole)
    path.chmod(0o444)
    write_manifest(layout.manifest_of(path), len(whole), [])
    layout.set_proven(layout.manifest_of(path), path.stat().st_mtime_ns)
    return Store(root, 1 << 40), digest


def test_a_blob_that_cannot_be_opened_just_now_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, digest = kept(tmp_path, content(MIB))

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(StoreUnusable, match="Too many open files"):
            store.open(digest)
    with store.open(digest) or pytest.fail("it is gone") as blob:
        assert blob.size == MIB
    layout.unlink(store._path(digest))
    assert store.open(digest) is None
    assert store.is_public(digest)  # remembered until the blob is fetched again
    assert store.size == 0
    store.close()


def test_what_is_not_ours_stops_no_start(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs" / "sha256"
    (blobs / "ab").mkdir(parents=True)
    (blobs / ".DS_Store").write_bytes(b"?")
    (blobs / "ab" / ("ab" * 32)).symlink_to("nowhere")
    (blobs / "ab" / "notes.txt").write_bytes(b"?")
    store = Store(tmp_path, 1 << 40)
    assert not len(store)
    store.close()


async def test_a_blob_that_is_being_taken_over_is_neither_read_nor_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its stamp is known, bytes that the owner writes to it would be taken for proven."""
    whole = content(MIB)
    store, digest = kept(tmp_path / "data", whole)
    theirs = tmp_path / "theirs"
    theirs.write_bytes(whole)
    os.utime(theirs, (1, 1))
    taken = adopt.take(theirs, tmp_path / "staged", digest, MIB)
    assert taken is not None
    take_over, renamed, may_go_on = layout.take_over, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Stamp | None:
        stamp = take_over(*arguments)
        renamed.set()
        assert may_go_on.wait(LIMIT)
        return stamp

    monkeypatch.setattr(layout, "take_over", slow)
    adopting = asyncio.ensure_future(store.adopt(digest, MIB, taken.staged, taken.pieces, taken.stamp))  # noqa: TID251
    assert await asyncio.to_thread(renamed.wait, LIMIT)
    assert store.open(digest) is None
    assert await store.remove(digest) == 0
    may_go_on.set()
    await adopting
    with store.open(digest) or pytest.fail("it is gone") as blob:
        assert blob.stamp is not None
    theirs.write_bytes(b"!" * MIB)
    assert store.open(digest) is None
    store.close()


async def test_what_another_program_has_too_makes_no_room_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, wholes, digests = tmp_path / "theirs", [content(MIB), content(MIB)[::-1]], []
    store = Store(tmp_path / "data", 4 * MIB)
    for whole, name in zip(wholes, (theirs, None), strict=True):  # the shared one is the least recently used
        digest, staged = Digest("sha256", hashlib.sha256(whole).hexdigest()), tmp_path / "staged"
        staged.write_bytes(whole)
        if name is not None:
            os.link(staged, name)
        await store.adopt(digest, MIB, staged, [blake3(whole).digest()], Stamp.of(staged) if name else None)
        digests.append(digest)
    shared, own = digests
    new = Digest("sha256", "a" * 64)
    monkeypatch.setattr(layout, "free_bytes", lambda _: 0)
    store.check_fits(new, MIB)
    with pytest.raises(StoreFull, match=f"0 are free, and {MIB} can make room"):
        store.check_fits(new, MIB + 1)
    assert await store.evict(1)
    assert [digest for digest, _, _ in store.blobs()] == [shared]
    assert not await store.evict(1)
    assert shared in store, "it went, and nothing was gained"
    theirs.unlink()
    assert await store.evict(1)
    assert own not in store
    assert store.size == 0
    store.close()


async def test_what_another_program_has_too_makes_room_in_the_budget(tmp_path: Path) -> None:
    whole, staged = content(MIB), tmp_path / "staged"
    digest = Digest("sha256", hashlib.sha256(whole).hexdigest())
    store = Store(tmp_path / "data", MIB)
    staged.write_bytes(whole)
    os.link(staged, tmp_path / "theirs")
    await store.adopt(digest, MIB, staged, [blake3(whole).digest()], Stamp.of(staged))
    partial = store.open_partial(Digest("sha256", "a" * 64), MIB)
    await store.reserve(partial, MIB)
    assert digest not in store
    store.close()


async def test_a_stop_does_not_wait_for_a_large_file_to_be_proven_anew(tmp_path: Path) -> None:
    digest = Digest("sha256", "a" * 64)
    path = tmp_path / "blobs" / "sha256" / "aa" / digest.hex
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(100 << 30)
    Stamp.of(path).write(layout.stamp_of(path))
    path.chmod(0o400)  # so the file has been touched since
    store = Store(tmp_path, 1 << 40)
    assert [each async for each in store.doubts] == [digest]
    async with asyncio.timeout(LIMIT):
        proving = asyncio.ensure_future(store.doubts.settle(digest))  # noqa: TID251
        await asyncio.sleep(0)
        store.close()
        await proving
    assert [each async for each in store.doubts] == [digest]


async def test_a_file_that_was_written_to_is_read_anew_before_anybody_gets_it(tmp_path: Path) -> None:
    whole = content(MIB)
    store, digest = kept(tmp_path, whole)
    path = store._path(digest)
    path.chmod(0o600)
    os.utime(path)  # only its modification time has changed
    assert store.open(digest) is None
    assert [each async for each in store.doubts] == [digest]
    await store.doubts.settle(digest)
    assert [each async for each in store.doubts] == []
    with store.open(digest) or pytest.fail("it is gone") as blob:
        assert blob.size == MIB
    store.close()
    store = Store(tmp_path, 1 << 40)
    assert [each async for each in store.doubts] == [], "it is proven for the next start, too"
    store.close()
    with path.open("r+b") as file:
        file.write(b"!")
    store = Store(tmp_path, 1 << 40)
    assert store.open(digest) is None
    assert [each async for each in store.doubts] == [digest]
    await store.doubts.settle(digest)
    assert digest not in store
    assert store.size == 0
    assert not path.exists()
    store.close()


@pytest.mark.parametrize(("error", "is_kept"), [(errno.EIO, False), (errno.EMFILE, True)])
async def test_what_the_disk_cannot_read_any_more_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, is_kept: bool
) -> None:
    store, digest = kept(tmp_path, content(MIB))
    os.utime(store._path(digest))
    assert store.open(digest) is None

    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("mesh.doubts.take_again", refuse)
    await store.doubts.settle(digest)
    assert (digest in store) == is_kept
    store.close()


async def test_a_look_at_ten_thousand_shared_files_holds_nobody_up() -> None:
    stamp = cast("Stamp", SimpleNamespace(is_doubtful=lambda _: False))
    entries = {Digest("sha256", f"{number:064x}"): Entry(1, 0.0, stamp=stamp) for number in range(10_000)}
    rest = dict.fromkeys(("mark", "drop", "is_over"), lambda *_: None)
    doubts = Doubts(entries, None, path=lambda digest: Path(f"{digest}"), **rest)  # type: ignore[arg-type]

    async def look() -> list[Digest]:
        return [digest async for digest in doubts]

    turns = 0
    async with asyncio.TaskGroup() as group:
        looking = group.create_task(look())
        while not looking.done():
            turns += 1
            await asyncio.sleep(0)
    assert looking.result() == []
    assert turns > 3

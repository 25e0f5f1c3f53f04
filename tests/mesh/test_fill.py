"""What readers may see of a blob that is arriving."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh import fill as module
from mesh.content import Digest, PieceSet
from mesh.errors import StoreUnusable
from mesh.fill import RESERVE, TAIL, Fill, Reader
from mesh.partial import Partial

MIB = 1 << 20


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """A fill of three pieces, none of which is there."""
    return Fill(Partial(tmp_path / "partial", Digest("sha256", "a" * 64), 3 * MIB))


def visible(reader: Reader) -> int:
    """Return how many bytes a reader can have by now at most, its reserve included."""
    reader.position = reader.frontier()
    return reader.position - reader.start


def seen(reader: Reader) -> int:
    """Return how many bytes a reader that takes everything it gets has by now."""
    reader.position = reader.ready(reader.position)
    return reader.position - reader.start


async def test_ranges_side_by_side_are_not_all_complete_before_the_proof(fill: Fill) -> None:
    """Checks what readers see after each step, as the last two pieces fill up and are recorded in mixed order."""
    readers = [fill.reader(piece * MIB, (piece + 1) * MIB, is_whole=False) for piece in range(3)]

    def land(piece: int) -> None:
        fill.partial.add(piece, bytes(32), True)
        fill.added(piece)

    def arrive(piece: int, count: int) -> Callable[[], None]:
        return lambda: setattr(fill.arrival(piece), "count", count)

    land(0)
    steps = [arrive(1, MIB // 2), arrive(1, MIB), arrive(2, MIB), lambda: land(2), lambda: land(1)]
    for step in steps:
        step()
        counts = [visible(reader) for reader in readers]
        assert sum(counts) < 3 * MIB
    assert counts == [MIB, MIB - 1, MIB], "what was seen already stays, and no more comes"
    fill.prove()
    assert [visible(reader) for reader in readers] == [MIB] * 3


async def test_the_piece_that_completes_the_blob_keeps_its_tail(fill: Fill) -> None:
    readers = [fill.reader(piece * MIB, (piece + 1) * MIB, is_whole=False) for piece in range(3)]
    for piece in (2, 0, 1):
        fill.partial.add(piece, bytes(32), True)
        fill.added(piece)
    assert [visible(reader) for reader in readers] == [MIB, MIB - TAIL, MIB]


async def test_a_reader_gets_sips_of_its_reserve_while_nothing_comes(
    fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client gives up after a time without a byte, and the next piece may take longer than that."""
    monkeypatch.setattr(module, "_SIP_SECONDS", 0.001)
    fill.partial.add(0, bytes(32), True)
    fill.added(0)
    reader = fill.reader(0, 3 * MIB, is_whole=True)
    assert seen(reader) == MIB - RESERVE
    sips = []
    for _ in range(64):
        assert reader.is_waiting
        await reader.wait(reader.position)
        before = reader.position
        sips.append(seen(reader) - before)
    assert sips == [RESERVE // 64] * 64
    with pytest.raises(TimeoutError):  # there are no sips of bytes that have not arrived
        await asyncio.wait_for(reader.wait(MIB), 0.02)
    fill.partial.add(1, bytes(32), True)
    fill.added(1)
    assert seen(reader) == 2 * MIB - RESERVE
    fill.partial.add(2, bytes(32), True)
    fill.added(2)
    fill.prove()
    assert seen(reader) == 3 * MIB
    assert not reader.is_waiting


async def test_a_range_that_is_there_and_the_first_bytes_are_not_kept_back(fill: Fill) -> None:
    fill.arrival(0).count = 15
    assert seen(fill.reader(0, 3 * MIB, is_whole=True)) == 15
    fill.arrival(0).count = MIB // 2
    assert seen(fill.reader(5, MIB // 2, is_whole=False)) == MIB // 2 - 5


def test_a_journal_that_cannot_be_opened_anew_is_never_somebody_elses_file(
    tmp_path: Path, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(*_: object) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    partial = fill.partial
    for piece in range(2):
        partial.record(piece, bytes(32), True)
        partial.add(piece, bytes(32), True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_more)
        with pytest.raises(StoreUnusable):
            partial.drop(PieceSet(3, 1))
    somebody_elses = os.open(tmp_path / "theirs", os.O_RDWR | os.O_CREAT)
    partial.record(2, bytes(32), True)
    assert os.fstat(somebody_elses).st_size == 0
    os.close(somebody_elses)
    partial.close()
    assert 2 in Partial(partial.path, partial.digest, partial.size).unchecked


def test_a_blob_too_large_for_the_file_system_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EFBIG, "file too large")

    files = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(OSError, match="file too large"):
        Partial(tmp_path / "partial", Digest("sha256", "b" * 64), 1 << 50)
    assert len(list(Path("/proc/self/fd").iterdir())) == files

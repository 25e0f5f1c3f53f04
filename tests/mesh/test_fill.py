"""What readers may see of a blob that is arriving."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.content import Digest
from mesh.fill import TAIL, Fill, Reader
from mesh.partial import Partial

MIB = 1 << 20


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """Of three pieces, without one."""
    return Fill(Partial(tmp_path / "partial", Digest("sha256", "a" * 64), 3 * MIB))


def seen(reader: Reader) -> int:
    """How many bytes a reader that takes all it can has by now."""
    reader.position = reader.ready(reader.position)
    return reader.position - reader.start


async def test_ranges_side_by_side_are_not_all_complete_before_the_proof(fill: Fill) -> None:
    """In whatever order the last two pieces fill up and come to count, with a look at them after each step."""
    readers = [fill.reader(piece * MIB, (piece + 1) * MIB, is_whole=False) for piece in range(3)]

    def land(piece: int) -> None:
        fill.partial.add(piece, bytes(32), True)
        fill.added(piece)

    def arrive(piece: int, count: int) -> Callable[[], None]:
        return lambda: fill.progress.update({piece: count})

    land(0)
    steps = [arrive(1, MIB // 2), arrive(1, MIB), arrive(2, MIB), lambda: land(2), lambda: land(1)]
    for step in steps:
        step()
        counts = [seen(reader) for reader in readers]
        assert sum(counts) < 3 * MIB
    assert counts == [MIB, MIB - 1, MIB], "what was seen already stays, and no more comes"
    fill.prove()
    assert [seen(reader) for reader in readers] == [MIB] * 3


async def test_the_piece_that_completes_the_blob_keeps_its_tail(fill: Fill) -> None:
    readers = [fill.reader(piece * MIB, (piece + 1) * MIB, is_whole=False) for piece in range(3)]
    for piece in (2, 0, 1):
        fill.partial.add(piece, bytes(32), True)
        fill.added(piece)
    assert [seen(reader) for reader in readers] == [MIB, MIB - TAIL, MIB]

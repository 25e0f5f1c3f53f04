"""The journal of a partial blob."""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3

from mesh.content import Digest
from mesh.partial import Partial

MIB = 1 << 20
DIGEST = Digest("sha256", "a" * 64)


def receive(partial: Partial, piece: int, byte: bytes, *, trusted: bool) -> None:
    data = byte * MIB
    partial.write(piece * MIB, memoryview(data))
    partial.record(piece, blake3(data).digest(), trusted)
    partial.add(piece, blake3(data).digest(), trusted)


def test_what_a_disk_lost_costs_no_write_and_what_came_in_its_place_counts(tmp_path: Path) -> None:
    path = tmp_path / "partial"
    partial = Partial(path, DIGEST, 4 * MIB)
    for piece in range(4):
        receive(partial, piece, b"a", trusted=True)
    partial.write(0, memoryview(bytes(3 * MIB)))
    partial.close()
    listed = Partial.journal_of(path).read_bytes()

    partial = Partial(path, DIGEST, 4 * MIB)
    for piece in range(3):
        assert not partial.recheck(piece)
        partial.forget(piece)
    assert list(partial.unchecked) == [3]
    assert partial.journaled_bytes == MIB
    assert Partial.journal_of(path).read_bytes() == listed
    receive(partial, 0, b"b", trusted=False)
    partial.close()

    partial = Partial(path, DIGEST, 4 * MIB)
    assert [partial.recheck(piece) for piece in range(4)] == [True, False, False, True]
    partial.accept(0)
    partial.accept(3)
    assert list(partial.trusted) == [3], "the last entry for a piece counts, not the first"
    partial.close()

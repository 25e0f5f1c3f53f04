"""The digests stated with a range are those of the pieces that are wholly in it."""

from __future__ import annotations

import pytest
from blake3 import blake3

from mesh import stated
from mesh.content import Digest, Pieces
from mesh.stated import HEADER, Manifests

MIB = 1 << 20
PIECES = Pieces.of(5 * MIB + 7)  # six of 1 MiB, the last one short
KNOWN = {piece: blake3(bytes([piece])).digest() for piece in range(PIECES.count)}


@pytest.mark.parametrize(
    ("start", "stop", "whole"),
    [
        (0, PIECES.size, range(6)),
        (0, MIB, range(1)),
        (1, 3 * MIB, range(1, 3)),
        (MIB, 3 * MIB - 1, range(1, 2)),
        (5 * MIB, PIECES.size, range(5, 6)),
        (5 * MIB, PIECES.size - 1, range(0)),
        (MIB + 1, MIB + 2, range(0)),
    ],
)
def test_what_is_stated_is_read_again(start: int, stop: int, whole: range) -> None:
    header = stated.state(PIECES, start, stop, KNOWN.__getitem__)
    assert stated.read(PIECES, start, stop, header.get(HEADER, "")) == {piece: KNOWN[piece] for piece in whole}


def test_a_statement_is_bounded_and_nonsense_states_nothing() -> None:
    large = Pieces.of(300 * MIB)
    assert len(stated.state(large, 0, large.size, lambda _: bytes([1] * 32))[HEADER]) < 8 << 10
    one = KNOWN[0].hex()
    for text in ("", ",", one[:-1], one + "\n", one + ",", one.upper(), one + ", " + one, "x" * 64):
        assert stated.read(PIECES, 0, PIECES.size, text) == {}, text
    assert stated.read(PIECES, 0, MIB, ",".join([one] * 1000)) == {0: KNOWN[0]}


def test_what_is_known_of_the_last_few_blobs_is_kept() -> None:
    asked: list[Digest] = []

    def load(digest: Digest, size: int) -> dict[int, bytes]:
        asked.append(digest)
        return {1: KNOWN[1]}

    manifests = Manifests(load)
    first, *others = [Digest("sha256", f"{number:064x}") for number in range(100)]
    for _ in range(2):
        assert manifests.digest_of(first, PIECES.size, 0) == b""
        assert manifests.digest_of(first, PIECES.size, 1) == KNOWN[1]
    assert asked == [first]
    manifests.forget(first)
    for digest in (first, *others, first):
        manifests.digest_of(digest, PIECES.size, 1)
    assert asked == [first, first, *others, first]
    assert len(manifests._kept) < 50

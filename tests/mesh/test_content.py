"""Sets of pieces."""

import pytest

from mesh.content import PieceSet


def test_a_piece_that_is_named_twice_is_in_a_set_once() -> None:
    assert list(PieceSet.of(4, [3, 1, 1])) == [1, 3]
    with pytest.raises(IndexError):
        PieceSet.of(4, [4])

import time

from hypothesis import given
from hypothesis import strategies as st

from mesh.bits import bits_in, bits_of, first_from, members, members_from
from mesh.content import PieceSet


@given(st.lists(st.integers(0, 2000)), st.integers(0, 2003))
def test_a_set_has_each_of_its_numbers_once_and_in_order(numbers: list[int], start: int) -> None:
    bits, plain = bits_in(numbers), sorted(set(numbers))
    assert bits == bits_of((number, number + 1) for number in numbers)
    assert list(members(bits)) == list(PieceSet(2001, bits)) == plain
    assert list(members_from(bits, start)) == [n for n in plain if n >= start] + [n for n in plain if n < start]
    if bits:
        assert first_from(bits, start) == next(members_from(bits, start))


def test_the_time_for_all_pieces_of_a_blob_is_linear_in_their_number() -> None:
    def seconds(count: int) -> float:
        pieces, began = PieceSet(count, (1 << count) - 1), time.process_time()
        assert bits_in(pieces) == pieces.bits
        return time.process_time() - began

    few, many = (min(seconds(count) for _ in range(3)) for count in (1 << 12, 1 << 16))
    assert many < 48 * few  # 16 times as many pieces

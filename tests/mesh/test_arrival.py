"""A piece that comes from the middle to its end, then from its start to the middle."""

from hypothesis import given
from hypothesis import strategies as st

from mesh.arrival import Arrival


@given(st.data())
def test_what_has_come_without_a_gap_is_what_a_list_of_all_bytes_says(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 20))
    arrival = Arrival(size, split=data.draw(st.integers(0, size - 1)))
    order = [*range(arrival.split, size), *range(arrival.split)]
    here: set[int] = set()
    while len(here) < size:
        at = data.draw(st.integers(0, len(here)))  # bytes that were there may come again
        stretch = size - arrival.split if at < size - arrival.split else size
        count = data.draw(st.integers(1, stretch - at))
        arrival.came(order[at], count)
        here |= set(order[at : at + count])
        seen: set[int] = set()
        for offset in range(size):
            reached = next(end for end in range(offset, size + 1) if end not in here)
            # From before the split to beyond it, a piece is shown only when it is recorded.
            assert arrival.reached(offset) == (reached if offset >= arrival.split else min(reached, arrival.split))
            seen |= set(range(offset, arrival.shown(offset)))
        assert seen == here - {order[-1]}
    assert order[-1] == arrival.end - 1


def test_bytes_beyond_a_gap_do_not_count() -> None:
    arrival = Arrival(10, split=4)
    arrival.came(5, 3)
    arrival.came(0, 4)
    assert arrival.count == 0

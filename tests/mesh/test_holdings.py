from functools import reduce
from operator import or_

from hypothesis import given
from hypothesis import strategies as st

from mesh.bits import members
from mesh.holdings import Group, Holdings

COUNT = 12
SETS = st.integers(0, (1 << COUNT) - 1)


@given(st.lists(st.tuples(st.integers(0, 5), SETS, st.booleans()), max_size=30), st.lists(st.integers(0, COUNT - 1)))
def test_holders_and_rarity_are_those_of_a_plain_count(steps: list[tuple[int, int, bool]], copies: list[int]) -> None:
    holdings = Holdings(COUNT)
    plain: dict[int, int] = {}
    for slot, pieces, is_added in steps:
        if is_added:
            holdings.add(slot, pieces)
            plain[slot] = plain.get(slot, 0) | pieces
        else:
            holdings.remove(slot, pieces)
            plain[slot] = plain.get(slot, 0) & ~pieces
    for piece in copies:
        holdings.begin_copy(piece)
    for piece in copies[::2]:
        holdings.end_copy(piece)
    under_way = [*copies[1::2]]
    counts = []
    for piece in range(COUNT):
        slots = [slot for slot, have in plain.items() if have >> piece & 1]
        assert sorted(members(holdings.holders(piece))) == sorted(slots)
        assert holdings.held >> piece & 1 == bool(slots)
        assert {slot for slot in range(6) if holdings.have(slot) >> piece & 1} == set(slots)
        assert holdings.held_beyond(0b101) >> piece & 1 == bool(set(slots) - {0, 2})
        counts.append(len(slots) + under_way.count(piece))
    parts = list(holdings.rarest_first((1 << COUNT) - 1))
    by_count = sorted(set(counts))
    assert [set(members(part)) for part in parts] == [
        {piece for piece in range(COUNT) if counts[piece] == count} for count in by_count
    ]


@given(st.lists(st.tuples(st.integers(0, 3), SETS, st.sampled_from(["add", "remove", "enter", "leave"])), max_size=40))
def test_a_group_knows_what_its_nodes_hold_between_them(steps: list[tuple[int, int, str]]) -> None:
    group = Group()
    holdings = Holdings(COUNT, [group])
    plain = dict.fromkeys(range(4), 0)
    inside: set[int] = set()
    for slot, pieces, step in steps:
        if step == "add":
            holdings.add(slot, pieces)
            plain[slot] |= pieces
        elif step == "remove":
            holdings.remove(slot, pieces)
            plain[slot] &= ~pieces
        elif step == "enter" and slot not in inside:
            group.enter(slot, holdings.have(slot))
            inside.add(slot)
        elif step == "leave" and slot in inside:
            group.leave(slot, holdings.have(slot))
            inside.discard(slot)
        assert set(members(group.slots)) == inside
        assert group.pieces == reduce(or_, (plain[slot] for slot in inside), 0)

"""Members: all nodes come to agree, dead ones go, wrongly suspected ones stay, and nothing grows without bound."""

import random
from itertools import permutations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.membership import (
    KEPT_SECONDS,
    MAX_CLAIMS,
    MAX_INCARNATION,
    MAX_MEMBERS,
    Address,
    Claim,
    Members,
    State,
)
from mesh.protocol import as_heard

ALIVE, SUSPECT, GONE, LEFT = State


def claim(node_id="x", incarnation=1, state=ALIVE, host="10.0.0.1", port=8091, role="peer"):
    return Claim(node_id, incarnation, state, host, port, role, "1.0")


def members(node_id="me", **kwargs):
    return Members(claim(node_id, host=""), rng=random.Random(1), **kwargs)


def states(of):
    return {member.node_id: member.state for member in of.alive()}


CLAIMS = st.builds(
    claim,
    node_id=st.sampled_from(["a", "b", "c"]),
    incarnation=st.integers(0, 3),
    state=st.sampled_from(State),
    host=st.sampled_from(["10.0.0.1", "10.0.0.2", ""]),
    role=st.sampled_from(["peer", "seed"]),
)


@given(st.lists(CLAIMS, max_size=12), st.randoms(use_true_random=False))
def test_all_agree_whatever_the_order_and_however_often(claims, rng):
    one, two = members("one"), members("two")
    # Both know of each other, as they do once they have spoken.
    one.merge([two.me], 0.0)
    two.merge([one.me], 0.0)
    one.merge(claims, 0.0)
    again = claims + rng.choices(claims, k=3) if claims else []
    rng.shuffle(again)
    for some in again:
        two.merge([some], 0.0)
    assert states(one).keys() - {"two"} == states(two).keys() - {"one"}
    assert one.digest() == two.digest()
    assert {c for c in one.snapshot(0.0)} == {c for c in two.snapshot(0.0)}


@given(st.lists(CLAIMS, max_size=12), st.lists(st.floats(0, 2 * KEPT_SECONDS), max_size=3))
def test_a_digest_stands_for_what_is_believed_however_one_came_to_it(claims, ticks):
    one, two = members(), members()
    one.merge(claims, 0.0)
    for now in sorted(ticks):
        one.tick(now)
    believed = [c for c in one.snapshot(0.0) if c.state <= SUSPECT and c != one.me]
    two.merge(believed, 0.0)
    assert one.digest() == two.digest()
    for some in believed:
        other = members()
        other.merge([c for c in believed if c != some], 0.0)
        assert other.digest() != one.digest()


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from(["gossip", "fail", "time"])), max_size=60),
    st.sets(st.integers(0, 3), max_size=2),
)
def test_whatever_happened_gossip_among_the_living_ends_in_the_truth(events, dead):
    """Any nodes may die, and any may be suspected wrongly: afterwards the living ones know exactly each other."""
    nodes = [members(str(index)) for index in range(4)]
    now = 0.0

    def gossip(a, b):
        for there, back in ((a, b), (b, a)):
            nodes[there].merge([nodes[back].me, *nodes[back].snapshot(now)], now)
        nodes[a].heard(str(b), now, Address("10.0.0.9", 1))
        nodes[b].heard(str(a), now)

    for a, b in permutations(range(4), 2):
        gossip(a, b)
    for a, b, event in events:
        now += 0.5
        if event == "time":
            nodes[a].tick(now)
        elif a != b and event == "gossip" and not {a, b} & dead:
            gossip(a, b)
        elif a != b and event == "fail":
            nodes[a].failed(str(b), now)
    living = [index for index in range(4) if index not in dead]
    for _ in range(200):
        now += 0.5
        for a, b in permutations(range(4), 2):
            if a in dead:
                continue
            if b in dead:
                nodes[a].failed(str(b), now)
            else:
                gossip(a, b)
        for a in living:
            nodes[a].tick(now)
    for a in living:
        assert states(nodes[a]) == {str(b): ALIVE for b in living if b != a}
    assert len({nodes[a].digest() for a in living}) == 1


def test_a_silent_node_is_suspected_then_gone_then_forgotten():
    me = members(suspect_for=2.0)
    (joined,) = me.merge([claim()], 0.0)
    assert joined.joined
    (suspected,) = me.failed("x", 10.0)
    assert not suspected.parted
    assert states(me) == {"x": SUSPECT}
    assert me.tick(11.9) == []
    (parted,) = me.tick(12.0)
    assert parted.parted
    assert states(me) == {}
    assert [member.node_id for member in me.gone()] == ["x"]
    me.tick(12.0 + KEPT_SECONDS)
    assert me.get("x") is None


def test_a_suspect_that_speaks_is_given_time_and_one_that_refutes_is_alive():
    me, x = members(suspect_for=2.0), Members(claim())
    me.merge([x.me], 0.0)
    me.failed("x", 0.0)
    me.heard("x", 1.9)
    assert me.tick(3.0) == []
    x.merge(me.snapshot(3.0), 3.0)
    assert x.me.incarnation == 2
    me.merge([x.me], 3.0)
    assert states(me) == {"x": ALIVE}
    assert me.tick(10.0) == []


def test_who_alone_cannot_reach_a_node_accuses_it_ever_less():
    me, x = members(suspect_for=2.0), Members(claim())
    me.merge([x.me], 0.0)
    accusations = 0
    for now in range(600):
        accusations += bool(me.failed("x", float(now)))
        x.merge(me.snapshot(now), now)
        me.merge([x.me], now)
    assert 5 < accusations < 20


@given(st.lists(CLAIMS.filter(lambda c: c.node_id == "a" and c.incarnation <= 2 and c.state != LEFT), max_size=10))
def test_old_gossip_does_not_bring_back_a_node_that_left(old):
    me = members()
    me.merge([claim("a", incarnation=1)], 0.0)
    me.merge([claim("a", incarnation=2, state=LEFT)], 1.0)
    me.merge(old, 2.0)
    assert states(me) == {}
    me.merge([claim("a", incarnation=3)], 3.0)  # restarted
    assert states(me) == {"a": ALIVE}


def test_who_starts_anew_while_nobody_missed_it_is_told_from_who_refutes():
    me = members()
    (joined,) = me.merge([claim(incarnation=1000)], 0.0)
    (suspected,) = me.failed("x", 1.0)
    (refuted,) = me.merge([claim(incarnation=1001)], 1.5)
    (moved,) = me.merge([claim(incarnation=1005, port=1)], 2.0)
    changes = [joined, suspected, refuted, moved]
    assert [change.restarted for change in changes] == [False, False, False, True]
    assert not moved.joined
    assert not moved.parted


def test_a_node_refutes_whatever_is_said_of_it_until_it_leaves():
    me = members()
    for said in (claim("me", 1, SUSPECT), claim("me", 7, GONE), claim("me", 9, LEFT), claim("me", 12, role="seed")):
        me.merge([said], 0.0)
        assert me.me > said
        assert me.me.state == ALIVE
        assert me.me.role == "peer"
    me.merge([claim("me", MAX_INCARNATION - 1, GONE)], 0.0)
    me.me.check()
    me.leave()
    me.merge([claim("me", 100, SUSPECT)], 0.0)
    assert me.me.state == LEFT


def test_all_that_is_kept_or_told_is_bounded_and_the_living_stay():
    me = members()
    me.merge([claim("friend")], 0.0)
    me.merge([claim(f"gone{n}", state=GONE) for n in range(3 * MAX_MEMBERS)], 1.0)
    assert states(me) == {"friend": ALIVE}
    me.merge([claim(f"n{n}") for n in range(3 * MAX_MEMBERS)], 1.0)
    assert "friend" in states(me)
    assert len(me.alive()) == MAX_MEMBERS - 1
    assert len(me.snapshot(1.0)) == MAX_CLAIMS


def test_only_an_address_named_here_makes_a_named_seed():
    me, seed = members(), Address("10.0.0.5", 9)
    me.merge([claim("x", role="seed"), claim("y", role="seed")], 0.0)
    assert [(member.role, member.named_seed) for member in me.alive()] == [("seed", False)] * 2
    me.name_seed("x", seed)
    assert (me.get("x").named_seed, me.get("x").address) == (True, seed)
    # No other node can lead us away from the address that was named.
    me.merge([claim("x", incarnation=5, host="10.6.6.6")], 0.0)
    assert me.get("x").address == seed
    me.name_seed("y", seed)
    assert [me.get(n).named_seed for n in "xy"] == [False, True]
    me.unname_seed(seed)
    assert not me.get("y").named_seed


def test_an_address_that_works_is_preferred_until_it_fails():
    me = members()
    me.merge([claim()], 0.0)
    me.heard("x", 0.0, Address("192.168.0.7", 1))
    assert me.get("x").address == Address("192.168.0.7", 1)
    assert me.failed("x", 1.0) == []
    assert me.get("x").address == Address("10.0.0.1", 8091)
    assert me.failed("x", 2.0)


@pytest.mark.parametrize(
    ("said", "teller", "heard"),
    [
        ("", "10.0.0.1", "10.0.0.1"),  # "my host", as seen from another host
        ("", "127.0.0.1", ""),  # our common host
        ("10.0.0.2", "127.0.0.1", "10.0.0.2"),
        ("node.lan", "10.0.0.1", "node.lan"),
        ("127.0.0.1", "::1", "127.0.0.1"),
        ("127.0.0.1", "10.0.0.1", None),  # meaningless on this host
        ("", "fe80::1%eth0", None),
    ],
)
def test_addresses_are_read_from_where_they_were_said(said, teller, heard):
    result = as_heard(claim(host=said), teller)
    assert (result.host if result else None) == heard


@pytest.mark.parametrize(
    "changed",
    [
        {"node_id": ""},
        {"node_id": "origin"},
        {"node_id": "x" * 129},
        {"node_id": "../x"},
        {"node_id": "é"},
        {"incarnation": -1},
        {"incarnation": MAX_INCARNATION},
        {"host": "h" * 254},
        {"host": "a/b"},
        {"host": "a b"},
        {"host": "user@host"},
        {"host": "a\r\nb"},
        {"port": 0},
        {"port": 65536},
        {"version": "v" * 33},
        {"version": "1\n2"},
    ],
)
def test_senseless_claims_are_refused(changed):
    claim().check()
    with pytest.raises(ValueError):
        msgspec.structs.replace(claim(), **changed).check()


def test_a_refused_connection_is_stronger_evidence_than_silence():
    me = members(suspect_for=2.0)
    me.merge([claim("silent"), claim("refusing", host="10.0.0.2")], 0.0)
    me.failed("silent", 0.0)
    me.failed("refusing", 0.0, is_refused=True)
    me.tick(1.0)
    assert states(me) == {"silent": SUSPECT}
    me.tick(2.0, patience=2.0)  # this node is slow itself
    assert states(me) == {"silent": SUSPECT}
    me.tick(4.0, patience=2.0)
    assert states(me) == {}


def test_who_has_just_spoken_to_us_is_not_gone_for_what_others_say_but_may_still_go():
    """When two halves of a split mesh meet again, each has given up the other one."""
    known = members(suspect_for=2.0)
    known.merge([claim("x"), claim("y")], 0.0)
    known.heard("x", 9.0)
    known.merge([claim("x", state=GONE), claim("y", state=GONE)], 10.0)
    assert states(known) == {"x": SUSPECT}
    refuting = members(suspect_for=2.0)
    refuting.merge(known.snapshot(10.0), 10.0)
    known.merge([claim("x", incarnation=2)], 10.5)
    assert states(known) == {"x": ALIVE}
    known.merge([claim("x", incarnation=2, state=GONE)], 20.0)
    assert states(known) == {}, "it has been silent for long"
    refuting.tick(12.5)
    assert states(refuting) == {}, "nor does a suspicion that nobody refutes keep it"


def test_what_we_found_out_ourselves_is_not_softened_by_an_earlier_word():
    known = members(suspect_for=2.0)
    known.merge([claim("x")], 0.0)
    known.heard("x", 9.0)
    known.failed("x", 9.1, is_refused=True)
    known.tick(10.2)
    assert states(known) == {}


def test_when_a_node_was_seen_is_when_it_spoke_or_else_when_we_were_told():
    known = members()
    known.merge([claim("x"), claim("y")], 3.0)
    known.heard("x", 9.0)
    assert (known.seen_at("x"), known.seen_at("y"), known.seen_at("z")) == (9.0, 3.0, None)
    known.failed("x", 20.0)
    assert known.seen_at("x") == 9.0

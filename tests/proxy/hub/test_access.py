"""Who may read what: openness proven by anonymous answers, and grants that end."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.hub import clock
from proxy.hub.access import CLOSED_SECONDS, OPEN_SECONDS, Grants, Publicness, is_card, says_open

times = st.floats(0, 10_000)


def test_another_files_proof_keeps_a_file_open_until_something_is_refused():
    now = 10 * OPEN_SECONDS
    assert Publicness().is_open(now - 10, now, may_ask=True)
    assert not Publicness().is_open(now - OPEN_SECONDS, now, may_ask=True)
    assert Publicness(opened_at=now - 10).is_open(now - 2 * OPEN_SECONDS, now, may_ask=True)
    assert not Publicness(opened_at=now - 5, closed_at=now - 10).is_open(now - 20, now, may_ask=True)


def test_the_last_word_holds_when_nobody_can_be_asked():
    now = 10 * OPEN_SECONDS
    assert Publicness().is_open(1, now, may_ask=False)
    for refused in (Publicness(closed_at=5), Publicness(hidden_at=5), Publicness(changed_at=5)):
        assert not refused.is_open(1, now, may_ask=False)


@given(times, times, times, times, times, times, st.booleans())
def test_nothing_is_open_that_was_never_given_or_was_refused_since(opened, closed, hidden, changed, open_at, now, ask):
    publicness = Publicness(opened, closed, hidden, changed)
    if publicness.is_open(open_at, now, may_ask=ask):
        assert open_at > 0
        assert open_at > max(closed, hidden, changed)
    if publicness.is_hidden(now):
        assert publicness.is_closed(now)


@given(times, times, times, times, times, st.booleans(), st.sampled_from(["closed", "hidden", "written"]))
def test_no_proof_from_before_the_clock_was_set_back_outlives_a_refusal(
    opened, closed, changed, shown, open_at, ask, how
):
    now, later = 5000.0, 20_000.0  # the clock was ahead of `now`, and gets there again
    known = Publicness(opened, closed, closed, changed, shown).by(now)
    assert max(known.opened_at, known.closed_at, known.hidden_at, known.changed_at, known.shown_at) < now + 10
    assert known.by(now) == known
    told = known.told(now + 20, is_open=True)
    assert told.is_open(now + 20, now + 21, may_ask=ask), "not shut for longer than until the next proof"
    if how == "written":
        void = told.written(now + 30)
    else:
        void = told.refused(now + 30, is_closed=True, is_hidden=how == "hidden")
    kept = clock.said(open_at, now)  # as the catalog keeps it from now on
    assert not any(void.is_open(kept, at, may_ask=ask) for at in (now + 31, later))
    if open_at > now + 10:
        assert not known.is_open(open_at, now, may_ask=True) or known.opened_at > now - OPEN_SECONDS


def test_what_was_closed_is_tried_again_after_a_while():
    shut = Publicness(closed_at=1000)
    assert shut.is_closed(1001)
    assert not shut.is_hidden(1001)
    assert not shut.is_closed(1000 + CLOSED_SECONDS)
    assert not Publicness(opened_at=1002, closed_at=1000).is_closed(1003)
    assert not Publicness(changed_at=1002, closed_at=1000, hidden_at=1000).is_closed(1003)


def test_what_was_hidden_and_is_told_again_is_not_hidden_any_more():
    """Otherwise answers given meanwhile would outlive the next refusal, which only an anonymous request can meet."""
    hidden = Publicness(hidden_at=1000)
    shown = hidden.told(1010, is_open=False)
    assert hidden.is_hidden(1010)
    assert not shown.is_hidden(1010)
    assert shown.is_closed(1010)  # its files may still have a gate
    assert not hidden.told(1010, is_open=True).is_closed(1010)
    assert msgspec.structs.replace(shown, hidden_at=1020).is_hidden(1021)


@pytest.mark.parametrize(
    ("info", "is_open"),
    [
        ({"private": False, "gated": False, "disabled": False}, True),
        ({"private": False, "gated": False}, True),
        ({"private": False, "gated": "auto"}, False),
        ({"private": False}, False),
        ({"gated": False}, False),
        ({"private": True, "gated": False}, False),
        ({"private": False, "gated": False, "disabled": True}, False),
        ([], False),
    ],
)
def test_an_info_says_that_there_is_no_gate_in_so_many_words(info, is_open):
    assert says_open(info) is is_open


def test_a_grant_is_for_one_token_and_one_repository_and_ends():
    grants = Grants(300)
    grants.allow("hf_a", "models/x/y", 0, said_at=1.0)
    assert grants.is_allowed("hf_a", "models/x/y", 299)
    assert not grants.is_allowed("hf_a", "models/x/y", 300)
    assert not grants.is_allowed("hf_b", "models/x/y", 1)
    assert not grants.is_allowed("hf_a", "models/x/z", 1)
    assert not grants.is_allowed(None, "models/x/y", 1)
    grants.revoke("hf_a", "models/x/y", said_at=50.0)
    assert (grants.refused_at("hf_a", "models/x/y"), grants.refused_at("hf_b", "models/x/y")) == (50.0, 0.0)
    assert not grants.is_allowed("hf_a", "models/x/y", 1)


def test_a_yes_from_before_a_refusal_lets_nobody_in():
    grants = Grants(300)
    grants.revoke("hf_a", "models/x/y", said_at=50.0)
    grants.revoke("hf_a", "models/x/y", said_at=40.0)  # arrived later, but was asked earlier
    for said_at, is_allowed in ((45.0, False), (50.0, False), (51.0, True)):
        grants.allow("hf_a", "models/x/y", 0, said_at)
        assert grants.is_allowed("hf_a", "models/x/y", 1) is is_allowed, said_at


def test_grants_are_few_and_hold_no_token():
    grants = Grants(300, limit=3)
    for number in range(5):
        grants.allow(f"hf_secret{number}", "models/x/y", 0, said_at=1.0)
    assert [grants.is_allowed(f"hf_secret{n}", "models/x/y", 1) for n in range(5)] == [False] * 2 + [True] * 3
    assert "secret" not in repr(vars(grants))


def test_cards():
    assert is_card("README.md")
    assert is_card("docs/readme.md")
    assert not is_card("model.safetensors")

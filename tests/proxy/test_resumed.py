"""Clients that may have received wrong bytes of a file do not get the rest of it."""

import pytest

from proxy.catalog import Disproof
from proxy.hub.client import Client
from proxy.hub.errors import HubError
from proxy.ranges import Selection
from proxy.resumed import anew, choose

DAY, NOW = 86400.0, 1e9
REST, PART, TAIL = Selection(206, 10, 100, is_rest=True), Selection(206, 10, 20), Selection(206, 90, 100)
ALL = [
    Selection(200, 0, 100),
    Selection(206, 0, 100, is_rest=True),
    Selection(206, 0, 100),
    Selection(304),
    Selection(412),
    Selection(416),
]


HUB, CURL, ARIA2 = (Client(user_agent=name) for name in ("x; hf_hub/2.4.0; python/3.11", "curl/8.0", "aria2/1.36.0"))


def is_refused(selection: Selection, disproof: Disproof, client: Client = HUB) -> bool:
    try:
        return choose(selection, 100, "a.bin", client, disproof, NOW) != selection
    except HubError as error:
        return error.status == 412


def test_the_rest_is_nobodys_for_a_week_and_a_part_for_five_minutes() -> None:
    for seconds in (-60.0, 0.0, 299.0, 6 * DAY):
        assert is_refused(REST, Disproof(NOW - seconds, 0.0))
    assert not is_refused(REST, Disproof(NOW - 8 * DAY, 0.0))
    for part in (PART, TAIL):
        assert is_refused(part, Disproof(NOW - 299.0, NOW - 299.0))
        assert not is_refused(part, Disproof(NOW - 301.0, NOW - 301.0))
        assert not is_refused(part, Disproof(NOW, 0.0)), "who reads ranges got none of those bytes"
        with pytest.raises(HubError, match="refused for 100 more seconds, then try again"):
            choose(part, 100, "a.bin", HUB, Disproof(NOW, NOW - 200.0), NOW)


def test_software_that_may_go_on_with_a_whole_file_in_closed_ranges_does_not() -> None:
    for part in (PART, TAIL):
        assert is_refused(part, Disproof(NOW - 299.0, 0.0), CURL)
        assert not is_refused(part, Disproof(NOW - 301.0, 0.0), CURL)
        assert is_refused(part, Disproof(NOW - 6 * DAY, 0.0), ARIA2), "it keeps what it has"
        assert not is_refused(part, Disproof(NOW - 8 * DAY, 0.0), ARIA2)


@pytest.mark.parametrize("selection", ALL)
def test_all_else_is_answered_as_ever(selection: Selection) -> None:
    assert not is_refused(selection, Disproof(NOW, NOW))
    if selection.status != 206:
        assert anew(selection, 100, Disproof(NOW, NOW), NOW) == selection


@pytest.mark.parametrize("at", [0.0, NOW + 2 * 3600.0])
@pytest.mark.parametrize("selection", [REST, PART])
def test_files_that_were_never_wrong_are_too_and_what_was_noted_with_a_wrong_clock(
    selection: Selection, at: float
) -> None:
    assert not is_refused(selection, Disproof(at, at))
    assert anew(selection, 100, Disproof(at, at), NOW) == selection


@pytest.mark.parametrize("selection", [REST, PART, TAIL])
def test_git_gets_the_whole(selection: Selection) -> None:
    assert anew(selection, 100, Disproof(NOW, 0.0), NOW) == Selection(200, 0, 100)

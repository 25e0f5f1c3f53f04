"""Who may have the rest of a file of which bytes were wrong: nobody who may have got them."""

import pytest

from proxy.catalog import Disproof
from proxy.hub.errors import HubError
from proxy.ranges import Selection
from proxy.resumed import choose

DAY = 86400.0
REST, PART = Selection(206, 10, 100, is_rest=True), Selection(206, 10, 20)


def chosen(selection: Selection, seconds: float, *, begins_anew: bool, times: int = 1) -> Selection | int:
    now = 1e9
    disproof = Disproof(now - seconds, times)
    try:
        return choose(selection, 100, "a.bin", disproof=disproof, now=now, begins_anew=begins_anew)
    except HubError as error:
        return error.status


@pytest.mark.parametrize("begins_anew", [True, False])
def test_the_rest_is_nobodys_for_a_month_and_a_part_is_for_five_minutes(begins_anew: bool) -> None:
    anew = Selection(200, 0, 100) if begins_anew else 412
    for seconds in (0.0, 299.0, 29 * DAY):
        assert chosen(REST, seconds, begins_anew=begins_anew) == anew
    assert chosen(REST, 31 * DAY, begins_anew=begins_anew) == REST
    assert chosen(PART, 299.0, begins_anew=begins_anew) == 412
    assert chosen(PART, 301.0, begins_anew=begins_anew) == PART


@pytest.mark.parametrize(
    "selection",
    [
        Selection(200, 0, 100),
        Selection(206, 0, 100, is_rest=True),
        Selection(206, 0, 100),
        Selection(304),
        Selection(412),
        Selection(416),
    ],
)
def test_all_else_is_answered_as_ever(selection: Selection) -> None:
    assert chosen(selection, 0.0, begins_anew=True) == selection


@pytest.mark.parametrize("selection", [REST, PART])
def test_files_that_were_never_wrong_are_too(selection: Selection) -> None:
    assert choose(selection, 100, "a.bin", disproof=Disproof(), now=1e9, begins_anew=False) == selection


def test_who_begins_anew_by_itself_does_not_do_so_for_ever() -> None:
    disproof = Disproof()
    for seconds in (0.0, 4000.0, 4001.0):
        disproof = disproof.again(1e6 + seconds)
    assert disproof == Disproof(1e6 + 4001.0, 2)
    assert chosen(REST, 1.0, begins_anew=True, times=2) == Selection(200, 0, 100)
    assert chosen(REST, 1.0, begins_anew=True, times=3) == 412

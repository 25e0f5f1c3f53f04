import re

from hypothesis import given
from hypothesis import strategies as st

from proxy.ranges import Selection, select

ETAG = '"abc"'


def test_what_clients_of_the_hub_send() -> None:
    assert select(100, ETAG) == Selection(200, 0, 100)
    assert select(100, ETAG, range_="bytes=10-") == Selection(206, 10, 100, is_rest=True)
    assert select(100, ETAG, range_="bytes=0-0") == Selection(206, 0, 1)
    assert select(6000, ETAG, range_="bytes=0-100000") == Selection(206, 0, 6000)
    assert select(100, ETAG, range_="bytes=-8") == Selection(206, 92, 100)
    assert select(100, ETAG, range_="bytes=-800") == Selection(206, 0, 100)
    assert select(100, ETAG, range_="bytes=100-") == Selection(416)
    assert select(0, ETAG, range_="bytes=0-") == Selection(416)
    assert Selection(416).content_range(100) == "bytes */100"
    assert Selection(206, 10, 20).content_range(100) == "bytes 10-19/100"


def test_what_is_no_range_is_ignored() -> None:
    for field in ("bytes", "bytes=", "bytes=5-2", "bytes=a-b", "items=0-5", "bytes=0-1,5-6", "bytes=--5", "bytes=1-2x"):
        assert select(100, ETAG, range_=field) == Selection(200, 0, 100), field


def test_preconditions_come_first_and_in_order() -> None:
    assert select(9, ETAG, if_none_match='W/"abc"') == Selection(304)
    assert select(9, ETAG, if_none_match='"x", "abc"', range_="bytes=0-1") == Selection(304)
    assert select(9, ETAG, if_none_match="*") == Selection(304)
    assert select(9, ETAG, if_none_match='"x"') == Selection(200, 0, 9)
    assert select(9, ETAG, if_match='W/"abc"') == Selection(412)
    assert select(9, ETAG, if_match='"x"', if_none_match='"abc"') == Selection(412)
    assert select(9, ETAG, if_match='"abc"', range_="bytes=1-2") == Selection(206, 1, 3)
    assert select(9, ETAG, range_="bytes=1-2", if_range='"abc"') == Selection(206, 1, 3)
    assert select(9, ETAG, range_="bytes=1-2", if_range='"old"') == Selection(200, 0, 9)
    assert select(9, ETAG, range_="bytes=1-2", if_range='W/"abc"') == Selection(200, 0, 9)
    assert select(9, ETAG, range_="bytes=1-2", if_range="Tue, 01 Jan 2030 00:00:00 GMT") == Selection(200, 0, 9)


@given(
    size=st.integers(0, 10**12),
    field=st.one_of(st.text(max_size=30), st.from_regex(r"bytes=\d{0,22}-\d{0,22}", fullmatch=True)),
)
def test_any_header_selects_bytes_that_exist(size: int, field: str) -> None:
    selection = select(size, ETAG, range_=field)
    assert selection.status in (200, 206, 416)
    assert 0 <= selection.start <= selection.stop <= size
    if selection.status == 206:
        assert selection.start < selection.stop
        first = re.match(r"bytes=(\d+)-", field)
        assert first is None or selection.start == int(first[1])

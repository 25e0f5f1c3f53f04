"""Xorbs that are made up on the fly, and passes that cannot be forged."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.hub.urls import OtherRoute, Repo
from proxy.hub.xet import CHUNK, XORB, Pass, Xorb, read_pass, reconstruction, token_route, write_pass

SIZE = XORB + 3 * CHUNK + 77
BLOB = random.Random(3).randbytes(SIZE)
KEY = b"k" * 32
GRANTED = Pass("holder", "models/acme/tiny", 100, 1000, "f" * 64)


def stored(number: int, start: int, stop: int) -> bytes:
    spans = Xorb(SIZE, number).spans(start, stop)
    return b"".join(span.header + BLOB[span.start : span.stop] for span in spans)


def unpack(xorb: bytes) -> list[bytes]:
    """Return the chunks of a stored range, as the format is documented."""
    chunks = []
    while xorb:
        version, packed, scheme, length = (
            int.from_bytes(xorb[a:b], "little") for a, b in ((0, 1), (1, 4), (4, 5), (5, 8))
        )
        assert (version, scheme, packed) == (0, 0, length)
        chunks.append(xorb[8 : 8 + length])
        xorb = xorb[8 + length :]
    return chunks


@settings(max_examples=20)
@given(st.integers(0, SIZE - 1), st.integers(1, SIZE))
def test_what_a_client_puts_together_is_the_file(start: int, length: int) -> None:
    stop = min(SIZE, start + length)
    said = reconstruction("name", SIZE, start, stop, str)
    got = b""
    for term in said["terms"]:
        [where] = [f for f in said["fetch_info"][term["hash"]] if f["range"] == term["range"]]
        chunks = unpack(stored(int(where["url"]), where["url_range"]["start"], where["url_range"]["end"] + 1))
        assert len(chunks) == term["range"]["end"] - term["range"]["start"]
        assert sum(map(len, chunks)) == term["unpacked_length"]
        got += b"".join(chunks)
    offset = said["offset_into_first_range"]
    assert got[offset : offset + stop - start] == BLOB[start:stop]


@given(st.integers(0, 1), st.data())
def test_any_range_of_a_xorb_is_that_part_of_it(number: int, data: st.DataObject) -> None:
    size = Xorb(SIZE, number).stored_size
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, min(size, start + 3 * CHUNK)))
    first = start // (CHUNK + 8) * (CHUNK + 8)
    whole = stored(number, first, min(size, first + 5 * CHUNK))
    assert stored(number, start, stop) == whole[start - first : stop - first]


def test_a_file_ends_where_it_ends() -> None:
    assert Xorb(SIZE, 1).stored_size == 3 * (CHUNK + 8) + 77 + 8
    for number in (2, -1):
        with pytest.raises(IndexError):
            Xorb(SIZE, number)


def test_blobs_do_not_share_xorbs() -> None:
    one, other = (reconstruction(name, SIZE, 0, SIZE, str)["fetch_info"] for name in "ab")
    assert not one.keys() & other.keys()


def test_a_pass_is_good_in_its_time_and_as_it_was_written() -> None:
    text = write_pass(KEY, GRANTED)
    assert read_pass(KEY, text, 999) == GRANTED
    assert read_pass(KEY, text, 1000) is None
    assert read_pass(b"l" * 32, text, 999) is None
    assert read_pass(KEY, write_pass(KEY, Pass("", "", 0, 1000))[:40] + text[40:], 999) is None
    for bad in ("", "hubmesh_xet_", text[:-3], "hf_alice", "hubmesh_xet_é", "hubmesh_xet_" + "A" * 5000):
        assert read_pass(KEY, bad, 999) is None


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        ("/api/models/acme/tiny/xet-read-token/main", (Repo("models", "acme/tiny"), "main")),
        ("/api/datasets/gpt2/xet-read-token/refs%2Fpr%2F1?x=1", (Repo("datasets", "gpt2"), "refs%2Fpr%2F1")),
        ("/api/models/acme/tiny/xet-write-token/main", None),
        ("/api/buckets/acme/b/xet-read-token", None),
        ("/api/models/acme/tiny/xet-read-token/main/more", None),
    ],
)
def test_requests_for_a_token_to_read(target: str, asked: object) -> None:
    assert token_route(OtherRoute(target)) == asked

"""Which blobs fit beside those that are stored and must stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.content import Digest
from mesh.entries import Entry, PartialEntry, check_fits, no_room
from mesh.errors import StoreBusy, StoreFull
from mesh.partial import Partial

NEW, PINNED, OTHER, HALF, SHARED = (Digest("sha256", letter * 64) for letter in "abcde")
ENTRIES = {PINNED: Entry(40, 0.0), OTHER: Entry(20, 0.0)}


@pytest.mark.parametrize(
    ("size", "held", "max_size", "free", "trouble"),
    [
        (30, 0, 100, 1000, ""),
        (50, 0, 100, 1000, ""),  # the other blob makes room, and the unfinished third one
        (61, 0, 100, 1000, "beside the 40 that are pinned"),
        (61, 60, 100, 1000, "beside the 40 that are pinned"),
        (101, 0, 100, 1000, "can never fit"),
        (60, 0, 1000, 30, ""),
        (61, 0, 1000, 30, "31 bytes|lacks room for 61 bytes: 30 are free, and 30 can make room"),
        (61, 1, 1000, 30, ""),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_makes_room(
    size: int, held: int, max_size: int, free: int, trouble: str
) -> None:
    partials = {HALF: PartialEntry(Path("half"), 99, 10, 0.0)}
    if held:
        partials[NEW] = PartialEntry(Path("new"), 99, held, 0.0)

    def check() -> None:
        used = 60 + sum(partial.held for partial in partials.values())
        check_fits(
            NEW,
            size,
            ENTRIES,
            partials,
            lambda digest: digest == PINNED,
            lambda digest: False,
            max_size=max_size,
            used=used,
            free=free,
        )

    if not trouble:
        check()
        return
    with pytest.raises(StoreFull, match=trouble):
        check()


@pytest.mark.parametrize(("max_size", "free", "trouble"), [(100, 1000, ""), (1000, 49, "49 are free, and 0 can make")])
def test_what_another_program_has_too_makes_room_in_the_budget_but_none_on_the_disk(
    max_size: int, free: int, trouble: str
) -> None:
    entries = {SHARED: Entry(60, 0.0), PINNED: Entry(40, 0.0)}

    def check() -> None:
        check_fits(NEW, 50, entries, {}, PINNED.__eq__, SHARED.__eq__, max_size=max_size, used=100, free=free)

    if not trouble:
        check()
        return
    with pytest.raises(StoreFull, match=trouble):
        check()


@pytest.mark.parametrize(
    ("count", "kind"), [(50, StoreBusy), (51, StoreFull)], ids=["others let go of it", "what stays is too much"]
)
def test_room_that_others_use_comes_back_but_not_what_is_pinned_or_its_own(count: int, kind: type[StoreFull]) -> None:
    used = object.__new__(Partial)  # only its existence matters
    entries = {PINNED: Entry(20, 0.0, users=1), OTHER: Entry(30, 0.0, users=1)}
    partials = {HALF: PartialEntry(Path("half"), 99, 20, 0.0, used), NEW: PartialEntry(Path("new"), 99, 30, 0.0, used)}
    error = no_room(NEW, count, entries, partials, PINNED.__eq__, max_size=100, used=100)
    assert type(error) is kind

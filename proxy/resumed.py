"""Downloads that go on after bytes of their file turned out to be wrong. Pure.

A whole file that does not match its digest is broken off before its end. Clients then ask for the rest, put it behind
what they have, wrong bytes and all, and compare nothing but the length in the end. So they are given no rest, but an
error that says what to do. (To send the whole instead would do for some: huggingface_hub begins anew when it downloads
a file, but not when it reads one as a stream, and says nothing of which it does.)
"""

from __future__ import annotations

from proxy.catalog import Disproof
from proxy.hub.errors import HubError
from proxy.ranges import Selection

_REST_SECONDS = 7 * 86400.0  # what is left of a download on a client's disk may be days old
# Who fetches a file in several ranges tries one that broke again at once. Others read ranges for their own sake, and
# what they read before has nothing to do with it.
_RANGE_SECONDS = 300.0
CLOCK = 3600.0  # a disproof that is further ahead was noted with a clock that has been set back since


def choose(selection: Selection, size: int, name: str, disproof: Disproof, now: float) -> Selection:
    """What to answer with where `selection` is asked for, of a file called `name` that has `size` bytes.

    `now` is in seconds since the epoch. Raises HubError.
    """
    is_whole = selection.status != 206 or (selection.start, selection.stop) == (0, size)
    at, seconds = (disproof.at, _REST_SECONDS) if selection.is_rest else (disproof.of_ranges, _RANGE_SECONDS)
    if is_whole or not _is_recent(at, now, seconds):
        return selection
    raise HubError(
        412,
        message=f"some bytes of {name} that were sent lately were wrong, and yours may be among them: delete what you "
        "have of it and download it anew, from its beginning (huggingface_hub: force_download=True)",
    )


def anew(selection: Selection, size: int, disproof: Disproof, now: float) -> Selection:
    """The same for a client that begins anew when it gets the whole, and checks it: git."""
    is_rest = selection.status == 206 and _is_recent(disproof.at, now, _REST_SECONDS)
    return Selection(200, 0, size) if is_rest else selection


def _is_recent(at: float, now: float, seconds: float) -> bool:
    return -CLOCK < now - at < seconds

"""Resumed downloads of a file of which wrong bytes were sent earlier. Pure.

When a whole file does not match its digest, its download is broken off before the end. Clients then ask for the rest,
append it to what they have, wrong bytes included, and check only the length. So they get an error that says what to do,
instead of the rest. (Sending the whole file instead would help only some: huggingface_hub starts over when it downloads
a file, but not when it reads one as a stream, and the request does not tell which.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.hub.errors import HubError
from proxy.ranges import Selection

if TYPE_CHECKING:
    from proxy.catalog import Disproof

_REST_SECONDS = 7 * 86400.0  # a partial download on a client's disk may be days old
# Seconds. A client that fetches one file in several ranges retries a broken one at once. Others read single ranges, and
# what they read before does not matter to them.
_RANGE_SECONDS = 300.0
CLOCK = 3600.0  # seconds that a disproof may lie in the future; beyond, it was noted before the clock was set back


def choose(selection: Selection, size: int, name: str, disproof: Disproof, now: float) -> Selection:
    """The selection to answer with, for a file called `name` of `size` bytes when `selection` was asked for.

    `now` is in seconds since the epoch. Raises HubError when the client may hold wrong bytes of it.
    """
    is_whole = selection.status != 206 or (selection.start, selection.stop) == (0, size)
    at, seconds = (disproof.at, _REST_SECONDS) if selection.is_rest else (disproof.of_ranges, _RANGE_SECONDS)
    if is_whole or not _is_recent(at, now, seconds):
        return selection
    raise HubError(
        412,
        message=f"some bytes of {name} that were sent recently were wrong, and may be in your partial download: delete "
        "what you have of it and download it again from the beginning (huggingface_hub: force_download=True)",
    )


def anew(selection: Selection, size: int, disproof: Disproof, now: float) -> Selection:
    """The same for git, which starts over and checks the digest when it gets the whole file."""
    is_rest = selection.status == 206 and _is_recent(disproof.at, now, _REST_SECONDS)
    return Selection(200, 0, size) if is_rest else selection


def _is_recent(at: float, now: float, seconds: float) -> bool:
    return -CLOCK < now - at < seconds

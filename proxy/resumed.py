"""Resumed downloads of a file of which wrong bytes were sent earlier. Pure.

When a whole file does not match its digest, its download is broken off before the end. Clients then ask for the rest,
append it to what they have, wrong bytes included, and check only the length. So they get an error that says what to do,
instead of the rest. (Sending the whole file instead would help only some: huggingface_hub starts over when it downloads
a file, but not when it reads one as a stream, and the request does not tell which.)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from proxy.hub.errors import HubError
from proxy.ranges import Selection

if TYPE_CHECKING:
    from proxy.catalog import Disproof
    from proxy.hub.client import Client

_REST_SECONDS = 7 * 86400.0  # a partial download on a client's disk may be days old
# Seconds. A client that fetches one file in several ranges retries a broken one at once. Others read single ranges, and
# what they read before does not matter to them.
_RANGE_SECONDS = 300.0
_CURE = (
    "delete what you have of it and download it again from the beginning "
    "(huggingface_hub: force_download=True; aria2: -x1)"
)
CLOCK = 3600.0  # seconds that a disproof may lie in the future; beyond, it was noted before the clock was set back


def choose(selection: Selection, size: int, name: str, client: Client, disproof: Disproof, now: float) -> Selection:
    """The selection to answer with, for a file called `name` of `size` bytes when `selection` was asked for.

    `now` is in seconds since the epoch. Raises HubError when the client may hold wrong bytes of it.
    """
    if selection.status != 206 or (selection.start, selection.stop) == (0, size):
        return selection
    wrong = f"some bytes of {name} that were sent recently were wrong"
    if selection.is_rest or client.resumes_in_closed_ranges:
        if _is_recent(disproof.at, now, _REST_SECONDS):
            raise HubError(412, message=f"{wrong}, and may be in your partial download: {_CURE}")
        return selection
    # huggingface_hub asks for a closed range only when it reads ranges, or when it fetches the whole file in ranges.
    # Other software may have begun with the whole file.
    at = disproof.at if client.hub_version is None else disproof.of_ranges
    if _is_recent(at, now, _RANGE_SECONDS):
        wait = f"ranges of it are refused for {math.ceil(at + _RANGE_SECONDS - now)} more seconds, then try again"
        raise HubError(412, message=f"{wrong}: {wait}. If you keep a part of it on disk, {_CURE}")
    return selection


def anew(selection: Selection, size: int, disproof: Disproof, now: float) -> Selection:
    """The same for git, which starts over and checks the digest when it gets the whole file."""
    is_rest = selection.status == 206 and _is_recent(disproof.at, now, _REST_SECONDS)
    return Selection(200, 0, size) if is_rest else selection


def _is_recent(at: float, now: float, seconds: float) -> bool:
    return -CLOCK < now - at < seconds

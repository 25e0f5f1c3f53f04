"""Downloads that go on after bytes of their file turned out to be wrong. Pure.

A whole file that does not match its digest is broken off before its end. Clients then ask for the rest, put it behind
what they have, wrong bytes and all, and compare nothing but the length in the end. So they are given no rest: the whole
instead, if they are known to begin anew with that, or else an error that says what to do.
"""

from __future__ import annotations

from proxy.catalog import Disproof
from proxy.hub.errors import HubError
from proxy.ranges import Selection

_REST_SECONDS = 30 * 86400.0  # what is left of a download on a client's disk may be weeks old
# Who fetches a file in several ranges tries one that broke again at once. Others read ranges for their own sake, and
# what they read before has nothing to do with it.
_RANGE_SECONDS = 300.0
_HOPELESS = 3  # disproofs in a row: who begins anew by itself would do so for ever


def choose(
    selection: Selection, size: int, name: str, *, disproof: Disproof, now: float, begins_anew: bool
) -> Selection:
    """What to answer with where `selection` is asked for, of a file called `name` that has `size` bytes.

    `now` is in seconds since the epoch. `begins_anew`: the client does when it gets the whole.

    Raises HubError.
    """
    is_whole = selection.status != 206 or (selection.start, selection.stop) == (0, size)
    if is_whole or now - disproof.at >= (_REST_SECONDS if selection.is_rest else _RANGE_SECONDS):
        return selection
    if selection.is_rest and begins_anew and disproof.times < _HOPELESS:
        return Selection(200, 0, size)
    raise HubError(
        412,
        message=f"some bytes of {name} that were sent before were wrong, and yours may be among them: delete what you "
        "have of it and download it anew, from its beginning (huggingface_hub: force_download=True)",
    )

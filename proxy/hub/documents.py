"""What a node reads of the Hub's answers about repositories. Pure.

Some infos list half a million files. msgspec holds Python's global lock while it decodes, so in a thread, too, it would
stop the event loop. It skips what no type names, which takes a sixth of the time of building all of it.
"""

from __future__ import annotations

from typing import Any, TypedDict

import msgspec

from proxy.decoding import decode
from proxy.hub import rewrite


class _Info(TypedDict, total=False):
    id: Any
    sha: Any
    private: Any
    gated: Any
    disabled: Any


class _Listing(TypedDict, total=False):
    siblings: list[msgspec.Raw]


def info(body: bytes) -> Any:
    """An info answer, with its id, commit and publicness alone. Raises msgspec.DecodeError for invalid JSON."""
    try:
        return decode(body, _Info)
    except msgspec.ValidationError:  # it is no object
        return decode(body)


def xet_names(body: bytes) -> list[tuple[str, str]]:
    """(Xet hash, path) of each entry with a Xet hash in a tree, paths-info or info answer.

    The entries are decoded one by one, so that a thread that does this lets others run in between.
    """
    if not rewrite.mentions_xet(body):
        return []
    try:
        listing = decode(body, _Listing | list[msgspec.Raw])
        entries = listing if isinstance(listing, list) else listing.get("siblings", ())
        return [name for entry in entries for name in rewrite.xet_names([decode(entry)])]
    except msgspec.DecodeError:  # it lists nothing
        return []

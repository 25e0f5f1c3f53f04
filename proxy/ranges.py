"""Conditional and range requests (RFC 9110), for representations that never change. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

# RFC 9110, section 14.1.1. A header that does not match is not a single byte range and is ignored (section 14.2).
# Possessive quantifiers (`*+`) prevent backtracking: matching takes linear time.
_RANGE = re.compile(r"\s*+bytes\s*+=\s*+(\d{0,19}+)\s*+-\s*+(\d{0,19}+)\s*+\Z", re.ASCII | re.IGNORECASE)
_ENTITY_TAG = re.compile(r'(?:W/)?"[^"]*"')


@dataclass(frozen=True, slots=True)
class Selection:
    """The status of an answer, and the bytes from `start` up to `stop` that it carries.

    `is_rest`: the client asked for everything from `start` on, as one does that resumes a download.
    """

    status: Literal[200, 206, 304, 412, 416]
    start: int = 0
    stop: int = 0
    is_rest: bool = False

    def content_range(self, size: int) -> str | None:
        """The `Content-Range` field (section 14.4); None if the status has none."""
        if self.status == 206:
            return f"bytes {self.start}-{self.stop - 1}/{size}"
        return f"bytes */{size}" if self.status == 416 else None


def select(
    size: int,
    etag: str,
    *,
    range_: str | None = None,
    if_range: str | None = None,
    if_match: str | None = None,
    if_none_match: str | None = None,
) -> Selection:
    """What a GET asks for, of a representation of `size` bytes with the strong, quoted `etag`.

    The keyword arguments are header fields of the request. A request for several ranges is answered with the whole
    representation, as section 14.2 allows: no client of the Hub sends them. Preconditions are evaluated in the order of
    section 13.2.2.
    """
    if if_match is not None and not names(if_match, etag, weakly=False):
        return Selection(412)
    if if_none_match is not None and names(if_none_match, etag, weakly=True):
        return Selection(304)
    whole = Selection(200, 0, size)
    # A date in If-Range never matches, since we send no Last-Modified (section 13.1.5).
    if range_ is None or (if_range is not None and if_range.strip() != etag):
        return whole
    match = _RANGE.match(range_)
    first, last = match.groups() if match is not None else ("", "")
    if not (first or last):
        return whole
    if not first:
        length = int(last)
        if not length:
            return Selection(416)
        start, stop = max(0, size - length), size
    else:
        start = int(first)
        stop = int(last) + 1 if last else size
        if last and stop <= start:
            return whole  # last before first: invalid, hence ignored
    if start >= size:
        return Selection(416)
    return Selection(206, start, min(stop, size), is_rest=bool(first and not last))


def names(field: str, etag: str, *, weakly: bool) -> bool:
    """Whether a list of entity tags (or `*`) contains this one, by strong or weak comparison (section 8.8.3.2).

    For weak comparison `etag` must have no `W/`.
    """
    if field.strip() == "*":
        return True
    tags = _ENTITY_TAG.findall(field)
    return etag in ([tag.removeprefix("W/") for tag in tags] if weakly else tags)

"""Responses whose body is complete from the start, sent in few steps.

`web.Response` handles all that HTTP allows for a body. Finding out each time that none of it is needed is a good part
of the cost of a HEAD or a small range.
"""

from __future__ import annotations

import time
from collections.abc import Mapping as Fields
from email.utils import formatdate
from functools import lru_cache
from typing import cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import SERVER_SOFTWARE, HttpVersion10, HttpVersion11


class WholeResponse(web.StreamResponse):
    """A response whose status, header fields and body do not change any more.

    Without a body, `headers` give the Content-Length that it would have, if any. With one, Content-Length is set to its
    length. An answer to HEAD sends no body.
    """

    def __init__(self, status: int, headers: Fields[str, str], body: bytes | bytearray | None = None) -> None:
        super().__init__(status=status, headers=headers)
        self._whole = body or b""
        if body is not None:
            self.headers["Content-Length"] = str(len(body))
        self._is_kept_alive: bool | None = None

    @property
    def prepared(self) -> bool:
        return self._is_kept_alive is not None

    @property
    def keep_alive(self) -> bool | None:
        return self._is_kept_alive

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the whole response."""
        if self.prepared:
            return None
        self._is_kept_alive = request.keep_alive
        fields, version = self.headers, request.version
        fields["Date"] = _date(int(time.time()))
        fields["Server"] = SERVER_SOFTWARE
        if version == HttpVersion10 and self._is_kept_alive:  # the default depends on the version (RFC 9112, 9.3)
            fields["Connection"] = "keep-alive"
        elif version == HttpVersion11 and not self._is_kept_alive:
            fields["Connection"] = "close"
        await request.writer.write_headers(f"HTTP/{version.major}.{version.minor} {self.status} {self.reason}", fields)
        # Sent together with the header. Waits until the client has read enough of the answers before: a client that
        # keeps sending requests and reads nothing would fill the memory.
        await request.writer.write_eof(b"" if request.method == "HEAD" else cast("bytes", self._whole))
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: all has been sent."""


@lru_cache(2)
def _date(now: int) -> str:
    """Format a date as in RFC 9110, section 5.6.7; `now` is in seconds since the epoch."""
    return formatdate(now, usegmt=True)

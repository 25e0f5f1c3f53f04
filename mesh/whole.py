"""Responses that are there as a whole, in as few steps as a small one is worth.

`web.Response` can do all that HTTP may ask of a body; finding out each time that nothing of it is needed is a good part
of what a HEAD or a small range costs.
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
    """A status, header fields and a body, none of which changes any more.

    Without a body `headers` say the length that there would be, if any; with one it is its own. After a HEAD none is
    sent.
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
        """Send all of it."""
        if self.prepared:
            return None
        self._is_kept_alive = request.keep_alive
        fields, version = self.headers, request.version
        fields["Date"] = _date(int(time.time()))
        fields["Server"] = SERVER_SOFTWARE
        if version == HttpVersion10 and self._is_kept_alive:  # RFC 9112, section 9.3: each version has its own default
            fields["Connection"] = "keep-alive"
        elif version == HttpVersion11 and not self._is_kept_alive:
            fields["Connection"] = "close"
        await request.writer.write_headers(f"HTTP/{version.major}.{version.minor} {self.status} {self.reason}", fields)
        # In one piece with the header. It waits until the client has taken enough of what was sent before: who asks and
        # asks, and reads nothing, would fill the memory.
        await request.writer.write_eof(b"" if request.method == "HEAD" else cast("bytes", self._whole))
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to be sent."""


@lru_cache(2)
def _date(now: int) -> str:
    """RFC 9110, section 5.6.7; `now` in seconds since the epoch."""
    return formatdate(now, usegmt=True)

"""The storage behind the Hub, on a port of its own: signed URLs, ranges, and every way to break."""

from __future__ import annotations

import asyncio
import os
import time

from aiohttp import web

from tests.hub.repos import Entry, Repo
from tests.hub.state import State

_PART = 64 << 10
_SENDFILE = 4 << 20


class Cdn:
    def __init__(self, state: State) -> None:
        self._state = state

    async def object(self, request: web.Request) -> web.StreamResponse:
        state, knobs = self._state, self._state.knobs
        if "Authorization" in request.headers:
            return web.Response(status=400, text="<Error><Code>InvalidArgument</Code></Error>")
        if not state.is_signed(request):
            return web.Response(status=403, text="<Error><Code>AccessDenied</Code></Error>", content_type="text/xml")
        repo, entry, path = self._find(request)
        if entry is None or repo is None:
            return web.Response(status=404)
        etag = f'"{entry.xet or entry.sha256}"'
        headers = {
            "ETag": etag,
            "Accept-Ranges": "bytes",
            "Cache-Control": "public, max-age=31536000",
            "Content-Type": "application/octet-stream",
        }
        if disposition := request.query.get("response-content-disposition"):
            headers["Content-Disposition"] = disposition
        status, start, stop = 200, 0, entry.size
        wanted = request.http_range
        if wanted.start is not None and not knobs.ignore_range and request.headers.get("If-Range", etag) == etag:
            start, stop, _ = wanted.indices(entry.size)
            if start >= stop:
                return web.Response(status=416, headers={"Content-Range": f"bytes */{entry.size}"})
            status, headers["Content-Range"] = 206, f"bytes {start}-{stop - 1}/{entry.size}"
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = stop - start
        await response.prepare(request)
        if request.method == "GET":
            with state.object_path(repo, entry).open("rb") as file:
                await self._send(request, response, file.fileno(), path, start, stop)
        return response

    def _find(self, request: web.Request) -> tuple[Repo | None, Entry | None, str]:
        repo_id, _, digest = request.match_info["rest"].rpartition("/")
        repo = self._state.repo(request.match_info["type"], repo_id)
        if repo is not None:
            for commit in repo.commits.values():
                for path, entry in commit.files.items():
                    if entry.sha256 == digest:
                        return repo, entry, path
        return repo, None, ""

    async def _send(
        self, request: web.Request, response: web.StreamResponse, fd: int, path: str, start: int, stop: int
    ) -> None:
        knobs, loop = self._state.knobs, asyncio.get_running_loop()
        transport = request.transport
        assert transport is not None
        end, hang = stop, False
        if knobs.cut_times > 0:
            knobs.cut_times -= 1
            end = min(stop, start + knobs.cut_after)
        elif knobs.hang_times > 0:
            knobs.hang_times -= 1
            end, hang = min(stop, start + knobs.hang_after), True
        is_plain = not (knobs.bandwidth or knobs.connection_bandwidth or knobs.corrupt_times)
        position, began = start, time.monotonic()
        with os.fdopen(os.dup(fd), "rb") as file:
            while position < end:
                count = min(end - position, _SENDFILE if is_plain else _PART)
                if knobs.hold_at >= 0 and (count := min(count, knobs.hold_at - position)) <= 0:
                    if transport.is_closing():
                        return
                    await asyncio.sleep(0.02)
                    continue
                if is_plain:
                    await loop.sendfile(transport, file, position, count)  # type: ignore[arg-type]
                else:
                    await self._state.pace(count, began, position - start)
                    await response.write(self._corrupted(os.pread(fd, count, position), path, position))
                position += count
                self._state.bytes[path] += count
        if hang:
            await asyncio.sleep(3600)
        if end < stop:
            transport.close()

    def _corrupted(self, part: bytes, path: str, position: int) -> bytes:
        knobs = self._state.knobs
        offset = knobs.corrupt.get(path, -1) - position
        if knobs.corrupt_times > 0 and 0 <= offset < len(part):
            knobs.corrupt_times -= 1
            return part[:offset] + bytes([part[offset] ^ 1]) + part[offset + 1 :]
        return part

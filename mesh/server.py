"""The mesh port: what this node answers to other nodes. Every message is bounded before it is read."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from mesh.access import OriginAccess
from mesh.auth import SENDER
from mesh.blobs import Blobs
from mesh.content import MAX_PIECE, Digest
from mesh.errors import MeshError, StoreUnusable
from mesh.exchange import MAX_MESSAGE, Envelope
from mesh.house import House
from mesh.outflow import Held, Outflow
from mesh.tracker import Tracker
from mesh.wire import Decoder

log = logging.getLogger(__name__)

_RANGE = re.compile(r"bytes=(\d{1,19})-(\d{1,19})\Z", re.ASCII)
# Of a blob that somebody says there is: a ledger has something for each piece. 1 TiB is twice the Hub's largest file.
_MAX_PIECES = 1 << 16
_HINT_SECONDS = 3.0  # to find out what file a hint leads to
_MAX_FINDING = 64  # hints that are looked into at once
_MAX_UPLOADS = 40  # at the same time; beyond that a peer asks somebody else
_MAX_OF_HOST = 32  # of them: who takes all that it is sent as slowly as it can leaves some to the others

_ENVELOPE: Decoder[Envelope] = Decoder(Envelope)
_ENCODER = msgspec.msgpack.Encoder()


async def nowhere(_hint: bytes, _digest: Digest, _size: int) -> None:
    """For who never goes to the origin for others."""
    return None


class MeshServer:
    """Reports to the tracker and pieces of blobs, for nodes that were let in.

    `may_share` says which blobs may leave to other nodes; `is_seed(node)` whether a node is one. `access(hint,
    digest, size)` is how a seed goes to the origin for others: None unless the hint leads to that blob, and anybody may
    have it. Anybody may send a hint: it must not open what is closed, nor pass one file off as another.
    """

    def __init__(
        self,
        *,
        house: House,
        blobs: Blobs,
        tracker: Tracker,
        outflow: Outflow,
        may_share: Callable[[Digest], bool],
        is_seed: Callable[[str], bool],
        access: Callable[[bytes, Digest, int], Awaitable[OriginAccess | None]] = nowhere,
    ) -> None:
        self._house = house
        self._blobs = blobs
        self._tracker = tracker
        self._outflow = outflow
        self._may_share = may_share
        self._is_seed = is_seed
        self._access = access
        self._uploads: Counter[str] = Counter()  # under way, by host
        self._finding: dict[tuple[Digest, bytes], tuple[asyncio.Task[OriginAccess | None], float]] = {}

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post("/mesh/swarms/{digest}", self._report)
        app.router.add_get("/mesh/blobs/{digest}", self._piece, allow_head=False)

    async def _report(self, request: web.Request) -> web.Response:
        digest = _digest(request)
        try:
            envelope = _ENVELOPE.decode(await read_message(request))
            report = dataclasses.replace(envelope.report, seed=self._is_seed(envelope.report.node))
            if not 0 < envelope.size <= _MAX_PIECES * MAX_PIECE:
                raise ValueError(f"a blob of {envelope.size} bytes")
            if report.node == self._house.node_id:
                raise ValueError("not of another node")
            if request.get(SENDER, report.node) != report.node:
                raise ValueError("speak for yourself")
            self._house.peers.heard(report.node)
            # Only where it will report to: another tracker's ledger would wait for it in vain.
            if await self._help(digest, envelope) and self._house.exchange.is_local(digest):
                self._tracker.expect_seed(digest, envelope.size)
            plan = await self._tracker.answer(digest, envelope.size, report)
        except (ValueError, msgspec.DecodeError) as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        return web.Response(body=_ENCODER.encode(plan))

    async def _help(self, digest: Digest, envelope: Envelope) -> bool:
        """A seed fetches what others ask for, though nobody here did; whether that begins now."""
        if not self._is_seed(self._house.node_id) or not envelope.hint or not envelope.report.wanted:
            return False
        swarm = self._blobs.swarms.get(digest)
        if digest in self._house.store or (swarm is not None and swarm.is_helping):
            return False
        access = await self._find_out(digest, envelope)
        if access is None:
            return False
        try:
            await self._blobs.help(digest, envelope.size, access)
        except MeshError as error:
            log.warning("cannot fetch %s for others: %s", digest, error)
            return False
        return True

    async def _find_out(self, digest: Digest, envelope: Envelope) -> OriginAccess | None:
        """What a hint leads to; None if to nothing, or not soon: whoever reports waits for an answer."""
        asked, now = (digest, envelope.hint), time.monotonic()
        finding, until = self._finding.get(asked, (None, now + _HINT_SECONDS))
        if finding is None:
            if len(self._finding) >= _MAX_FINDING:
                return None

            async def find() -> OriginAccess | None:
                return await self._access(envelope.hint, digest, envelope.size)

            finding = self._house.tasks.start(find(), name=f"hint {digest}")
            self._finding[asked] = finding, until
            finding.add_done_callback(lambda _: self._finding.pop(asked))
        await asyncio.wait([finding], timeout=max(0.0, until - now))  # all that come in that time; later ones do not
        return finding.result() if finding.done() and not finding.cancelled() else None

    async def _piece(self, request: web.Request) -> web.StreamResponse:
        digest = _digest(request)
        match = _RANGE.match(request.headers.get("Range", ""))
        if match is None:
            raise web.HTTPBadRequest(text="ask for a range of bytes\n")
        start, stop = int(match[1]), int(match[2]) + 1
        if not self._may_share(digest):
            raise web.HTTPNotFound(text="not here\n")
        host = request.remote or ""
        if self._uploads[host] >= _MAX_OF_HOST or self._uploads.total() >= _MAX_UPLOADS:
            raise web.HTTPServiceUnavailable(text="busy\n")
        try:
            blob = self._house.store.open(digest)
        except StoreUnusable as error:
            raise web.HTTPServiceUnavailable(text=f"{error}\n") from error
        swarm = self._blobs.swarms.get(digest)
        self._uploads[host] += 1
        try:
            if blob is not None and start < stop <= blob.size:
                return await self._send(request, Held(blob.fd, stop, blob.stamp), start, stop, blob.size)
            if swarm is not None and swarm.holds(start, stop):
                fd = os.dup(swarm.fill.partial.fd)  # the fill may end while we send
                try:
                    return await self._send(request, Held(fd, stop), start, stop, swarm.size)
                finally:
                    os.close(fd)
        finally:
            self._uploads[host] -= 1
            if not self._uploads[host]:
                del self._uploads[host]
            if blob is not None:
                blob.close()
        if digest in self._house.store.doubts:
            self._blobs.begin_proof(digest)
        raise web.HTTPNotFound(text="not here\n")

    async def _send(self, request: web.Request, held: Held, start: int, stop: int, size: int) -> web.StreamResponse:
        headers = {
            "Content-Range": f"bytes {start}-{stop - 1}/{size}",
            "Content-Type": "application/octet-stream",
        }
        return await self._outflow.respond(request, 206, headers, held, start, stop)


async def read_message(request: web.Request, limit: int = MAX_MESSAGE) -> bytes:
    """A request's body, of at most `limit` bytes; 413 to a longer one."""
    if (request.content_length or 0) > limit:
        raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=request.content_length or 0)
    body = await request.read()  # bounded by the application's client_max_size as well
    if len(body) > limit:
        raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=len(body))
    return body


def _digest(request: web.Request) -> Digest:
    try:
        return Digest.parse(request.match_info["digest"])
    except ValueError as error:
        raise web.HTTPNotFound(text="no such blob\n") from error

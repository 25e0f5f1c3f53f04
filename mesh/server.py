"""The mesh port: what this node answers to other nodes. The size of a message is bounded before it is read."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import os
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
from aiohttp import web

from mesh import stated
from mesh.access import OriginAccess
from mesh.auth import SENDER
from mesh.blobs import Blobs
from mesh.content import MAX_PIECE, Digest, Pieces
from mesh.descriptors import duplicate
from mesh.errors import MeshError, StoreUnusable, TooManyFiles
from mesh.exchange import MAX_MESSAGE, Complaint, Envelope
from mesh.house import House
from mesh.messages import Plan
from mesh.outflow import Held, Outflow
from mesh.tracker import Tracker
from mesh.wire import Decoder

log = logging.getLogger(__name__)

_RANGE = re.compile(r"bytes=(\d{1,19})-(\d{1,19})\Z", re.ASCII)
# Pieces of the largest blob that peers may report on, as a ledger has an entry for each piece. As 16 MiB pieces this is
# 1 TiB, twice the origin's largest file.
_MAX_PIECES = 1 << 16
_PAUSE = 1.0  # seconds that a node is to wait when its host has announced more
_HINT_SECONDS = 3.0  # for the origin to say which file a hint leads to
_MAX_FINDING = 64  # hints looked up at once
_MAX_UPLOADS = 40  # at once; beyond that a peer gets 503 and asks another node
_MAX_OF_HOST = 32  # of these to one host, so that a host which receives very slowly leaves some to others
_CHECK_SECONDS = 1.0  # between two checks of pieces for others

_ENVELOPE: Decoder[Envelope] = Decoder(Envelope)
_COMPLAINT: Decoder[Complaint] = Decoder(Complaint)
_ENCODER = msgspec.msgpack.Encoder()


async def nowhere(_hint: bytes, _digest: Digest, _size: int) -> None:
    """The `access` of a node that never goes to the origin for others."""
    return None


class MeshServer:
    """Answers reports to the tracker and serves pieces of blobs, to nodes that were let in.

    `may_share` says which blobs may be sent to other nodes; `is_seed(node)` whether a node is a seed; `is_from(request,
    node)` whether a request surely is that node's own. `access(hint, digest, size)` is a seed's way to the origin for
    others: None unless the hint leads to that blob and the blob is public. Any node may send a hint, so a hint must
    neither open gated content nor pass one file off as another.
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
        is_from: Callable[[web.Request, str], bool],
        access: Callable[[bytes, Digest, int], Awaitable[OriginAccess | None]] = nowhere,
    ) -> None:
        self._house = house
        self._blobs = blobs
        self._tracker = tracker
        self._outflow = outflow
        self._may_share = may_share
        self._is_seed = is_seed
        self._is_from = is_from
        self._access = access
        self._uploads: Counter[str] = Counter()  # host → uploads under way
        self._check_at = 0.0
        self._finding: dict[tuple[Digest, bytes], tuple[asyncio.Task[OriginAccess | None], float]] = {}

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post("/mesh/swarms/{digest}", self._report)
        app.router.add_get("/mesh/blobs/{digest}", self._piece, allow_head=False)
        app.router.add_post("/mesh/blobs/{digest}/doubts", self._doubts)

    async def _report(self, request: web.Request) -> web.Response:
        digest = _digest(request)
        try:
            envelope = _ENVELOPE.decode(await read_message(request))
            node = envelope.report.node
            report = dataclasses.replace(
                envelope.report, seed=self._is_seed(node), forgeable=not self._is_from(request, node)
            )
            if not 0 < envelope.size <= _MAX_PIECES * MAX_PIECE:
                raise ValueError(f"a blob of {envelope.size} bytes")
            if report.node == self._house.node_id:
                raise ValueError("not of another node")
            if request.get(SENDER, report.node) != report.node:
                raise ValueError("speak for yourself")
            self._house.peers.heard(report.node)
            pieces = 8 * len(report.have or b"")
            if not self._tracker.announced.take(request.remote or "", time.monotonic(), pieces):
                return web.Response(body=_ENCODER.encode(Plan(resync=True, retry_after=_PAUSE, pause=_PAUSE)))
            # Only if this node will report to its own tracker: any other ledger would wait for the seed in vain.
            if await self._help(digest, envelope) and self._house.exchange.is_local(digest):
                self._tracker.expect_seed(digest, envelope.size)
            plan = await self._tracker.answer(digest, envelope.size, report)
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        return web.Response(body=_ENCODER.encode(plan))

    async def _help(self, digest: Digest, envelope: Envelope) -> bool:
        """If this node is a seed, fetch a blob that only other nodes want. Returns whether that begins now."""
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
        """Look up what a hint leads to. None if to nothing, or not soon: the reporting node waits for its answer."""
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
        await asyncio.wait([finding], timeout=max(0.0, until - now))  # reports that come after that do not wait
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
                digest_of: Callable[[int], bytes] = partial(self._blobs.manifests.digest_of, digest, blob.size)
                return await self._send(request, Held(blob.fd, stop, blob.stamp), start, stop, blob.size, digest_of)
            if swarm is not None and swarm.holds(start, stop):
                digest_of = swarm.fill.partial.piece_digests.__getitem__
                fd = duplicate(swarm.fill.partial.fd)  # the fill may close its own while this one is being sent
                try:
                    return await self._send(request, Held(fd, stop), start, stop, swarm.size, digest_of)
                finally:
                    os.close(fd)
        except TooManyFiles as error:  # nothing has been sent yet
            raise web.HTTPServiceUnavailable(text=f"{error}\n") from error
        finally:
            self._uploads[host] -= 1
            if not self._uploads[host]:
                del self._uploads[host]
            if blob is not None:
                blob.close()
        if digest in self._house.store.doubts:
            self._blobs.begin_proof(digest)
        if blob is None and digest in self._house.store:  # a 404 would send the node to the origin at once
            raise web.HTTPServiceUnavailable(text="being read anew or replaced\n")
        raise web.HTTPNotFound(text="not here\n")

    async def _doubts(self, request: web.Request) -> web.Response:
        """Check a piece that another node found wrong, but not more often than costs little: anyone may say so."""
        digest = _digest(request)
        try:
            piece = _COMPLAINT.decode(await read_message(request)).piece
        except msgspec.DecodeError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        if not self._may_share(digest):
            raise web.HTTPNotFound(text="not here\n")
        if time.monotonic() >= self._check_at:
            self._check_at = math.inf
            self._house.tasks.start(self._check(digest, piece), name=f"check {piece} of {digest}")
        return web.Response()

    async def _check(self, digest: Digest, piece: int) -> None:
        try:
            await self._blobs.check(digest, piece)
        finally:
            self._check_at = time.monotonic() + _CHECK_SECONDS

    async def _send(
        self, request: web.Request, held: Held, start: int, stop: int, size: int, digest_of: Callable[[int], bytes]
    ) -> web.StreamResponse:
        headers = stated.state(Pieces.of(size), start, stop, digest_of) | {
            "Content-Range": f"bytes {start}-{stop - 1}/{size}",
            "Content-Type": "application/octet-stream",
        }
        return await self._outflow.respond(request, 206, headers, held, start, stop)


async def read_message(request: web.Request, limit: int = MAX_MESSAGE) -> bytes:
    """Read a request's body of at most `limit` bytes. Raises HTTPRequestEntityTooLarge (413) for a longer one."""
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

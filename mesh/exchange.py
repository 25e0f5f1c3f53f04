"""The exchange with a blob's tracker: finds the node that leads the swarm, which may be this one, and reports to it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from mesh.content import Digest, Pieces, PieceSet
from mesh.errors import MeshError, PieceCorrupt, SourceBanned, SourceFailed, Unavailable, Unreachable
from mesh.messages import Plan, Report
from mesh.placement import ranked
from mesh.policy import CROWD
from mesh.tracker import Tracker
from mesh.transfer import Location
from mesh.wire import Decoder

log = logging.getLogger(__name__)

MAX_MESSAGE = 256 << 10  # bytes
_PATIENCE = 3  # reports in a row without an answer until a tracker is passed over
# Broken connections in a row until a tracker is passed over, in a crowd; elsewhere one is enough. A tracker that
# hundreds of nodes ask at once may lose one.
_BROKEN_OF_CROWD = 2
_LONGEST_DOWN = 60.0  # seconds: the most that _DOWN_SECONDS grows to
_DOWN_SECONDS = 5.0  # seconds a tracker that did not answer is passed over; doubled for each failure past _PATIENCE
_HERE_SECONDS = 1.0  # seconds the next possible tracker has to accept a connection: enough for a reachable machine
_RESIGN_SECONDS = 1.0  # seconds the end of a swarm waits for its tracker to hear of it
_CANDIDATES = 16  # possible trackers that are tried at once
_BANNED_SECONDS = 600.0  # seconds a peer that sent wrong bytes, or a tracker that sent an invalid plan, is not asked
_MAX_RANKS = 64  # blobs whose trackers by rank are cached: enough for those arriving now
_REMOTE_INTERVAL = 0.08  # seconds between two reports to another node
_LOCAL_INTERVAL = 0.01  # seconds between two reports to this node's own tracker


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another live node, as a possible source or tracker."""

    node: str
    base_url: str  # http(s)://host:port
    is_seed: bool
    is_named_seed: bool = False  # named by this node's operator, so that its metadata is believed


class Neighbours(Protocol):
    """The other live nodes, and how to speak to them."""

    @property
    def is_keyed(self) -> bool: ...

    @property
    def is_strained(self) -> bool:
        """Whether this node is itself too slow to judge others."""

    def alive(self) -> Sequence[Neighbour]:
        """Return the live nodes: the same object as long as nothing has changed."""

    def get(self, node: str) -> Neighbour | None:
        """Return a live node by its id."""

    def heard(self, node: str) -> None:
        """Record that a node showed that it is alive."""

    async def ask(self, node: str, target: str, body: bytes, limit: int = MAX_MESSAGE) -> bytes:
        """POST a message to a live node and return its answer, of at most `limit` bytes. Raises Unavailable."""

    async def answers(self, node: str, seconds: float) -> bool:
        """Return whether a node's process answers within this time. One that hangs or is overloaded does not."""

    async def is_reachable(self, node: str, seconds: float) -> bool:
        """Return whether a node's machine accepts a connection within this time, whatever its process is doing."""

    def parted(self, node: str) -> None:
        """End all waiting for answers of a node."""

    def sign(self, target: str, node: str) -> dict[str, str]:
        """Return headers for a GET that prove to `node` that this node holds the mesh's key; {} without a key."""


class Alone:
    """The neighbours of a node that is alone: none."""

    is_keyed = False
    is_strained = False

    def alive(self) -> Sequence[Neighbour]:
        return ()

    def get(self, node: str) -> Neighbour | None:
        return None

    def heard(self, node: str) -> None:
        return None

    async def answers(self, node: str, seconds: float) -> bool:
        return False

    async def is_reachable(self, node: str, seconds: float) -> bool:
        return False

    def parted(self, node: str) -> None:
        return None

    async def ask(self, node: str, target: str, body: bytes, limit: int = MAX_MESSAGE) -> bytes:
        raise Unavailable(f"{node} is not a live node")

    def sign(self, target: str, node: str) -> dict[str, str]:
        return {}


class Envelope(msgspec.Struct, frozen=True):
    """A report on the wire, with the size of its blob in bytes and a hint from which a seed can reach the origin."""

    size: int
    report: Report
    hint: bytes = b""


class Complaint(msgspec.Struct, frozen=True):
    """The receiver sent a piece whose bytes are wrong: it may want to check its own copy of that."""

    piece: int


_ENCODER = msgspec.msgpack.Encoder()
_PLAN: Decoder[Plan] = Decoder(Plan)


@contextlib.contextmanager
def _leading() -> Iterator[None]:
    """Turn a refusal (ValueError) by this node's own tracker into Unavailable: it is not a peer's invalid message."""
    try:
        yield
    except ValueError as error:
        raise Unavailable(f"this node cannot lead it: {error}") from error


class MeshExchange:
    """Finds the tracker of each blob among the live nodes and reports to it. Belongs to the event loop's thread.

    `may_share` says whether other nodes may know that this node deals with a blob: in an open mesh only if anyone can
    get it from the origin. A blob that may not be shared is tracked here as if there were no other nodes, by a separate
    tracker that other nodes cannot reach: through it they could learn that and how much of the blob is here, and take
    its leases.
    """

    def __init__(
        self,
        node_id: str,
        tracker: Tracker,
        *,
        neighbours: Neighbours | None = None,
        is_seed: bool = False,
        may_share: Callable[[Digest], bool] = lambda _: True,
    ) -> None:
        self._node_id = node_id
        self._tracker = tracker
        self._unshared = Tracker()
        self._neighbours: Neighbours = neighbours or Alone()
        self._is_seed = is_seed
        self._may_share = may_share
        self._failures: dict[str, int] = {}  # by tracker: reports in a row without an answer
        self._down_until: dict[str, float] = {}
        self._banned_until: dict[str, float] = {}
        self._last_tracker: dict[Digest, str] = {}
        self._known: Sequence[Neighbour] = ()
        self._ranks: dict[Digest, list[str]] = {}  # cache of `_order`, valid while the live nodes are `_known`
        self.on_news: Callable[[Digest], None] = lambda _: None

    # --- where

    def is_alone(self, digest: Digest) -> bool:
        return not self._may_share(digest) or not self._neighbours.alive()

    @property
    def is_crowd(self) -> bool:
        return len(self._neighbours.alive()) > CROWD

    @property
    def is_strained(self) -> bool:
        """Whether this node is itself too slow to judge others."""
        return self._neighbours.is_strained

    def is_local(self, digest: Digest) -> bool:
        return self.tracker_of(digest) == self._node_id

    def interval(self, digest: Digest) -> float:
        return _LOCAL_INTERVAL if self.is_local(digest) else _REMOTE_INTERVAL

    def tracker_of(self, digest: Digest) -> str:
        """Return the id of the node that leads this blob's swarm: the first seed by rank, else the first other node.

        Nodes do not lead for themselves when all seeds are down, or each would fetch a copy from the origin.
        """
        if not self._may_share(digest):
            return self._node_id
        now = time.monotonic()
        return next((node for node in self._order(digest) if self._down_until.get(node, 0.0) <= now), self._node_id)

    def _order(self, digest: Digest) -> list[str]:
        """Return the nodes that can lead the swarm of a blob, by rank: seeds first.

        Cached, because every report asks for it and ranking many nodes takes long.
        """
        known = self._neighbours.alive()
        if known is not self._known or len(self._ranks) >= _MAX_RANKS:
            self._known, self._ranks = known, {}
            self._forget_old()
        order = self._ranks.get(digest)
        if order is None:
            nodes = [(other.node, other.is_seed) for other in known] + [(self._node_id, self._is_seed)]
            parts = [[node for node, is_seed in nodes if is_seed is first] for first in (True, False)]
            order = self._ranks[digest] = [node for part in parts for node in ranked(str(digest), part)]
        return order

    def _forget_old(self) -> None:
        """Drop expired entries: nodes come and go under new ids, so the tables would grow without bound."""
        now, known = time.monotonic(), {other.node for other in self._known}
        for over in (self._down_until, self._banned_until):
            for node in [node for node, until in over.items() if until <= now]:
                del over[node]
        for node in [node for node in self._failures if node not in known and node not in self._down_until]:
            del self._failures[node]

    # --- the conversation

    def is_wanted(self, digest: Digest) -> bool:
        return self._own(digest).is_wanted(digest)

    def subscribe(self, digest: Digest, size: int, news: Callable[[], None]) -> Callable[[], None]:
        with _leading():
            return self._own(digest).subscribe(digest, size, news)

    async def report(self, digest: Digest, size: int, report: Report, hint: bytes) -> Plan:
        tracker = self.tracker_of(digest)
        if self._last_tracker.get(digest, tracker) != tracker and report.have is None:
            self._last_tracker[digest] = tracker
            return Plan(resync=True, retry_after=0.0)
        self._last_tracker[digest] = tracker
        if tracker == self._node_id:
            report = dataclasses.replace(report, seed=self._is_seed)
            with _leading():
                return self._own(digest).report(digest, size, report, is_alone=self.is_alone(digest), is_ours=True)
        try:
            body = _ENCODER.encode(Envelope(size, report, hint))
            plan = _PLAN.decode(await self._neighbours.ask(tracker, f"/mesh/swarms/{digest}", body))
            plan.check(Pieces.of(size).count)
        except Unavailable as error:
            failures = self._failures[tracker] = self._failures.get(tracker, 0) + 1
            broken = _BROKEN_OF_CROWD if self.is_crowd else 1
            if failures >= (broken if isinstance(error, Unreachable) else _PATIENCE):
                # A tracker that is live but never answers is tried less and less often: each attempt costs seconds.
                down = _DOWN_SECONDS * 2.0 ** max(0, min(10, failures - _PATIENCE))
                self._down_until[tracker] = time.monotonic() + min(_LONGEST_DOWN, down)
            if isinstance(error, Unreachable) and not self.is_crowd:
                await self._pass_over(digest)
            raise Unavailable(f"the tracker {tracker} did not answer: {error}") from error
        except ValueError as error:  # msgspec.DecodeError is one
            self._down_until[tracker] = time.monotonic() + _BANNED_SECONDS
            log.error("tracker %s talks nonsense (%s); it is not asked for %d s", tracker, error, _BANNED_SECONDS)
            raise Unavailable(f"the tracker {tracker} talks nonsense: {error}") from error
        self._failures.pop(tracker, None)
        return plan

    async def tick(self) -> None:
        """Let time pass for the blobs tracked here. Call this about once a second."""
        await self._tracker.tick()
        await self._unshared.tick()

    def _own(self, digest: Digest) -> Tracker:
        """Return the tracker to use for a blob that is tracked on this node."""
        return self._tracker if self._may_share(digest) else self._unshared

    async def resign(self, digest: Digest, size: int, fetched: int) -> None:
        """Report that this node holds no piece any more and gives its tasks up, or other nodes would wait for them.

        `fetched` is the number of bytes received from the origin, as in `Report`. Failures are ignored.
        """
        nothing = PieceSet(Pieces.of(size).count).to_bytes()
        report = Report(node=self._node_id, have=nothing, fetched=fetched)
        with contextlib.suppress(TimeoutError, MeshError):
            async with asyncio.timeout(_RESIGN_SECONDS):
                await self.report(digest, size, report, b"")

    async def _pass_over(self, digest: Digest) -> None:
        """After a tracker became unreachable, find the next one that is reachable, and mark those before it as down.

        A broken line often cuts off several nodes. Trying one after the other would take as long as a dead connection
        for each, and meanwhile every node that lost its tracker would lead for itself.
        """
        now = time.monotonic()
        following = [node for node in self._order(digest) if self._down_until.get(node, 0.0) <= now]
        if self._node_id in following:
            following = following[: following.index(self._node_id)]
        loop = asyncio.get_running_loop()
        candidates = following[:_CANDIDATES]
        answers = {node: loop.create_task(self._neighbours.is_reachable(node, _HERE_SECONDS)) for node in candidates}
        try:
            for node, answer in answers.items():
                if await answer:
                    return
                self._down_until[node] = time.monotonic() + _DOWN_SECONDS
        finally:
            for answer in answers.values():
                answer.cancel()

    def doubt(self, digest: Digest) -> None:
        """Pass over the tracker of this blob for a while, because it leaves readers without a byte."""
        tracker = self.tracker_of(digest)
        if tracker != self._node_id and not self.is_strained:
            log.warning("%s: readers starve with the tracker %s; another one has to lead", digest, tracker)
            self._down_until[tracker] = time.monotonic() + _LONGEST_DOWN
            self._neighbours.parted(tracker)

    def ended(self, digest: Digest, *, is_complete: bool) -> None:
        """Record that this node's part in the swarm of a blob has ended."""
        self._last_tracker.pop(digest, None)
        if is_complete:
            self.announce(digest)

    def announce(self, digest: Digest) -> None:
        """Have the blob's tracker told that this node newly holds the whole blob, or may newly share it."""
        self.on_news(digest)

    # --- peers as sources

    @property
    def is_keyed(self) -> bool:
        return self._neighbours.is_keyed

    def locate(self, node: str, digest: Digest) -> Location:
        neighbour = self._neighbours.get(node)
        if neighbour is None:
            raise SourceFailed(node, "is not a live node")
        if self._banned_until.get(node, 0.0) > time.monotonic():
            raise SourceBanned(node, "sent wrong bytes before")
        target = f"/mesh/blobs/{digest}"
        return Location(neighbour.base_url + target, self._neighbours.sign(target, node))

    def heard(self, node: str) -> None:
        self._neighbours.heard(node)

    def blame(self, node: str, error: SourceFailed) -> None:
        self._banned_until[node] = time.monotonic() + _BANNED_SECONDS
        log.error("peer %s %s; it is not asked again for %d s", node, error.reason, _BANNED_SECONDS)

    async def complain(self, error: PieceCorrupt) -> None:
        if self._may_share(error.digest):
            with contextlib.suppress(MeshError):
                body = _ENCODER.encode(Complaint(error.piece))
                await self._neighbours.ask(error.source, f"/mesh/blobs/{error.digest}/doubts", body)

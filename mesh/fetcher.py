"""Execution of the tracker's assignments for one blob: which transfers run now, and what happens when one fails.

What the next transfer is for is decided in `mesh.queue`. The first run from the origin goes alone until the origin
answers, so that an origin that cannot serve ranges is asked only once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from mesh.access import OriginAccess
from mesh.errors import (
    LocationRefused,
    MeshError,
    RangeIgnored,
    SourceDishonest,
    SourceFailed,
    StoreFull,
    StoreUnusable,
    Unavailable,
)
from mesh.intake import Begun, Run
from mesh.line import SMALL_BLOB
from mesh.messages import ORIGIN, Failure, Gain, Reason, Task
from mesh.queue import RUN_BYTES, Queue, must_leave
from mesh.streams import ORIGIN_STREAMS, PEER_STREAMS, URGENT_STREAMS
from mesh.threads import to_its_end
from mesh.watch import Watch
from mesh.ways import Ways

if TYPE_CHECKING:
    from mesh.fill import Fill
    from mesh.house import House
    from mesh.transfer import Location

log = logging.getLogger(__name__)

_MAX_FAILURES = 6  # in a row without a byte until the origin is given up: about six seconds
FIRST_SECONDS = 0.02  # seconds after its first byte in which the first run has the origin to itself


class Fetcher:
    """The transfers of one fill. Belongs to the event loop's thread.

    `changed` is called whenever there is something new to report. `gained` and `failed` collect the next report's
    entries; `origin_error` is set while the origin cannot be asked.
    """

    def __init__(self, house: House, fill: Fill, changed: Callable[[], None]) -> None:
        self.gained: list[Gain] = []
        self.failed: list[Failure] = []
        self.received: Counter[str] = Counter()  # bytes by source
        self.origin_error: SourceFailed | None = None
        self.runs: set[Run] = set()
        self.ways = Ways()
        # Monotonic times of the last landed piece, of the newest access to the origin, and of the last assignment.
        self.last_landed = self.access_at = self.assigned_at = time.monotonic()
        self._house = house
        self._fill = fill
        self._partial = fill.partial
        self._changed = changed
        self._queue = Queue(fill.partial.pieces.piece_size, ORIGIN_STREAMS)
        self._begun: dict[int, Begun] = {}  # pieces that a broken run from the origin left incomplete
        self._sources: dict[int, str] = {}  # of landed pieces
        self._transfers: set[asyncio.Task[None]] = set()
        self._has_answered = self._is_closing = self._is_sequential = False
        self._failures = 0
        self._resume_at = 0.0

    # --- for the exchange with the tracker

    def add_access(self, access: OriginAccess) -> None:
        """Add a way to the origin, and try the origin again if it had been given up."""
        self.ways.add(access)
        self.origin_error = None
        self.access_at = time.monotonic()

    def source_of(self, piece: int) -> str:
        """Return the source of a landed piece; empty for one that was here before."""
        return self._sources.get(piece, "")

    @property
    def can_fetch(self) -> bool:
        return bool(self.ways) and self.origin_error is None

    @property
    def pending(self) -> int:
        """The number of pieces that are assigned and have not landed."""
        return len(self._queue) + sum(len(run.pieces) for run in self.runs)

    def active(self) -> Iterable[tuple[int, str]]:
        """Yield (piece, source) for each piece that is assigned and has not landed."""
        for run in self.runs:
            for piece in run.pieces:
                yield piece, run.source
        yield from self._queue.waiting()

    def take(self, tasks: Iterable[Task]) -> None:
        """Take on tasks, and start as many transfers as there is room for."""
        if not any(run.is_sequential for run in self.runs):  # it brings all pieces
            missing = [t for t in tasks if t.piece not in self._partial.have and t.piece not in self._partial.unchecked]
            self._queue.take((task for task in missing if self.can_fetch or not task.lease), self._coming())
            if lost := [task.piece for task in missing if task.lease and not self.can_fetch]:
                self.failed += [Failure(piece, ORIGIN, "refused") for piece in lost]  # given up since the report
                self._changed()
        self.launch()

    def _coming(self) -> set[int]:
        return {piece for run in self.runs for piece in run.pieces}

    def hurry(self, urgent: Sequence[int], late: Iterable[int]) -> None:
        """Put the pieces that readers wait for (`urgent`) first, and take `late` ones out of the ends of long runs."""
        waited = {reader.position // self._partial.pieces.piece_size for reader in self._fill.readers}
        for piece in late if self.can_fetch else ():
            for run in self.runs:
                if run.is_origin and not run.is_sequential and must_leave(piece, run.pieces, waited):
                    self._queue.lease(run.shorten(piece))
        self._queue.put_first(urgent)
        self.launch(urgent=any(piece in self._queue.leased for piece in urgent))

    def launch(self, *, urgent: bool = False) -> None:
        """Start as many transfers as there is room for; for `urgent` leases, a few more."""
        if self._fill.is_over or self._is_closing:
            return
        may_fetch = self.can_fetch and time.monotonic() >= self._resume_at
        if self._is_sequential and self._queue.leased and may_fetch and self.runs:
            for run in self.runs:  # a sequential run writes the whole file: start it when all others have ended
                if not run.is_origin:
                    run.cancel()
            return
        from_origin = sum(run.is_origin for run in self.runs)
        streams = ORIGIN_STREAMS + (URGENT_STREAMS if urgent else 0)
        most = streams if self._has_answered and not self._is_sequential else 1
        has_turn = not (self._fill.readers or self._is_sequential or self._partial.size <= SMALL_BLOB)
        coming = self._coming()
        while may_fetch and from_origin < most and (first := self._queue.next_lease(coming)) is not None:
            if has_turn and not self._house.line.take(self.launch):
                break
            self._start_origin_run(first, coming, has_turn=has_turn)
            from_origin += 1
        if any(run.is_sequential for run in self.runs):
            return
        from_peers = len(self.runs) - from_origin
        while from_peers < PEER_STREAMS and self._start_peer_run():
            from_peers += 1

    async def close(self) -> None:
        """Cancel all transfers and wait until their threads no longer use the file."""
        self._is_closing = True
        self._house.line.leave(self.launch)
        self._queue.clear()
        for run in self.runs:
            run.cancel()
        await to_its_end(asyncio.gather(*self._transfers, return_exceptions=True))

    # --- the origin

    def _start_origin_run(self, first: int, coming: set[int], *, has_turn: bool) -> None:
        line = self._house.line
        most_bytes = line.run_bytes if has_turn else RUN_BYTES
        if not self._is_sequential and self._fill.begin(first):
            most_bytes = 0  # begins inside the piece: a run of one piece
        pieces = self._queue.origin_run(first, coming | self._begun.keys(), most_bytes)
        run = self._run(ORIGIN, pieces, {}, self._begun.pop(first, None))
        run.is_sequential, run.has_turn = self._is_sequential, has_turn
        task = self._start(run, self._from_origin)
        if has_turn:
            task.add_done_callback(lambda _: line.give_back())

    async def _from_origin(self, run: Run) -> None:
        location = None
        try:
            async with self._house.origin_slots.one(self._partial.digest):
                location = await self.ways.locate()
                await self._in_thread(run, location)
            self._failures = 0
        except LocationRefused as error:
            await self.refused(location, error)
        except RangeIgnored:
            if run.is_sequential:
                raise  # cannot happen: the whole blob was requested
            log.info("%s: the origin knows no ranges; fetching it in order", self._partial.digest)
            self._is_sequential = True
        except SourceFailed as error:
            self._origin_failed(error, has_moved=run.is_answered)

    async def refused(self, location: Location | None, error: LocationRefused) -> None:
        """Handle the refusal of a location, or (None) that no way to the origin gives one any more."""
        try:
            if location is None:
                raise error
            if await self.ways.renew(location):
                self._origin_failed(error, has_moved=False)
        except LocationRefused as final:
            if not self.ways:
                self._give_up_origin(final)
        except SourceFailed as failure:
            self._origin_failed(failure, has_moved=False)

    def _origin_failed(self, error: SourceFailed, *, has_moved: bool) -> None:
        self._failures = 1 if has_moved else self._failures + 1
        pause = min(2.0, 0.05 * 4.0 ** (self._failures - 1))
        if error.retry_after is not None:
            pause = max(pause, error.retry_after)
        level = logging.INFO if self._failures == 1 else logging.WARNING
        log.log(level, "%s: %s; again in %.1f s", self._partial.digest, error, pause)
        if self._failures >= _MAX_FAILURES or pause > 8:
            self._give_up_origin(error)
            return
        self._resume_at = time.monotonic() + pause
        asyncio.get_running_loop().call_later(pause + 0.001, self.launch)

    def _give_up_origin(self, error: SourceFailed) -> None:
        self.origin_error = error
        self._failures = 0
        self.failed += [Failure(piece, ORIGIN, "refused") for piece in self._queue.leased]
        self._queue.leased.clear()
        self._changed()

    # --- peers

    def _start_peer_run(self) -> bool:
        """Start the next transfer from a peer; False when there is none."""
        house, busy = self._house, Counter(run.source for run in self.runs)
        tasks = self._queue.peer_run(busy, self._begun, is_crowd=house.exchange.is_crowd)
        if not tasks:
            return False
        first = tasks[0].piece
        digests = {t.piece: t.digest for t in tasks if t.digest} if house.peers.is_keyed else {}
        before = self._begun.get(first)
        begun = Begun(before.position, before.hasher.copy()) if before and before.hasher else None
        run = self._run(tasks[0].sources[0], range(first, first + len(tasks)), digests, begun)
        self._start(run, lambda run: self._from_peer(run, tasks))
        return True

    async def _from_peer(self, run: Run, tasks: list[Task]) -> None:
        pieces, first = self._partial.pieces, tasks[0]
        watch = Watch(run, first.seconds, pieces.piece_size, is_only_source=len(first.sources) == 1)
        reason: Reason = "refused"
        try:
            location = self._house.peers.locate(run.source, self._partial.digest)
            await self._in_thread(run, location)
        except SourceFailed as error:
            reason = error.failure
            if isinstance(error, SourceDishonest):
                self._house.blame(error)
            log.debug("%s: %s", self._partial.digest, error)
        except StoreFull:  # not the source's fault, and there may be room in a moment
            self._queue.take(tasks[run.piece - run.first :])
            raise
        finally:
            watch.close()
        for task in tasks[run.piece - run.first :]:
            self.failed.append(Failure(task.piece, run.source, reason))
            self._queue.try_next(task)

    # --- both

    def _run(self, source: str, pieces: range, digests: dict[int, bytes], begun: Begun | None) -> Run:
        is_origin, stats = source == ORIGIN, self._house.stats
        counter = "origin_received" if is_origin else "peer_received"

        def received(count: int) -> None:
            stats.add(counter, count)
            self.received[source] += count

        run = Run(
            self._fill,
            source,
            pieces.start,
            pieces.stop,
            begun=begun,
            digests=digests,
            limiter=self._house.origin_limiter if is_origin else self._house.peer_limiter,
            received=received,
            answered=self._answered,
            landed=self._landed,
        )
        self.runs.add(run)
        return run

    def _start(self, run: Run, transfer: Callable[[Run], Awaitable[None]]) -> asyncio.Task[None]:
        name = f"{run.source} {run.first}-{run.stop}"
        task = self._house.tasks.start(self._fetch(run, transfer), name=name)
        self._transfers.add(task)
        task.add_done_callback(self._transfers.discard)
        return task

    async def _fetch(self, run: Run, transfer: Callable[[Run], Awaitable[None]]) -> None:
        """Run a transfer: reserve room for its bytes, deal with its errors, and start the next ones."""
        store, pieces = self._house.store, self._partial.pieces
        reserved = sum(stop - start for start, stop in map(pieces.span, run.pieces))
        try:
            await store.reserve(self._partial, reserved)
        except (MeshError, OSError) as error:
            self.runs.discard(run)
            self._fill.finish(error if isinstance(error, MeshError) else StoreUnusable(f"no room can be made: {error}"))
            self._changed()
            return
        evicted = store.evicted_bytes
        try:
            await transfer(run)
        except asyncio.CancelledError:
            self._is_closing = True  # all tasks are being ended: more of them would be endless
            raise
        except StoreFull as error:
            # The disk is fuller than the budget says. Several runs notice at once; one eviction is enough for all.
            if store.evicted_bytes == evicted and not await store.evict(reserved):
                self._fill.finish(error)
        except MeshError as error:
            self._fill.finish(error)
        except Exception:  # a new attempt would fail in the same way at once
            self._fill.finish(Unavailable(f"{self._partial.digest}: fetching it failed; the log says why"))
            raise
        finally:
            self.runs.discard(run)
            store.release(self._partial, reserved - run.landed_bytes)
            if run.is_origin and not self._is_closing:
                self._put_back(run)
            self._changed()
            self.launch()

    def _put_back(self, run: Run) -> None:
        """Queue the missing pieces of an origin run first, to be continued from the byte that the run had reached."""
        if run.begun is not None:
            self._begun[run.piece] = run.begun
        pieces = range(self._partial.pieces.count) if run.is_sequential else run.pieces
        rest = [piece for piece in pieces if piece not in self._partial.have]
        if self.origin_error is not None:
            self.failed += [Failure(piece, ORIGIN, "refused") for piece in rest]
        else:
            self._queue.lease(rest)
            self._queue.put_first(rest)

    async def _in_thread(self, run: Run, location: Location) -> None:
        house = self._house
        connections = house.origin_connections if run.is_origin else house.peer_connections
        work = asyncio.get_running_loop().run_in_executor(house.pool, run.execute, connections, location)
        await to_its_end(work, run.cancel)

    def _answered(self) -> None:
        if not self._has_answered:
            self._has_answered = True
            # Not at once: the threads of more runs would delay the loop, which has to serve the waiting reader first.
            asyncio.get_running_loop().call_later(FIRST_SECONDS, self.launch)

    def _landed(self, run: Run, piece: int, digest: bytes) -> None:
        start, stop = self._partial.pieces.span(piece)
        run.landed_bytes += stop - start
        self.last_landed = time.monotonic()
        seconds, run.landed_at = self.last_landed - run.landed_at, self.last_landed
        if run.has_turn:
            self._house.line.landed(stop - start, seconds, self._house.stats.origin_received, run.landed_at)
        self._begun.pop(piece, None)
        self._queue.landed(piece, run.source, seconds)  # a sequential run also brings pieces that wait there
        if piece not in self._partial.have:
            self._partial.add(piece, digest, run.is_trusted(piece))
            self._sources[piece] = run.source
            if run.is_trusted(piece):
                self._house.resolve_doubt(self._partial.digest, piece, digest)
            if not run.is_origin:
                self._house.served(run.source, self._partial.digest)
            self._fill.added(piece)
            self.gained.append(Gain(piece, run.source, digest))
            self._changed()

"""The tracker's state of one blob's swarm, and its decisions: which node fetches which piece from where. Pure.

No I/O and no clock: `now` is seconds on any monotonic clock. The same code runs real swarms and simulated ones. Sets
of pieces and sets of nodes are integers, so a decision costs a few operations on whole sets.

The rules:

1. A piece that no node holds is fetched from the origin by one node at a time, under a lease. Leases go to seeds while
   any seed can fetch, otherwise round the nodes that report. Only as many are out at once as keep the origin busy.
2. A piece that some node holds comes from the source that will finish first, idle sources before all others. A source
   has few uploads at a time, and a node a share of them. A node that gets none waits: more holders follow soon.
3. Pieces that readers wait for come first, then leases, then the rarest pieces, copies under way counted. Among these,
   pieces held by idle sources come first. In a crowd limited by its machines, a piece with few copies precedes all
   others, or readers would wait for it together; a piece with plenty of holders may come from any, however busy.
4. Everything expires: leases when the origin's bytes stop, tasks and nodes when nothing is heard of them.
5. No node is believed without limit: one that accuses many others is ignored, and one reported to lack pieces has to
   announce itself again. A node that every holder of a piece keeps failing, or says it lacks, may lease that piece.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from mesh import policy
from mesh.bits import bits_of, first_from, members, members_from
from mesh.books import Books, Node, with_slot
from mesh.content import Pieces, PieceSet
from mesh.holdings import Group
from mesh.messages import MAX_SOURCES, MAX_TASKS, ORIGIN, Failure, Gain, Plan, Report, Task
from mesh.speeds import Speeds


class Ledger:
    """The swarm of one blob of `size` bytes.

    `is_alone`: the mesh has no other node, so leases are not shared out.
    `expects_seed`: a seed is about to report, so leases wait for it.
    """

    def __init__(self, size: int, *, seed: int = 0) -> None:
        self.pieces = Pieces.of(size)
        self.is_alone = False
        self.expects_seed = False
        self._books = Books(self.pieces.count, self.pieces.piece_size)
        self._window = policy.Window(self.pieces.piece_size)
        self._speeds = Speeds(self.pieces.piece_size)
        self._settling = policy.Settling()
        self._random = random.Random(seed)

    # --- queries

    def __contains__(self, node: str) -> bool:
        return node in self._books.nodes

    def __len__(self) -> int:
        return len(self._books.nodes)

    @property
    def slots(self) -> int:
        """One more than the highest slot in use; each set of nodes has this many bits."""
        return self._books.slots

    @property
    def digests(self) -> dict[int, bytes]:
        """Piece → BLAKE3 digest, as reported by the node that fetched it from the origin or already held it."""
        return self._books.digests

    @property
    def held(self) -> int:
        """The set of pieces held by at least one node that others may be sent to."""
        return self._books.holdings.held

    @property
    def leases(self) -> dict[int, str]:
        """Piece → node that is to fetch it from the origin."""
        return dict(self._books.leases)

    def have(self, node: str) -> PieceSet:
        return PieceSet(self.pieces.count, self._books.nodes[node].have)

    @property
    def is_wanted(self) -> bool:
        """Whether any node still misses a piece."""
        return bool(self._books.wanting)

    def waiting(self, gained: int) -> Iterator[str]:
        """Yield the nodes with free slots whose last plan was empty, if there may be a piece for them now.

        Such a piece is in the set `gained`, or became available since the last full iteration. Starts at a random
        node; the caller takes as many nodes as it can serve.
        """
        books = self._books
        pieces = books.freed = gained | books.freed
        for slot in members_from(books.hungry, int(self._random.random() * books.slots)):
            node = books.at(slot)
            useful = node.missing | (~self.held if node.seed and node.can_fetch else 0)
            if useful & pieces:
                yield books.name(slot)
        books.freed = 0

    # --- events

    def report(self, report: Report, now: float) -> Plan:
        """Apply a report and decide what its sender does next.

        Raises ValueError when the report is out of bounds, or the swarm is full.
        """
        report.check(self.pieces.count)
        if report.node not in self and report.have is None:
            return Plan(resync=True, retry_after=0.0)
        if report.moved and report.node not in self:  # a node known here was only asked to announce itself again
            self._settling.moved(now)
        node = self._books.enter(report.node, now)
        if report.have is not None:
            self._announced(node, report, PieceSet.from_bytes(self.pieces.count, report.have).bits, now)
        self._progressed(node, report.fetched, now)
        node.heard_at = now
        for failure in report.failed:
            self._failed(report.node, node, failure, now)
        for gain in report.gained:
            self._gained(node, gain, now)
        node.wanted, node.urgent = bits_of(report.wanted), bits_of(report.urgent)
        node.can_fetch, node.seed = report.can_fetch, report.seed
        # A report's `slots` are free ones; the ledger counts those with tasks as well.
        node.slots = min(MAX_TASKS, report.slots + len(node.tasks))
        self._books.note(node)
        if node.seed:
            self.expects_seed = False
        return self.plan(report.node, now)

    def plan(self, name: str, now: float) -> Plan:
        """Decide what a node does next, based on its last report."""
        node = self._books.nodes.get(name)
        if node is None or node.announce_by is not None:
            return Plan(resync=True, retry_after=0.0)
        tasks: list[Task] = []
        free = node.slots - len(node.tasks)
        if free > 0:
            share = self._share(node) - len(node.tasks)
            tasks += self._spread(node, now)
            tasks += self._from_peers(node, node.urgent, min(free, share) - len(tasks), now)
            tasks += self._from_origin(name, node, free - len(tasks), now)
            tasks += self._from_peers(node, node.wanted, min(free, share) - len(tasks), now)
        self._books.hungry = with_slot(self._books.hungry, node.slot, free > 0 and not tasks)
        must_wait = not node.tasks and (node.seed or bool(node.missing))
        return Plan(tuple(tasks), retry_after=1.0 if must_wait else policy.RETRY_SECONDS)

    def hold(self, name: str, now: float, *, is_news: bool = False) -> None:
        """Record that a node is alive and holds the whole blob. `is_news`: it has just said so. Raises ValueError."""
        node = self._books.enter(name, now)
        node.heard_at = now
        if is_news:
            self._books.announced(name, node, now)
        elif node.have == self._books.all:
            return  # the tracker repeats this for each holder on every tick
        self._books.end_all(node)
        self._books.add(node, self._books.all)
        self._books.note(node)

    def drop(self, name: str) -> None:
        """Record that a node no longer holds the whole blob. Ignored if it has reported since that it holds a part."""
        if (node := self._books.nodes.get(name)) is not None and node.have == self._books.all:
            self.forget(name)  # a seed would count as one that fetches

    def expire(self, now: float) -> list[str]:
        """Drop nodes that fell silent, and leases and tasks that ran out.

        Returns the nodes that several others reported to lack pieces and that did not announce themselves again.
        """
        unproven: list[str] = []
        for name, node in list(self._books.nodes.items()):
            is_unproven = node.announce_by is not None and now > node.announce_by
            if is_unproven or now - node.heard_at > policy.NODE_SECONDS:
                unproven += [name] if is_unproven and len(node.missed_by) >= policy.ACCUSERS else []
                self.forget(name)
                continue
            for piece in [piece for piece, task in node.tasks.items() if now > task.until]:
                self._books.end(node, piece)
        return unproven

    def forget(self, name: str) -> None:
        """Remove a node with its holdings and tasks."""
        if (node := self._books.nodes.get(name)) is not None:
            self._window.flowed(0.0, node.rate, node.heard_at)
            self._books.leave(name)

    # --- internals: applying a report

    def _announced(self, node: Node, report: Report, have: int, now: float) -> None:
        """Replace what is known of a node, on first contact or after a resync."""
        self._books.replace(node, have, is_forgeable=report.forgeable)
        self._books.announced(report.node, node, now)
        node.fetched = report.fetched
        for piece, source in report.active:
            if piece in node.tasks or have >> piece & 1:
                continue
            if source != ORIGIN:
                self._books.assign(node, piece, source, now, policy.SLOWEST)
            elif piece not in self._books.leases:
                self._books.lease(report.node, node, piece, now)

    def _progressed(self, node: Node, fetched: int, now: float) -> None:
        """Update the origin's rate; while its bytes come, extend leases, but not for long without a whole piece."""
        rate = max(0, fetched - node.fetched) / max(0.01, now - node.heard_at)
        self._window.flowed(rate, node.rate, now)
        node.rate = rate
        if fetched > node.fetched:
            for task in node.tasks.values():
                if task.source == ORIGIN:
                    latest = max(task.since, node.delivered_at) + policy.LONGEST_LEASE
                    task.until = min(now + policy.LEASE_SECONDS, latest)
        node.fetched = fetched

    def _gained(self, node: Node, gain: Gain, now: float) -> None:
        task = self._books.end(node, gain.piece)
        self._books.add(node, 1 << gain.piece)
        if gain.digest:
            self._books.name_digest(gain.piece, gain.digest, gain.source)
        node.avoid.pop(gain.source, None)
        if gain.source == ORIGIN:
            node.delivered_at = now
        if task is None or task.source != gain.source:
            return
        seconds = max(1e-4, now - task.since)
        if gain.source == ORIGIN:
            self._window.fulfilled(seconds)
        elif (server := self._books.nodes.get(gain.source)) is not None:
            self._speeds.arrived(node, server, task, seconds)
            self._books.show(server)

    def _failed(self, name: str, node: Node, failure: Failure, now: float) -> None:
        task = node.tasks.get(failure.piece)
        if task is not None and task.source == failure.source:
            self._books.end(node, failure.piece)
        server = self._books.nodes.get(failure.source)
        if server is None or server is node:
            return
        if failure.reason == "missing" and not server.have >> failure.piece & 1:
            return  # the source has since reported this itself
        failures = node.failures(failure.source, now, is_late=failure.reason in ("timeout", "busy"))
        if failure.reason in ("corrupt", "missing"):  # `missing` is the word of the source itself
            failures = max(failures, policy.HOPELESS_OF_CROWD)
        seconds = policy.CORRUPT_BACK_OFF if failure.reason == "corrupt" else policy.back_off(failures)
        if failure.reason == "corrupt":
            self._books.accuse(name, node, failure.source, server)
            self._books.dispute(failure.piece, failure.source)
        elif failure.reason == "missing":
            server.missed(name, now)
        elif failure.reason == "timeout" and task is not None:
            self._speeds.timed_out(node, server, task, now - task.since)
        self._books.avoid(node, failure.source, now + seconds, failures)

    # --- internals: deciding

    def _spread(self, node: Node, now: float) -> list[Task]:
        """In a late crowd, assign one piece with few copies before all others, however busy its holders are.

        Otherwise all readers would reach it before it has spread, and wait for it together.
        """
        if not self._is_late_crowd:
            return []
        rare = node.wanted & ~self._books.holdings.common(policy.RARE)
        return self._from_peers(node, rare, 1, now, is_rare=True)

    def _from_peers(self, node: Node, wanted: int, free: int, now: float, *, is_rare: bool = False) -> list[Task]:
        books, holdings = self._books, self._books.holdings
        missing = wanted & node.missing & holdings.held
        if not missing or free <= 0:
            return []
        useful = ~(1 << node.slot)
        for slot, _ in books.avoided(node, now):
            useful &= ~(1 << slot)
        if not is_rare:
            missing = self._on_offer(node, missing)
        tasks: list[Task] = []
        blocked, is_late_crowd = 0, self._is_late_crowd
        for piece in self._order(node, missing):
            holders = holdings.holders(piece) & useful
            is_due = is_rare or (is_late_crowd and node.urgent >> piece & 1 and holders.bit_count() >= policy.PLENTY)
            takers = books.holding if is_due else self._takers(node).slots
            if len(tasks) >= free or blocked > policy.BLOCKED_PIECES or not takers & useful:
                break
            sources = self._sources(holders & takers)
            if not sources:
                blocked += 1
                continue
            seconds = self._speeds.patience(node, sources, is_late_crowd=is_late_crowd)
            names = tuple(books.name(server.slot) for server in sources)
            books.assign(node, piece, names[0], now, seconds * max(len(sources), policy.EXTENSIONS) + 5.0)
            tasks.append(Task(piece, names, self.digests.get(piece, b""), seconds))
        return tasks

    def _share(self, node: Node) -> int:
        """Number of tasks this node may have, so that all nodes that miss pieces progress and finish together.

        A node that misses more than others gets more.
        """
        books = self._books
        wanting = max(1, books.wanting.bit_count())
        share = policy.share(books.room / wanting, self._speeds.is_late)
        if not self._speeds.is_slow(node):
            behind = node.lacks * wanting / max(1, books.lacks)
            share *= min(policy.BEHIND, max(1 / policy.BEHIND, behind))
        return max(policy.few(self._speeds.is_late), round(policy.FAIR + share))

    def _takers(self, node: Node) -> Group:
        """The sources that can take on an upload to this node."""
        return self._books.spare if len(node.tasks) < policy.few(self._speeds.is_late) else self._books.open

    def _on_offer(self, node: Node, wanted: int) -> int:
        """The pieces in `wanted` that sources can supply now."""
        some = wanted & self._takers(node).pieces
        return some | wanted & node.urgent if self._is_late_crowd else some

    def _order(self, node: Node, pieces: int) -> Iterator[int]:
        """Yield first the pieces held by idle sources, or their lines would stay idle, then the others.

        Within each group the rarest come first, equally rare ones from a random start, so that nodes take different
        ones. Pieces with many copies cannot become rare: a node with a reader takes these in the reader's order. If no
        other node misses anything, all pieces count as such.
        """
        if not pieces:
            return
        common = 0
        if node.urgent:
            is_last = self._books.wanting.bit_count() == 1
            common = pieces if is_last else self._books.holdings.common(policy.common(len(self), self._speeds.is_late))
        start = int(self._random.random() * self.pieces.count)
        idle = self._books.idle.pieces if pieces & ~node.urgent else 0
        for some in (pieces & idle, pieces & ~idle):
            for part in self._books.holdings.rarest_first(some & ~common):
                yield from members_from(part, start)
            yield from members(some & common)

    def _sources(self, slots: int) -> list[Node]:
        """Pick up to MAX_SOURCES nodes, best first. The best of a random few is nearly as good as the best of all."""
        found: list[Node] = []
        for some in (slots & self._books.idle.slots, slots & ~self._books.idle.slots):
            while some and len(found) < policy.TRIED:
                slot = first_from(some, int(self._random.random() * some.bit_length()))
                some ^= 1 << slot
                found.append(self._books.at(slot))
        return sorted(found, key=self._speeds.expected)[:MAX_SOURCES]

    def _from_origin(self, name: str, node: Node, free: int, now: float) -> list[Task]:
        if free <= 0 or not node.can_fetch or self._settling.is_on(now):
            return []
        if self.held == self._books.all and not node.avoid and not node.denied:
            return []
        wanted, urgent = node.wanted, node.urgent
        lacking = ~node.held & ~node.under_way & ~self._books.leased & ~self._usable(node, now)
        if node.seed:
            for slot in members(self._books.wanting):
                other = self._books.at(slot)
                wanted |= other.wanted & ~other.have
                urgent |= other.urgent & ~other.have
        elif self._books.fetching_seeds or self.expects_seed:
            lacking &= self.held  # seeds fetch the others, but no held piece again
        free = min(free, self._allowance(node))
        tasks: list[Task] = []
        at_least = 1 if len(self._books.leases) < self._window.limit + policy.FEWEST_LEASES else 0
        for part, count in ((urgent & lacking, max(at_least, free)), (wanted & ~urgent & lacking, free)):
            for piece in members(part):
                if len(tasks) >= count:
                    break
                self._books.lease(name, node, piece, now)
                tasks.append(Task.lease_of(piece))
        return tasks

    def _usable(self, node: Node, now: float) -> int:
        """Pieces held by a node that has not failed this one too often in a row."""
        hopeless = 1 << node.slot if node.denied else 0  # or it would wait for itself
        most = policy.HOPELESS_OF_CROWD if len(self) > policy.CROWD else policy.HOPELESS
        for slot, failures in self._books.avoided(node, now):
            if failures >= most:
                hopeless |= 1 << slot
        if not hopeless:
            return self.held
        return self.held & ~(node.missing & ~self._books.holdings.held_beyond(hopeless))

    def _allowance(self, node: Node) -> int:
        """How many more leases a node may take now."""
        if self.is_alone:
            return MAX_TASKS
        limit = self._window.limit
        if self._speeds.is_slow(node):
            limit //= 2  # other nodes will report, and fetch the piece sooner
        fetchers = (self._books.fetching_seeds or self._books.wanting).bit_count()
        if self._window.is_new and not node.seed:
            fetchers = max(fetchers, policy.FIRST_SHARE)
        share = max(1, limit // max(1, fetchers))
        return min(limit - len(self._books.leases), share - node.leases)

    @property
    def _is_late_crowd(self) -> bool:
        """Whether machines rather than lines are the limit, and so many that most of them wait for others."""
        return self._speeds.is_late and len(self) > policy.CROWD

"""The state behind a ledger: the nodes of one swarm, the pieces they hold, their tasks, and whom they trust. Pure.

Each node has a *slot*, a small number, so that sets of nodes are integers as sets of pieces are: bit n is slot n or
piece n. Times are seconds of the ledger's clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mesh import policy
from mesh.holdings import Group, Holdings
from mesh.messages import HELD, ORIGIN


@dataclass(slots=True)
class Assignment:
    """A task given to a node, kept until it is done, has failed, or has run out of time."""

    source: str
    since: float
    until: float
    among: int = 0  # uploads outstanding at the source when it was assigned, this one included


@dataclass(slots=True)
class Avoided:
    """A source that failed a node, and until when the node is not sent to it."""

    until: float
    failures: int  # in a row


@dataclass(slots=True)
class Node:
    """The state of one node. `have`, `wanted`, `urgent` and `under_way` are sets of pieces."""

    slot: int
    heard_at: float
    have: int = 0
    denied: int = 0  # pieces in `have` that it lacks according to a report that may be another's
    wanted: int = 0
    urgent: int = 0
    slots: int = 0  # tasks that it can run at a time
    can_fetch: bool = False  # it may be sent to the origin
    seed: bool = False
    fetched: int = 0  # bytes it has received from the origin so far
    rate: float = 0.0  # bytes per second from the origin between its last two reports
    delivered_at: float = 0.0  # when it last brought a whole piece from the origin
    announced_at: float = 0.0
    announce_by: float | None = None  # deadline to announce again, as a peer reported that it lacks an announced piece
    tasks: dict[int, Assignment] = field(default_factory=dict)
    under_way: int = 0  # the pieces of `tasks`
    leases: int = 0  # how many of `tasks` are leases
    uploads: policy.Uploads = field(default_factory=policy.Uploads)  # its state as a source
    shown: tuple[bool, bool, bool] = (False, False, False)  # whether it is in `open`, `spare` and `idle`
    room: int = 0  # its part of `Books.room`
    lacks: int = 0  # number of pieces that it wants and does not hold
    pace: policy.Mean = field(default_factory=policy.Mean)  # seconds from assignment to arrival of a piece from a peer
    avoid: dict[str, Avoided] = field(default_factory=dict)  # by source
    missed_by: set[str] = field(default_factory=set)  # nodes that reported that it lacks a piece it announced
    accusers: set[str] = field(default_factory=set)  # nodes that had wrong bytes from it
    accused: set[str] = field(default_factory=set)  # sources that it had wrong bytes from

    @property
    def missing(self) -> int:
        """Pieces that it wants, does not hold, and has no task for."""
        return (self.wanted | self.urgent) & ~self.held & ~self.under_way

    @property
    def held(self) -> int:
        """Pieces that it holds by its own account."""
        return self.have & ~self.denied

    def missed(self, by: str, now: float) -> None:
        """Record that node `by` reported that this one lacks a piece that it announced."""
        self.missed_by.add(by)
        if self.announce_by is None and now - self.announced_at > policy.BELIEVED_SECONDS:
            self.announce_by = now + policy.ANNOUNCE_SECONDS

    def failures(self, source: str, now: float, *, is_late: bool) -> int:
        """Return how often in a row a source has failed this node, the failure at `now` included.

        When one delay makes several pieces late (`is_late`), it counts once.
        """
        before = self.avoid.get(source)
        if before is None:
            return 1
        return before.failures if is_late and now < before.until else before.failures + 1

    @property
    def is_trusted(self) -> bool:
        return len(self.accusers) < policy.ACCUSERS


class Books:
    """Keeps the sets and counts of a swarm consistent with each other. Makes no decisions."""

    def __init__(self, count: int, piece_size: int) -> None:
        self._room = policy.first_room(piece_size)
        self.all = (1 << count) - 1
        self.nodes: dict[str, Node] = {}
        self.open = Group()  # nodes that can take another upload
        self.spare = Group()  # nodes that can take another upload for a node with hardly any tasks
        self.idle = Group()  # nodes without any upload that are not slow
        self._groups = (self.open, self.spare, self.idle)  # in the order of `Node.shown`
        self.holdings = Holdings(count, self._groups)
        self.digests: dict[int, bytes] = {}
        self.leases: dict[int, str] = {}  # piece → node
        self.leased = 0  # the pieces in `leases`, as a set
        self.holding = 0  # slots of nodes that hold any piece
        self.hungry = 0  # slots of nodes that had room for tasks in their last plan and got none
        self.fetching_seeds = 0  # slots of seeds that can fetch from the origin
        self.wanting = 0  # slots of nodes that lack a piece they want
        self.lacks = 0  # sum of `Node.lacks` over all nodes
        self.room = 0  # uploads that all holders together can have outstanding
        self.freed = 0  # pieces that have become available to more nodes since `freed` was last cleared
        self._names: list[str] = []  # by slot; empty for a free slot
        self._vouched: set[int] = set()  # pieces whose digest comes from a node that fetched them from the origin
        self._disputed: dict[int, set[str]] = {}  # piece → sources whose bytes contradict its digest

    # --- nodes

    @property
    def slots(self) -> int:
        """One more than the highest slot."""
        return len(self._names)

    def name(self, slot: int) -> str:
        return self._names[slot]

    def at(self, slot: int) -> Node:
        return self.nodes[self._names[slot]]

    def enter(self, name: str, now: float) -> Node:
        """Return the node of this name, added if it is new. Raises ValueError when the swarm is full."""
        node = self.nodes.get(name)
        if node is not None:
            return node
        if len(self.nodes) >= policy.MAX_NODES:
            raise ValueError(f"{name}: this swarm has {policy.MAX_NODES} nodes already")
        slot = self._names.index("") if len(self.nodes) < len(self._names) else len(self._names)
        self._names[slot : slot + 1] = [name]
        node = self.nodes[name] = Node(slot, now, uploads=policy.Uploads(room=self._room))
        self.show(node)
        return node

    def leave(self, name: str) -> None:
        """Remove a node, with its pieces, its tasks, and its accusations against others."""
        node = self.nodes.pop(name, None)
        if node is None:
            return
        self.end_all(node)
        self.holdings.remove(node.slot, node.have)
        self.room -= node.room
        self.lacks -= node.lacks
        self._withdraw(name, node)
        self._names[node.slot] = ""
        while self._names and not self._names[-1]:  # the set of holders of each piece is as long as the highest slot
            self._names.pop()
        others = ~(1 << node.slot)
        for group in self._groups:
            group.leave(node.slot, 0)  # no pieces: `holdings.remove` has taken them out of the groups
        self.holding &= others
        self.hungry &= others
        self.fetching_seeds &= others
        self.wanting &= others

    def note(self, node: Node) -> None:
        """Update the sets and counts after a node's pieces, interests or abilities changed."""
        self.fetching_seeds = with_slot(self.fetching_seeds, node.slot, node.seed and node.can_fetch)
        lacks = ((node.wanted | node.urgent) & ~node.held).bit_count()
        self.lacks += lacks - node.lacks
        node.lacks = lacks
        self.wanting = with_slot(self.wanting, node.slot, lacks > 0)

    # --- pieces

    def replace(self, node: Node, have: int, *, is_forgeable: bool) -> None:
        """Record that a node holds exactly these pieces; all its tasks are ended.

        If the node may not have said so itself, other nodes are still sent to it for the pieces that it held before.
        """
        self.end_all(node)
        lost = node.have & ~have
        denied = lost if is_forgeable else 0
        if lost and not denied:
            self.holdings.remove(node.slot, lost)
        node.have = 0
        self.holding &= ~(1 << node.slot)
        self.add(node, have | denied)
        node.denied = denied

    def add(self, node: Node, pieces: int) -> None:
        """Record that a node holds these pieces too."""
        node.have |= pieces
        node.denied &= ~pieces
        if not self.holding >> node.slot & 1 and node.have:
            self.holding |= 1 << node.slot
            self.show(node)
        if node.is_trusted:
            self.holdings.add(node.slot, pieces)
            self.freed |= pieces

    # --- tasks

    def assign(self, node: Node, piece: int, source: str, now: float, seconds: float) -> None:
        task = node.tasks[piece] = Assignment(source, now, now + seconds)
        node.under_way |= 1 << piece
        self.holdings.begin_copy(piece)
        if (server := self.nodes.get(source)) is not None:
            server.uploads.outstanding += 1
            task.among = server.uploads.outstanding
            self.show(server)

    def lease(self, name: str, node: Node, piece: int, now: float) -> None:
        assert piece not in self.leases
        self.leases[piece] = name
        self.leased |= 1 << piece
        node.leases += 1
        self.assign(node, piece, ORIGIN, now, policy.LEASE_SECONDS)

    def end(self, node: Node, piece: int) -> Assignment | None:
        task = node.tasks.pop(piece, None)
        if task is None:
            return None
        node.under_way &= ~(1 << piece)
        self.holdings.end_copy(piece)
        if task.source == ORIGIN:
            del self.leases[piece]
            self.leased &= ~(1 << piece)
            node.leases -= 1
            self.freed |= self.all & ~self.holdings.held  # any piece without a holder can be leased now
        elif (server := self.nodes.get(task.source)) is not None:
            server.uploads.outstanding = max(0, server.uploads.outstanding - 1)
            self.show(server)
        return task

    def end_all(self, node: Node) -> None:
        for piece in list(node.tasks):
            self.end(node, piece)

    def show(self, server: Node) -> None:
        """Update the groups after a source's uploads changed: can it take another one?"""
        uploads = server.uploads
        room = int(uploads.room) if server.have else 0
        self.room += room - server.room
        server.room = room
        state = (uploads.is_open, uploads.is_spare, uploads.is_idle)
        if state == server.shown:
            return
        if state[0] and not server.shown[0]:
            self.freed |= server.have
        have = self.holdings.have(server.slot)
        for group, was_in, is_in in zip(self._groups, server.shown, state, strict=True):
            if is_in and not was_in:
                group.enter(server.slot, have)
            elif was_in and not is_in:
                group.leave(server.slot, have)
        server.shown = state

    # --- trust

    def avoid(self, node: Node, source: str, until: float, failures: int) -> None:
        node.avoid.pop(source, None)
        while len(node.avoid) >= policy.MAX_AVOIDED:
            del node.avoid[next(iter(node.avoid))]
        node.avoid[source] = Avoided(until, failures)

    def announced(self, name: str, server: Node, now: float) -> None:
        """Record that a node announced its pieces: earlier reports that it lacks some no longer count.

        Nodes may use it again, except those that had wrong bytes from it: other failures say nothing about the news.
        """
        for node in self.nodes.values() if server.missed_by else ():
            if name not in node.accused:
                node.avoid.pop(name, None)
        server.announced_at, server.announce_by = now, None
        server.missed_by.clear()

    def avoided(self, node: Node, now: float) -> Iterator[tuple[int, int]]:
        """Yield slot and number of failures of each source that a node must not be sent to now."""
        for source, avoided in node.avoid.items():
            if avoided.until > now and (server := self.nodes.get(source)) is not None:
                yield server.slot, avoided.failures

    def accuse(self, name: str, node: Node, source: str, server: Node) -> None:
        """Record that `name` had wrong bytes from `source`.

        A node that accuses more than `policy.MAX_ACCUSED` sources is not believed: all its accusations are withdrawn.
        """
        node.accused.add(source)
        if len(node.accused) > policy.MAX_ACCUSED:
            self._withdraw(name, node)
        else:
            server.accusers.add(name)
            self._judge(server)

    def name_digest(self, piece: int, digest: bytes, source: str) -> None:
        """Keep the digest of a piece, as reported by a node that has it from `source`.

        A node that fetched the piece from the origin is the best authority, then one that held it before. A node that
        has it from a peer is none: it knows the digest from this tracker, or the peer may have lied to it.
        """
        if source == ORIGIN and piece not in self._vouched:
            self._vouched.add(piece)
            self.digests[piece] = digest
        elif source == HELD:
            self.digests.setdefault(piece, digest)

    def dispute(self, piece: int, source: str) -> None:
        """Record that a source's bytes contradict a piece's digest.

        When `policy.ACCUSERS` sources do, the digest itself is taken to be wrong and is dropped.
        """
        sources = self._disputed.setdefault(piece, set())
        sources.add(source)
        if len(sources) >= policy.ACCUSERS:
            self.digests.pop(piece, None)
            self._vouched.discard(piece)
            del self._disputed[piece]

    def _withdraw(self, name: str, node: Node) -> None:
        for other in node.accused:
            if (accused := self.nodes.get(other)) is not None and name in accused.accusers:
                accused.accusers.discard(name)
                self._judge(accused)

    def _judge(self, server: Node) -> None:
        if server.is_trusted:
            self.holdings.add(server.slot, server.have)
        else:
            self.holdings.remove(server.slot, server.have)


def with_slot(slots: int, slot: int, is_in: bool) -> int:
    """Return the set with the slot added or removed."""
    return slots | 1 << slot if is_in else slots & ~(1 << slot)

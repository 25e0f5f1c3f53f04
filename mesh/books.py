"""The state behind a ledger: the nodes of one swarm, what they hold, what they were sent for, whom they trust. Pure.

A node has a *slot*, a small number, so that sets of nodes are integers, too: bit n is slot n, or piece n.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mesh import policy
from mesh.holdings import Group, Holdings
from mesh.messages import HELD, ORIGIN


@dataclass(slots=True)
class Assignment:
    """A task that a node was sent, until it is done, has failed, or time is up."""

    source: str
    since: float
    until: float
    among: int = 0  # uploads outstanding at the source, this one included


@dataclass(slots=True)
class Avoided:
    """A source that failed a node."""

    until: float
    failures: int  # in a row


@dataclass(slots=True)
class Node:
    """What is known of one node. `have`, `wanted`, `urgent` and `under_way` are sets of pieces."""

    slot: int
    heard_at: float
    have: int = 0
    wanted: int = 0
    urgent: int = 0
    slots: int = 0  # tasks that it would run at a time
    can_fetch: bool = False
    seed: bool = False
    fetched: int = 0
    rate: float = 0.0  # at which bytes came from the origin between its last two reports
    delivered_at: float = 0.0  # when it last brought a piece from the origin
    announced_at: float = 0.0
    announce_by: float | None = None  # it is said to miss what it announced
    tasks: dict[int, Assignment] = field(default_factory=dict)
    under_way: int = 0  # the pieces of `tasks`
    leases: int = 0  # how many of `tasks` are leases
    uploads: policy.Uploads = field(default_factory=policy.Uploads)
    shown: tuple[bool, bool, bool] = (False, False, False)  # whether it is in `open`, `spare` and `idle`
    room: int = 0  # its part in the room of all
    lacks: int = 0  # pieces that it wants and does not hold
    pace: policy.Mean = field(default_factory=policy.Mean)  # seconds until a piece from a peer is here
    avoid: dict[str, Avoided] = field(default_factory=dict)
    missed_by: set[str] = field(default_factory=set)  # who said that it misses what it announced
    accusers: set[str] = field(default_factory=set)
    accused: set[str] = field(default_factory=set)

    @property
    def missing(self) -> int:
        """What it wants and is not sent for."""
        return (self.wanted | self.urgent) & ~self.have & ~self.under_way

    def announced(self, now: float) -> None:
        """It says anew what it holds: whatever was said of that before counts no more."""
        self.announced_at, self.announce_by = now, None
        self.missed_by.clear()

    def failures(self, source: str, now: float, *, is_late: bool) -> int:
        """How often in a row a source has failed this node by now. One delay of many pieces counts once."""
        before = self.avoid.get(source)
        if before is None:
            return 1
        return before.failures if is_late and now < before.until else before.failures + 1

    @property
    def is_trusted(self) -> bool:
        return len(self.accusers) < policy.ACCUSERS


class Books:
    """Keeps sets and counts in step with each other. Decides nothing."""

    def __init__(self, count: int, piece_size: int) -> None:
        self._room = policy.first_room(piece_size)
        self.all = (1 << count) - 1
        self.nodes: dict[str, Node] = {}
        self.open = Group()  # those who can take another upload
        self.spare = Group()  # those who can, for a node that has next to nothing to do
        self.idle = Group()  # those who have no upload at all, and are not slow
        self._groups = (self.open, self.spare, self.idle)  # in the order of what a node has shown
        self.holdings = Holdings(count, self._groups)
        self.digests: dict[int, bytes] = {}
        self.leases: dict[int, str] = {}  # piece → node
        self.leased = 0  # the same as a set
        self.holding = 0  # slots of those who hold something
        self.hungry = 0  # slots of those who asked and got nothing
        self.fetching_seeds = 0  # slots
        self.wanting = 0  # slots of those who miss something
        self.lacks = 0  # pieces that nodes want and do not hold, all together
        self.room = 0  # uploads that all who hold something can have outstanding
        self.freed = 0  # pieces that may be had now by more nodes than before
        self._names: list[str] = []  # by slot; empty for a free one
        self._vouched: set[int] = set()  # pieces whose digest was told by who brought them from the origin
        self._disputed: dict[int, set[str]] = {}  # piece → sources whose bytes its digest contradicts

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
        """The node of this name, which may be new. Raises ValueError when there are too many."""
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
        """A node is gone, with all that it held and was to do, and with what it said of others."""
        node = self.nodes.pop(name, None)
        if node is None:
            return
        self.end_all(node)
        self.holdings.remove(node.slot)
        self.room -= node.room
        self.lacks -= node.lacks
        self._withdraw(name, node)
        self._names[node.slot] = ""
        while self._names and not self._names[-1]:  # what is kept of each piece is as long as there are places
            self._names.pop()
        others = ~(1 << node.slot)
        for group in self._groups:
            group.leave(node.slot, 0)  # what it held has been removed from them
        self.holding &= others
        self.hungry &= others
        self.fetching_seeds &= others
        self.wanting &= others

    def note(self, node: Node) -> None:
        """After its wishes or its means have changed."""
        self.fetching_seeds = with_slot(self.fetching_seeds, node.slot, node.seed and node.can_fetch)
        lacks = ((node.wanted | node.urgent) & ~node.have).bit_count()
        self.lacks += lacks - node.lacks
        node.lacks = lacks
        self.wanting = with_slot(self.wanting, node.slot, lacks > 0)

    # --- pieces

    def replace(self, node: Node, have: int) -> None:
        """The node holds exactly these pieces, and nothing is known of what it does."""
        self.end_all(node)
        if node.have & ~have:
            self.holdings.remove(node.slot)
        node.have = 0
        self.holding &= ~(1 << node.slot)
        self.add(node, have)

    def add(self, node: Node, pieces: int) -> None:
        """The node holds these pieces (as well)."""
        node.have |= pieces
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
            self.freed |= self.all & ~self.holdings.held  # there is room for another lease
        elif (server := self.nodes.get(task.source)) is not None:
            server.uploads.outstanding = max(0, server.uploads.outstanding - 1)
            self.show(server)
        return task

    def end_all(self, node: Node) -> None:
        for piece in list(node.tasks):
            self.end(node, piece)

    def show(self, server: Node) -> None:
        """After its uploads changed: whether it can take another one."""
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

    def forgive(self, source: str) -> None:
        """A source has let go of what it held and said so: that it failed others before is no sign of what is to come.

        But for wrong bytes.
        """
        for node in self.nodes.values():
            if source not in node.accused:
                node.avoid.pop(source, None)

    def avoided(self, node: Node, now: float) -> Iterator[tuple[int, int]]:
        """The slot and the number of failures of sources that a node is not to be sent to."""
        for source, avoided in node.avoid.items():
            if avoided.until > now and (server := self.nodes.get(source)) is not None:
                yield server.slot, avoided.failures

    def accuse(self, name: str, node: Node, source: str, server: Node) -> None:
        """Wrong bytes from `source`, says `name`: heard as long as it does not say so of everybody."""
        node.accused.add(source)
        if len(node.accused) > policy.MAX_ACCUSED:
            self._withdraw(name, node)
        else:
            server.accusers.add(name)
            self._judge(server)

    def name_digest(self, piece: int, digest: bytes, source: str) -> None:
        """Who brought a piece from the origin knows its digest best, then who held it before.

        Who had it from a peer knows it from here, or not at all: it may have been lied to.
        """
        if source == ORIGIN and piece not in self._vouched:
            self._vouched.add(piece)
            self.digests[piece] = digest
        elif source == HELD:
            self.digests.setdefault(piece, digest)

    def dispute(self, piece: int, source: str) -> None:
        """The digest of a piece contradicts a source. When it contradicts several, it is itself what is wrong."""
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
            self.holdings.remove(server.slot)


def with_slot(slots: int, slot: int, is_in: bool) -> int:
    """The set with a slot in it, or without."""
    return slots | 1 << slot if is_in else slots & ~(1 << slot)

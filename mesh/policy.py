"""How much the ledger assigns at once, and how long it may take: its constants and its measurements. Pure.

Times are in seconds, rates in bytes per second. The values were chosen with the simulator: docs/assignment-policy.md.
A swarm is *late* when pieces take longer than its lines account for: then its machines are the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LEASE_SECONDS = 30.0  # a lease without a byte from the origin expires after this
LONGEST_LEASE = 300.0  # a lease without a whole piece from the origin expires, whatever progress the node reports
NODE_SECONDS = 20.0  # a node without a report is dropped
SETTLE_SECONDS = 1.0  # after a change of tracker, new leases wait this long for announcements
LONGEST_SETTLE = 4.0  # at most, if more announcements come in that time
SETTLED_SECONDS = 30.0  # from the start of one such wait until another may start
RETRY_SECONDS = 5.0  # until the next report, at the latest, of a node that has tasks or needs none
ANNOUNCE_SECONDS = 5.0  # for a node reported to lack pieces that it announced to announce itself again
SLOWEST = 60.0  # longest time given to a task for a piece from a peer
BELIEVED_SECONDS = 10.0  # after a node's announcement, reports that it lacks pieces do not count
MAX_NODES = 1 << 14  # in one swarm

# Sources
FEWEST_UPLOADS = 2  # outstanding at one source; the number grows while its pieces arrive quickly
FIRST_UPLOADS = 8 << 20  # bytes outstanding at a new source
MOST_UPLOADS = 32  # outstanding at one source
HARD = 2.0  # factor on a source's limit of uploads, for nodes with fewer than FEW (or FEWER) tasks
FEW = 4  # tasks that a node may always have
FEWER = 2  # the same in a late swarm: more tasks would delay all of them, and a reader waits for one
FAIR = 1.0  # tasks of a node beyond its share of all uploads: they cover reports on their way to the tracker
BEHIND = 2.0  # largest factor on the share of a node that misses more pieces than others
QUICK = 0.3  # from assignment to arrival: a source whose pieces take less gets more uploads
SLUGGISH = 1.25  # a source whose pieces take longer soon gets fewer uploads
QUEUED = 5 << 20  # bytes that may lie in buffers on the way: requests and reports wait behind them
LONGEST_QUICK = 1.0  # upper bound of the quick time on a slow line, where it is the time that QUEUED bytes take
TRIED = 8  # sources compared for each piece
BLOCKED_PIECES = 128  # pieces found without a free source before a plan is left as it is
PATIENCE = 6.0  # time given to a task, as a multiple of the time expected
PATIENCE_OF_CROWD = 3.0  # the same in a late crowd: many more nodes will soon hold the piece
SHORTEST = 2.0  # shortest time given to a task, plus the time its bytes take at SLOW_RATE
SLOW_RATE = 4e6
EXTENSIONS = 5  # times its time a task counts as running: a node extends the time of an only source while bytes come

COMMON = 4  # log2 of the copies from which a piece cannot become rare any more
COMMON_SLOW = 2  # the same in a late swarm: pieces that readers have not reached yet are of no use to them
RARE = 3  # log2 of the copies below which a late crowd spreads a piece before all others
PLENTY = 16  # holders from which, in a late crowd, a reader's piece may come from any, however busy

CROWD = 32  # other nodes; in a larger swarm a late node is more likely busy than hung

# Trust
BACK_OFF = 2.0  # for which a node is not sent to a source that failed it; doubled with each failure in a row
LONGEST_BACK_OFF = 60.0
CORRUPT_BACK_OFF = 600.0  # after wrong bytes
HOPELESS = 3  # failures in a row after which a node need not rely on a source
HOPELESS_OF_CROWD = 6  # the same in a crowd, where an only holder makes most nodes wait until others hold the piece
ACCUSERS = 3  # nodes that must report wrong bytes from a source before no node is sent to it
MAX_ACCUSED = 3  # a node that accuses more sources than this is not believed
MAX_AVOIDED = 64  # sources that one node avoids

# The origin
FIRST_BYTES = 8 << 20  # under lease at once before the origin's rate is known, in the whole swarm
FEWEST_LEASES = 4  # allowed at once in the whole swarm
FIRST_SHARE = 8  # nodes that the first leases are shared among: others will report in a moment

SLOW = 3.0  # times the average from which a node or source counts as slow; a slow node leases only while few others do

_WEIGHT = 0.3  # of a new measurement in a running mean
_STEP = 0.25  # uploads by which a source's limit changes with each piece that arrives


@dataclass(slots=True)
class Mean:
    """A running mean that follows the last few values; 0 before the first."""

    value: float = 0.0
    count: int = 0

    def add(self, value: float, weight: float = _WEIGHT) -> None:
        self.count += 1
        self.value += (value - self.value) * max(weight, 1 / self.count)


@dataclass(slots=True)
class Uploads:
    """The uploads of one node as a source."""

    outstanding: int = 0
    room: float = FEWEST_UPLOADS  # limit of `outstanding`
    service: Mean = field(default_factory=Mean)  # seconds that a piece takes when nothing else is uploaded
    is_slow: bool = False  # much slower than other sources

    @property
    def is_idle(self) -> bool:
        return not self.outstanding and not self.is_slow

    @property
    def is_open(self) -> bool:
        return self.outstanding < int(self.room)

    @property
    def is_spare(self) -> bool:
        """Whether it is open at least to nodes with few tasks, which would starve among busier ones."""
        return self.outstanding < int(self.room * HARD)

    def arrived(self, seconds: float, among: int, usual: float, piece_size: int) -> None:
        """Account for a piece that arrived `seconds` after its assignment as one of `among` outstanding uploads.

        `usual` is the average of `service` over all sources; `piece_size` is in bytes.
        """
        self.service.add(seconds / max(1, among))
        # Quick uploads leave the line idle until the next assignment: more of them are needed to fill it. On a slow
        # line more than one would delay the nodes that wait for them. Where machines rather than lines are the limit,
        # each further upload only delays all of them.
        self.is_slow = self.service.value > SLOW * usual > 0
        fewest = 1 if self.is_slow or seconds > SLUGGISH else FEWEST_UPLOADS
        quick = max(QUICK, min(LONGEST_QUICK, QUEUED / piece_size * self.service.value))
        step = _STEP if seconds < quick else -_STEP if seconds <= SLUGGISH else -3 * _STEP
        self.room = min(MOST_UPLOADS, max(fewest, self.room + step))


def is_late(pace: float, piece_size: int) -> bool:
    """Whether pieces that take `pace` seconds on average take longer than lines alone account for."""
    return pace >= SLUGGISH + piece_size / SLOW_RATE


def few(is_late: bool) -> int:
    """Number of tasks that a node may always have."""
    return FEWER if is_late else FEW


def share(uploads: float, is_late: bool) -> float:
    """A node's share of all uploads. In a late swarm it is limited: new sources have less room than they claim."""
    return min(uploads, FAIR) if is_late else uploads


def common(nodes: int, is_late: bool) -> int:
    """Log2 of the copies from which a piece is assigned in a reader's order rather than rarest first.

    At most half as many copies as the swarm has `nodes`.
    """
    most = COMMON_SLOW if is_late else COMMON
    return max(1, min(most, nodes.bit_length() - 2))


def first_room(piece_size: int) -> int:
    """Limit of uploads at a new source: higher for small pieces, as a single one does not fill a line."""
    return max(FEWEST_UPLOADS, FIRST_UPLOADS // piece_size)


def back_off(failures: int) -> float:
    """Seconds for which a node is not sent to a source that has failed it so often in a row."""
    return min(LONGEST_BACK_OFF, BACK_OFF * 2.0 ** min(failures - 1, 10))


class Settling:
    """Whether new leases wait, because this tracker has just taken over and nodes are still announcing themselves.

    The wait is bounded: a node that reports such a change again and again, being late or lying, delays nobody for long.
    """

    def __init__(self) -> None:
        self._began_at = self._until = float("-inf")

    def moved(self, now: float) -> None:
        """Record that a node has announced itself after a change of tracker."""
        if now - self._began_at > SETTLED_SECONDS:
            self._began_at = now
        self._until = min(now + SETTLE_SECONDS, self._began_at + LONGEST_SETTLE)

    def is_on(self, now: float) -> bool:
        return now < self._until


class Window:
    """How many pieces may be leased at once: twice what fills the origin's line, as BBR does for packets.

    Fewer would leave the line idle. More would all arrive later, and nodes can share only whole pieces. The line
    holds its rate times the shortest time in which any lease was fulfilled.
    """

    _SHORTEST = 1.0
    _LONGEST = 4.0
    _PERIOD = 0.1

    def __init__(self, piece_size: int) -> None:
        self._piece_size = piece_size
        self._rate = 0.0  # sum of the latest rates of all nodes
        self._steady = 0.0  # follows `_rate` up quickly and down slowly
        self._seconds = self._LONGEST
        self.is_new = True  # no lease has been fulfilled yet
        self._looked_at = float("-inf")

    def flowed(self, rate: float, before: float, now: float) -> None:
        """Account for a node's rate from the origin since its last report, and its rate before that report."""
        self._rate = max(0.0, self._rate + rate - before)
        if now - self._looked_at >= self._PERIOD:
            self._looked_at = now
            self._steady += (self._rate - self._steady) * (0.5 if self._rate > self._steady else 0.05)

    def fulfilled(self, seconds: float) -> None:
        """Account for a leased piece that arrived `seconds` after the lease began."""
        self.is_new = False
        self._seconds = min(self._seconds, max(self._SHORTEST, 2 * seconds))

    @property
    def limit(self) -> int:
        """Number of pieces that may be under lease at once."""
        size = max(FIRST_BYTES, self._steady * self._seconds)
        return max(FEWEST_LEASES, int(size / self._piece_size))

"""How much is handed out at once, and how long it may take: what the ledger measures, and its constants. Pure.

Times are in seconds, rates in bytes per second. The values were chosen with the simulator: docs/assignment-policy.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LEASE_SECONDS = 30.0  # without a byte from the origin
LONGEST_LEASE = 300.0  # without a whole piece from it, whatever a node says of its progress
NODE_SECONDS = 20.0  # without a report
SETTLE_SECONDS = 1.0  # for announcements after a change of tracker, before new leases
LONGEST_SETTLE = 4.0  # the same, as long as more of them come
SETTLED_SECONDS = 30.0  # until leases wait for that again
RETRY_SECONDS = 5.0
ANNOUNCE_SECONDS = 5.0  # for a node that is said to miss what it announced to announce itself anew
SLOWEST = 60.0  # for a piece, at most, until a task counts as failed
BELIEVED_SECONDS = 10.0  # after an announcement
MAX_NODES = 1 << 14  # in one swarm

# Sources
FEWEST_UPLOADS = 2  # outstanding for one source; as long as it is done with them quickly, more and more
FIRST_UPLOADS = 8 << 20  # bytes outstanding for a new source
MOST_UPLOADS = 32
HARD = 2.0  # times that, for nodes with less than FEW tasks
FEW = 4  # tasks, that each node can have at least
FEWER = 2  # the same where machines are the limit: each more would only make all later, and readers wait for one
FAIR = 1.0  # tasks that each node may have beyond its share of all uploads: for what is on its way to the tracker
BEHIND = 2.0  # times its share, at most, that a node has which misses more than others
QUICK = 0.3  # from assignment to arrival
SLUGGISH = 1.25  # the same
QUEUED = 5 << 20  # bytes that may lie in buffers on the way: requests and reports wait behind them
LONGEST_QUICK = 1.0  # what is still quick on a line where those take that long
TRIED = 8  # sources compared for each piece
BLOCKED_PIECES = 128  # looked at in vain until a plan is left as it is
PATIENCE = 6.0  # times the time expected
PATIENCE_OF_CROWD = 3.0  # the same for many nodes whose machines are the limit: soon many more hold the piece
SHORTEST = 2.0  # that a task is given, besides the time that a slow line needs
SLOW_RATE = 4e6
EXTENSIONS = 5  # times that, in which a task counts as being worked on: a node gives the only source time as bytes come

COMMON = 4  # two to the power of it: copies from which on a piece is in no danger of being rare
COMMON_SLOW = 2  # the same where machines are the limit: readers have nothing from pieces that they are not at yet
RARE = 3  # two to the power of it: copies below which many nodes whose machines are the limit spread a piece first
PLENTY = 16  # holders of a piece, from which on their readers have it from any of them, however busy it is

CROWD = 32  # other nodes, from which on one that is late is likelier to be busy than hung

# Trust
BACK_OFF = 2.0  # that a source which failed a node is not offered to it; doubled for each failure in a row
LONGEST_BACK_OFF = 60.0
CORRUPT_BACK_OFF = 600.0
HOPELESS = 3  # failures in a row after which a node need not rely on that source
HOPELESS_OF_CROWD = 6  # the same where many want what one alone has: it lets most of them wait until others have it
ACCUSERS = 3  # so many nodes must have had wrong bytes from a source before nobody is sent to it
MAX_ACCUSED = 3  # who accuses more sources than this is not believed
MAX_AVOIDED = 64  # sources that one node avoids

# The origin
FIRST_BYTES = 8 << 20  # leased at first, to all together
FEWEST_LEASES = 4
FIRST_SHARE = 8  # so many nodes have the first leases, as others will ask in a moment

SLOW = 3.0  # times the pace of all: such a node leases only while few others do

_WEIGHT = 0.3  # of a new measurement in a running mean
_STEP = 0.25  # by which the number of uploads of a source moves with each of them


@dataclass(slots=True)
class Mean:
    """A running mean that follows its last few values; 0 until there is one."""

    value: float = 0.0
    count: int = 0

    def add(self, value: float, weight: float = _WEIGHT) -> None:
        self.count += 1
        self.value += (value - self.value) * max(weight, 1 / self.count)


@dataclass(slots=True)
class Uploads:
    """One node as a source."""

    outstanding: int = 0
    room: float = FEWEST_UPLOADS
    service: Mean = field(default_factory=Mean)  # seconds that a piece takes when nothing else is uploaded
    is_slow: bool = False  # much slower than others

    @property
    def is_idle(self) -> bool:
        return not self.outstanding and not self.is_slow

    @property
    def is_open(self) -> bool:
        return self.outstanding < int(self.room)

    @property
    def is_spare(self) -> bool:
        """Open at least to those who have next to nothing to do: or they would starve among busier ones."""
        return self.outstanding < int(self.room * HARD)

    def arrived(self, seconds: float, among: int, usual: float, piece_size: int) -> None:
        """A piece arrived `seconds` after it was assigned, when `among` uploads were outstanding.

        `usual` is what `service` is on average among all sources; `piece_size` is in bytes.
        """
        self.service.add(seconds / max(1, among))
        # Quick ones leave the line idle until the next is assigned: then more are needed to fill it. On a slow line
        # more than one would hold those up who wait for them.
        # Where machines rather than lines are the limit, each more only makes all of them later.
        self.is_slow = self.service.value > SLOW * usual > 0
        fewest = 1 if self.is_slow or seconds > SLUGGISH else FEWEST_UPLOADS
        quick = max(QUICK, min(LONGEST_QUICK, QUEUED / piece_size * self.service.value))
        step = _STEP if seconds < quick else -_STEP if seconds <= SLUGGISH else -3 * _STEP
        self.room = min(MOST_UPLOADS, max(fewest, self.room + step))


def is_late(pace: float, piece_size: int) -> bool:
    """Whether pieces that are there after `pace` seconds take longer than lines alone would account for."""
    return pace >= SLUGGISH + piece_size / SLOW_RATE


def few(is_late: bool) -> int:
    """Tasks that each node can have at least."""
    return FEWER if is_late else FEW


def share(uploads: float, is_late: bool) -> float:
    """A node's part of all uploads: where pieces are late, sources that are new have less room than they say."""
    return min(uploads, FAIR) if is_late else uploads


def common(nodes: int, is_late: bool) -> int:
    """Two to the power of it: copies from which on a reader has a piece when it comes to it, rather than the rarest.

    In a swarm of `nodes`, at most half of them.
    """
    most = COMMON_SLOW if is_late else COMMON
    return max(1, min(most, nodes.bit_length() - 2))


def first_room(piece_size: int) -> int:
    """Uploads outstanding for a new source: of small pieces more, as one alone does not fill a line."""
    return max(FEWEST_UPLOADS, FIRST_UPLOADS // piece_size)


class Settling:
    """Whether new leases wait: a tracker has taken over, and others will say in a moment what they hold or fetch.

    Who says that it was led by another again and again, as one does that is late or lies, holds up nobody for long.
    """

    def __init__(self) -> None:
        self._began_at = self._until = float("-inf")

    def moved(self, now: float) -> None:
        """A node announced itself that another tracker led until now."""
        if now - self._began_at > SETTLED_SECONDS:
            self._began_at = now
        self._until = min(now + SETTLE_SECONDS, self._began_at + LONGEST_SETTLE)

    def is_on(self, now: float) -> bool:
        return now < self._until


class Window:
    """How many pieces may be leased at once: twice what keeps the origin's line full, as BBR does for packets.

    Fewer would leave the line idle. More would all arrive later, and other nodes can share a piece only once it is
    whole. The line holds its rate times the shortest time in which a lease was ever fulfilled.
    """

    _SHORTEST = 1.0
    _LONGEST = 4.0
    _PERIOD = 0.1

    def __init__(self, piece_size: int) -> None:
        self._piece_size = piece_size
        self._rate = 0.0  # now, as the sum of what each node had of late
        self._steady = 0.0  # follows it up soon and down slowly
        self._seconds = self._LONGEST
        self.is_new = True  # nothing has come yet
        self._looked_at = float("-inf")

    def flowed(self, rate: float, before: float, now: float) -> None:
        """A node had bytes from the origin at this rate since its last report, and at another before that."""
        self._rate = max(0.0, self._rate + rate - before)
        if now - self._looked_at >= self._PERIOD:
            self._looked_at = now
            self._steady += (self._rate - self._steady) * (0.5 if self._rate > self._steady else 0.05)

    def fulfilled(self, seconds: float) -> None:
        """A leased piece is there, so long after the lease began."""
        self.is_new = False
        self._seconds = min(self._seconds, max(self._SHORTEST, 2 * seconds))

    @property
    def limit(self) -> int:
        """Pieces."""
        size = max(FIRST_BYTES, self._steady * self._seconds)
        return max(FEWEST_LEASES, int(size / self._piece_size))

"""Which node is the tracker when the one whose turn it is does nothing."""

import pytest

from mesh.content import Digest, PieceSet
from mesh.errors import Unavailable, Unreachable
from mesh.exchange import Alone, MeshExchange, Neighbour
from mesh.messages import Report
from mesh.placement import ranked
from mesh.policy import CROWD
from mesh.tracker import Tracker

DIGEST = Digest("sha256", "0" * 64)
OTHERS = tuple(Neighbour(f"n{i}", f"http://127.0.0.1:{i + 1}", is_seed=False) for i in range(3))


class Neighbours(Alone):
    def __init__(self, *, is_strained: bool) -> None:
        self.is_strained = is_strained
        self.given_up: list[str] = []

    def alive(self) -> tuple[Neighbour, ...]:
        return OTHERS

    def parted(self, node: str) -> None:
        self.given_up.append(node)


@pytest.mark.parametrize("is_strained", [False, True])
def test_who_is_doubted_is_not_waited_for_and_who_is_slow_itself_doubts_nobody(is_strained):
    neighbours = Neighbours(is_strained=is_strained)
    first, second, *_ = ranked(str(DIGEST), ["me", *(other.node for other in OTHERS)])
    assert first != "me"
    exchange = MeshExchange("me", Tracker(), neighbours=neighbours)
    exchange.doubt(DIGEST)
    assert exchange.tracker_of(DIGEST) == (first if is_strained else second)
    assert neighbours.given_up == ([] if is_strained else [first])


class Halved(Neighbours):
    """All nodes but one are behind a broken line, where a request takes long to fail."""

    def __init__(self, within_reach: str) -> None:
        super().__init__(is_strained=False)
        self.within_reach = within_reach
        self.asked: list[str] = []

    async def ask(self, node: str, target: str, body: bytes, limit: int = 0) -> bytes:
        self.asked.append(node)
        raise Unreachable(f"{node} cannot be reached")

    async def is_reachable(self, node: str, seconds: float) -> bool:
        return node == self.within_reach


async def test_when_the_tracker_is_behind_a_cut_line_the_next_within_reach_leads_at_once():
    order = [node for node in ranked(str(DIGEST), ["me", *(other.node for other in OTHERS)]) if node != "me"]
    digest = next(
        digest
        for digest in (Digest("sha256", f"{number:064x}") for number in range(1000))
        if ranked(str(digest), ["me", *order])[-1] == "me"
    )
    first, _, third, _ = ranked(str(digest), ["me", *order])
    neighbours = Halved(third)
    exchange = MeshExchange("me", Tracker(), neighbours=neighbours)
    with pytest.raises(Unavailable):
        await exchange.report(digest, 1 << 20, Report(node="me", have=PieceSet(1).to_bytes(), slots=1), b"")
    assert exchange.tracker_of(digest) == third
    assert neighbours.asked == [first], "nobody else's dead connection was waited for"


class Crowd(Halved):
    """Many nodes and one seed, which all of them ask."""

    def alive(self) -> tuple[Neighbour, ...]:
        return CROWDED


CROWDED = tuple(Neighbour(f"n{i}", f"http://127.0.0.1:{i + 1}", is_seed=i == 0) for i in range(CROWD + 1))


async def test_one_broken_connection_to_the_seed_sends_no_node_of_a_crowd_to_the_origin():
    exchange = MeshExchange("me", Tracker(), neighbours=Crowd(""))
    report = Report(node="me", have=PieceSet(1).to_bytes(), slots=1)
    next_one = ranked(str(DIGEST), ["me", *(other.node for other in CROWDED if not other.is_seed)])[0]
    for leader in ("n0", next_one):  # the same for all of them, or each would fetch a copy
        with pytest.raises(Unavailable):
            await exchange.report(DIGEST, 1 << 20, report, b"")
        assert exchange.tracker_of(DIGEST) == leader


class Passing(Halved):
    """Nodes that appear under new names all the time, none of which answers."""

    def __init__(self) -> None:
        super().__init__("")
        self.now = OTHERS

    def alive(self) -> tuple[Neighbour, ...]:
        return self.now


async def test_nothing_is_kept_of_nodes_that_are_long_gone(monkeypatch: pytest.MonkeyPatch):
    neighbours, now = Passing(), [0.0]
    exchange = MeshExchange("me", Tracker(), neighbours=neighbours)
    monkeypatch.setattr("mesh.exchange.time.monotonic", lambda: now[0])
    for generation in range(50):
        names = [f"{generation}-{number}" for number in range(20)]
        neighbours.now = tuple(
            Neighbour(name, f"http://127.0.0.1:{i + 1}", is_seed=False) for i, name in enumerate(names)
        )
        now[0] += 1000.0
        while (leader := exchange.tracker_of(DIGEST)) != "me":
            exchange._banned_until[leader] = now[0] + 600.0
            with pytest.raises(Unavailable):
                await exchange.report(DIGEST, 1 << 20, Report(node="me", have=PieceSet(1).to_bytes()), b"")
    assert len(exchange._failures) <= 20
    assert len(exchange._down_until) <= 20
    assert len(exchange._banned_until) <= 20

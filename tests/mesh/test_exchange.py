"""Who leads a swarm, when the one whose turn it is does nothing."""

import pytest

from mesh.content import Digest
from mesh.exchange import Alone, MeshExchange, Neighbour
from mesh.placement import ranked
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

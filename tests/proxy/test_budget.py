"""How much disk a node uses by default."""

import pytest

from proxy.budget import budget

GIB = 1 << 30
TB = 10**12


@pytest.mark.parametrize(
    ("total", "free", "held", "expected"),
    [
        (TB, TB // 2, 0, int(0.45 * TB)),
        (TB, TB // 10, int(0.4 * TB), int(0.45 * TB)),  # the same disk after it has filled up: neither less nor more
        (TB, TB, 0, int(0.9 * TB)),  # other programs made room
        (TB, 12_288, 0, 10 * GIB),
        (20 * GIB, 12_288, 0, 2 * GIB),
        (TB, 12_288, 100 * GIB, 90 * GIB),
    ],
    ids=["first start", "next start", "room", "full", "small and full", "full of its own"],
)
def test_the_default(total, free, held, expected):
    assert budget(total, free, held) == pytest.approx(expected, abs=GIB // 1000)

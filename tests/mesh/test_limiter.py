"""What a limit lets through, with a clock that advances only while a thread sleeps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import limiter
from mesh.limiter import Limiter

RATE, BURST = 1000.0, 10  # bytes per second, and bytes of 10 ms


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1e6
        self.longest = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.longest = max(self.longest, seconds)


@contextmanager
def ticking() -> Iterator[Clock]:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limiter, "time", clock)
        yield clock


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 3000)), min_size=1, max_size=12))
def test_no_stretch_of_time_has_more_than_its_share_and_nobody_waits_for_nothing(
    asked: list[tuple[float, int]],
) -> None:
    with ticking() as clock:
        limit, taken, due = Limiter(RATE), [], 0.0
        for pause, count in asked:
            clock.now += pause
            began = clock.now
            limit.take(count)
            due = max(due, began - BURST / RATE) + count / RATE
            assert clock.now == pytest.approx(max(began, due))
            taken.append((began, count, clock.now))
        for first, last in itertools.combinations_with_replacement(range(len(taken)), 2):
            seconds = taken[last][2] - taken[first][0]
            assert sum(count for _, count, _ in taken[first : last + 1]) <= RATE * seconds + BURST + 0.01
        assert clock.longest <= 0.1, "who is not wanted any more would hold a thread for longer"


def test_what_is_not_wanted_any_more_is_given_back() -> None:
    with ticking() as clock:
        limit, began = Limiter(RATE), clock.now
        limit.take(5000, lambda: clock.now >= began + 1)
        assert clock.now == pytest.approx(began + 1, abs=0.1)
        stopped = clock.now
        limit.take(1000)
        assert clock.now == pytest.approx(stopped + 1)


def test_without_a_limit_nobody_waits() -> None:
    with ticking() as clock:
        began = clock.now
        Limiter(None).take(1 << 40)
        assert clock.now == began
        assert Limiter(None).portion(1 << 20) is None
    assert Limiter(100e6).portion(64 << 20) == 5_000_000  # 50 ms worth

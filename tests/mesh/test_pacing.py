"""Nodes report less often while the tracker's loop is late, and as often as before when it is not."""

from __future__ import annotations

import dataclasses
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.content import Digest, Pieces, PieceSet
from mesh.messages import Report
from mesh.pacing import LONGEST, Pacing
from mesh.tracker import Tracker
from tests.mesh.members import until
from tests.mesh.origin import Origin, node
from tests.mesh.test_swarm import read


@given(st.lists(st.floats(0, 10)))
def test_the_pause_is_bounded_and_ends_with_the_strain(lates: list[float]) -> None:
    pacing = Pacing()
    for late in lates:
        before = pacing.pause
        pacing.observe(late)
        assert 0 <= pacing.pause <= LONGEST
        assert (pacing.pause > before) == (late > 0.05 and before < LONGEST)
    for _ in range(40):
        pacing.observe(0.0)
    assert pacing.pause == 0


async def test_a_tracker_whose_loop_is_held_asks_for_fewer_reports_and_later_for_none_of_that() -> None:
    tracker, digest, size = Tracker(), Digest("sha256", "0" * 64), 8 << 20
    count = Pieces.of(size).count

    def pause() -> float:
        return tracker.report(digest, size, Report("node", have=PieceSet(count).to_bytes())).pause

    assert pause() == 0
    time.sleep(0.3)  # noqa: ASYNC251 - what holds the loop
    await until(lambda: pause() > 0)
    await until(lambda: pause() == 0)


async def test_a_tracker_that_asks_for_an_endless_pause_is_not_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tracker, "_paced", lambda _, plan: dataclasses.replace(plan, pause=1e9))
    async with Origin(random.Random(1).randbytes(16 << 20)).running() as origin, node(tmp_path) as (_, blobs):
        assert await read(blobs, origin) == origin.content
        await until(lambda: origin.digest not in blobs.swarms)

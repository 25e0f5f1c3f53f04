"""How long a peer may take for an assigned piece."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from mesh import watch
from mesh.intake import Run
from mesh.watch import Watch

SIZE = 1000


class Slow:
    """A run that moves by so many bytes in each second that it is given."""

    def __init__(self, *steps: int) -> None:
        self.position = 0
        self.on_begin: Callable[[], None] = lambda: None
        self._steps = iter(steps)
        self.is_cancelled = asyncio.Event()

    def move(self) -> None:
        self.position += next(self._steps, 0)

    def cancel(self) -> None:
        self.is_cancelled.set()


@pytest.mark.parametrize(
    ("steps", "is_only_source", "lived"),
    [((200, 200, 200, 0), True, 600), ((200, 200, 0), False, 200), ((1000, 1000, 999), False, 2999)],
    ids=["the only source, slow", "one of several, slow", "several pieces, each in time"],
)
async def test_a_run_lives_as_long_as_enough_comes(
    monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...], is_only_source: bool, lived: int
) -> None:
    monkeypatch.setattr(watch, "SHORTEST", 0.0)
    run = Slow(*steps)
    watching = Watch(cast("Run", run), 0.05, SIZE, is_only_source=is_only_source)
    look = watching._look

    def move_and_look() -> None:
        run.move()
        look()

    monkeypatch.setattr(watching, "_look", move_and_look)
    run.on_begin()
    await asyncio.wait_for(run.is_cancelled.wait(), 5.0)
    watching.close()
    assert run.position == lived

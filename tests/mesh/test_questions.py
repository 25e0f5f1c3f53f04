"""Which node answers a question for all, and what happens when the one whose turn it is does not."""

import asyncio
import time

import pytest

from mesh import questions
from mesh.errors import Unavailable
from mesh.exchange import MAX_MESSAGE, Alone, Neighbour
from mesh.questions import Questions

OWNERS = tuple(Neighbour(name, "http://127.0.0.1:1", is_seed=True) for name in ("one", "two"))


class Silent(Alone):
    """Of two owners the first hangs, or (`is_here`) it only takes long and says that it is there."""

    is_keyed = True

    def __init__(self, *, is_here: bool, is_strained: bool = False) -> None:
        self.is_here, self.is_strained = is_here, is_strained
        self.asked: list[str] = []

    def alive(self) -> tuple[Neighbour, ...]:
        return OWNERS

    async def ask(self, node: str, target: str, body: bytes, limit: int = 0) -> bytes:
        self.asked.append(node)
        if node == self.asked[0]:
            await asyncio.sleep(0.2 if self.is_here else 60)
        return node.encode()

    async def answers(self, node: str, seconds: float) -> bool:
        return self.is_here


async def test_an_owner_that_hangs_is_passed_over_and_one_that_takes_long_is_not(monkeypatch):
    monkeypatch.setattr(questions, "_DOUBT_SECONDS", 0.05)
    slow = Silent(is_here=True)
    assert await Questions("me", slow, is_seed=False).ask("key", b"?") == (slow.asked[0], slow.asked[0].encode())
    hung = Silent(is_here=False)
    asker = Questions("me", hung, is_seed=False)
    began = time.monotonic()
    assert (await asker.ask("key", b"?") or ("", b""))[0] != hung.asked[0]
    assert time.monotonic() - began < 30
    await asker.ask("key", b"?")
    assert hung.asked.count(hung.asked[0]) == 1
    late = Questions("me", Silent(is_here=False, is_strained=True), is_seed=False)
    with pytest.raises(TimeoutError):  # a node that is late itself judges no other
        async with asyncio.timeout(0.3):
            await late.ask("key", b"?")


class Useless(Silent):
    """Owners that give no answer, or (`is_slow`) none in time though they are alive."""

    def __init__(self, *, is_slow: bool) -> None:
        super().__init__(is_here=True)
        self.is_slow = is_slow

    async def ask(self, node: str, target: str, body: bytes, limit: int = 0) -> bytes:
        self.asked.append(node)
        if self.is_slow:
            raise Unavailable(f"{node} did not answer in time")
        return b""


@pytest.mark.parametrize("is_slow", [False, True])
async def test_a_question_that_its_owner_does_not_answer_is_not_asked_of_it_again(monkeypatch, is_slow):
    monkeypatch.setattr(questions, "_SLOW_SECONDS", 0.0)
    owners = Useless(is_slow=is_slow)
    asker = Questions("me", owners, is_seed=False)
    for _ in range(3):
        assert await asker.ask("key", b"?") is None
    assert len(owners.asked) == 1
    assert await asker.ask("another key", b"?") is None
    assert len(owners.asked) == 2, "the owner is asked for others"
    for number in range(1000):
        await asker.ask(f"{number}", b"?")
    assert len(asker._unanswered) <= 256
    later = time.monotonic() + 301.0
    monkeypatch.setattr(questions.time, "monotonic", lambda: later)
    await asker.ask("999", b"?")
    assert len(owners.asked) == 1003, "it is asked again after a while"


async def test_what_is_longer_than_a_message_is_nobody_elses_question():
    others = Silent(is_here=True)
    assert await Questions("me", others, is_seed=False).ask("key", bytes(MAX_MESSAGE + 1)) is None
    assert others.asked == []

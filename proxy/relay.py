"""What anybody may ask of the Hub is asked once for the whole mesh: by the question's owner, for everybody.

Only questions without a token go this way; what the Hub says to one client's token stays on the node it came to. The
answer comes back as the Hub gave it, signed addresses included, so each node keeps and judges it as its own.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict

import msgspec
from multidict import CIMultiDict

from mesh.questions import Questions
from mesh.wire import Decoder
from proxy.catalog import Catalog
from proxy.hub.errors import OriginUnavailable
from proxy.hub.freshness import Freshness
from proxy.hub.urls import ApiRoute, FileRoute, is_commit, parse
from proxy.origin import Answer, Origin, Question

_KEPT_SECONDS = 20.0  # by the owner, for those who ask a little later
_KEPT_COMMIT_SECONDS = 300.0  # the same, about a commit
_WRITTEN_SECONDS = 60.0  # after a write through this node it asks the Hub itself: others may not know yet
_MAX_KEPT = 2000
_MAX_KEPT_BODY = 1 << 20


class Reply(msgspec.Struct, frozen=True):
    """What the Hub answered; status 0 when it did not, with the reason in `body`."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    retry_after: float | None = None
    is_timeout: bool = False


_QUESTION: Decoder[Question] = Decoder(Question)
_REPLY: Decoder[Reply] = Decoder(Reply)


class Relay:
    """Both sides of it: `ask` before the Hub is asked, `answer` for others."""

    def __init__(self, questions: Questions, origin: Origin, catalog: Catalog, freshness: Freshness) -> None:
        self._questions = questions
        self._origin = origin
        self._catalog = catalog
        self._kept_seconds = min(_KEPT_SECONDS, freshness.named)
        self._kept: OrderedDict[str, tuple[float, float, Reply]] = OrderedDict()
        questions.answerer = self.answer
        origin.relay = self

    async def ask(self, question: Question) -> Answer | None:
        """The Hub's answer by way of the owner; None when this node has to ask itself.

        Raises OriginUnavailable when the owner could not get one: one node's pause is everyone's.
        """
        if self._questions.is_alone or not _is_fit(question) or self._was_written(question, _WRITTEN_SECONDS):
            return None
        if "Cache-Control" in question.headers:  # a reload: not what the owner heard a moment ago
            return None
        question = _whole(question)
        encoded = await self._questions.ask(_key(question), msgspec.msgpack.encode(question))
        try:
            reply = await self._own(question) if encoded is None else _REPLY.decode(encoded)
        except msgspec.DecodeError:
            return None
        if not reply.status:
            reason = reply.body.decode(errors="replace")[:500]
            raise OriginUnavailable(reason, retry_after=reply.retry_after, is_timeout=reply.is_timeout)
        return Answer(reply.status, CIMultiDict(reply.headers), reply.body)

    async def answer(self, encoded: bytes) -> bytes | None:
        """As the owner: what the Hub says, or said a moment ago. None for what is not asked on behalf of others."""
        try:
            question = _QUESTION.decode(encoded)
        except msgspec.DecodeError:
            return None
        if not _is_fit(question):
            return None
        question = _whole(question)
        return msgspec.msgpack.encode(await self._own(question))

    async def _own(self, question: Question) -> Reply:
        """What the Hub says to this node, or said a moment ago."""
        key = _key(question)
        kept = self._kept.get(key)
        if kept is not None:
            until, said_at, reply = kept
            if time.monotonic() < until and not self._was_written(question, time.time() - said_at):
                return reply
        return await self._origin.flights.join(("relay", key), lambda: self._ask_hub(key, question))

    def _was_written(self, question: Question, seconds: float) -> bool:
        """Whether somebody wrote to the repository through this node, in the last so many seconds."""
        route = parse(question.target)
        return route.repo is not None and time.time() - self._catalog.publicness(str(route.repo)).changed_at <= seconds

    async def _ask_hub(self, key: str, question: Question) -> Reply:
        try:
            answer = await self._origin.ask_directly(question)
        except OriginUnavailable as error:
            return Reply(0, (), error.reason.encode(), error.retry_after, error.is_timeout)
        headers = tuple((str(name), value) for name, value in answer.headers.items())
        reply = Reply(answer.status, headers, answer.body)
        self._keep(key, question, reply)  # before the flight has landed: nobody is to ask in between
        return reply

    def _keep(self, key: str, question: Question, reply: Reply) -> None:
        if not reply.status or len(reply.body) > _MAX_KEPT_BODY:
            return
        route = parse(question.target)
        revision = route.revision if isinstance(route, FileRoute | ApiRoute) else None
        seconds = _KEPT_COMMIT_SECONDS if reply.status < 400 and is_commit(revision or "") else self._kept_seconds
        self._kept[key] = (time.monotonic() + seconds, time.time(), reply)
        self._kept.move_to_end(key)
        while len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)


def _is_fit(question: Question) -> bool:
    """Whether it reads, and is about a repository: nobody gets to send anything else through another node."""
    route = parse(question.target)
    if any(name.lower() in ("authorization", "cookie", "host") for name in question.headers):
        return False
    if isinstance(route, FileRoute):
        return question.method in ("GET", "HEAD")
    return isinstance(route, ApiRoute) and route.is_cacheable(question.method)


def _whole(question: Question) -> Question:
    """Without what the asker has already: the answer is for all who ask."""
    headers = {name: value for name, value in question.headers.items() if name.lower() != "if-none-match"}
    return msgspec.structs.replace(question, headers=headers)


def _key(question: Question) -> str:
    body = hashlib.sha256(question.body).hexdigest() if question.body else ""
    return f"{question.method} {question.target} {body}"

"""What anybody may ask of the Hub is asked once for the whole mesh: by the question's owner, for everybody.

Only questions without a token go this way; what the Hub says to one client's token stays on the node it came to. The
answer comes back as the Hub gave it, signed addresses included, so each node keeps and judges it as its own: by when
the Hub said it, and after what this node itself has heard since.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass

import msgspec

from mesh.questions import Questions
from mesh.wire import Decoder
from proxy.catalog import Catalog
from proxy.hub.errors import OriginUnavailable
from proxy.hub.freshness import Freshness
from proxy.hub.urls import FileRoute, OtherRoute, is_commit, parse
from proxy.origin import Answer, Origin, Question
from proxy.replies import Kept, Replies, Reply

_KEPT_SECONDS = 20.0  # by the owner, for those who ask a little later
_KEPT_COMMIT_SECONDS = 300.0  # the same, about a commit
_WRITTEN_SECONDS = 60.0  # after a write through this node it asks the Hub itself: others may not know yet
_PATIENCE = 5.0  # after so long a wait for the owner there is no time to ask the Hub as well: clients have 10 s
_TARGET = re.compile(r'/[!"$-~]{1,8191}\Z')
_CONTENT_TYPE = re.compile(r"[ -~]{1,200}\Z")
_NOT_PRINTABLE = re.compile(r"[^ -~]")
_MAX_USER_AGENT = 500

_QUESTION: Decoder[Question] = Decoder(Question)
_REPLY: Decoder[Reply] = Decoder(Reply)


class Relay:
    """Both sides of it: `ask` before the Hub is asked, `answer` for others."""

    def __init__(self, questions: Questions, origin: Origin, catalog: Catalog, freshness: Freshness) -> None:
        self._questions = questions
        self._origin = origin
        self._catalog = catalog
        self._kept_seconds = min(_KEPT_SECONDS, freshness.named)
        self._kept = Replies()
        questions.answerer = self.answer
        origin.relay = self

    async def ask(self, question: Question) -> Answer | None:
        """The Hub's answer by way of the owner; None when this node has to ask itself.

        Raises OriginUnavailable when nobody could get one, or when the Hub wants a pause: one node's is everyone's.
        """
        common = _Common.of(question)
        if common is None or common.question.target != question.target or self._questions.is_alone:
            return None
        if "Cache-Control" in question.headers:  # a reload: not what the owner heard a moment ago
            self._kept.drop(common.key)
            return None
        if time.time() - self._catalog.publicness(common.repo).changed_at <= _WRITTEN_SECONDS:
            return None
        owner, asked_at, reply = await self._ask_owner(common)
        if reply is None:
            asked_at = time.time()
            reply = await self._own(common, is_ours=True)
            if not reply.status:
                raise _unavailable(reply)
            if owner:  # the Hub is there: it is the owner who does not reach it
                self._questions.pass_over(owner)
        return Answer(reply.status, reply.fields, reply.body, asked_at - reply.age)

    async def answer(self, encoded: bytes) -> bytes | None:
        """As the owner: what the Hub says, or said a moment ago. None for what is not asked on behalf of others."""
        if self._origin.is_offline:
            return None
        try:
            common = _Common.of(_QUESTION.decode(encoded))
        except msgspec.DecodeError:
            return None
        return None if common is None else msgspec.msgpack.encode(await self._own(common, is_ours=False))

    async def _ask_owner(self, common: _Common) -> tuple[str, float, Reply | None]:
        """Who failed to get an answer that we can perhaps get; when we asked; the reply, unless it is of no use."""
        asked_at, began = time.time(), time.monotonic()
        told = await self._questions.ask(common.key, msgspec.msgpack.encode(common.question))
        try:
            owner, reply = ("", None) if told is None else (told[0], _REPLY.decode(told[1]))
        except msgspec.DecodeError:
            return "", asked_at, None
        if reply is None or reply.status:
            is_of_use = reply is not None and not self._is_outdated(common, reply, asked_at - reply.age)
            return "", asked_at, reply if is_of_use else None
        if reply.retry_after is not None:
            raise _unavailable(reply)
        if reply.is_timeout and time.monotonic() - began > _PATIENCE:
            self._questions.pass_over(owner)  # if it was the Hub's fault, asking it ourselves will show that
            raise _unavailable(reply)
        return owner, asked_at, None

    async def _own(self, common: _Common, *, is_ours: bool) -> Reply:
        """What the Hub says to this node, or said a moment ago."""
        now = time.monotonic()
        kept = self._kept.get(common.key, now)
        if kept is None or self._is_outdated(common, kept.reply, time.time() - (now - kept.asked_at)):
            # Nobody joins a question from before something was heard that may have changed the answer.
            flight = ("relay", common.key, self._heard_at(common.repo))
            kept = await self._origin.flights.join(flight, lambda: self._ask_hub(common, is_ours=is_ours))
        return msgspec.structs.replace(kept.reply, age=max(0.0, now - kept.asked_at))

    def _heard_at(self, repo: str) -> float:
        """When this node last heard that a repository changed, or is not for everybody."""
        known = self._catalog.publicness(repo)
        return max(known.changed_at, known.closed_at, known.hidden_at)

    def _is_outdated(self, common: _Common, reply: Reply, said_at: float) -> bool:
        """Whether this node heard something since then that may have made it untrue. One refusal confirms another."""
        if reply.is_refusal:
            return said_at <= self._catalog.publicness(common.repo).changed_at
        return said_at <= self._heard_at(common.repo)

    async def _ask_hub(self, common: _Common, *, is_ours: bool) -> Kept:
        asked_at = time.monotonic()
        try:
            answer = await self._origin.ask_directly(common.question, is_ours=is_ours)
        except OriginUnavailable as error:
            reason = error.reason.encode(errors="replace")
            return Kept(asked_at, Reply(0, (), reason, error.retry_after, error.is_timeout))
        reply = Reply.of(answer.status, answer.headers, answer.body)
        kept = Kept(asked_at, reply)
        is_steady = common.is_of_commit and reply.status < 400
        life = reply.life(_KEPT_COMMIT_SECONDS if is_steady else self._kept_seconds, time.time())
        # Before the flight has landed: nobody is to ask in between.
        self._kept.keep(common.key, kept, life, time.monotonic())
        return kept


@dataclass(frozen=True, slots=True)
class _Common:
    """A question that is asked for all, and the repository it is about."""

    question: Question
    repo: str
    is_of_commit: bool

    @classmethod
    def of(cls, question: Question) -> _Common | None:
        """What this node would ask itself, had a client asked it the same; None if it never would, as nobody.

        It is made anew of what was understood of it. Whoever asks may be a stranger, and nothing else of what he says
        is to go to the Hub, on connections that our own questions share.
        """
        if not _TARGET.match(question.target):
            return None
        route = parse(question.target)
        if isinstance(route, OtherRoute):
            return None
        headers, body, target = {}, None, route.target
        if isinstance(route, FileRoute):
            kind, method, revision = "metadata", "HEAD", route.revision
            at_hub = question.target.removeprefix(route.prefix)
            if at_hub.startswith("/api/resolve-cache/"):  # where the Hub leads to from a file's own address
                target = at_hub
        else:
            kind, method, revision = "api", "GET", route.revision or ""
            if route.kind == "paths-info":
                content_type = question.headers.get("Content-Type", "")
                if not _CONTENT_TYPE.match(content_type):
                    return None
                method, headers, body = "POST", {"Content-Type": content_type}, question.body or None
        if question.method != method:
            return None
        # What the asker has already (If-None-Match) is left out: the answer is for all who ask.
        user_agent = _NOT_PRINTABLE.sub("", question.user_agent[:_MAX_USER_AGENT])
        asked = Question(method, target, kind, user_agent, headers, body)
        return cls(asked, str(route.repo), is_commit(revision))

    @property
    def key(self) -> str:
        """What tells it from others whose answers may differ. The User-Agent is for the Hub's statistics."""
        said = self.question
        body = hashlib.sha256(said.body).hexdigest() if said.body else ""
        return f"{said.method} {said.target} {said.headers.get('Content-Type', '')} {body}"


def _unavailable(reply: Reply) -> OriginUnavailable:
    reason = reply.body.decode(errors="replace")[:500]
    return OriginUnavailable(reason, retry_after=reply.retry_after, is_timeout=reply.is_timeout)

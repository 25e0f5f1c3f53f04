"""Anonymous questions to the Hub, asked once for the whole mesh: by the question's owner, on behalf of all nodes.

Only questions without a token go this way; the Hub's answers to a client's token stay on the node that got the token.
Other answers are returned as the Hub gave them, signed addresses included. Each node keeps and judges them as its own,
by the time at which the Hub gave them and by what this node has heard since.
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

_KEPT_SECONDS = 20.0  # for which the owner keeps a reply for nodes that ask a little later
_KEPT_COMMIT_SECONDS = 300.0  # the same for questions about a commit
_WRITTEN_SECONDS = 60.0  # after a write through this node, when it asks the Hub itself: others may not know yet
_PATIENCE = 5.0  # after waiting longer for the owner there is no time to ask the Hub as well: clients have 10 s
_TARGET = re.compile(r'/[!"$-~]{1,8191}\Z')
_CONTENT_TYPE = re.compile(r"[ -~]{1,200}\Z")
_NOT_PRINTABLE = re.compile(r"[^ -~]")
_MAX_USER_AGENT = 500

_QUESTION: Decoder[Question] = Decoder(Question)
_REPLY: Decoder[Reply] = Decoder(Reply)


class Relay:
    """Both sides: `ask` gets the Hub's answer from the owner, `answer` answers as the owner."""

    def __init__(self, questions: Questions, origin: Origin, catalog: Catalog, freshness: Freshness) -> None:
        self._questions = questions
        self._origin = origin
        self._catalog = catalog
        self._kept_seconds = min(_KEPT_SECONDS, freshness.named)
        self._kept = Replies()
        questions.answerer = self.answer
        origin.relay = self

    async def ask(self, question: Question) -> Answer | None:
        """The Hub's answer by way of the owner; None when this node has to ask the Hub itself.

        Raises OriginUnavailable when no node could get an answer, or when the Hub asked for a pause, which holds for
        all nodes.
        """
        common = _Common.of(question)
        if common is None or common.question.target != question.target or self._questions.is_alone:
            return None
        if "Cache-Control" in question.headers:  # a reload: an answer that the owner heard a moment ago will not do
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
            if owner:  # the Hub is there, so it is the owner that cannot reach it
                self._questions.pass_over(owner)
        return Answer(reply.status, reply.fields, reply.body, asked_at - reply.age)

    async def answer(self, encoded: bytes) -> bytes | None:
        """As the owner, return the Hub's new or recent answer; None if the question is not one to ask for others."""
        if self._origin.is_offline:
            return None
        try:
            common = _Common.of(_QUESTION.decode(encoded))
        except msgspec.DecodeError:
            return None
        return None if common is None else msgspec.msgpack.encode(await self._own(common, is_ours=False))

    async def _ask_owner(self, common: _Common) -> tuple[str, float, Reply | None]:
        """Ask the owner: (owner, time of the question, reply).

        `reply` is None when it is missing or of no use. `owner` is named only if it failed where this node may succeed.
        """
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
            self._questions.unanswered(common.key)  # it may be this question alone that takes long
            self._questions.pass_over(owner)  # if the Hub was at fault, asking it ourselves will show it
            raise _unavailable(reply)
        return owner, asked_at, None

    async def _own(self, common: _Common, *, is_ours: bool) -> Reply:
        """The Hub's answer to this node, new or recent."""
        now = time.monotonic()
        kept = self._kept.get(common.key, now)
        if kept is None or self._is_outdated(common, kept.reply, time.time() - (now - kept.asked_at)):
            # The key has the last change that was heard of: nobody joins a question that was asked before it.
            flight = ("relay", common.key, self._heard_at(common.repo))
            kept = await self._origin.flights.join(flight, lambda: self._ask_hub(common, is_ours=is_ours))
        return msgspec.structs.replace(kept.reply, age=max(0.0, now - kept.asked_at))

    def _heard_at(self, repo: str) -> float:
        """When this node last heard that a repository was written to, closed or hidden."""
        known = self._catalog.publicness(repo)
        return max(known.changed_at, known.closed_at, known.hidden_at)

    def _is_outdated(self, common: _Common, reply: Reply, said_at: float) -> bool:
        """Whether this node has heard since `said_at` of anything that may contradict the reply.

        A refusal is not contradicted by another refusal.
        """
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
        # Before the flight lands, so that nobody asks again in between.
        self._kept.keep(common.key, kept, life, time.monotonic())
        return kept


@dataclass(frozen=True, slots=True)
class _Common:
    """A question that may be asked on behalf of all nodes, and the repository that it is about."""

    question: Question
    repo: str
    is_of_commit: bool

    @classmethod
    def of(cls, question: Question) -> _Common | None:
        """The question as this node would ask it itself, anonymously; None if it never would.

        It is built anew from the parsed route. The asker may be a stranger, and nothing else of its message may go to
        the Hub on connections that our own questions share.
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
            if at_hub.startswith("/api/resolve-cache/"):  # where the Hub redirects to from the address of a small file
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
        # If-None-Match is left out, since the answer is for all nodes. The User-Agent is kept for the Hub's statistics.
        user_agent = _NOT_PRINTABLE.sub("", question.user_agent[:_MAX_USER_AGENT])
        asked = Question(method, target, kind, user_agent, headers, body)
        return cls(asked, str(route.repo), is_commit(revision))

    @property
    def key(self) -> str:
        """Distinguishes questions with different answers. The User-Agent makes no difference."""
        said = self.question
        body = hashlib.sha256(said.body).hexdigest() if said.body else ""
        return f"{said.method} {said.target} {said.headers.get('Content-Type', '')} {body}"


def _unavailable(reply: Reply) -> OriginUnavailable:
    reason = reply.body.decode(errors="replace")[:500]
    return OriginUnavailable(reason, retry_after=reply.retry_after, is_timeout=reply.is_timeout)

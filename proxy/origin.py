"""Requests to the Hub, with a client's own token or none: the only place that sends them, except for file bodies."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from mesh.proxies import proxy_of
from proxy.failing import Failing
from proxy.flights import Flights
from proxy.hub.access import token_key
from proxy.hub.errors import OriginUnavailable
from proxy.hub.metadata import number
from proxy.patience import Patience

log = logging.getLogger(__name__)

_MAX_ANSWER = 64 << 20  # bytes; a tree page of a thousand entries is 300 kB, and longer listings are streamed
_MAX_FIELD = 32 << 10  # bytes; signed addresses are long
_MAX_QUESTIONS = 64  # of a kind at once; further ones wait
_LONGEST_ANSWER = 300.0  # seconds
# Seconds. The Hub may take long over a commit of thousands of files, or a search. Browsers wait as long, gateways less.
_PATIENCE_SECONDS = 300.0
_LONGEST_PAUSE = 300.0  # seconds
_MAX_PAUSES = 1000
_MAX_TRIES = 8  # at once, to find out whether the origin still fails
_NO_HEADERS_OF_OURS = ("User-Agent", "Content-Type", "Accept")
_AWAY = (502, 503, 504)  # nobody there could answer; a 500 may concern a single repository
_LIMIT = re.compile(r"\br=([0-9]{1,9})\s*;\s*t=([0-9]{1,9})\b")


class RequestMetrics(Protocol):
    def origin_request(self, kind: str, status: int, seconds: float) -> None: ...


class Question(msgspec.Struct, frozen=True):
    """A small request. It has no token, so that it can be sent to other nodes."""

    method: str
    target: str
    kind: str
    user_agent: str = ""
    headers: dict[str, str] = {}
    body: bytes | None = None


class Asker(Protocol):
    """A part of the node that may get the Hub's answer from another node."""

    async def ask(self, question: Question) -> Answer | None:
        """The Hub's answer; None if this node has to ask itself. Raises OriginUnavailable."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A small answer, read completely.

    `said_at` is when the Hub was asked for it, by whichever node; in seconds since the epoch, by our clock.
    """

    status: int
    headers: CIMultiDict[str]
    body: bytes
    said_at: float


class _TooLong(OriginUnavailable):
    """The answer is longer than the limit. That is a property of the question, not a failure of the origin."""


class _Slow(OriginUnavailable):
    """The origin was reached, but its answer did not come in time."""


class Origin:
    """The Hub at `url`. Times are in seconds. With `offline` every request fails at once.

    `answer_timeout` limits a question about a file with its whole answer. An answer about a repository may take long
    and be long, and clients wait for it: `silence` limits its pauses, the one before its beginning included. `patience`
    limits the wait for the beginning of an answer that passes through.

    Raises OriginUnavailable for everything that is not an answer: no connection, a time-out, 5xx, a pause that the Hub
    asked for.
    """

    def __init__(
        self,
        url: str,
        *,
        metrics: RequestMetrics,
        offline: bool = False,
        connect_timeout: float = 4.0,
        answer_timeout: float = 8.0,
        silence: float = 90.0,
        patience: float = _PATIENCE_SECONDS,
    ) -> None:
        self.url = url.rstrip("/")
        self.host = urlsplit(self.url).netloc
        self.is_offline = offline
        self.relay: Asker | None = None
        self.on_pause: Callable[[tuple[str, str], float], None] = lambda quota, seconds: None
        self.flights = Flights()  # questions under way, shared by all who ask the same
        self._metrics = metrics
        self._connect_timeout = connect_timeout
        self._answer_timeout = answer_timeout
        self._silence = silence
        self._patience = patience
        self._paused: dict[tuple[str, str], float] = {}
        self._failing = Failing()
        self._tries = Flights()
        self._questions: dict[str, aiohttp.ClientSession] = {}  # by kind: the slow ones take no others' connections
        self._streams: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        await self._tries.close()
        await self.flights.close()
        for session in (*self._questions.values(), self._streams):
            if session is not None:
                await session.close()

    @property
    def is_failing(self) -> bool:
        """Whether questions for our own clients found no origin a moment ago, or the node is offline."""
        return self.is_offline or self._failing.is_failing(time.monotonic())

    def try_again(self, ask: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Ask a question in the background if it is time to find out whether the origin still fails.

        For clients that get an older answer meanwhile: while all do, nobody else would notice that the Hub is back.
        """
        if not self.is_offline and len(self._tries) < _MAX_TRIES and self._failing.may_try(time.monotonic()):
            self._tries.start(object(), ask)

    def absolute(self, target: str) -> str:
        return self.url + target

    def follow(self, target: str, where: str) -> str:
        """The target at the Hub that a redirect from `target` leads to. Raises OriginUnavailable for others."""
        hub, parts = urlsplit(self.url), urlsplit(urljoin(self.url + target, where))
        if not where or (parts.scheme, parts.netloc) != (hub.scheme, hub.netloc):
            raise OriginUnavailable(
                f"{self.host} sent a redirect away from --origin, to {parts.netloc if where else 'no address'}"
            )
        path = parts.path.removeprefix(hub.path)
        return f"{path}?{parts.query}" if parts.query else path

    async def ask(
        self,
        method: str,
        target: str,
        *,
        kind: str,
        token: str | None = None,
        user_agent: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """Ask a question and return the whole answer. Redirects are returned, not followed.

        An anonymous question may be asked by another node on behalf of all. Raises OriginUnavailable.
        """
        question = Question(method, target, kind, user_agent, dict(headers or {}), body)
        if token is None and self.relay is not None and not self.is_offline:
            answer = await self.relay.ask(question)
            if answer is not None:
                self._note_answer(time.monotonic() - max(0.0, time.time() - answer.said_at))
                return answer
        return await self.ask_directly(question, token)

    async def ask_directly(self, question: Question, token: str | None = None, *, is_ours: bool = True) -> Answer:
        """Like `ask`, but never by way of another node.

        Not `is_ours`: the question is another node's, which has clients of its own to think of. Raises
        OriginUnavailable.
        """
        quota = (token_key(token) if token else "", _window(question.target))
        self._mind_pause(quota)
        sent = {"Accept-Encoding": "identity", **question.headers}
        if question.user_agent:
            sent["User-Agent"] = question.user_agent
        if token:
            sent["Authorization"] = f"Bearer {token}"
        try:
            answer = await self._ask(question, sent, is_ours=is_ours)
        except _TooLong:
            raise
        except OriginUnavailable as error:
            if is_ours:  # other nodes choose their questions: these must not make all our answers stale
                self._note_failure(question, error.reason, is_slow=isinstance(error, _Slow))
            raise
        if answer.status in _AWAY and is_ours:
            self._note_failure(question, f"{self.host} answered {answer.status}", is_slow=True)
        if answer.status >= 500 or answer.status == 408:
            raise OriginUnavailable(f"{self.host} answered {answer.status}")
        self._note_answer(time.monotonic())
        self._note_limits(answer, quota)
        return answer

    def _note_failure(self, question: Question, reason: str, *, is_slow: bool) -> None:
        was_failing, now = self.is_failing, time.monotonic()
        if is_slow and question.kind == "api":  # some answers take the Hub long; metadata of a file never does
            self._failing.slow(question.target, now)
        else:
            self._failing.failed(now)
        if self.is_failing and not was_failing:
            log.warning("%s: what is known here is served as it was last said", reason)

    def _note_answer(self, at: float) -> None:
        if self._failing.answered(at):
            log.info("%s answers again", self.host)

    async def _ask(self, question: Question, headers: Mapping[str, str], *, is_ours: bool) -> Answer:
        method, target, kind, body = question.method, question.target, question.kind, question.body
        is_long = kind == "api"
        session = self._questions.get(kind)
        if session is None:
            silence = self._silence if is_long else None
            session = self._questions[kind] = self._session(_MAX_QUESTIONS, decompress=True, silence=silence)
        answer, said_at, late = bytearray(), time.time(), None
        if is_ours and is_long:  # noted long before it is given up
            note = partial(self._note_failure, question, f"no answer from {self.host} in time", is_slow=True)
            late = asyncio.get_running_loop().call_later(self._answer_timeout, note)
        try:
            async with asyncio.timeout(_LONGEST_ANSWER if is_long else self._answer_timeout):
                async with self._request(session, method, target, kind, headers, body) as response:
                    if late is not None:
                        late.cancel()
                    while part := await response.content.read(1 << 20):
                        answer += part
                        if len(answer) > _MAX_ANSWER:
                            raise _TooLong(f"{self.host} answered with more than {_MAX_ANSWER} bytes")
        except TimeoutError as error:
            raise _Slow(f"no answer from {self.host} in time", is_timeout=True) from error
        except aiohttp.ClientError as error:
            raise OriginUnavailable(f"{self.host} broke off before the end of its answer: {error}") from error
        finally:
            if late is not None:
                late.cancel()
        return Answer(response.status, CIMultiDict(response.headers), bytes(answer), said_at)

    @asynccontextmanager
    async def open(
        self, method: str, target: str, *, kind: str, headers: Mapping[str, str], body: Any = None, viewer: bool = False
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Forward a client's request unchanged, and stream the answer.

        Raises OriginUnavailable if the Hub neither accepts nor sends anything for too long before the answer begins.
        The client may send as slowly as it likes, and an answer that has begun may pause: event streams do.

        `viewer`: send it to the datasets viewer, which clients expect at a subdomain of the Hub.
        """
        if self._streams is None:
            self._streams = self._session(0, decompress=False)
        url = self.url.replace("://", "://datasets-server.", 1) if viewer else self.url
        patience = Patience(self._patience)
        if isinstance(body, AsyncIterable):
            body = patience.sending(body)
        async with self._request(self._streams, method, target, kind, headers, body, url, patience) as response:
            yield response

    @asynccontextmanager
    async def _request(
        self,
        session: aiohttp.ClientSession,
        method: str,
        target: str,
        kind: str,
        headers: Mapping[str, str],
        body: Any,
        url: str | None = None,
        patience: Patience | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self.is_offline:
            raise OriginUnavailable("this node is offline (--offline), and what it holds does not answer this")
        began = time.perf_counter()
        status = 0
        try:
            sent = self._send(session, method, URL((url or self.url) + target, encoded=True), headers, body)
            response = await (patience.wait(sent) if patience is not None else sent)
            status = response.status
        except aiohttp.ConnectionTimeoutError as error:
            raise OriginUnavailable(f"no connection to {self.host} in time", is_timeout=True) from error
        except TimeoutError as error:
            raise _Slow(f"no answer from {self.host} in time", is_timeout=True) from error
        except aiohttp.ClientHttpProxyError as error:  # its text contains the proxy's password
            raise OriginUnavailable(f"cannot reach {self.host}: the proxy on the way answered {error.status}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise OriginUnavailable(f"cannot reach {self.host}: {error}") from error
        finally:
            self._metrics.origin_request(kind, status, time.perf_counter() - began)
        async with response:
            yield response

    async def _send(
        self, session: aiohttp.ClientSession, method: str, url: URL, headers: Mapping[str, str], body: Any
    ) -> aiohttp.ClientResponse:
        async def send() -> aiohttp.ClientResponse:
            return await session.request(
                method,
                url,
                headers=headers,
                data=io.BytesIO(body) if isinstance(body, bytes) else body,
                allow_redirects=False,
                skip_auto_headers=_NO_HEADERS_OF_OURS,
            )

        try:
            return await send()
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            # The Hub closed a kept connection at that moment. aiohttp itself repeats a GET, but not a POST.
            if method != "POST" or session is self._streams:
                raise
            return await send()

    def _session(self, limit: int, *, decompress: bool, silence: float | None = None) -> aiohttp.ClientSession:
        # Not trust_env: it would also send credentials from ~/.netrc, even with requests that are to prove what an
        # anonymous client may read.
        hub = urlsplit(self.url)
        proxy = proxy_of(hub.scheme, hub.hostname or "")
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=limit, ttl_dns_cache=60),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout, sock_read=silence),
            auto_decompress=decompress,
            proxy=proxy.url if proxy else None,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_field_size=_MAX_FIELD,
            max_line_size=_MAX_FIELD,
        )

    # --- limits: all clients share our address, and with it the quota of anonymous requests

    def pause(self, quota: tuple[str, str], seconds: float) -> None:
        """Ask nothing for `seconds` that counts against a quota: (token's key or empty, rate limit window)."""
        now = time.monotonic()
        if len(self._paused) >= _MAX_PAUSES:
            self._paused = {key: until for key, until in self._paused.items() if until > now}
        if len(self._paused) < _MAX_PAUSES:
            self._paused[quota] = max(self._paused.get(quota, 0.0), now + min(_LONGEST_PAUSE, seconds))

    def _mind_pause(self, quota: tuple[str, str]) -> None:
        seconds = self._paused.get(quota, 0.0) - time.monotonic()
        if seconds > 0:
            raise OriginUnavailable(
                f"{self.host} limits requests, and allows no more for now: try again later", retry_after=seconds
            )

    def _note_limits(self, answer: Answer, quota: tuple[str, str]) -> None:
        """Start the pause that an answer asks for. Raises OriginUnavailable for a 429."""
        match = _LIMIT.search(answer.headers.get("RateLimit", ""))
        left, reset = (int(match[1]), float(match[2]) + 1) if match else (1, 5.0)
        if answer.status != 429 and left:
            return
        told = number(answer.headers.get("Retry-After", "")) if answer.status == 429 else None
        pause = min(_LONGEST_PAUSE, reset if told is None else told)
        self.pause(quota, pause)
        self.on_pause(quota, pause)
        log.warning("%s has had enough requests (%s) for now: none for %.0f s", self.host, quota[1], pause)
        if answer.status == 429:
            raise OriginUnavailable(
                f"{self.host} limits requests, and refused this one: try again later", retry_after=pause
            )


def _window(target: str) -> str:
    """The rate limit window of the Hub that a request counts against."""
    if "/resolve/" in target or target.startswith("/api/resolve-cache/"):
        return "resolvers"
    return "api" if target.startswith("/api/") else "pages"

"""Requests to the Hub, with a client's own token or none: the one place they leave from."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from proxy.hub.errors import OriginUnavailable

log = logging.getLogger(__name__)

_MAX_ANSWER = 64 << 20  # a tree page of a thousand entries is 300 kB; whole listings are streamed, not kept
_RESET = re.compile(r"\bt=(\d+)")
_LONGEST_PAUSE = 300.0


class RequestMetrics(Protocol):
    def origin_request(self, kind: str, status: int, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """A small answer, whole."""

    status: int
    headers: CIMultiDict[str]
    body: bytes


class Origin:
    """The Hub at `url`. Times are in seconds. With `offline` every request fails at once.

    Raises OriginUnavailable for whatever is not an answer: no connection, no time left, 5xx, a pause that it asked for.
    """

    def __init__(
        self,
        url: str,
        *,
        metrics: RequestMetrics,
        offline: bool = False,
        connect_timeout: float = 4.0,
        answer_timeout: float = 8.0,
    ) -> None:
        self.url = url.rstrip("/")
        self.is_offline = offline
        self._metrics = metrics
        self._connect_timeout = connect_timeout
        self._answer_timeout = answer_timeout
        self._host = urlsplit(self.url).netloc
        self._paused_until = 0.0
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def absolute(self, target: str) -> str:
        return self.url + target

    @property
    def host(self) -> str:
        return self._host

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
        """One request and its whole answer, whatever its status below 500; redirects are not followed."""
        sent = {"Accept-Encoding": "identity", **(headers or {})}
        if user_agent:
            sent["User-Agent"] = user_agent
        if token:
            sent["Authorization"] = f"Bearer {token}"
        try:
            async with asyncio.timeout(self._answer_timeout):
                async with self.open(method, target, kind=kind, headers=sent, body=body) as response:
                    data = await response.content.read(_MAX_ANSWER + 1) if method != "HEAD" else b""
                    while len(data) <= _MAX_ANSWER and (more := await response.content.read(_MAX_ANSWER)):
                        data += more
        except TimeoutError as error:
            raise OriginUnavailable(f"no answer from {self._host} in time", is_timeout=True) from error
        except aiohttp.ClientError as error:
            raise OriginUnavailable(f"{self._host} broke off its answer: {error}") from error
        if len(data) > _MAX_ANSWER:
            raise OriginUnavailable(f"{self._host} answered with more than {_MAX_ANSWER} bytes")
        if response.status >= 500:
            raise OriginUnavailable(f"{self._host} answered {response.status}")
        return Answer(response.status, CIMultiDict(response.headers), data)

    @asynccontextmanager
    async def open(
        self, method: str, target: str, *, kind: str, headers: Mapping[str, str], body: Any = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request as it is, and its answer as a stream."""
        if self.is_offline:
            raise OriginUnavailable("this node is offline (--offline)")
        pause = self._paused_until - time.monotonic()
        if pause > 0 and method in ("GET", "HEAD"):
            raise OriginUnavailable(f"{self._host} asked us to wait", retry_after=pause)
        began = time.perf_counter()
        status = 0
        try:
            response = await self._get_session().request(
                method,
                URL(self.url + target, encoded=True),
                headers=headers,
                data=body,
                allow_redirects=False,
                skip_auto_headers=("User-Agent", "Content-Type", "Accept"),
            )
            status = response.status
        except TimeoutError as error:
            raise OriginUnavailable(f"no connection to {self._host} in time", is_timeout=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise OriginUnavailable(f"cannot reach {self._host}: {error}") from error
        finally:
            self._metrics.origin_request(kind, status, time.perf_counter() - began)
        self._note_limits(response)
        async with response:
            yield response

    def _note_limits(self, response: aiohttp.ClientResponse) -> None:
        """One client's pause is everyone's: they share our address."""
        if response.status != 429:
            return
        seconds = response.headers.get("Retry-After", "")
        match = _RESET.search(response.headers.get("RateLimit", ""))
        pause = float(seconds) if seconds.isdigit() else float(match[1]) + 1 if match else 5.0
        self._paused_until = time.monotonic() + min(_LONGEST_PAUSE, pause)
        log.warning("%s has had enough requests for now: none for %.0f s", self._host, pause)

    @property
    def pause(self) -> float:
        """Seconds until the origin wants to be asked again."""
        return max(0.0, self._paused_until - time.monotonic())

    def _get_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=64, ttl_dns_cache=60),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout),
                auto_decompress=False,
                trust_env=True,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

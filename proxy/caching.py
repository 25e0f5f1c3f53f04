"""The rules of RFC 9111 for storing and reusing answers, in a shared cache. Pure.

Stricter than required where that is safer: there is no heuristic freshness, and nothing is kept that came with a
cookie, was requested with a token or a cookie, or is an error. Sections without a number of an RFC are those of RFC
9111.
"""

from __future__ import annotations

import calendar
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from proxy.hub import clock
from proxy.ranges import names

Fields = tuple[tuple[str, str], ...]

# The `Cache-Status` field (RFC 9211) by outcome.
STATUS = {
    "hit": "hubmesh; hit",
    "miss": "hubmesh; fwd=uri-miss; stored",
    "stale": "hubmesh; fwd=stale; detail=origin-unavailable",
}
# Seconds for which a stale answer may be used while the origin fails, unless the answer itself says for how long.
STALE_SECONDS = 86_400.0
_MAX_SECONDS = float(1 << 31)  # section 1.2.2
# Anchored and unambiguous, so that matching takes linear time: a header of 8 KB must not block the event loop.
_MEMBER = re.compile(r'(?:[^,"]+|"(?:[^"\\]|\\.)*")*')
_DIRECTIVE = re.compile(r'([^\s,;="]+)(?:=("(?:[^"\\]|\\.)*"|[^\s,"]*))?\Z')
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATES = (  # RFC 9110, section 5.6.7
    re.compile(r"\w{3}, (?P<d>\d{2}) (?P<m>\w{3}) (?P<y>\d{4}) (?P<t>\d{2}:\d{2}:\d{2}) GMT\Z"),
    re.compile(r"\w{6,9}, (?P<d>\d{2})-(?P<m>\w{3})-(?P<y>\d{2}) (?P<t>\d{2}:\d{2}:\d{2}) GMT\Z"),
    re.compile(r"\w{3} (?P<m>\w{3}) (?P<d>[ \d]\d) (?P<t>\d{2}:\d{2}:\d{2}) (?P<y>\d{4})\Z"),
)
# Fields of a 304 that do not update the stored answer (section 3.2): they would contradict the stored body.
_OF_BYTES = {"content-encoding", "content-length", "content-md5", "content-range", "etag"}
_SHARED_NEVER = ("authorization", "cookie")


@dataclass(frozen=True, slots=True)
class Stored:
    """An answer as the origin gave it. Times are in seconds since the epoch.

    `varied` has the request's values of the fields that Vary names. `is_doubtful`: a write may have changed the
    resource, so the answer has to be revalidated, however fresh it is.
    """

    status: int
    reason: str
    headers: Fields
    body: bytes
    asked_at: float
    came_at: float
    varied: Fields = ()
    is_doubtful: bool = False

    @property
    def size(self) -> int:
        """Estimated bytes of memory."""
        return len(self.body) + sum(len(name) + len(value) + 150 for name, value in self.headers) + 500


def field(headers: Iterable[tuple[str, str]], name: str) -> str | None:
    """All lines of a field joined into one (RFC 9110, section 5.3); None if there is none."""
    lines = [value for key, value in headers if key.lower() == name]
    return ", ".join(line.strip() for line in lines) if lines else None


def directives(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The `Cache-Control` directives of a message; of a repeated directive the first counts."""
    found: dict[str, str] = {}
    for member in _members(field(headers, "cache-control") or ""):
        if match := _DIRECTIVE.match(member.strip()):
            found.setdefault(match[1].lower(), (match[2] or "").strip('"'))
    return found


def may_share(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether a request with these headers may be answered from the shared cache, and its answer be stored there."""
    return not any(name.lower() in _SHARED_NEVER for name, _ in headers)


def keep(request: Fields, answer: Stored) -> Stored | None:
    """The answer in the form to be stored; None when it must not be stored, or could never be reused."""
    said = directives(answer.headers)
    vary = _vary(answer.headers)
    if answer.status in (206, 304) or not 200 <= answer.status < 400 or not may_share(request):
        return None
    if {"no-store", "private"} & said.keys() or "no-store" in directives(request) or "*" in vary:
        return None
    if field(answer.headers, "set-cookie") is not None:
        return None
    is_explicit = {"public", "max-age", "s-maxage", "no-cache"} & said.keys() or field(answer.headers, "expires")
    if not is_explicit or not (lifetime(answer) > 0 or validators(answer)):
        return None
    return replace(answer, varied=_nominated(vary, request))


def matches(stored: Stored, request: Fields) -> bool:
    """Whether the request has the same values as the stored one in the fields that `Vary` names (section 4.1)."""
    return all(_normal(request, name) == value for name, value in stored.varied)


def lifetime(stored: Stored) -> float:
    """Seconds for which the answer says it is fresh (section 4.2.1); 0 when it says nothing usable."""
    said = directives(stored.headers)
    for name in ("s-maxage", "max-age"):
        if name in said:
            return _seconds(said[name]) or 0.0
    expires = date(field(stored.headers, "expires"))
    if expires is None:
        return 0.0
    said_at = date(field(stored.headers, "date"))
    return max(0.0, expires - (stored.came_at if said_at is None else said_at))


def age(stored: Stored, now: float) -> float:
    """Seconds since the origin generated it (section 4.2.3); infinite when it came with an invalid `Age`.

    It is also infinite, as nobody knows it, when the clock was set back since the answer came.
    """
    if clock.is_ahead(stored.came_at, now):
        return math.inf
    on_the_way = field(stored.headers, "age")
    before = 0.0 if on_the_way is None else _seconds(on_the_way)
    if before is None:
        return math.inf
    said_at = date(field(stored.headers, "date"))
    apparent = 0.0 if said_at is None else max(0.0, stored.came_at - said_at)
    return max(apparent, before + max(0.0, stored.came_at - stored.asked_at)) + max(0.0, now - stored.came_at)


def is_usable(stored: Stored, request: Fields, now: float) -> bool:
    """Whether it may answer the request without asking the origin (section 4)."""
    said, asked = directives(stored.headers), directives(request)
    pragma = "cache-control" not in {name.lower() for name, _ in request} and field(request, "pragma") == "no-cache"
    if "no-cache" in said or "no-cache" in asked or pragma or stored.is_doubtful:
        return False
    old, left = age(stored, now), lifetime(stored) - age(stored, now)
    if "max-age" in asked and old > (_seconds(asked["max-age"]) or 0.0):
        return False
    if "min-fresh" in asked and left < (_seconds(asked["min-fresh"]) or 0.0):
        return False
    if left > 0:
        return True
    if "max-stale" not in asked or _must_be_fresh(said):
        return False
    return not asked["max-stale"] or -left <= (_seconds(asked["max-stale"]) or 0.0)


def states_lifetime(stored: Stored) -> bool:
    """Whether the answer says for how long it is fresh."""
    return bool({"max-age", "s-maxage"} & _said(stored.headers).keys()) or field(stored.headers, "expires") is not None


def has_ended(stored: Stored, now: float) -> bool:
    """Whether the answer says how long it is fresh, and that time is over. False if it does not say."""
    if "no-cache" in _said(stored.headers):
        return True
    return states_lifetime(stored) and age(stored, now) >= lifetime(stored)


@lru_cache(256)  # called for stored answers at each request for them
def _said(headers: Fields) -> Mapping[str, str]:
    return directives(headers)


def must_be_fresh(stored: Stored) -> bool:
    """Whether the origin forbids reuse without revalidation once the answer is stale, whatever happens."""
    return _must_be_fresh(directives(stored.headers))


def wants_news(request: Fields) -> bool:
    """Whether the client asks for a reload, not for what is stored."""
    asked = directives(request)
    pragma = not asked and field(request, "pragma") == "no-cache"
    return "no-cache" in asked or asked.get("max-age") == "0" or pragma


def wish(request: Mapping[str, str]) -> tuple[bool, bool]:
    """Whether the client asks for a reload, and whether it wants only what is stored here."""
    if "Cache-Control" not in request and "Pragma" not in request:
        return False, False
    fields = tuple(request.items())
    return wants_news(fields), "only-if-cached" in directives(fields)


def may_be_stale(stored: Stored, request: Fields, now: float) -> bool:
    """Whether it may answer when the origin fails (section 4.2.4, and stale-if-error in RFC 5861)."""
    said = directives(stored.headers)
    if _must_be_fresh(said) or "no-cache" in directives(request):
        return False
    limit = _seconds(said["stale-if-error"]) if "stale-if-error" in said else STALE_SECONDS
    return age(stored, now) - lifetime(stored) <= (limit or 0.0)


def validators(stored: Stored) -> dict[str, str]:
    """Header fields that ask the origin to revalidate the answer (section 4.3.1); empty when it cannot be asked."""
    asked = {}
    if etag := field(stored.headers, "etag"):
        asked["If-None-Match"] = etag
    if modified := field(stored.headers, "last-modified"):
        asked["If-Modified-Since"] = modified
    return asked


def freshened(stored: Stored, headers: Fields, asked_at: float, now: float) -> Stored:
    """The stored answer, updated from a 304 (section 4.3.4)."""
    new = tuple((name, value) for name, value in headers if name.lower() not in {*_OF_BYTES, "set-cookie"})
    replaced = {name.lower() for name, _ in new} | {"age"}
    kept = tuple((name, value) for name, value in stored.headers if name.lower() not in replaced)
    return replace(stored, headers=kept + new, asked_at=asked_at, came_at=now, is_doubtful=False)


def is_not_modified(stored: Stored, request: Mapping[str, str]) -> bool:
    """Whether the client has the answer already (section 4.3.2)."""
    if (wanted := request.get("If-None-Match")) is not None:
        etag = field(stored.headers, "etag") or ""
        return names(wanted, etag.removeprefix("W/"), weakly=True)
    since = date(request.get("If-Modified-Since"))
    modified = date(field(stored.headers, "last-modified") or field(stored.headers, "date"))
    return since is not None and modified is not None and modified <= since


def date(text: str | None) -> float | None:
    """An HTTP date in seconds since the epoch; None if it is invalid."""
    for pattern in _DATES:
        if match := pattern.match((text or "").strip()):
            year, clock = int(match["y"]), [int(part) for part in match["t"].split(":")]
            if match["m"] not in _MONTHS:
                return None
            year += 0 if year > 99 else 2000 if year < 70 else 1900
            return float(calendar.timegm((year, _MONTHS.index(match["m"]) + 1, int(match["d"]), *clock)))
    return None


def _members(text: str) -> Iterator[str]:
    """The members of a comma-separated list, where commas in quotes do not separate. Unclosed quotes are ignored."""
    start = 0
    while start < len(text):
        stop = match.end() if (match := _MEMBER.match(text, start)) else start
        if text[stop : stop + 1] == '"':
            yield from text[start:].split(",")
            return
        yield text[start:stop]
        start = stop + 1


def _must_be_fresh(said: Mapping[str, str]) -> bool:
    return bool({"must-revalidate", "proxy-revalidate", "no-cache", "s-maxage"} & said.keys())


def _seconds(text: str) -> float | None:
    return min(_MAX_SECONDS, float(text)) if re.fullmatch(r"[0-9]+", text) else None


def _vary(headers: Fields) -> list[str]:
    return [name.strip().lower() for name in (field(headers, "vary") or "").split(",") if name.strip()]


def _nominated(vary: list[str], request: Fields) -> Fields:
    return tuple((name, _normal(request, name)) for name in sorted(set(vary)))


def _normal(request: Fields, name: str) -> str:
    return ",".join(part.strip() for part in (field(request, name) or "").split(","))

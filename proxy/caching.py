"""What RFC 9111 says of keeping answers and using them again, for a cache that many share. Pure.

Stricter than it has to be where that is safer: nothing is guessed to be fresh that does not say so, and nothing is
kept that came with a cookie, that was asked with a token or a cookie, or that is an error.
"""

from __future__ import annotations

import calendar
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from proxy.ranges import names

Fields = tuple[tuple[str, str], ...]

# What was said once may be said again for as long while the origin fails, unless the answer says how long itself.
STALE_SECONDS = 86_400.0
_MAX_SECONDS = float(1 << 31)  # section 1.2.2
# Anchored, and with nothing that can match in two ways: a header of 8 KB must not hold all others up.
_MEMBER = re.compile(r'(?:[^,"]+|"(?:[^"\\]|\\.)*")*')
_DIRECTIVE = re.compile(r'([^\s,;="]+)(?:=("(?:[^"\\]|\\.)*"|[^\s,"]*))?\Z')
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATES = (  # RFC 9110, section 5.6.7
    re.compile(r"\w{3}, (?P<d>\d{2}) (?P<m>\w{3}) (?P<y>\d{4}) (?P<t>\d{2}:\d{2}:\d{2}) GMT\Z"),
    re.compile(r"\w{6,9}, (?P<d>\d{2})-(?P<m>\w{3})-(?P<y>\d{2}) (?P<t>\d{2}:\d{2}:\d{2}) GMT\Z"),
    re.compile(r"\w{3} (?P<m>\w{3}) (?P<d>[ \d]\d) (?P<t>\d{2}:\d{2}:\d{2}) (?P<y>\d{4})\Z"),
)
# Of a 304 these say nothing about what is kept (section 3.2): they would belie its bytes.
_OF_BYTES = {"content-encoding", "content-length", "content-md5", "content-range", "etag"}
_SHARED_NEVER = ("authorization", "cookie")


@dataclass(frozen=True, slots=True)
class Stored:
    """An answer as the origin gave it. Times in seconds since the epoch; `varied`: what Vary names, as it was asked.

    `is_doubtful`: it may have been written to since, so it is to be asked for again, however fresh it is.
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
        """Bytes of memory, roughly."""
        return len(self.body) + sum(len(name) + len(value) + 150 for name, value in self.headers) + 500


def field(headers: Iterable[tuple[str, str]], name: str) -> str | None:
    """All lines of a field as one, as section 5.3 of RFC 9110 has it; None where there is none."""
    lines = [value for key, value in headers if key.lower() == name]
    return ", ".join(line.strip() for line in lines) if lines else None


def directives(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The `Cache-Control` of a message; of one that is there twice, the first."""
    found: dict[str, str] = {}
    for member in _members(field(headers, "cache-control") or ""):
        if match := _DIRECTIVE.match(member.strip()):
            found.setdefault(match[1].lower(), (match[2] or "").strip('"'))
    return found


def may_share(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether what is asked so may be answered from what is kept for everybody, and be kept."""
    return not any(name.lower() in _SHARED_NEVER for name, _ in headers)


def keep(request: Fields, answer: Stored) -> Stored | None:
    """The answer as it is to be kept; None when it must not be, or when keeping it would serve nobody."""
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
    """Whether it was asked as this request asks, in what its `Vary` names (section 4.1)."""
    return all(_normal(request, name) == value for name, value in stored.varied)


def lifetime(stored: Stored) -> float:
    """Seconds for which an answer is fresh, by its own word (section 4.2.1); 0 when it has none that makes sense."""
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
    """Seconds since the origin said it (section 4.2.3); without end when an `Age` on the way makes no sense."""
    on_the_way = field(stored.headers, "age")
    before = 0.0 if on_the_way is None else _seconds(on_the_way)
    if before is None:
        return math.inf
    said_at = date(field(stored.headers, "date"))
    apparent = 0.0 if said_at is None else max(0.0, stored.came_at - said_at)
    return max(apparent, before + max(0.0, stored.came_at - stored.asked_at)) + max(0.0, now - stored.came_at)


def is_usable(stored: Stored, request: Fields, now: float) -> bool:
    """Whether it may answer a request without the origin being asked (section 4)."""
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


def has_ended(stored: Stored, now: float) -> bool:
    """Whether the origin said itself how long its answer holds, and that is over. No when it said nothing of it."""
    said = _said(stored.headers)
    if "no-cache" in said:
        return True
    is_explicit = {"max-age", "s-maxage"} & said.keys() or field(stored.headers, "expires") is not None
    return bool(is_explicit) and age(stored, now) >= lifetime(stored)


@lru_cache(256)  # asked of what is kept with each request for it
def _said(headers: Fields) -> Mapping[str, str]:
    return directives(headers)


def must_be_fresh(stored: Stored) -> bool:
    """Whether the origin forbids to use it again unasked once it has ended, whatever happens."""
    return _must_be_fresh(directives(stored.headers))


def wants_news(request: Fields) -> bool:
    """Whether a client asks for more than what is kept: a reload."""
    asked = directives(request)
    pragma = not asked and field(request, "pragma") == "no-cache"
    return "no-cache" in asked or asked.get("max-age") == "0" or pragma


def may_be_stale(stored: Stored, request: Fields, now: float) -> bool:
    """Whether it may answer when the origin fails (section 4.2.4, and RFC 5861's stale-if-error)."""
    said = directives(stored.headers)
    if _must_be_fresh(said) or "no-cache" in directives(request):
        return False
    limit = _seconds(said["stale-if-error"]) if "stale-if-error" in said else STALE_SECONDS
    return age(stored, now) - lifetime(stored) <= (limit or 0.0)


def validators(stored: Stored) -> dict[str, str]:
    """The header fields that ask the origin whether it is still so (section 4.3.1); none when it cannot be asked."""
    asked = {}
    if etag := field(stored.headers, "etag"):
        asked["If-None-Match"] = etag
    if modified := field(stored.headers, "last-modified"):
        asked["If-Modified-Since"] = modified
    return asked


def freshened(stored: Stored, headers: Fields, asked_at: float, now: float) -> Stored:
    """What was kept, after the origin said with a 304 that it is still so (section 4.3.4)."""
    new = tuple((name, value) for name, value in headers if name.lower() not in {*_OF_BYTES, "set-cookie"})
    replaced = {name.lower() for name, _ in new} | {"age"}
    kept = tuple((name, value) for name, value in stored.headers if name.lower() not in replaced)
    return replace(stored, headers=kept + new, asked_at=asked_at, came_at=now, is_doubtful=False)


def is_not_modified(stored: Stored, request: Mapping[str, str]) -> bool:
    """Whether the client has it already (section 4.3.2)."""
    if (wanted := request.get("If-None-Match")) is not None:
        etag = field(stored.headers, "etag") or ""
        return names(wanted, etag.removeprefix("W/"), weakly=True)
    since = date(request.get("If-Modified-Since"))
    modified = date(field(stored.headers, "last-modified") or field(stored.headers, "date"))
    return since is not None and modified is not None and modified <= since


def date(text: str | None) -> float | None:
    """An HTTP date in seconds since the epoch; None for what is none."""
    for pattern in _DATES:
        if match := pattern.match((text or "").strip()):
            year, clock = int(match["y"]), [int(part) for part in match["t"].split(":")]
            if match["m"] not in _MONTHS:
                return None
            year += 0 if year > 99 else 2000 if year < 70 else 1900
            return float(calendar.timegm((year, _MONTHS.index(match["m"]) + 1, int(match["d"]), *clock)))
    return None


def _members(text: str) -> Iterator[str]:
    """The members of a list: a comma in quotes is none that tells them apart. Quotes that never end protect nothing."""
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

"""Addresses of files' bytes, remembered until they expire; and the errors when the Hub gives none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from mesh.bounded import Bounded
from mesh.errors import LocationRefused, SourceFailed
from mesh.messages import ORIGIN
from mesh.transfer import Location
from proxy.hub import metadata
from proxy.hub.access import token_key
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.hub.urls import FileRoute

_MAX_LOCATIONS = 5000  # of all files and tokens
_MARGIN = 60.0  # seconds before its end at which an address is replaced
_AT_HUB_SECONDS = 300.0  # for which an address at the Hub itself is used, since it does not say when it ends
_REFUSALS = (401, 403, 404, 410, 422)  # the last one is used by LFS


def renew_at(expires_at: float, said_at: float) -> float:
    """When to replace an address: a minute before it expires, or after nine tenths of a short life."""
    return expires_at - min(_MARGIN, (expires_at - said_at) / 10)


@contextmanager
def as_source() -> Iterator[None]:
    """Turn the Hub's errors on a request for a location into those of the mesh: LocationRefused and SourceFailed."""
    try:
        yield
    except HubError as error:
        if error.status in _REFUSALS:
            raise LocationRefused(ORIGIN, f"HTTP {error.status} {error.message}") from error
        raise SourceFailed(ORIGIN, f"HTTP {error.status} {error.message}", error.retry_after) from error
    except OriginUnavailable as error:
        raise SourceFailed(ORIGIN, error.reason, error.retry_after) from error


class Locations:
    """Addresses by file and by the token that they were given to; times are in seconds since the epoch.

    One signed address serves many ranges until it expires.
    """

    def __init__(self, hub_url: str) -> None:
        self._hub = urlsplit(hub_url)
        self._kept: Bounded[tuple[FileRoute, str], tuple[Location, float]] = Bounded(_MAX_LOCATIONS)

    def get(self, file: FileRoute, token: str | None, now: float, refused: Location | None = None) -> Location | None:
        """The address of a file at a commit; None if there is none, it is about to expire, or it is `refused`."""
        key = _key(file, token)
        location, renew_at = self._kept.get(key, (None, 0.0))
        if location is None or (now < renew_at and location != refused):
            return location
        del self._kept[key]
        return None

    def keep(self, file: FileRoute, token: str | None, url: str, user_agent: str, now: float) -> None:
        """Remember an address. The token is sent along to the Hub itself, never to its storage."""
        parts = urlsplit(url)
        if (parts.scheme, parts.netloc) == (self._hub.scheme, self._hub.netloc):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            headers |= {"User-Agent": user_agent} if user_agent else {}
            location = Location(url, headers, now + _AT_HUB_SECONDS)
        else:
            location = Location(url, expires_at=metadata.expiry(url, now))
        self._kept[_key(file, token)] = location, renew_at(location.expires_at, now)


def _key(file: FileRoute, token: str | None) -> tuple[FileRoute, str]:
    return file, token_key(token) if token else ""

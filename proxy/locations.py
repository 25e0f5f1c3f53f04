"""Where the bytes of files can be had, remembered for as long as the address is good."""

from __future__ import annotations

from collections import OrderedDict
from urllib.parse import urlsplit

from mesh.transfer import Location
from proxy.hub import metadata
from proxy.hub.access import token_key
from proxy.hub.urls import FileRoute

_MAX_LOCATIONS = 5000
_MARGIN = 60.0  # seconds: an address closer to its end is asked for anew, or at a tenth of a short life
_AT_HUB_SECONDS = 300.0


class Locations:
    """Addresses by file and by whose token they were given to; times are seconds since the epoch.

    One signed address serves many ranges until it expires.
    """

    def __init__(self, hub_url: str) -> None:
        self._hub = urlsplit(hub_url)
        self._kept: OrderedDict[tuple[FileRoute, str], tuple[Location, float]] = OrderedDict()

    def get(self, file: FileRoute, token: str | None, now: float, refused: Location | None = None) -> Location | None:
        """The address of a file at a commit, unless it is about to end or is the one that was `refused`."""
        key = _key(file, token)
        location, renew_at = self._kept.get(key, (None, 0.0))
        if location is None or (now < renew_at and location != refused):
            return location
        del self._kept[key]
        return None

    def keep(self, file: FileRoute, token: str | None, url: str, user_agent: str, now: float) -> None:
        """Remember an address. To the Hub itself the token goes along, to its storage never."""
        parts = urlsplit(url)
        if (parts.scheme, parts.netloc) == (self._hub.scheme, self._hub.netloc):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            headers |= {"User-Agent": user_agent} if user_agent else {}
            location = Location(url, headers, now + _AT_HUB_SECONDS)
        else:
            location = Location(url, expires_at=metadata.expiry(url, now))
        key = _key(file, token)
        self._kept[key] = location, location.expires_at - min(_MARGIN, (location.expires_at - now) / 10)
        self._kept.move_to_end(key)
        while len(self._kept) > _MAX_LOCATIONS:
            self._kept.popitem(last=False)


def _key(file: FileRoute, token: str | None) -> tuple[FileRoute, str]:
    return file, token_key(token) if token else ""

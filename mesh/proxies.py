"""The HTTP proxy that the environment names for a host, and the credentials for it."""

from __future__ import annotations

import base64
import urllib.request
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that speaks plain HTTP. `user` and `password` are empty if it needs none."""

    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """The proxy's URL for aiohttp, with user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if not self.user:
            return f"http://{host}:{self.port}"
        # aiohttp sends each character as one byte (ISO 8859-1), but passwords are UTF-8 everywhere else.
        user, password = (quote(text.encode().decode("latin-1"), safe="") for text in (self.user, self.password))
        return f"http://{user}:{password}@{host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """Headers for every request that the proxy can read (RFC 7617)."""
        if not self.user:
            return {}
        return {"Proxy-Authorization": "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()}


def proxy_of(scheme: str, host: str) -> Proxy | None:
    """The proxy for URLs of this scheme and host; None when they are reached directly.

    Raises ValueError for a proxy that cannot be used.
    """
    if urllib.request.proxy_bypass(host):
        return None
    told = urllib.request.getproxies().get(scheme, "").strip()
    if not told:
        return None
    try:
        parts = urlsplit(told if "://" in told else f"http://{told}")
        host, port = parts.hostname or "", parts.port or 80
    except ValueError:
        host = ""
    if not host or parts.scheme != "http":  # an https proxy would put TLS to the origin inside TLS to the proxy
        raise ValueError(f"{scheme.upper()}_PROXY has to be http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")
    return Proxy(host, port, unquote(parts.username or ""), unquote(parts.password or ""))

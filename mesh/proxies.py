"""Which proxy the environment names on the way to a host."""

from __future__ import annotations

import urllib.request
from urllib.parse import urlsplit


def proxy_of(scheme: str, host: str) -> tuple[str, int] | None:
    """Host and port of the proxy for a URL of that scheme and host; None when it is to be reached directly."""
    if urllib.request.proxy_bypass(host):
        return None
    url = urllib.request.getproxies().get(scheme)
    if not url:
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    return (parts.hostname, parts.port or 80) if parts.hostname else None

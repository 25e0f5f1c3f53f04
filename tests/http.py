"""Plain HTTP requests: no redirects followed, no decoding, no retries."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def __getitem__(self, name: str) -> str | None:
        """Return a header field, whatever its case."""
        return next((value for key, value in self.headers.items() if key.lower() == name.lower()), None)


def ask(
    url: str, method: str = "GET", *, token: str = "", body: bytes | None = None, timeout: float = 30, **headers: str
) -> Answer:
    """Send one request. Header names have underscores for hyphens. Raises HTTPException if the body is cut short."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if token:
        sent["Authorization"] = f"Bearer {token}"
    target = url.split(parts.netloc, 1)[1]
    try:
        connection.request(method, target or "/", body=body, headers=sent)
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()

"""A client: its token, its software, and how that software must be treated. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_STRANGE = re.compile(r"[^ -~]")
_LONGEST_NAME = 1000
_HUB_VERSION = re.compile(r"\bhf_hub/(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Client:
    """The token and the User-Agent of a request.

    `has_bad_token`: the request had a token that is not all printable ASCII, so it cannot be valid. It is not kept.
    """

    token: str | None = field(default=None, repr=False)
    user_agent: str = ""
    has_bad_token: bool = False

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Client:
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else ""
        is_bad = not _is_plain(token)
        return cls(token if token and not is_bad else None, agent_of(headers), is_bad)

    @property
    def hub_version(self) -> tuple[int, int] | None:
        """Version (major, minor) of huggingface_hub; None for other software."""
        match = _HUB_VERSION.search(self.user_agent)
        return (int(match[1]), int(match[2])) if match else None

    @property
    def waits_on_429(self) -> bool:
        """Whether to make it wait with 429. Since 1.0 clients retry on 429 and give up on 5xx; 0.x does the reverse."""
        return (self.hub_version or (1, 0)) >= (1, 0)

    @property
    def resumes_in_closed_ranges(self) -> bool:
        """Whether it asks for the rest of a download up to the last byte by its number, however old the download is."""
        return self.user_agent.startswith("aria2/")

    @property
    def accepts_unknown_size(self) -> bool:
        return (self.hub_version or (0, 0)) >= (1, 33)


def agent_of(headers: Mapping[str, str]) -> str:
    """The client's User-Agent in a form that can be forwarded: printable ASCII, of bounded length."""
    name = headers.get("User-Agent", "")[:_LONGEST_NAME]
    return name if _is_plain(name) else _STRANGE.sub("?", name)


def _is_plain(text: str) -> bool:
    """Whether the text has nothing that _STRANGE would match. Most texts have not, and this test is faster."""
    return text.isascii() and text.isprintable()

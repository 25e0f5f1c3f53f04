"""Who asks: the token and the software, and what that software needs. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_STRANGE = re.compile(r"[^ -~]")
_LONGEST_NAME = 1000
_HUB_VERSION = re.compile(r"\bhf_hub/(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Client:
    """The token that came with a request, and its User-Agent.

    `has_bad_token`: one came that cannot be any, as it is not all printable ASCII. It is not kept.
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
        """Version of huggingface_hub, None for other software."""
        match = _HUB_VERSION.search(self.user_agent)
        return (int(match[1]), int(match[2])) if match else None

    @property
    def waits_on_429(self) -> bool:
        """Recent clients wait and try again on 429 and give up on 5xx; 0.x the other way round."""
        return (self.hub_version or (1, 0)) >= (1, 0)

    @property
    def accepts_unknown_size(self) -> bool:
        return (self.hub_version or (0, 0)) >= (1, 33)


def agent_of(headers: Mapping[str, str]) -> str:
    """What a client calls itself, as it can be sent on by anybody: printable ASCII, of bounded length."""
    name = headers.get("User-Agent", "")[:_LONGEST_NAME]
    return name if _is_plain(name) else _STRANGE.sub("?", name)


def _is_plain(text: str) -> bool:
    """Whether it has nothing that _STRANGE would find; most have not, and this is quicker."""
    return text.isascii() and text.isprintable()

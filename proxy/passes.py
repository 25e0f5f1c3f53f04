"""Passes of this node for its Xet server: who has which, on whose behalf. What one looks like: proxy/hub/xet.py."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from pathlib import Path

from proxy.hub.access import token_key
from proxy.hub.client import Client
from proxy.hub.urls import Repo
from proxy.hub.xet import Pass, read_pass, write_pass

PASS_SECONDS = 900
# An address is used later than it was given out: clients fetch what they asked about as they find room for it.
_ADDRESS_SECONDS = 3600
_MAX_HOLDERS = 10_000


class Passes:
    """Gives passes and knows them again, after a restart too; times are seconds since the epoch.

    The tokens that they were given to are in no pass, and not on disk: a pass for such a holder ends with the process.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._holders: OrderedDict[str, tuple[str, float]] = OrderedDict()  # tokens, and until when they are needed

    def grant(self, client: Client, repo: Repo, now: float) -> tuple[str, int]:
        """An access token for a repository, and when it ends."""
        until = int(now) + PASS_SECONDS
        return write_pass(self._key, Pass(self._hold(client, now), str(repo), int(now), until)), until

    def narrow(self, granted: Pass, xet_hash: str, now: float) -> str:
        """What an access token is good for, for one file alone: to be put into an address."""
        return write_pass(
            self._key, Pass(granted.holder, granted.repo, granted.since, int(now) + _ADDRESS_SECONDS, xet_hash)
        )

    def read(self, text: str, xet_hash: str, user_agent: str, now: float) -> tuple[Pass, Client] | None:
        """A pass for a file (for none: an access token) and the client that it lets in; None for a bad one."""
        granted = read_pass(self._key, text, now)
        if granted is None or granted.file != xet_hash:
            return None
        token, _ = self._holders.get(granted.holder, (None, 0.0))
        if granted.holder and token is None:
            return None
        return granted, Client(token, user_agent)

    def _hold(self, client: Client, now: float) -> str:
        while self._holders:
            oldest, (_, until) = next(iter(self._holders.items()))
            if until > now and len(self._holders) < _MAX_HOLDERS:
                break
            del self._holders[oldest]
        if client.token is None:
            return ""
        holder = token_key(client.token)
        self._holders[holder] = client.token, now + PASS_SECONDS + _ADDRESS_SECONDS
        self._holders.move_to_end(holder)
        return holder


def load_key(data_dir: Path) -> bytes:
    """The secret that signs passes, made at the first start: who downloads does not notice a restart."""
    file = data_dir / "xet-key"
    try:
        if len(key := file.read_bytes()) == 32:
            return key
    except FileNotFoundError:
        pass
    key = secrets.token_bytes(32)
    temporary = file.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    temporary.touch(0o600, exist_ok=False)
    temporary.write_bytes(key)
    temporary.replace(file)
    return key

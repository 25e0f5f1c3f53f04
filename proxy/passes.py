"""Passes for this node's Xet server: which were given, and for which token. Their format is in proxy/hub/xet.py."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from pathlib import Path

from proxy.hub.access import token_key
from proxy.hub.client import Client
from proxy.hub.urls import Repo
from proxy.hub.xet import Pass, read_pass, write_pass

PASS_SECONDS = 900  # life of an access token
# Seconds. An address may be used long after it was given: clients fetch parts when they have room for them.
_ADDRESS_SECONDS = 3600
_MAX_HOLDERS = 10_000


class Passes:
    """Issues passes and recognises them, also after a restart; times are in seconds since the epoch.

    Tokens are neither in a pass nor on disk, so passes that were given for a token end with the process.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._holders: OrderedDict[str, tuple[str, float]] = OrderedDict()  # token key: token, end of need

    def grant(self, client: Client, repo: Repo, now: float) -> tuple[str, int]:
        """An access token for a repository, and when it expires."""
        until = int(now) + PASS_SECONDS
        return write_pass(self._key, Pass(self._hold(client, now), str(repo), int(now), until)), until

    def narrow(self, granted: Pass, xet_hash: str, now: float) -> str:
        """A pass with the same rights for a single file, to be put into an address."""
        return write_pass(
            self._key, Pass(granted.holder, granted.repo, granted.since, int(now) + _ADDRESS_SECONDS, xet_hash)
        )

    def read(self, text: str, xet_hash: str, user_agent: str, now: float) -> tuple[Pass, Client] | None:
        """The pass in a text, and the client that it stands for; None if it is not valid for this file.

        An access token is read with an empty `xet_hash`.
        """
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
    """The key that signs passes. It is created at the first start and kept, so that downloads survive a restart."""
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

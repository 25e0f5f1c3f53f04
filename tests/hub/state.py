"""The state of the running stand-in: repositories, knobs that make it misbehave, and request counts."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from aiohttp import web

from tests.hub.repos import Entry, HubFolder, Repo

_IS_GIT = re.compile(r"/info/(refs|lfs/objects/\w+)$|/git-(upload|receive)-pack$")
KINDS = ("resolve", "api", "cdn", "upload", "other")


@dataclass
class Knobs:
    """How the stand-in misbehaves; by default it does not. Sizes in bytes, times in seconds."""

    bandwidth: int = 0  # bytes per second of the CDN, shared by all connections
    connection_bandwidth: int = 0  # bytes per second of each CDN connection
    latency: dict[str, float] = field(default_factory=dict)  # by kind, before each answer
    fail: dict[str, list[int]] = field(default_factory=dict)  # by kind: statuses of the next answers
    cut_after: int = -1  # cut a CDN body after so many bytes, the next `cut_times` times
    cut_times: int = 0
    hang_after: int = -1  # the same, but fall silent instead of closing
    hang_times: int = 0
    hold_at: int = -1  # offset in a file from which on the CDN sends nothing while this is set
    corrupt: dict[str, int] = field(default_factory=dict)  # path → offset of a byte that is sent wrong
    corrupt_times: int = 0
    retry_after: int = 1  # seconds, of the Retry-After of a 429
    ignore_range: bool = False
    url_life: float = 3600.0
    key_number: int = 0  # of the key that signs URLs: URLs signed under earlier numbers are refused
    page_size: int = 1000
    as_https: bool = False  # give a bare 401 the error code that clients infer only over https
    cache_control: str = ""  # of the API's answers
    absolute: bool = False  # redirects within the Hub are absolute URLs
    dark: str = ""  # "close" every connection, or "hang"


class State:
    """Shared by both ports."""

    def __init__(self, root: Path) -> None:
        self.folder = HubFolder(root)
        self.root = root
        self.knobs = Knobs()
        self.requests: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.seen: dict[str, list[dict[str, str]]] = {}
        self.not_modified = 0  # 304 answers
        self.hub_url = ""
        self.cdn_url = ""
        self.uploads: dict[str, str] = {}  # sha256 → folder of the repository that it was announced for
        self._secret = uuid.uuid4().hex.encode()
        self._repos: dict[str, tuple[float, Repo]] = {}
        self._free_at = 0.0

    # --- repositories and who may read them

    def repo(self, repo_type: str, repo_id: str) -> Repo | None:
        file = self.folder.folder(repo_type, repo_id) / "repo.json"
        try:
            changed = file.stat().st_mtime_ns
        except OSError:
            return None
        known = self._repos.get(str(file))
        if known is None or known[0] != changed:
            known = self._repos[str(file)] = (changed, Repo.load(file))
        return known[1]

    def repos(self, repo_type: str) -> list[Repo]:
        files = sorted((self.root / repo_type).glob("*/*/repo.json")) + sorted(
            (self.root / repo_type).glob("*/repo.json")
        )
        return [
            repo
            for file in files
            if (repo := self.repo(repo_type, str(file.parent.relative_to(self.root / repo_type))))
        ]

    def user(self, request: web.Request) -> str | None:
        """Return the user of a request: None without a token, "" for an unknown one."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic" and _IS_GIT.search(request.path):  # git sends the token as the password
            scheme, token = "bearer", base64.b64decode(token).decode().partition(":")[2]
        if not token or scheme.lower() != "bearer":
            return None
        file = self.root / "tokens.json"
        tokens: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
        return tokens.get(token, "")

    def object_path(self, repo: Repo, entry: Entry) -> Path:
        return self.folder.folder(repo.type, repo.id) / "objects" / entry.object  # absolute ones stay as they are

    def here(self, target: str) -> str:
        """Return a redirect's target on this Hub, absolute if the knobs say so."""
        return self.hub_url + target if self.knobs.absolute else target

    # --- signed addresses

    def sign(self, repo: Repo, entry: Entry, path: str) -> str:
        expires = int(time.time() + self.knobs.url_life)
        target = f"/repos/{repo.type}/{quote(repo.id)}/{entry.sha256}"
        disposition = quote(
            f"inline; filename*=UTF-8''{path.rpartition('/')[2]}; filename=\"{path.rpartition('/')[2]}\";"
        )
        signature = self._signature(target, str(expires))
        return (
            f"{self.cdn_url}{target}?response-content-disposition={disposition}&Expires={expires}"
            f"&Signature={signature}&Key-Pair-Id={uuid.uuid4().hex[:12]}"
        )

    def is_signed(self, request: web.Request) -> bool:
        expires = request.query.get("Expires", "0")
        expected = self._signature(unquote(request.path), expires)
        signature = request.query.get("Signature", "")
        return hmac.compare_digest(expected, signature) and expires.isdigit() and int(expires) > time.time()

    def _signature(self, target: str, expires: str) -> str:
        return hmac.new(
            self._secret, f"{unquote(target)}\n{expires}\n{self.knobs.key_number}".encode(), hashlib.sha256
        ).hexdigest()

    # --- knobs and counts

    def turn(self, changes: dict[str, Any]) -> None:
        names = {f.name for f in fields(Knobs)}
        for name, value in changes.items():
            if name not in names:
                raise web.HTTPBadRequest(text=f"no such knob: {name}")
            setattr(self.knobs, name, value)

    def count(self, request: web.Request, kind: str) -> None:
        self.requests[f"{request.method} {kind} {request.path}"] += 1
        heard = self.seen.setdefault(kind, [])
        heard.append({name.lower(): value for name, value in request.headers.items()})
        del heard[:-200]

    def report(self) -> dict[str, Any]:
        by_kind: Counter[str] = Counter()
        for name, count in self.requests.items():
            by_kind[name.split(" ")[1]] += count
        return {
            "requests": dict(self.requests),
            "by_kind": dict(by_kind),
            "bytes": dict(self.bytes),
            "total_bytes": sum(self.bytes.values()),
            "seen": self.seen,
            "not_modified": self.not_modified,
        }

    def reset(self) -> None:
        self.requests.clear()
        self.bytes.clear()
        self.seen.clear()
        self.not_modified = 0

    async def pace(self, count: int, began: float, sent: int) -> None:
        """Wait, as the bandwidth knobs require, before a connection that has sent `sent` bytes sends `count` more."""
        knobs, now = self.knobs, time.monotonic()
        wait = 0.0
        if knobs.bandwidth:
            self._free_at = max(self._free_at, now - 0.02) + count / knobs.bandwidth
            wait = self._free_at - now
        if knobs.connection_bandwidth:
            wait = max(wait, began + (sent + count) / knobs.connection_bandwidth - now)
        if wait > 0:
            await asyncio.sleep(wait)

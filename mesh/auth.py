"""Authentication between nodes: requests and answers are signed with the key that the nodes of a mesh share.

Certificates do the same for whole connections (mesh/tls.py): a mesh may use a key, certificates, both or neither.

A request carries an HMAC-SHA256 over its method, target, body digest, sender, receiver, time and nonce in one
`Authorization` header. The answer is signed as well, over the request's own signature, so that only a holder of the
key can give an answer that is accepted. Bodies travel in the clear: the key authenticates, it does not encrypt.

All holders of the key trust each other: any of them could sign as another. Nonces are remembered while their time is
acceptable, so a running node accepts a request only once. A request that names its receiver is accepted by that node
alone.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aiohttp import web

from mesh.bodies import Body, Room
from mesh.errors import MeshError
from mesh.protocol import mesh_name
from mesh.tls import Tls

log = logging.getLogger(__name__)

MAX_SKEW = 60  # seconds by which the clocks of two nodes may differ
MIN_KEY = 16  # bytes; a shorter key could be guessed offline from one overheard request
MAX_KEY = 4096  # bytes
ANSWER_HEADER = "Hubmesh-Answer"
_SCHEME = "Hubmesh"
_MAX_NONCES = 1 << 16  # nonces remembered: about 10 MB at worst
_MAX_LOGGED = 256  # pairs of peer and reason that are remembered as logged
_LOGGED_SECONDS = 3600.0  # for which each is; so no more pairs than that are logged in this time
# OpenSSL's verify codes (X509_V_ERR_*) for a chain that does not end at a known authority: all four mean the same.
_ANOTHER = dict.fromkeys((18, 19, 20, 21), "another authority signed it")
_EMPTY = hashlib.sha256().hexdigest()
_AUTHORIZATION = re.compile(
    r"Hubmesh from=([0-9A-Za-z_-]{1,128}), to=([0-9A-Za-z_-]{0,128}), time=(\d{1,12}), nonce=([0-9a-f]{24}), "
    r"digest=([0-9a-f]{64}), mac=([0-9a-f]{64})"
)

_Signature = Literal["unsigned", "malformed", "keyless", "key", "clock", "replay", "body", "receiver"]
_Connection = Literal["plain", "certificate", "unwelcome"]
Reason = _Signature | _Connection
_SENTENCES: dict[Reason, str] = {
    "unsigned": "it has no mesh key, but this mesh has one (--mesh-key-file)",
    "malformed": "its signature cannot be read: is it the same version of hubmesh?",
    "keyless": "it has a mesh key, but this node has none (--mesh-key-file)",
    "key": "it has another mesh key (--mesh-key-file)",
    "clock": f"its clock and ours differ by more than {MAX_SKEW} s",
    "replay": "the request was seen before, or is older than what we can remember",
    "body": "the body is not the one that was signed",
    "receiver": "the request was meant for another node",
    "plain": "it does not speak TLS, but this mesh has certificates (--mesh-tls-cert-file)",
    "certificate": "its certificate is not one of this mesh (--mesh-tls-ca-file)",
    "unwelcome": "it does not accept our certificate (--mesh-tls-cert-file)",
}

# The node id of a request's signer. Set only in a mesh with a key; without one the sender is not authenticated.
SENDER = web.RequestKey("sender", str)


class NotAuthentic(MeshError):
    """A request or an answer that is not signed with this mesh's key, not meant for this node, stale or replayed.

    Also a TLS handshake that failed for want of an accepted certificate.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{_SENTENCES[reason]}: {detail}" if detail else _SENTENCES[reason])
        self.reason: Reason = reason

    @classmethod
    def of_tls(cls, error: ssl.SSLError) -> NotAuthentic:
        """Translate the error of a failed handshake, seen from either side of it."""
        reason = (error.reason or "").lower().replace("_", " ")
        if isinstance(error, ssl.SSLCertVerificationError):
            return cls("certificate", _ANOTHER.get(error.verify_code, error.verify_message))
        if "did not return a certificate" in reason:
            return cls("certificate", "it has none")
        if " alert " in reason:
            return cls("unwelcome", reason.partition(" alert ")[2])
        if reason in ("http request", "wrong version number", "record layer failure", "packet length too long"):
            return cls("plain")
        return cls("certificate", reason or str(error))


def load_key(path: Path) -> bytes:
    """Return the secret in a file, without surrounding white space. Raises OSError, or ValueError saying what is wrong.

    The secret is 16 to 4096 bytes long.
    """
    with path.open("rb") as file:
        key = file.read(MAX_KEY + 1).strip()
    if not MIN_KEY <= len(key) <= MAX_KEY:
        raise ValueError(f"{path} does not hold a mesh key: {MIN_KEY} to {MAX_KEY} bytes, better 32 random ones")
    return key


@dataclass(frozen=True, slots=True)
class Signed:
    """What a valid signature says about its request."""

    sender: str
    body_digest: str
    mac: str


class Nonces:
    """The nonces seen within the acceptable time, grouped by the second they were signed in.

    Memory is bounded without letting a replay through: when there are too many nonces, those of the oldest second are
    forgotten, and nothing signed in that second or earlier is accepted any more.
    """

    def __init__(self, limit: int = _MAX_NONCES) -> None:
        self._limit = limit
        self._seconds: dict[int, set[bytes]] = {}
        self._count = 0
        self._floor = 0

    def __len__(self) -> int:
        return self._count

    def add(self, second: int, nonce: bytes, now: float) -> bool:
        """Return whether a nonce is new, and remember it.

        `second` is the time that the request states; `now` decides which nonces may be forgotten. Both are seconds
        since the epoch.
        """
        for expired in [known for known in self._seconds if known < now - MAX_SKEW]:
            self._count -= len(self._seconds.pop(expired))
        if second < self._floor:
            return False
        seen = self._seconds.setdefault(second, set())
        if nonce in seen:
            return False
        seen.add(nonce)
        self._count += 1
        while self._count > self._limit:
            oldest = min(self._seconds)
            self._count -= len(self._seconds.pop(oldest))
            self._floor = oldest + 1
        return True


class Auth:
    """Signs and checks messages for one node. Without a key nothing is signed, and signed requests are refused.

    `tls` holds the certificates, in a mesh that has them. Signing is safe from any thread; checking belongs to the
    event loop's thread.
    """

    def __init__(
        self,
        node_id: str,
        key: bytes | None = None,
        clock: Callable[[], float] = time.time,
        tls: Tls | None = None,
    ) -> None:
        self.node_id = node_id
        self.tls = tls
        self.scheme = "http" if tls is None else "https"
        self._has_key = key is not None
        # Whether membership is restricted, be it by a key or by certificates.
        self.is_keyed = self._has_key or tls is not None
        key_name = "" if key is None else _derive(key, b"name").hex()[:16]
        self.mesh_id = mesh_name(key_name, is_tls=tls is not None)
        self._request_key = b"" if key is None else _derive(key, b"request")
        self._answer_key = b"" if key is None else _derive(key, b"answer")
        self._clock = clock
        self._nonces = Nonces()
        self._logged: dict[tuple[str, str], float] = {}  # when; the oldest come first

    def sign(self, method: str, target: str, body: bytes = b"", to: str = "") -> dict[str, str]:
        """Return the headers that sign a request; {} without a key.

        `target` is path and query exactly as they are sent. `to` is the node id of the receiver, where it is known:
        then no other node accepts the request.
        """
        if not self._has_key:
            return {}
        digest = hashlib.sha256(body).hexdigest() if body else _EMPTY
        second, nonce = str(int(self._clock())), secrets.token_hex(12)
        mac = self._request_mac(method, target, digest, self.node_id, to, second, nonce)
        return {
            "Authorization": f"{_SCHEME} from={self.node_id}, to={to}, time={second}, nonce={nonce}, "
            f"digest={digest}, mac={mac}"
        }

    def check(self, method: str, target: str, headers: Mapping[str, str]) -> Signed | None:
        """Check the signature of a request; None without a key. Raises NotAuthentic.

        The body is left to `check_body`, so that it need not be read before the sender is known to hold the key.
        """
        authorization = headers.get("Authorization", "")
        is_signed = authorization.startswith(_SCHEME + " ")
        if not self._has_key:
            if is_signed:
                raise NotAuthentic("keyless")
            return None
        if not is_signed:
            raise NotAuthentic("unsigned")
        if (match := _AUTHORIZATION.fullmatch(authorization)) is None:
            raise NotAuthentic("malformed")
        sender, to, second, nonce, digest, mac = match.groups()
        expected = self._request_mac(method, target, digest, sender, to, second, nonce)
        if not hmac.compare_digest(mac, expected):
            raise NotAuthentic("key")
        now = self._clock()
        if abs(now - int(second)) > MAX_SKEW:
            raise NotAuthentic("clock")
        if to not in ("", self.node_id):
            raise NotAuthentic("receiver")
        if not self._nonces.add(int(second), bytes.fromhex(nonce), now):
            raise NotAuthentic("replay")
        return Signed(sender, digest, mac)

    def check_body(self, signed: Signed | None, body: bytes) -> None:
        """Raise NotAuthentic unless `body` is the one that was signed."""
        if signed is not None and hashlib.sha256(body).hexdigest() != signed.body_digest:
            raise NotAuthentic("body")

    def sign_answer(self, signed: Signed, status: int, body: bytes) -> str:
        """Return the value of ANSWER_HEADER for an answer to a signed request."""
        return self._answer_mac(signed.mac, status, body)

    def check_answer(self, sent: Mapping[str, str], status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Raise NotAuthentic unless a node with our key gave this answer to the request with the headers `sent`."""
        if status == 401:
            raise NotAuthentic(_reason_in(headers.get("WWW-Authenticate", "")))
        if not self._has_key:
            return
        mac = headers.get(ANSWER_HEADER, "")
        if not mac:
            raise NotAuthentic("unsigned")
        expected = self._answer_mac(sent["Authorization"][-64:], status, body)
        if not hmac.compare_digest(mac.encode(errors="replace"), expected.encode()):
            raise NotAuthentic("key")

    def complain(self, peer: str, error: NotAuthentic, did: str) -> None:
        """Log what is wrong with a peer, once for each peer and reason. Old ones are forgotten to make room for new."""
        if (peer, error.reason) in self._logged:
            return
        now = time.monotonic()
        if len(self._logged) >= _MAX_LOGGED:
            oldest = next(iter(self._logged))
            if now - self._logged[oldest] < _LOGGED_SECONDS:
                return
            del self._logged[oldest]
        self._logged[peer, error.reason] = now
        log.warning("%s %s: %s", did, peer, error, extra={"peer": peer, "reason": error.reason})

    def _request_mac(self, *parts: str) -> str:
        # No part can contain a line end: the HTTP parser refuses one in method and target, _AUTHORIZATION in the rest.
        return hmac.digest(self._request_key, "\n".join(parts).encode(errors="surrogateescape"), "sha256").hex()

    def _answer_mac(self, request_mac: str, status: int, body: bytes) -> str:
        text = f"{request_mac}\n{status}\n{hashlib.sha256(body).hexdigest()}"
        return hmac.digest(self._answer_key, text.encode(), "sha256").hex()


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guard(auth: Auth) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
    """Return the middleware of the mesh port: requests from outside the mesh get 401 before their body is read.

    Handlers find the sender's node id under SENDER. Complete answers are signed. Streamed answers cannot be, and need
    another check (pieces are checked against digests that came in a signed answer).
    """

    room = Room()

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        with Body(request, room) as body:
            try:
                signed = auth.check(request.method, request.raw_path, request.headers)
                auth.check_body(signed, await body.read())
            except NotAuthentic as error:
                auth.complain(request.remote or "a local process", error, "refused a request of")
                return web.Response(
                    status=401,
                    text=f"{error}\n",
                    headers={"WWW-Authenticate": f'{_SCHEME} reason="{error.reason}"'},
                )
            if signed is None:
                return await handler(request)
            request[SENDER] = signed.sender
            response = await handler(request)
            if isinstance(response, web.Response) and isinstance(response.body, bytes | None):
                response.headers[ANSWER_HEADER] = auth.sign_answer(signed, response.status, response.body or b"")
            return response

    return middleware


def _derive(key: bytes, purpose: bytes) -> bytes:
    return hmac.digest(key, b"hubmesh 1 " + purpose, "sha256")


def _reason_in(header: str) -> Reason:
    """Return why a peer refused this node, as seen from here: "unsigned" there means "keyless" here, and vice versa."""
    match = re.search(r'reason="(\w+)"', header)
    mirrored: dict[str, Reason] = {"unsigned": "keyless", "keyless": "unsigned"}
    reason = match[1] if match else "malformed"
    if reason in mirrored:
        return mirrored[reason]
    for known in _SENTENCES:
        if reason == known:
            return known
    return "malformed"

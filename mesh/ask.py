"""One message to a peer and its answer: signed, bounded in size, and checked before the caller sees it."""

from __future__ import annotations

import ssl
import time

import aiohttp
from yarl import URL

from mesh.auth import Auth, NotAuthentic
from mesh.errors import Refused, Unavailable
from mesh.membership import Address

_TYPE = "application/x-msgpack"


async def ask(
    session: aiohttp.ClientSession, auth: Auth, address: Address, target: str, body: bytes, *, limit: int, to: str = ""
) -> bytes:
    """POST a message and return the answer's body, of at most `limit` bytes. The caller sets the time limit.

    `to` is the node id of the intended receiver, where it is known. Raises OSError when there is no answer
    (ConnectionRefusedError when nothing listens at the address, ConnectionResetError when the peer closes the
    connection instead of answering), NotAuthentic (logged once for each peer and reason) when either side refuses the
    other, and Unavailable when the answer is unusable or this node is stopping (Refused for an error status).
    """
    if session.closed:
        raise Unavailable("this node is stopping")
    headers = {"Content-Type": _TYPE, **auth.sign("POST", target, body, to)}
    url = URL(f"{auth.scheme}://{address}{target}", encoded=True)
    tls = True if auth.tls is None else auth.tls.client
    try:
        async with session.post(url, data=body, headers=headers, allow_redirects=False, ssl=tls) as response:
            answer = bytearray()
            async for data in response.content.iter_any():
                answer += data
                if len(answer) > limit:
                    raise Unavailable(f"{address} answers with more than {limit} bytes")
            if response.status not in (200, 401):  # unusable, so its signature need not be checked
                raise Refused(str(address), response.status)
            auth.check_answer(headers, response.status, response.headers, bytes(answer))
            return bytes(answer)
    except NotAuthentic as error:
        auth.complain(str(address), error, "cannot talk to")
        raise
    except aiohttp.ClientError as error:
        if (refusal := _refusal(auth, error)) is not None:
            auth.complain(str(address), refusal, "cannot talk to")
            raise refusal from error
        raise _unreachable(address, error) from error


def _refusal(auth: Auth, error: aiohttp.ClientError) -> NotAuthentic | None:
    """Return the certificate problem behind a failed connection; None when there is none."""
    if isinstance(error.__cause__, ssl.SSLError):
        return NotAuthentic.of_tls(error.__cause__)
    # A peer that refuses our certificate just closes the connection, so look at the certificate's dates ourselves.
    trouble = "" if auth.tls is None else auth.tls.trouble(time.time())
    return NotAuthentic("unwelcome", f"it {trouble}") if trouble else None


def _unreachable(address: Address, error: aiohttp.ClientError) -> OSError:
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return ConnectionResetError(f"{address}: {error}")
    if not isinstance(error, aiohttp.ClientConnectorError):
        return ConnectionError(f"{address}: {type(error).__name__} {error}")
    if isinstance(error.os_error, ConnectionRefusedError):
        return ConnectionRefusedError(f"{address} refuses connections")
    return ConnectionError(f"{address} cannot be reached: {error.os_error}")

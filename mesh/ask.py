"""One message to a peer and its answer: signed, bounded in size, and checked before anybody looks at it."""

from __future__ import annotations

import aiohttp
from yarl import URL

from mesh.auth import Auth, NotAuthentic
from mesh.errors import Unavailable
from mesh.membership import Address

_TYPE = "application/x-msgpack"


async def ask(
    session: aiohttp.ClientSession, auth: Auth, address: Address, target: str, body: bytes, *, limit: int, to: str = ""
) -> bytes:
    """POST a message and return the answer's body, of at most `limit` bytes. The caller sets the time limit.

    `to` is the node id of whom we mean to ask, where it is known. Raises OSError when nobody answers
    (ConnectionRefusedError: nobody listens there), NotAuthentic (which is logged once for each peer) or Unavailable
    when the answer is of no use.
    """
    if session.closed:
        raise Unavailable("this node is stopping")
    headers = {"Content-Type": _TYPE, **auth.sign("POST", target, body, to)}
    url = URL(f"http://{address}{target}", encoded=True)
    try:
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            answer = bytearray()
            async for data in response.content.iter_any():
                answer += data
                if len(answer) > limit:
                    raise Unavailable(f"{address} answers with more than {limit} bytes")
            if response.status not in (200, 401):  # whoever says so: it is of no use
                raise Unavailable(f"{address} answers HTTP {response.status}")
            auth.check_answer(headers, response.status, response.headers, bytes(answer))
            return bytes(answer)
    except NotAuthentic as error:
        auth.complain(str(address), error, "cannot talk to")
        raise
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, ConnectionRefusedError):
            raise ConnectionRefusedError(f"{address} refuses connections") from error
        raise ConnectionError(f"{address} cannot be reached: {error.os_error}") from error
    except aiohttp.ClientError as error:
        raise ConnectionError(f"{address}: {type(error).__name__} {error}") from error

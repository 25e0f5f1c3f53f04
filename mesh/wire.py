"""Decoding of what others have sent: a message of one type, or an error that callers expect. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import msgspec

_Message = TypeVar("_Message")


class _Decodes(Protocol):
    def decode(self, data: bytes, /) -> Any: ...


class Decoder(Generic[_Message]):
    """A msgspec decoder for bytes from untrusted senders, of MessagePack or, with `msgspec.json.Decoder`, of JSON."""

    def __init__(self, type: Any, of: Callable[[Any], _Decodes] = msgspec.msgpack.Decoder) -> None:
        self._decode = of(type).decode

    def decode(self, data: bytes) -> _Message:
        """Decode one message. Raises msgspec.DecodeError, which is a ValueError."""
        try:
            message: _Message = self._decode(data)
        except RecursionError as error:  # msgspec has no error of its own for it
            raise msgspec.DecodeError("nested too deep") from error
        return message

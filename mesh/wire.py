"""Decoding of messages from other nodes: a message of one type, or an error that callers expect. Pure."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

_Message = TypeVar("_Message")


class Decoder(Generic[_Message]):
    """A msgspec decoder for bytes from untrusted senders."""

    def __init__(self, type: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(type).decode

    def decode(self, data: bytes) -> _Message:
        """Decode one message. Raises msgspec.DecodeError, which is a ValueError."""
        try:
            message: _Message = self._decode(data)
        except RecursionError as error:  # msgspec has no error of its own for it
            raise msgspec.DecodeError("nested too deep") from error
        return message

"""Decoding of JSON from clients and from the Hub: a value of one type, or an error that callers expect. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from mesh.wire import Decoder


def decode(body: bytes, type: Any = Any) -> Any:
    """Decode JSON of a type that msgspec knows. Raises msgspec.DecodeError, which is a ValueError."""
    return _decoder(type).decode(body)


@lru_cache(64)
def _decoder(type: Any) -> Decoder[Any]:
    return Decoder(type, msgspec.json.Decoder)

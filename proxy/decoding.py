"""Decoding of JSON from clients and from the Hub: a value of one type, or an error that callers expect. Pure."""

from __future__ import annotations

from typing import Any

import msgspec


def decode(body: bytes, type: Any = Any) -> Any:
    """Decode JSON of a type that msgspec knows. Raises msgspec.DecodeError, which is a ValueError."""
    try:
        return msgspec.json.decode(body, type=type)
    except RecursionError as error:  # msgspec has no error of its own for it
        raise msgspec.DecodeError("nested too deep") from error

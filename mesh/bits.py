"""Sets of small numbers, such as pieces, as integers: bit n is set when n is in the set. Pure.

A step on a whole set copies it, so no walk over a set may take such a step for each number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_WORD = 64  # bytes of a set that are walked over at a time


def bits_in(numbers: Iterable[int]) -> int:
    """Return the set of these numbers, in any order and however often each comes; none may be negative."""
    data = bytearray()
    for number in numbers:
        if number // 8 >= len(data):
            data.extend(bytes(number // 8 + 1 - len(data)))
        data[number // 8] |= 1 << number % 8
    return int.from_bytes(data, "little")


def bits_of(runs: Iterable[tuple[int, int]]) -> int:
    """Return the set of the numbers in these runs (start, stop)."""
    bits = 0
    for start, stop in runs:
        bits |= (1 << stop) - (1 << start)
    return bits


def members(bits: int) -> Iterator[int]:
    """Yield the numbers in a set, in order. The time for all of them is linear in the highest."""
    data = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
    for start in range(0, len(data), _WORD):
        word = int.from_bytes(data[start : start + _WORD], "little")
        while word:
            low = word & -word
            yield 8 * start + low.bit_length() - 1
            word ^= low


def members_from(bits: int, start: int) -> Iterator[int]:
    """Yield the numbers in a set, in order from `start` on and then from 0."""
    for number in members(bits >> start):
        yield start + number
    yield from members(bits & ((1 << start) - 1))


def first_from(bits: int, start: int) -> int:
    """Return the first number of `members_from`, for a set that is not empty."""
    later = bits >> start
    if later:
        return start + (later & -later).bit_length() - 1
    return (bits & -bits).bit_length() - 1

"""The room that the catalog takes on disk: API answers and names each have a budget of their own.

Names (refs, files of commits and the like) are small, and without them a blob on disk cannot be served while the Hub
cannot be asked. Answers can be large: the listing of one repository can have 100 MB. So answers displace nothing but
older answers.

The shelf of an entry can be told from its store time, which is shifted into the future for all but answers. So the
index by store time lists the oldest entries of each shelf, and no further column or index is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_ANSWERS_LIMIT = 1 << 30  # bytes
_NAMES_LIMIT = 1 << 30  # bytes; some million files
# Added to the store time, in seconds. `_LASTING` is the shelf of what cannot be asked for again; it is not limited.
_ANSWERS, _NAMES, _LASTING = 0.0, 1e10, 1e11
_END = {_ANSWERS: _NAMES, _NAMES: _LASTING, _LASTING: float("inf")}
# The bytes of a row. The key is in an index, too. LENGTH of a text would end at its first NUL.
_COST = "(size + IFNULL(LENGTH(value), 0) + 2 * LENGTH(CAST(key AS BLOB)) + 100)"
_AT_ONCE = 100  # rows looked at in one step of making room


def after(start: str) -> str:
    """The first key that sorts after all keys which begin with `start`."""
    return start[:-1] + chr(ord(start[-1]) + 1)


class Room:
    """Writes to a diskcache that evicts nothing by itself, and keeps it within the budgets. For one thread.

    Keys that begin with one of `answers` belong to API answers, those that begin with one of `lasting` are never
    dropped.
    """

    def __init__(self, disk: Any, *, answers: Sequence[str], lasting: Sequence[str]) -> None:
        self._disk = disk
        self._answers, self._lasting = tuple(answers), tuple(lasting)
        self._taken: dict[float, int] | None = None  # bytes by shelf; None: to be measured

    def write(self, batch: Mapping[str, bytes]) -> None:
        """Write entries, then drop the oldest ones beyond the budgets, in one transaction.

        Raises whatever the failing call raises; then nothing was written.
        """
        try:
            with self._disk.transact():  # with retry=True it would retry without end, whatever the reason
                taken = self._taken = self._taken or self._measure()
                for key, raw in batch.items():
                    self._put(key, raw, taken)
                for shelf, limit in ((_ANSWERS, _ANSWERS_LIMIT), (_NAMES, _NAMES_LIMIT)):
                    self._make_room(shelf, limit, taken)
        except BaseException:
            self._taken = None
            raise

    def _put(self, key: str, raw: bytes, taken: dict[float, int]) -> None:
        shelf = self._shelf(key)
        before = self._cost(key)
        self._disk.set(key, raw)
        self._disk._sql("UPDATE Cache SET store_time = store_time + ? WHERE key = ?", (shelf, key))
        taken[shelf] += self._cost(key) - before

    def _shelf(self, key: str) -> float:
        return _ANSWERS if key.startswith(self._answers) else _LASTING if key.startswith(self._lasting) else _NAMES

    def _cost(self, key: str) -> int:
        return sum(cost for (cost,) in self._disk._sql(f"SELECT {_COST} FROM Cache WHERE key = ?", (key,)))

    def _measure(self) -> dict[float, int]:
        """The bytes on each shelf. Earlier versions did not shift the store times of names: do so now."""
        no_answer, ends = "", []
        for start in self._answers:
            no_answer += " AND NOT (key >= ? AND key < ?)"
            ends += [start, after(start)]
        self._disk._sql(
            f"UPDATE Cache SET store_time = store_time + ? WHERE store_time < ?{no_answer}", (_NAMES, _NAMES, *ends)
        )
        # Not with GROUP BY, which would sort all rows, in memory or in a file.
        sums = ", ".join(f"IFNULL(SUM({_COST} * (store_time >= ? AND store_time < ?)), 0)" for _ in _END)
        [costs] = self._disk._sql(f"SELECT {sums} FROM Cache", [edge for shelf in _END.items() for edge in shelf])
        return dict(zip(_END, costs, strict=True))

    def _make_room(self, shelf: float, limit: int, taken: dict[float, int]) -> None:
        while taken[shelf] > limit:
            rows = self._disk._sql(
                f"SELECT key, {_COST} FROM Cache WHERE store_time >= ? AND store_time < ? ORDER BY store_time LIMIT ?",
                (shelf, _END[shelf], _AT_ONCE),
            ).fetchall()
            if not rows:
                return
            for key, cost in rows:
                if taken[shelf] > limit:
                    self._disk.delete(key)
                    taken[shelf] -= cost

"""Names that the Hub leads on from: old names of repositories, ids without an owner, other spellings. Pure.

What is known of a repository is kept under the name that clients ask for. A refusal or a write that is heard of under
one name has to count for the others too; so the way from each name to the repository's own is remembered here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_MAX_ALIASES = 1000


class Aliases:
    """Where names lead. Bounded: the alias learned first is dropped first."""

    def __init__(self, known: Mapping[str, str] | None = None, limit: int = _MAX_ALIASES) -> None:
        self.known = dict(known or {})
        self._limit = limit

    def names(self, name: str) -> list[str]:
        """The name, and those that it leads to in turn. Names that were exchanged may lead in a circle."""
        names = [name]
        while (following := self.known.get(names[-1])) is not None and following not in names:
            names.append(following)
        return names

    def leading_to(self, names: Iterable[str]) -> set[str]:
        """These names, and all that lead to one of them."""
        wanted = set(names)
        return wanted | {alias for alias in self.known if not wanted.isdisjoint(self.names(alias))}

    def is_known(self, name: str, to: str) -> bool:
        """Whether `lead` would note nothing new."""
        return name not in self.known if to == name else to in self.names(name)

    def lead(self, name: str, to: str) -> set[str]:
        """Note that the Hub leads from a name to another one, or (`to` is `name`) to nowhere else any more.

        Returns the names of which everything said before is void, because it may have been said of another repository,
        or because there is no room to remember where they lead.
        """
        if self.is_known(name, to):
            return set()
        void = self.leading_to([name]) if name in self.known else set()
        self.known.pop(name, None)
        if to != name:
            self.known[name] = to
        while len(self.known) > self._limit:
            first = next(iter(self.known))
            void |= self.leading_to([first])
            del self.known[first]
        return void

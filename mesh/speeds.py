"""How quick the nodes of one swarm are as sources and as receivers, measured with each piece. Pure."""

from __future__ import annotations

from mesh import policy
from mesh.books import Assignment, Node


class Speeds:
    """Measures the speed of sources and receivers. All times are in seconds."""

    def __init__(self, piece_size: int) -> None:
        self._piece_size = piece_size
        self._pace = policy.Mean()  # over all nodes: time until a piece from a peer arrives
        self._service = policy.Mean()  # over all sources: time a piece takes when nothing else is uploaded
        self.is_late = False  # pieces take longer than lines account for

    def arrived(self, node: Node, server: Node, task: Assignment, seconds: float) -> None:
        """Account for a piece that a node received from `server`, `seconds` after it was assigned."""
        if not self.is_slow(node):  # otherwise the source would seem slow
            server.uploads.arrived(seconds, task.among, self._service.value, self._piece_size)
            self._service.add(server.uploads.service.value, weight=0.01)
        node.pace.add(seconds)
        self._pace.add(seconds, weight=0.01)
        self.is_late = policy.is_late(self._pace.value, self._piece_size)

    def timed_out(self, node: Node, server: Node, task: Assignment, seconds: float) -> None:
        """Account for a task that timed out: the source becomes a worse choice, and the node gets more time."""
        node.pace.add(2 * max(node.pace.value, seconds))
        server.uploads.service.add(2 * max(server.uploads.service.value, seconds / max(1, task.among)))

    def is_slow(self, node: Node) -> bool:
        """Whether a node receives so slowly that others would wait for the pieces it is to share."""
        return node.pace.count > 1 and node.pace.value > policy.SLOW * self._pace.value

    def expected(self, server: Node) -> float:
        """Time until this source would finish one more upload.

        Measurements depend on the receivers too, and above all on the source's load: the busier a source, the quicker
        each of its uploads seems. So all sources count as equally quick, except those that are much slower.
        """
        usual = self._service.value or self._pace.value / policy.FEWEST_UPLOADS or 0.01
        service = server.uploads.service.value if server.uploads.is_slow else usual
        return service * (server.uploads.outstanding + 1)

    def patience(self, node: Node, sources: list[Node], *, is_late_crowd: bool) -> float:
        """Time given to a task: a multiple of the time expected, which is less if other sources can take over."""
        expected = max(self.expected(sources[0]), node.pace.value) if len(sources) == 1 else node.pace.value
        shortest = policy.SHORTEST + self._piece_size / policy.SLOW_RATE
        times = policy.PATIENCE_OF_CROWD if is_late_crowd else policy.PATIENCE
        return min(policy.SLOWEST, max(shortest, times * expected))

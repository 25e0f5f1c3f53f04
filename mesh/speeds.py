"""How quick the nodes of one swarm are, as sources and as receivers: measured with each piece, and expected. Pure."""

from __future__ import annotations

from mesh import policy
from mesh.books import Assignment, Node


class Speeds:
    """Times are in seconds."""

    def __init__(self, piece_size: int) -> None:
        self._piece_size = piece_size
        self._pace = policy.Mean()  # of all nodes: until a piece from a peer is there
        self._service = policy.Mean()  # of all sources: that a piece takes when nothing else is uploaded
        self.is_late = False  # pieces take longer than lines account for

    def arrived(self, node: Node, server: Node, task: Assignment, seconds: float) -> None:
        """A node had a piece from a peer, so long after it was sent for it."""
        if not self.is_slow(node):  # or the source would pass for slow
            server.uploads.arrived(seconds, task.among, self._service.value, self._piece_size)
            self._service.add(server.uploads.service.value, weight=0.01)
        node.pace.add(seconds)
        self._pace.add(seconds, weight=0.01)
        self.is_late = policy.is_late(self._pace.value, self._piece_size)

    def timed_out(self, node: Node, server: Node, task: Assignment, seconds: float) -> None:
        """One of them is slow. The source is a worse choice now, and the node gets more time."""
        node.pace.add(2 * max(node.pace.value, seconds))
        server.uploads.service.add(2 * max(server.uploads.service.value, seconds / max(1, task.among)))

    def is_slow(self, node: Node) -> bool:
        """Whether a node receives so slowly that others would wait for what it is to bring."""
        return node.pace.count > 1 and node.pace.value > policy.SLOW * self._pace.value

    def expected(self, server: Node) -> float:
        """Until this source would be done with one more upload.

        What is measured depends on the receivers, too, and most of all on how much the source has to do: the busier,
        the quicker it seems for each. So all count as equally quick but those that are much slower.
        """
        usual = self._service.value or self._pace.value / policy.FEWEST_UPLOADS or 0.01
        service = server.uploads.service.value if server.uploads.is_slow else usual
        return service * (server.uploads.outstanding + 1)

    def patience(self, node: Node, sources: list[Node], *, is_late_crowd: bool) -> float:
        """That a task is given: what it may well take, or less where others can take over from a slow one."""
        expected = max(self.expected(sources[0]), node.pace.value) if len(sources) == 1 else node.pace.value
        shortest = policy.SHORTEST + self._piece_size / policy.SLOW_RATE
        times = policy.PATIENCE_OF_CROWD if is_late_crowd else policy.PATIENCE
        return min(policy.SLOWEST, max(shortest, times * expected))

"""The swarm that `loadtests.simulate` runs: nodes with real queues, and their conversation with the real ledger.

Bytes are a fluid that flows at max-min fair rates: every node has one rate up and one down, the origin has one for all
nodes together, and the network between them has no limit. How often nodes report, how long answers are held, which
nodes are woken, the number and length of streams and when they are given up: as in `mesh.swarm`, `mesh.fetcher`,
`mesh.watch` and `mesh.tracker`. The number of streams of a node to the origin depends on the cores of its machine, here
of this one. Not simulated are an origin that fails or does not support ranges, slots shared by several files, and busy
machines. Time advances in steps; a message or a request takes at least one, so steps stand for network latency.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import time

import numpy as np

from loadtests.fluid import Flows
from loadtests.simulated import Node, Run
from loadtests.timeline import Moment
from mesh.bits import bits_in
from mesh.content import Pieces
from mesh.fetcher import FIRST_SECONDS
from mesh.ledger import Ledger
from mesh.messages import MAX_TASKS, ORIGIN, Plan, Report
from mesh.policy import CROWD, EXTENSIONS, SHORTEST

# As in mesh.swarm, mesh.exchange and mesh.tracker.
IN_FLIGHT = 64 << 20
MIN_TASKS = 8
INTERVAL = 0.08
UNHURRIED = 1.0
LATE_SECONDS = 1.0
MANY = 8
HOLD_SECONDS = 2.0
WOKEN = 4
FIRST_BYTE_SECONDS = 0.1  # latency of the origin
NOTICED_SECONDS = 3.0  # from a node's death until membership reports it


class Simulation:
    """Nodes 0 to N - 1, then the seeds; in the arrays the origin comes last."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.random = random.Random(options.random)
        self.size: int = options.size
        self.pieces = Pieces.of(self.size)
        self.full = (1 << self.pieces.count) - 1
        self.ledger = Ledger(self.size, seed=options.random)
        self.now = 0.0
        self.nodes: list[Node] = []
        self.by_name: dict[str, Node] = {}
        self.alive = 0  # nodes that the others believe to be alive
        spare = options.nodes if options.churn else 0
        total = options.nodes + options.seeds + spare
        slow = set(self.random.sample(range(options.nodes), round(options.slow * options.nodes)))
        pace = np.array([0.1 if number in slow else 1.0 for number in range(total)])
        self.origin = total
        up = np.append(options.up * pace, options.origin)
        up[options.nodes : options.nodes + options.seeds] = options.seed_up or options.up
        self.flows = Flows(up, np.append(options.down * pace, 1.0))
        self.runs: dict[int, Run] = {}
        self.bound = self._bound()
        self.step: float = options.step or min(0.05, max(0.002, self.bound / 4000))
        self.events: list[tuple[float, int, str, object]] = []
        self.numbers = itertools.count()
        self.held: dict[str, float] = {}  # node → time until which the answer to its report is held
        self.due: set[int] = set()
        self.origin_bytes = 0
        self.reports = 0
        self.ledger_seconds = 0.0  # CPU seconds
        self.timeline: list[Moment] = []
        self._moved = [0.0, 0.0]  # bytes since the last moment: from the origin, from peers
        self.lost = 0  # pieces whose transfer broke off
        for number in range(options.nodes + options.seeds):
            self._join(number in slow, is_seed=number >= options.nodes)

    def _bound(self) -> float:
        """Return the lower bound in seconds: the slowest path all bytes must take. Slow nodes count as normal ones."""
        o = self.options
        supply = o.nodes * o.up + (o.seeds * (o.seed_up or o.up) if o.seeds else o.origin)
        bounds = [self.size / o.origin, self.size / o.down, o.nodes * self.size / supply]
        if o.seeds:
            bounds.append(self.size / (o.seeds * (o.seed_up or o.up)))
        return float(max(bounds))

    # --- nodes

    def _join(self, is_slow: bool = False, *, is_seed: bool = False) -> None:
        number = len(self.nodes)
        node = Node(number, f"node-{number}", is_seed, is_slow, self.now, self.pieces)
        self.nodes.append(node)
        self.alive += 1
        self.by_name[node.name] = node
        # Spread over one interval: real nodes never join in the same millisecond.
        self._at(self.now + self.random.random() * INTERVAL, "due", node)

    def _kill(self, node: Node) -> None:
        node.is_alive = False
        for flow in list(node.running):
            self._stop(flow)
        for flow, run in list(self.runs.items()):
            if run.source == node.name:
                self._fail(flow, "refused")
        self._at(self.now + NOTICED_SECONDS, "forget", node)

    def _slots(self) -> int:
        return max(MIN_TASKS, min(MAX_TASKS - 16, IN_FLIGHT // self.pieces.piece_size))

    def _report(self, node: Node) -> Report:
        have = node.have.to_bytes(-(-self.pieces.count // 8), "little") if node.is_new else None
        node.is_new = False
        node.told_urgent = node.urgent
        report = Report(
            node=node.name,
            have=have,
            gained=tuple(node.gained),
            failed=tuple(node.failed[:256]),
            urgent=tuple((piece, piece + 1) for piece in node.urgent),
            wanted=() if node.is_seed or node.have == self.full else ((0, self.pieces.count),),
            slots=max(0, self._slots() - node.pending),
            can_fetch=True,
            seed=node.is_seed,
            fetched=int(node.fetched),
        )
        node.gained, node.failed = [], []
        return report

    def _is_worth_telling(self, node: Node) -> bool:
        return bool(
            node.is_new
            or node.failed
            or len(node.gained) >= MANY
            or any(gain.source == ORIGIN for gain in node.gained)
            or (not node.talks and 2 * node.pending <= self._slots())
            or node.urgent != node.told_urgent
        )

    def _take(self, node: Node, plan: Plan) -> None:
        node.take(plan.tasks)
        if plan.resync:
            node.is_new = True
            self._due(node)
        node.talks -= 1
        self._report_by(node, self.now + plan.retry_after)
        self._launch(node)

    def _launch(self, node: Node, *, is_urgent: bool = False) -> None:
        while node.is_alive and node.queue:
            run = node.next_run(self.now, is_crowd=self.alive - 1 > CROWD, is_urgent=is_urgent)
            if run is None:
                break
            self._start(run)

    def _hurry(self, node: Node) -> None:
        """Requeue a node's pieces when its reader's next pieces have changed or are late."""
        urgent = node.heads()
        node.urgent_since = {piece: node.urgent_since.get(piece, self.now) for piece in urgent}
        late = [piece for piece, since in node.urgent_since.items() if self.now - since >= LATE_SECONDS]
        if urgent != node.urgent or late:
            node.urgent = urgent
            node.hurry(late)
            self._launch(node, is_urgent=any(piece in node.queue.leased for piece in urgent))

    # --- runs

    def _start(self, run: Run) -> None:
        node, now = run.node, self.now
        start, stop = self.pieces.span(run.tasks[0].piece)
        run.asked = stop - start
        if run.source == ORIGIN:
            flow = self.flows.add(self.origin, node.number, run.asked, now + FIRST_BYTE_SECONDS, float("inf"))
            if not node.has_answered:
                self._at(now + FIRST_BYTE_SECONDS + FIRST_SECONDS, "answered", node)
        else:
            source = self.by_name[run.source]
            until = now + max(SHORTEST, run.tasks[0].seconds)
            flow = self.flows.add(source.number, node.number, run.asked, now + self.step, until)
        self.runs[flow] = node.running[flow] = run
        if run.source != ORIGIN and not source.is_alive:
            self._fail(flow, "refused")

    def _stop(self, flow: int) -> Run:
        run = self.runs.pop(flow)
        del run.node.running[flow]
        self.flows.remove(flow)
        return run

    def _land(self, flow: int) -> None:
        run = self.runs[flow]
        node = run.node
        start, stop = self.pieces.span(run.tasks[run.at].piece)
        if run.source == ORIGIN:
            self.origin_bytes += stop - start
        else:
            self.by_name[run.source].sent += stop - start
        node.received += stop - start
        node.land(run, self.now)
        if node.have == self.full and node.done_at is None and not node.is_seed:
            node.done_at = self.now
        self._due(node)
        if run.coming:
            start, stop = self.pieces.span(run.tasks[run.at].piece)
            run.asked += stop - start
            self.flows.left[flow] += stop - start  # the stream continues without a pause
        else:
            self._stop(flow)
            self._launch(node)

    def _watch(self, flow: int) -> None:
        """Check a run as mesh.watch does: it fails without a whole new piece (a part of one, from the only source)."""
        run = self.runs[flow]
        first, came = run.tasks[0], run.asked - float(self.flows.left[flow])
        least = self.pieces.piece_size // EXTENSIONS if len(first.sources) == 1 else self.pieces.piece_size
        if came - run.seen < least:
            self._fail(flow, "timeout")
        else:
            run.seen = came
            self.flows.until[flow] = self.now + max(SHORTEST, first.seconds)

    def _fail(self, flow: int, reason: str) -> None:
        run = self._stop(flow)
        self.lost += 1
        run.node.lose(run, reason)
        self._due(run.node)
        self._launch(run.node)

    # --- the conversation

    def _due(self, node: Node) -> None:
        """Mark that a node has news to report."""
        node.has_news = True
        self.due.add(node.number)

    def _at(self, when: float, what: str, about: object) -> None:
        heapq.heappush(self.events, (when, next(self.numbers), what, about))

    def _send_reports(self) -> None:
        for number in list(self.due):
            node = self.nodes[number]
            if self.now - node.reported_at < INTERVAL and node.is_alive:
                continue
            self.due.discard(number)
            if not node.is_alive:
                continue
            self._hurry(node)
            if node.talks > 1 or (self.now < node.report_by and not (node.has_news and self._is_worth_telling(node))):
                if node.has_news:
                    self._report_by(node, node.reported_at + UNHURRIED)
                node.has_news = False
                continue
            node.has_news = False
            node.talks += 1
            node.reported_at = self.now
            node.report_by = float("inf")
            self._report_by(node, self.now + 10.0)
            self._at(self.now + self.step, "report", self._report(node))

    def _report_by(self, node: Node, when: float) -> None:
        if when < node.report_by:
            node.report_by = max(when, self.now + self.step)
            self._at(node.report_by, "overdue", node)

    def _track(self, report: Report) -> None:
        """Process a report as mesh.tracker does."""
        if self.held.pop(report.node, None) is not None:
            self._at(self.now + self.step, "plan", (report.node, Plan()))
        self.reports += 1
        began = time.process_time()
        plan = self.ledger.report(report, self.now)
        gained = bits_in(gain.piece for gain in report.gained)
        if gained or report.have is not None:
            woken = 0
            for name in self.ledger.waiting(gained or self.ledger.held):
                if name != report.node and name in self.held:
                    if answer := self.ledger.plan(name, self.now):
                        self._answer(name, answer)
                    woken += 1
                    if woken == WOKEN:
                        break
        self.ledger_seconds += time.process_time() - began
        if plan or not report.slots or not report.wanted:
            self._at(self.now + self.step, "plan", (report.node, plan))
        else:
            until = self.held[report.node] = self.now + HOLD_SECONDS
            self._at(until, "answer", (report.node, until))

    def _answer(self, name: str, plan: Plan) -> None:
        del self.held[name]
        self._at(self.now + self.step, "plan", (name, plan))

    def _handle(self, what: str, about: object) -> None:
        if what == "report":
            assert isinstance(about, Report)
            self._track(about)
        elif what == "plan":
            name, plan = about  # type: ignore[misc]
            node = self.by_name[name]
            if node.is_alive:
                self._take(node, plan)
        elif what == "answer":
            name, until = about  # type: ignore[misc]
            if self.held.get(name) == until:
                self._answer(name, self.ledger.plan(name, self.now))
        else:
            assert isinstance(about, Node)
            if what == "answered" and not about.has_answered:
                about.has_answered = True
                self._launch(about)
            elif what == "due":
                self._due(about)
            elif what == "overdue" and self.now >= about.report_by:
                self.due.add(about.number)
            elif what == "forget":
                self.alive -= 1
                self.ledger.forget(about.name)
                self.held.pop(about.name, None)

    # --- time

    def _churn(self) -> None:
        """Replace one node in a hundred by a new one; `run` does so ten times."""
        some = [node for node in self.nodes if node.is_alive and not node.is_seed and node.done_at is None]
        for node in self.random.sample(some, min(len(some), max(1, self.options.nodes // 100))):
            if len(self.nodes) < self.origin:
                self._kill(node)
                self._join()

    def run(self) -> None:
        churn_at = iter([self.bound * n / 10 for n in range(1, 11)] if self.options.churn else [])
        next_churn = next(churn_at, float("inf"))
        expire_at = 1.0
        while any(self._is_awaited(node) for node in self.nodes):
            self.now += self.step
            self._move()
            while self.events and self.events[0][0] <= self.now:
                _, _, what, about = heapq.heappop(self.events)
                self._handle(what, about)
            self._send_reports()
            if self.now >= expire_at:
                self.ledger.expire(self.now)
                for node in filter(self._is_awaited, self.nodes):  # a node checks every second, with or without news
                    self._hurry(node)
                expire_at += 1.0
            if self.now >= next_churn:
                self._churn()
                next_churn = next(churn_at, float("inf"))
            if self.now > 50 * self.bound + 100:
                raise SystemExit(f"not done after {self.now:.0f} s")

    def _is_awaited(self, node: Node) -> bool:
        if node.is_seed or not node.is_alive or node.done_at is not None:
            return False
        return not (node.is_slow and self.options.without_slow)

    def _move(self) -> None:
        flows, count, through = self.flows.advance(self.now, self.step)
        from_origin = self.flows.source[flows] == self.origin
        self._moved[0] += float(count[from_origin].sum())
        self._moved[1] += float(count[~from_origin].sum())
        if self.now >= (len(self.timeline) + 1) * self.bound / 25:
            self._look(flows)
        for flow, size in zip(flows[from_origin], count[from_origin], strict=True):
            self.nodes[self.flows.target[flow]].fetched += size
        for flow in through:
            self._land(int(flow))
        for flow in np.nonzero(self.flows.until <= self.now)[0]:
            self._watch(int(flow))

    def _look(self, flows: np.ndarray) -> None:
        sends = np.bincount(self.flows.source[flows], minlength=self.origin + 1)
        receives = np.bincount(self.flows.target[flows], minlength=self.origin + 1)
        nodes = [node for node in self.nodes if node.is_alive and not node.is_seed]
        self.timeline.append(
            Moment(
                at=self.now,
                origin=self._moved[0],
                peers=self._moved[1],
                idle_up=sum(bool(n.have) and not sends[n.number] for n in nodes) / len(nodes),
                idle_down=sum(n.done_at is None and not receives[n.number] for n in nodes) / len(nodes),
                pieces=self.ledger.held.bit_count(),
                have=sum(n.have.bit_count() for n in nodes) / len(nodes) / self.pieces.count,
            )
        )
        self._moved = [0.0, 0.0]

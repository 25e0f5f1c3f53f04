"""N real nodes, one stand-in Hub, and N clients that all request one cold file at the same instant.

    make swarm N=50 SIZE=64MiB
    python -m loadtests.swarm --nodes 8 --size 64MiB --seeds 1 --keyed
    python -m loadtests.swarm --nodes 8 --size 64MiB --origin 20MB/s --up 20MB/s --down 50MB/s   (as root: namespaces)

Prints the bytes that the origin sent ÷ one copy, the time of the last node ÷ the least that the links allow, and each
node's share of the uploads. Writes `.build/swarm.json` and, with matplotlib, `.build/swarm.png`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import random
import secrets
import signal
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from loadtests.network import Network, Site
from loadtests.rivals import cpu_seconds
from proxy.units import format_size, parse_rate, parse_size
from tests.hub.process import HubProcess
from tests.node import NodeProcess

REPO, FILE = "acme/model", "model.safetensors"
OUTPUT = Path(".build")
_READ = 256 << 10
_ON_THE_WIRE = 1514 / 1448  # bytes of Ethernet frames, which the link limits count, per byte of a TCP stream
_MOST_RETRIES = 5  # as in huggingface_hub.utils.http_backoff
_STARTERS = 4  # nodes started at the same time
_START_SECONDS = 120.0  # for a node to be ready, and for all nodes to find each other


@dataclass
class Download:
    """One client's download: its duration in seconds, the bytes it received, and its progress."""

    node: int
    seconds: float = 0.0
    size: int = 0
    sha256: str = ""
    error: str = ""
    longest_wait: float = 0.0  # for a byte, in seconds, counted from the request or the byte before
    retries: int = 0  # after a 429
    told_to_wait: float = 0.0  # seconds slept before those retries, as the node asked
    progress: list[tuple[float, int]] = field(default_factory=list)


@dataclass
class Result:
    """One swarm. Sizes in bytes, times in seconds."""

    nodes: int
    size: int
    seeds: int
    keyed: bool
    clients: int
    wrong: list[str]
    origin_bytes: int
    origin_requests: dict[str, int]
    last: float  # of the clients that received the right file
    median: float  # of the same clients
    lower_bound: float | None
    lower_bound_of_one_copy: float | None
    uploads: list[int]
    node_cpu: list[float]  # user and system
    client_cpu: float
    hub_cpu: float
    downloads: list[Download]

    @property
    def copies(self) -> float:
        return self.origin_bytes / self.size


def download(url: str, node: int, site: Site, start: threading.Barrier, began: list[float]) -> Download:
    """Download as the Hub's clients do: give up after 10 s without a byte, retry after a 429."""
    result = Download(node)
    site.enter()
    hasher = hashlib.sha256()
    parts = urlsplit(url)
    with contextlib.suppress(threading.BrokenBarrierError):
        start.wait()
    began_at = heard_at = began[0] = began[0] or time.monotonic()
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        while True:
            connection.request("GET", parts.path, headers={"User-Agent": "hf_hub/2.4.0; swarm"})
            response = connection.getresponse()
            if response.status != 429 or result.retries == _MOST_RETRIES:
                break
            response.read()
            answered_at = time.monotonic()
            result.longest_wait = max(result.longest_wait, answered_at - heard_at)
            result.retries += 1
            time.sleep(float(response.headers["Retry-After"]))
            heard_at = time.monotonic()
            result.told_to_wait += heard_at - answered_at
        if response.status != 200:
            result.error = f"HTTP {response.status} {response.read(300)!r}"
        else:
            while part := response.read1(_READ):  # returns what has arrived; readinto() would wait for a full buffer
                now = time.monotonic()
                result.longest_wait, heard_at = max(result.longest_wait, now - heard_at), now
                hasher.update(part)
                result.size += len(part)
                result.progress.append((round(now - began_at, 3), result.size))
    except (OSError, http.client.HTTPException) as error:
        result.error = f"{type(error).__name__}: {error}"
        result.longest_wait = max(result.longest_wait, time.monotonic() - heard_at)
    finally:
        connection.close()
    result.seconds = time.monotonic() - began_at
    result.sha256 = hasher.hexdigest()
    result.progress = result.progress[:: max(1, len(result.progress) // 100)]
    return result


def lower_bound(size: int, nodes: int, seeds: int, rates: argparse.Namespace) -> float | None:
    """Return the least seconds that the links allow: the file into the site, into each node, and out of all senders.

    None unless all three rates are limited.
    """
    if not (rates.origin and rates.up and rates.down):
        return None
    wire = size * _ON_THE_WIRE
    uplinks = (nodes + seeds) * rates.up
    return max(wire / rates.origin, wire / rates.down, nodes * wire / (rates.origin + uplinks))


def lower_bound_of_one_copy(size: int, nodes: int, seeds: int, rates: argparse.Namespace) -> float | None:
    """Return the same bound if the origin sends no byte twice: all other copies come from the nodes' uplinks.

    The other bound lets the origin's link help to the end; unless that link is slow beside all uplinks, this takes more
    than one copy from the origin.
    """
    if not (rates.origin and rates.up and rates.down):
        return None
    wire, uplinks = size * _ON_THE_WIRE, (nodes + seeds) * rates.up
    copies = nodes if seeds else nodes - 1
    return max(wire / rates.origin, wire / rates.down, copies * wire / uplinks)


def run(options: argparse.Namespace) -> Result:
    """Build the site, run the swarm and tear everything down."""
    nodes, size = options.nodes, options.size
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hubmesh-swarm-", dir=options.scratch)))
        limited = bool(options.origin or options.up or options.down)
        network = stack.enter_context(Network(nodes + options.seeds, options.origin, options.up, options.down, limited))
        content = root / "content"
        expected = _make_content(content, size)
        hub = stack.enter_context(HubProcess(root / "hub", host=network.hub.host, prefix=network.hub.prefix))
        hub.folder.commit(REPO, {FILE: content})
        print(f"starting {nodes} nodes and {options.seeds} seeds ...", file=sys.stderr)
        started = _start_nodes(stack, root, hub, network, options)
        clients = started[options.seeds :]
        network.hub.call(hub.reset)
        print("racing ...", file=sys.stderr)
        pids = [hub.pid, *(node.pid for node in started)]
        before, clients_before = [cpu_seconds(pid) for pid in pids], time.process_time()
        downloads = _race(clients, network, options, started)
        client_cpu = time.process_time() - clients_before
        # A node that was killed meanwhile counts as zero.
        hub_cpu, *node_cpu = (max(0.0, cpu_seconds(pid) - then) for pid, then in zip(pids, before, strict=True))
        uploads = [int(node.metric("hubmesh_peer_sent_bytes_total")) for node in started if node.is_running]
        stats = network.hub.call(hub.stats)
    is_right = [not d.error and d.sha256 == expected and d.size == size for d in downloads]
    wrong = [
        f"node {d.node}: {d.error or 'wrong bytes'}" for d, right in zip(downloads, is_right, strict=True) if not right
    ]
    seconds = [d.seconds for d, right in zip(downloads, is_right, strict=True) if right]
    return Result(
        nodes,
        size,
        options.seeds,
        options.keyed,
        len(downloads),
        wrong,
        stats["total_bytes"],
        stats["by_kind"],
        max(seconds, default=0.0),
        statistics.median(seconds) if seconds else 0.0,
        lower_bound(size, nodes, options.seeds, options),
        lower_bound_of_one_copy(size, nodes, options.seeds, options),
        uploads,
        node_cpu,
        client_cpu,
        hub_cpu,
        downloads,
    )


def _make_content(path: Path, size: int) -> str:
    hasher, source = hashlib.sha256(), random.Random(size)
    with path.open("wb") as file:
        left = size
        while left:
            part = source.randbytes(min(left, 1 << 20))
            file.write(part)
            hasher.update(part)
            left -= len(part)
    return hasher.hexdigest()


def _start_nodes(
    stack: ExitStack, root: Path, hub: HubProcess, network: Network, options: argparse.Namespace
) -> list[NodeProcess]:
    """Start the seeds (or one node), then all others with these as contacts; wait until every node knows all others."""
    flags = ["--log-level", options.log_level]
    if options.keyed:
        key = root / "key"
        key.write_text(secrets.token_hex(32))
        flags += ["--mesh-key-file", str(key)]

    def make(number: int, *more: str) -> NodeProcess:
        site = network.sites[number]
        return NodeProcess(
            root / f"node-{number}",
            hub.url,
            *flags,
            *more,
            mesh_host=site.host,
            prefix=site.prefix,
            call=site.call,
            patience=_START_SECONDS,
        )

    seeds = [make(number, "--role", "seed") for number in range(options.seeds)]
    first = seeds or [make(0)]
    for node in first:
        stack.enter_context(node)
    contacts = [flag for node in first for flag in ("--seed", node.mesh)]
    rest = [make(number, *contacts) for number in range(len(first), options.seeds + options.nodes)]
    with ThreadPoolExecutor(_STARTERS) as pool:
        list(pool.map(NodeProcess.start, rest))
    for node in rest:
        stack.callback(_stop, node)
    everybody = [*first, *rest]
    until = time.monotonic() + _START_SECONDS
    for node in everybody:
        while node.metric("hubmesh_peers") < len(everybody) - 1:
            if time.monotonic() > until:
                raise SystemExit("the nodes do not find each other")
            time.sleep(0.1)
    return everybody


def _stop(node: NodeProcess) -> None:
    with contextlib.suppress(AssertionError):
        node.stop(signal.SIGKILL)


def _race(
    clients: list[NodeProcess], network: Network, options: argparse.Namespace, everybody: list[NodeProcess]
) -> list[Download]:
    barrier, began = threading.Barrier(len(clients) + 1), [0.0]
    path = f"/{REPO}/resolve/main/{FILE}"
    with ThreadPoolExecutor(len(clients)) as pool:
        futures = [
            pool.submit(download, node.url + path, number, network.sites[options.seeds + number], barrier, began)
            for number, node in enumerate(clients)
        ]
        barrier.wait()
        if options.kill:
            time.sleep(options.kill_after)
            victim = everybody[0] if options.kill == "first" else everybody[-1]
            print(f"killing {victim.data_dir.name}", file=sys.stderr)
            victim.kill()
        downloads = [future.result() for future in futures]
    if options.kill:
        gone = 0 if options.kill == "first" else len(clients) - 1
        if not (options.kill == "first" and options.seeds):
            downloads = [download for download in downloads if download.node != gone]
    return downloads


def report(result: Result) -> str:
    """Format the result as text."""
    total = sum(result.uploads) or 1
    shares = sorted(upload / total for upload in result.uploads)
    waits = [download.longest_wait for download in result.downloads]
    told = [download.told_to_wait for download in result.downloads if download.retries]
    whole = result.clients - len(result.wrong)
    lines = [
        f"{result.nodes} nodes, {result.seeds} seeds, {'keyed' if result.keyed else 'open'} mesh, "
        f"{format_size(result.size)}",
        f"wrong or failed downloads: {len(result.wrong)}",
        f"origin bytes ÷ one copy:   {result.copies:.3f}",
        f"origin requests:           {result.origin_requests}",
        f"last node: {result.last:.2f} s, median {result.median:.2f} s"
        + (f" ({whole} of {result.clients} clients got the file)" if result.wrong else _ratios(result)),
        f"longest wait for a byte: {max(waits):.1f} s; median of all clients: {statistics.median(waits):.1f} s",
        f"clients told to retry (429): {len(told)}" + (f", which slept {max(told):.1f} s at most" if told else ""),
        f"CPU: {statistics.mean(result.node_cpu):.2f} s a node, {sum(result.node_cpu):.1f} s in all; "
        f"clients {result.client_cpu:.1f} s, stand-in Hub {result.hub_cpu:.1f} s",
        f"share of uploads per node: smallest {shares[0]:.1%}, median {statistics.median(shares):.1%}, "
        f"largest {shares[-1]:.1%}",
    ]
    return "\n".join(lines + [f"  {line}" for line in result.wrong[:10]])


def _ratios(result: Result) -> str:
    if not result.lower_bound or not result.lower_bound_of_one_copy:
        return ""
    one_copy = result.last / result.lower_bound_of_one_copy
    return f", last ÷ lower bound: {result.last / result.lower_bound:.2f}; if the origin sends one copy: {one_copy:.2f}"


def plot(result: Result, path: Path) -> bool:
    """Plot the progress of every client over time; False without matplotlib."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for one in result.downloads:
        axes.plot([t for t, _ in one.progress], [100 * n / result.size for _, n in one.progress], lw=0.7, alpha=0.6)
    axes.set(xlabel="seconds", ylabel="% of the file at the client", title=f"{result.nodes} nodes, cold at once")
    figure.savefig(path, dpi=120)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="loadtests.swarm", description=__doc__)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--size", type=parse_size, default="64MiB")
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--keyed", action="store_true")
    for name in ("origin", "up", "down"):
        parser.add_argument(f"--{name}", type=parse_rate, help="limit of the link; uses network namespaces, as root")
    parser.add_argument("--kill", choices=("first", "last"), help="kill -9 this node during the download")
    parser.add_argument("--kill-after", type=float, default=1.0, help="seconds")
    parser.add_argument("--scratch", help="where the nodes keep their data")
    parser.add_argument("--log-level", default="warning")
    options = parser.parse_args()
    if options.scratch:
        Path(options.scratch).mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no node outlives this process
    result = run(options)
    print(report(result))
    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / "swarm.json").write_text(json.dumps(asdict(result) | {"copies": result.copies}))
    plot(result, OUTPUT / "swarm.png")
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

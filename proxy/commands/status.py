"""`hubmesh status`: show what this node and its peers hold and do."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from proxy.admin.status import Status
from proxy.commands.local import find, node_flags
from proxy.units import format_size


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the JSON document of /-/status.")
@node_flags
def status(as_json: bool, **flags: Any) -> None:
    """Show what this node and its peers hold and do."""
    node = find(flags)
    if as_json:
        click.echo(node.get("/-/status"))
    else:
        click.echo("\n".join(describe(node.status(), node.url, time.time())))


def describe(status: Status, url: str, now: float) -> Iterator[str]:
    """Yield the lines of the report. `now` is in seconds since the epoch."""
    state = "ready" if status.ready else f"NOT READY: {status.reason}"
    yield f"node      {status.node_id} ({status.role}, hubmesh {status.version}) at {url}: {state}"
    complete = sum(blob.have == blob.size for blob in status.blobs)
    room = f"{format_size(status.usage.blob_bytes)} of {format_size(status.usage.max_bytes)}"
    yield f"holds     {complete} complete and {len(status.blobs) - complete} incomplete files: {room}"
    origin, peers, sent, given = (
        status.metrics.get(f"hubmesh_{name}_bytes_total", 0)
        for name in ("origin_received", "peer_received", "client_sent", "peer_sent")
    )
    yield f"received  {format_size(origin)} from the Hub, {format_size(peers)} from peers"
    yield f"sent      {format_size(sent)} to clients, {format_size(given)} to peers{_saved(origin, sent + given)}"
    if status.peers:
        yield ""
        yield from table(
            ("PEER", "ADDRESS", "ROLE", "SEEN"),
            (
                (
                    peer.node_id,
                    peer.address,
                    peer.role,
                    f"{peer.seen_seconds_ago:.0f} s ago" + " (no answer)" * (not peer.is_alive),
                )
                for peer in status.peers
            ),
        )
    if status.downloads:
        yield ""
        yield from table(
            ("ARRIVING", "SIZE", "HERE", "SPEED", "FROM"),
            (
                (
                    f"{arriving.repo or '?'}/{arriving.path or arriving.digest}",
                    format_size(arriving.size),
                    f"{arriving.have / arriving.size:.0%}" if arriving.size else "100%",
                    f"{format_size(sum(arriving.sources.values()) / max(1.0, now - arriving.began_at))}/s",
                    shares(arriving.sources),
                )
                for arriving in status.downloads
            ),
        )


def shares(sources: Any) -> str:
    """Format the three largest shares of a mapping from source to bytes: ``origin 80%, node-b 20%``."""
    total = sum(sources.values())
    largest = sorted(sources.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{source} {count / total:.0%}" for source, count in largest if total)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Format rows as lines with aligned columns."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _saved(origin: float, delivered: float) -> str:
    return f" ({1 - origin / delivered:.1%} of it not from the Hub)" if delivered > origin else ""

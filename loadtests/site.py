"""Run a stand-in Hub and a small mesh while locust runs.

    python -m loadtests.site --nodes 3 -- --headless -u 50 -r 10 -t 60s

Arguments after `--` go to locust. At the end it prints how much the Hub sent and the clients received.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from loadtests.jobs.bench import make_file
from proxy.units import format_size, parse_size
from tests.hub.process import HubProcess
from tests.node import NodeProcess, meet

REPO = "acme/model"


def main() -> int:
    parser = argparse.ArgumentParser(prog="loadtests.site", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--size", type=parse_size, default="64MiB", help="of the large file")
    parser.add_argument("locust", nargs="*", help="flags for locust, after --")
    options = parser.parse_args()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hubmesh-site-")))
        hub = stack.enter_context(HubProcess(root / "hub"))
        make_file(root / "model.safetensors", options.size)
        small = {f"part-{number}.json": b"{}" * 500 * (number + 1) for number in range(10)}
        hub.folder.commit(REPO, small | {"model.safetensors": root / "model.safetensors"})
        nodes = [stack.enter_context(NodeProcess(root / "node-0", hub.url))]
        for number in range(1, options.nodes):
            node = NodeProcess(root / f"node-{number}", hub.url, "--seed", nodes[0].mesh)
            nodes.append(stack.enter_context(node))
        meet(nodes)
        environment = os.environ | {"NODES": ",".join(node.url for node in nodes), "REPO": REPO}
        command = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py"))]
        status = subprocess.run([*command, "--host", nodes[0].url, *options.locust], env=environment).returncode
        sent = sum(node.metric("hubmesh_client_sent_bytes_total") for node in nodes)
        came = hub.stats()["total_bytes"]
    print(f"clients got {format_size(int(sent))}; the Hub sent {format_size(came)}, {came / options.size:.2f} copies")
    return status


if __name__ == "__main__":
    sys.exit(main())
